"""What a report wrote, so that the next one into the same folder takes away what it does not write again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from dembench import records

NAME = "manifest.json"


def replace(out: Path, written: Iterable[Path]) -> None:
    """Removes the files that the old manifest of ``out`` names and ``written`` lacks, then writes the new manifest.

    Only plain files below ``out`` are removed, whatever the manifest says.
    """
    names = sorted(path.relative_to(out).as_posix() for path in written)
    try:
        old = records.read_json(out / NAME, {"files": [str]})["files"]
    except (OSError, ValueError):
        old = []
    for name in set(old) - {*names, NAME}:
        path = out / name
        inside = path.resolve().is_relative_to(out.resolve()) and path.parent.name in ("tables", "figures")
        if inside and path.is_file() and not path.is_symlink():
            path.unlink()
    records.write_plain(out / NAME, json.dumps({"files": names}, indent=1) + "\n")

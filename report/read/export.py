"""Many runs as one file, for a page of results or a mail: JSON lines under gzip, the same bytes for the same runs.

The first line says what the file is; each further line is a run's result.json, in which the paths of the machine are
cut to their last name. Curves (curve.csv, series.csv) come along on request, pictures never.
"""

from __future__ import annotations

import gzip
import io
import json
import re
from pathlib import Path
from typing import Any

from dembench import records
from dembench.report.read.load import Collection, load
from dembench.report.read.record import FORMAT, TEXTS, Store

ABSOLUTE = re.compile(r"(?:^|(?<=[=\s'\"\[,]))(?:~|/|[A-Za-z]:\\)[^\s'\",\]]*[/\\](?=[^\s'\",\]/\\])")


def export(roots: list[Path], *, curves: bool = False) -> tuple[bytes, Collection]:
    """The exported file of all finished runs under ``roots`` (whatever ``load`` reads), and what was found there.

    Raises: ValueError where there is no finished run, and where one run has two different results.
    """
    found = load(roots)
    if different := [aside.name for aside in found.duplicates if "DIFFERENT" in aside.reason]:
        raise ValueError(f"found twice, with different numbers: {', '.join(different)}")
    text = [
        dumps(
            {"format": FORMAT, "schema": records.VERSION, "runs": len(found.runs), "curves": curves, "pictures": False}
        )
    ]
    for run in found.runs:
        record = without_paths(run.store.record())
        files = {name: held for name in TEXTS if (held := text_of(run.store, name)) is not None} if curves else {}
        text.append(dumps({**record, "files": files} if files else {k: v for k, v in record.items() if k != "files"}))
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as file:
        file.write("".join(text).encode())
    return packed.getvalue(), found


def dumps(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"


def text_of(store: Store, name: str) -> str | None:
    try:
        return store.text(name)
    except (OSError, ValueError, KeyError):
        return None


def without_paths(value: Any) -> Any:
    """Absolute paths cut to their last name, wherever they are in texts: what is set stays set."""
    if isinstance(value, str):
        return ABSOLUTE.sub("", value)
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    return [without_paths(item) for item in value] if isinstance(value, list) else value

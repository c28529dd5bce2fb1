"""Whose code a configuration may name: what the user has said so of, for this process and its workers."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ALLOWED = "DEMBENCH_ALLOW_TARGET"  # environment variable: dotted names, with commas, which worker processes inherit
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", flags=re.ASCII)

_folders: dict[Path, None] = {}


def trust_folder(folder: str | Path) -> None:
    """The Python files of a folder may be imported and named, those of folders below it too."""
    folder = Path(folder).resolve()
    _folders[folder] = None
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # what is installed wins


def allow(prefix: str) -> None:
    """A module, a class, or all that begins with this dotted name may be named; it may be in the current folder.

    Raises: ValueError for what is no dotted name.
    """
    if not NAME.fullmatch(prefix):
        raise ValueError(f"expected a dotted name such as my_module, got {prefix!r}")
    os.environ[ALLOWED] = ",".join(dict.fromkeys([*allowed(), prefix]))


def allowed() -> list[str]:
    """The names that were allowed one by one."""
    found = [name for name in os.environ.get(ALLOWED, "").split(",") if name]
    if found and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return found


def is_allowed(target: str) -> bool:
    """Whether a dotted name was allowed, or what it begins with."""
    return any(target == name or target.startswith(f"{name}.") for name in allowed())


def is_trusted_file(path: str | Path) -> bool:
    """Whether a file is below a folder that is trusted, links resolved."""
    path = Path(path).resolve()
    return any(path.is_relative_to(folder) for folder in _folders)


def modules(name: str) -> Iterator[Path]:
    """The file of a top-level module ``name`` in each trusted folder that has one."""
    for folder in _folders:
        for file in (folder / f"{name}.py", folder / name / "__init__.py"):
            if file.is_file():
                yield file


def arguments(config_dir: Path | None) -> list[str]:
    """Words of a command that trust what is trusted here."""
    own = [] if config_dir is None else ["--config-dir", str(config_dir)]
    return own + [word for name in allowed() for word in ("--allow-target", name)]

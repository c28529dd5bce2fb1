"""What is below a folder, links to folders followed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from dembench.tasks.base import ConfigError


@dataclass
class Walk:
    """Names below a folder, relative, with slashes: regular files, folders, and what is neither."""

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def walk(root: Path) -> Walk:
    """All that is below ``root``, by name; links to folders are followed.

    Raises: ConfigError for a link that leads back to a folder above it.
    """
    found = Walk()

    def visit(folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> None:
        about = os.stat(folder)
        here = about.st_dev, about.st_ino
        if here in above:
            raise ConfigError(f"{folder}: a link leads back to a folder above it")
        with os.scandir(folder) as entries:
            own = sorted(entries, key=lambda entry: entry.name)
        for entry in own:
            name = prefix + entry.name
            if entry.is_dir():
                found.folders.append(name)
                visit(entry.path, f"{name}/", (*above, here))
            else:
                (found.files if entry.is_file() else found.others).append(name)

    visit(str(root), "", ())
    return found


def is_hidden(parts: Iterable[str]) -> bool:
    """Whether a file or a folder above it is hidden, or is what macOS puts into archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)

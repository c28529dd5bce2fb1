"""The cache folder: files that can be made again."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np


def cache_folder(cache: str | Path | None = None) -> Path:
    """``cache``, else $DEMBENCH_CACHE, else dembench in the user's cache folder ($XDG_CACHE_HOME or ~/.cache)."""
    chosen = cache or os.environ.get("DEMBENCH_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dembench"


def load_array(path: Path) -> np.ndarray | None:
    """The array of a cached .npy file, in memory; None where there is none or it cannot be read, to be made again."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None


def check_writable(folder: Path) -> None:
    """Makes the folder and a file in it. Raises: PermissionError, which names what to set, before any work is lost."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        text = f"the cache folder {folder} cannot be written ({error}); set DEMBENCH_CACHE to one that can"
        raise PermissionError(text) from error


def file_hash(path: Path, digits: int = 16) -> str:
    """The first ``digits`` hexadecimal digits of the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:digits]


def short_hash(*parts: object, digits: int = 16) -> str:
    """The first ``digits`` hexadecimal digits of the sha256 of ``parts`` by their repr, in order."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:digits]

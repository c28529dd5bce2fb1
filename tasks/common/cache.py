"""The cache folder: files that can be made again. Each ends with the sha256 of its name and of what it holds, so that
one that is damaged or another's is noticed and made anew; NumPy reads an array in front of it all the same."""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dembench.tasks.base import ConfigError
from dembench.tasks.common.files import write_atomic

DIGEST = 32  # bytes at the end of a file


def cache_folder(cache: str | Path | None = None) -> Path:
    """``cache``, else $DEMBENCH_CACHE, else dembench in the user's cache folder ($XDG_CACHE_HOME or ~/.cache).

    Raises: ConfigError where none is given and the user has no home.
    """
    chosen = cache or os.environ.get("DEMBENCH_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dembench"
    except RuntimeError:
        raise ConfigError("no home folder to keep caches in; set DEMBENCH_CACHE to a folder") from None


class _Summed:
    """A file that is written to, and the sha256 of its name and all that was."""

    def __init__(self, file: BinaryIO, path: Path):
        self.file, self.sum = file, hashlib.sha256(_name(path))

    def write(self, data: Any) -> int:
        self.sum.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _name(path: Path) -> bytes:
    """Of a file and its folder, so that one cannot be taken for another."""
    return "/".join(path.absolute().parts[-2:]).encode("utf-8", "surrogateescape")


def save(path: Path, write: Callable[[Any], object]) -> None:
    """Writes a file by a function that is given the open file, and its sha256 behind that; OSError."""

    def whole(file: BinaryIO) -> None:
        summed = _Summed(file, path)
        write(summed)
        file.write(summed.sum.digest())

    write_atomic(path, whole)


def is_whole(path: Path) -> bool:
    """Whether a file is there and holds what was saved."""
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode) or os.fstat(file.fileno()).st_size <= DIGEST:
                return False
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content, memoryview(content) as view:
                found = hashlib.sha256(_name(path))
                found.update(view[:-DIGEST])
                return found.digest() == bytes(view[-DIGEST:])
    except OSError:
        return False


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _content(path: Path) -> bytes | None:
    return path.read_bytes()[:-DIGEST] if is_whole(path) else None


def save_array(path: Path, array: np.ndarray) -> None:
    """Writes an array; OSError."""
    save(path, lambda file: np.save(file, array, allow_pickle=False))


def load_array(path: Path, *, shared: bool = False) -> np.ndarray | None:
    """The array that was saved; None where there is none, or not as it was saved, to be made again.

    Args:
        shared: not in memory but mapped, so that processes share it; what is written to it stays private.
    """
    if not is_whole(path):
        return None
    try:
        return np.load(path, mmap_mode="c" if shared else None, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None


def save_state(path: Path, state: Any) -> None:
    """Writes a state dict; OSError."""
    import torch

    save(path, lambda file: torch.save(state, file))


def load_state(path: Path) -> Any:
    """The state dict that was saved, on the CPU; None where there is none, or not as it was saved."""
    import torch

    content = _content(path)
    return None if content is None else torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def save_json(path: Path, value: Any) -> None:
    """Writes plain values; OSError."""
    save(path, lambda file: file.write(json.dumps(value).encode()))


def load_json(path: Path) -> Any:
    """The plain values that were saved; None where there are none, or not as they were saved."""
    content = _content(path)
    return None if content is None else json.loads(content)


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

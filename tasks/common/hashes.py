"""Files by their bytes. Hashes are remembered by device, inode, size and time, so that asking again reads nothing."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from dembench.records import check_regular
from dembench.tasks.base import ConfigError
from dembench.tasks.common.cache import cache_folder, short_hash
from dembench.tasks.common.decoding import workers
from dembench.tasks.common.files import write_atomic
from dembench.tasks.common.tree import is_hidden, walk

ENTRY = struct.Struct("<QQQq32s")  # device, inode, size, time in ns, sha256
SETTLED = 2.0  # seconds: a file that changed later than that may change again without a new time, and is not remembered
Key = tuple[int, int, int, int]


def content_hashes(paths: Sequence[str | Path], cache: str | Path | None = None) -> list[bytes]:
    """The sha256 of each file's bytes, 32 bytes, links followed.

    Args:
        cache: folder in which they are remembered; None is $DEMBENCH_CACHE or the user's cache folder. One that cannot
            be written costs time, nothing else.
    Raises: ConfigError for what is not a regular file; OSError for what cannot be read.
    """
    if not paths:
        return []
    paths = list(map(str, paths))
    place = os.path.commonpath([os.path.abspath(path) for path in (min(paths), max(paths))])
    store = cache_folder(cache) / "hashes" / f"{short_hash(place)}.bin"
    known = _read(store)
    keys = list(map(_key, paths))
    unknown = {key: path for key, path in zip(keys, paths, strict=True) if key not in known}
    if unknown:
        with ThreadPoolExecutor(workers()) as pool:
            found = dict(zip(unknown, pool.map(_hash, unknown.values()), strict=True))
        latest = time.time_ns() - int(SETTLED * 1e9)
        if settled := {key: digest for key, digest in found.items() if key[3] < latest}:
            _write(store, known | settled)
        known = known | found
    return [known[key] for key in keys]


def names_hash(names: Iterable[str], hashes: Iterable[bytes]) -> str:
    """The sha256, hexadecimal, of names and contents, whatever their order."""
    lines = sorted(f"{name}\0{content.hex()}" for name, content in zip(names, hashes, strict=True))
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def path_hash(path: str | Path, cache: str | Path | None = None) -> str:
    """The sha256, hexadecimal, of a file's bytes, or of all names and bytes in a folder; "absent" for neither."""
    path = Path(path).expanduser()
    if path.is_dir():
        names = [name for name in walk(path).files if not is_hidden(name.split("/"))]
        return names_hash(names, content_hashes([f"{path}/{name}" for name in names], cache))
    return content_hashes([path], cache)[0].hex() if path.exists() else "absent"


def _key(path: str) -> Key:
    about = os.stat(path)
    if not stat.S_ISREG(about.st_mode):
        raise ConfigError(f"{path} is not a regular file")
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns


def _hash(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _read(store: Path) -> dict[Key, bytes]:
    """What is remembered; nothing where the file is damaged, whose first 32 bytes are the sha256 of the others."""
    with suppress(OSError, ValueError):
        check_regular(store)
        content = store.read_bytes()
        if hashlib.sha256(content[32:]).digest() == content[:32]:
            return {entry[:4]: entry[4] for entry in ENTRY.iter_unpack(content[32:])}
    return {}


def _write(store: Path, known: Mapping[Key, bytes]) -> None:
    content = b"".join(ENTRY.pack(*key, digest) for key, digest in known.items())
    with suppress(OSError):
        write_atomic(store, hashlib.sha256(content).digest() + content)

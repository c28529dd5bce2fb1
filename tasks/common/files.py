"""Files that appear whole or not at all, locks, and folders that go when their process has ended."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from dembench.records import refuse_links

STALE = 3600.0  # seconds after which a temporary file has been left by a process that died
YOUNG = 10.0  # seconds in which a folder may not be locked yet


def write_atomic(path: Path, content: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Writes a temporary file in the same folder, flushes it to the disk and renames it to ``path``.

    Args:
        path: the file; its folder is made. Two processes may write it at once: the later one stays.
        content: text (becomes UTF-8), bytes, or a function that writes into the open binary file.
    Raises: OSError where the folder cannot be written or ``path`` is a link or not a regular file, and whatever
        ``content`` raises; ``path`` is then as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    refuse_links(path, names=sys.maxsize)  # what is renamed to it leaves other names as they are
    clear_temporary(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    with contextlib.suppress(OSError):  # the rename itself; not every system lets a folder be opened and synced
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def clear_temporary(path: Path) -> None:
    """Removes what processes that died in ``write_atomic`` have left of a file, once it is old."""
    with contextlib.suppress(OSError):
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            if time.time() - left.lstat().st_mtime > STALE:
                left.unlink()


def plain_lock(path: str | Path) -> FileLock:
    """A lock on a file, which is made where there is none. It goes with the process that holds it.

    Raises: OSError where ``path`` is a link or not a regular file, which locking would empty or wait for.
    """
    refuse_links(Path(path))
    return FileLock(path)


@contextlib.contextmanager
def scratch(what: str) -> Iterator[Path]:
    """A folder $TMPDIR/dembench-WHAT-... that is removed at the end; those of processes that were killed are, too."""
    clear_scratch()
    folder = tempfile.TemporaryDirectory(prefix=f"dembench-{what}-", ignore_cleanup_errors=True)
    with folder as name, plain_lock(Path(name) / ".lock"):
        yield Path(name)


def clear_scratch() -> None:
    """Removes the folders of ``scratch`` that no process holds any more; only one's own, and no links."""
    for lock in Path(tempfile.gettempdir()).glob("dembench-*/.lock"):
        with contextlib.suppress(OSError, Timeout):
            about = lock.parent.lstat()
            if not stat.S_ISDIR(about.st_mode) or (hasattr(os, "getuid") and about.st_uid != os.getuid()):
                continue
            if time.time() - about.st_mtime > YOUNG:
                with plain_lock(lock).acquire(timeout=0):
                    shutil.rmtree(lock.parent, ignore_errors=True)

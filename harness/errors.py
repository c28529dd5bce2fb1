"""What an exception is to a user: one line, and whether the file or setting is wrong, the disk is full, or the program.

DEMBENCH_TRACEBACK=1 lets every exception through as it is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
import traceback
from pathlib import Path

from dembench.tasks.base import ConfigError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
READERS = {  # packages whose errors are about what they were given to read
    *("yaml", "omegaconf", "hydra", "safetensors", "safetensors_rust", "optuna", "PIL", "zipfile", "tarfile"),
    *("zlib", "lzma", "pickle", "_pickle", "struct", "csv", "_csv", "json", "xml", "antlr4"),
}
LONGEST = 500  # characters of a message


class RunFirst(ConfigError):
    """A run rests on a search or a tuning that is not there; ``command`` makes it."""

    def __init__(self, message: str, command: str) -> None:
        super().__init__(message)
        self.command = command


class DiskFull(ConfigError):
    """Nothing more can be written; what is finished is kept."""


def no_room(error: BaseException) -> DiskFull | None:
    """The error as one on a disk that is full or cannot be written, else None."""
    while isinstance(error, BaseException) and not isinstance(error, OSError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, DiskFull):
        return error
    if not isinstance(error, OSError) or error.errno not in FULL:
        return None
    place = f" {error.filename}" if error.filename else ""
    return DiskFull(
        f"cannot write{place}: {(error.strerror or str(error)).lower()}; what is finished is kept: make room and run "
        "the command again"
    )


def is_input(error: BaseException) -> bool:
    """Whether an exception is about a user's file or setting."""
    kinds = (ValueError, OSError, EOFError, ImportError, RecursionError, MemoryError)
    return isinstance(error, kinds) or type(error).__module__.partition(".")[0] in READERS


def one_line(error: BaseException) -> str:
    """The message without line breaks; the name of the exception where it says nothing, or only a key."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno:
        return re.sub(r"^\[Errno \d+\] ", "", text)[:LONGEST]
    name = (
        ""
        if isinstance(error, (ValueError, OSError, ImportError)) and text
        else f"{type(error).__name__}{': ' * bool(text)}"
    )
    return f"{name}{text}"[:LONGEST]


def told(error: BaseException) -> tuple[str, int]:
    """The line for stderr, and the exit status: 2 for what the user can put right, 1 for a full disk and for a fault of
    the program, whose traceback is kept in a file that the line names."""
    if type(error).__name__ == "InstantiationException" and error.__cause__ is not None:
        error = error.__cause__
    if (full := no_room(error)) is not None:
        return str(full), 1
    if is_input(error):
        return one_line(error), 2
    place = kept(error)
    where = f"its traceback is in {place}" if place else "DEMBENCH_TRACEBACK=1 shows its traceback"
    return f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:LONGEST]} ({where})", 1


def kept(error: BaseException) -> Path | None:
    """A file with the traceback; None where none can be written."""
    text = "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError):
        path = Path(tempfile.gettempdir()) / f"dembench_traceback_{os.getpid()}.txt"
        path.unlink(missing_ok=True)
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
        return path
    return None

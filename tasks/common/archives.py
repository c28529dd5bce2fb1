"""Members of tar archives, read without extracting anything."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

LARGEST_FILE = 64 << 20


def members(path: Path, wanted: Callable[[PurePosixPath], bool], layout: str) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Names and contents of the wanted members, in the order of the archive, compressed or not.

    Args:
        wanted: whether the member of that name is asked for.
        layout: what the archive should hold, for the message where it cannot be read.
    Raises: ValueError for links, devices and names that lead out of the archive, for members of more than 64 MiB, and
        where ``path`` is no readable archive.
    """
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts:
                    raise ValueError(f"{path}: the member {member.name!r} leads out of the archive")
                if not (member.isdir() or member.isreg()):
                    raise ValueError(f"{path}: the member {member.name!r} is no regular file")
                if member.isdir() or not wanted(name):
                    continue
                if member.size > LARGEST_FILE:
                    raise ValueError(f"{path}: the member {member.name!r} has {member.size} bytes, no image")
                file = archive.extractfile(member)
                if file is not None:
                    yield name, file.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{path} is no readable tar archive ({error}); {layout}") from error

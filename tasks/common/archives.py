"""Members of tar archives, streamed: nothing is extracted, no link followed, nothing large read."""

from __future__ import annotations

import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from dembench.tasks.base import ConfigError

LARGEST_MEMBER = 64 << 20  # bytes of any member, wanted or not
LARGEST_HEADER = 1 << 20  # bytes of what holds long names


def member_sizes(path: Path, layout: str) -> dict[str, int]:
    """Names and declared sizes in bytes of all regular members, in the order of the archive, compressed or not.

    Args:
        layout: what the archive should hold, for the message where it cannot be read.
    Raises: ConfigError for links, devices, sparse members and names that lead out of the archive, for a declared size
        over ``LARGEST_MEMBER``, and where ``path`` is no readable archive.
    """
    return {name: member.size for name, member, _ in _walk(path, layout)}


def members(path: Path, layout: str, wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the wanted members; raises as ``member_sizes``."""
    for name, member, archive in _walk(path, layout):
        if name in wanted and (file := archive.extractfile(member)) is not None:
            try:
                content = file.read()
            except Exception as error:
                raise _unreadable(path, layout, error) from error
            yield name, content


class _Bounded(tarfile.TarInfo):
    """Refuses sizes before anything is read: of members, and of headers that tarfile would hold in memory."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        info = super().frombuf(buf, encoding, errors)
        _check_size(info, LARGEST_MEMBER if info.type in tarfile.REGULAR_TYPES else LARGEST_HEADER)
        return info


def _check_size(member: tarfile.TarInfo, most: int) -> None:
    if not 0 <= member.size <= most:
        raise ConfigError(f"the member {member.name!r} has {member.size} bytes, more than the {most} that are read")


def _walk(path: Path, layout: str) -> Iterator[tuple[str, tarfile.TarInfo, tarfile.TarFile]]:
    try:
        with tarfile.open(path, "r|*", tarinfo=_Bounded) as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts or "\\" in member.name:
                    raise ConfigError(f"the member {member.name!r} leads out of the archive")
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise ConfigError(f"the member {member.name!r} is no regular file")
                _check_size(member, LARGEST_MEMBER)  # an extended header may have set another
                yield str(name), member, archive
    except ConfigError as error:
        raise ConfigError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    except Exception as error:  # of tarfile and of four decompressors
        raise _unreadable(path, layout, error) from error


def _unreadable(path: Path, layout: str, error: Exception) -> ConfigError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ConfigError(f"{path} is no readable tar archive ({reason}); {layout}")

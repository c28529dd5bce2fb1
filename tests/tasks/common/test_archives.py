"""Archives: no size, link or name can make the reader read much, or elsewhere."""

from __future__ import annotations

import gzip
import io
import resource
import tarfile
from pathlib import Path

import numpy as np
import pytest

from dembench.tasks.base import ConfigError
from dembench.tasks.common.archives import member_sizes, members

LAYOUT = "expected <class>/<image>"


def packed(path: Path, *infos: tarfile.TarInfo, mode: str = "w", content: bytes = b"abc") -> Path:
    with tarfile.open(path, mode) as archive:
        for info in infos:
            archive.addfile(info, io.BytesIO(content) if info.isreg() and info.size else None)
    return path


def info(name: str, size: int = 3, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.size, made.linkname = kind, size if kind == tarfile.REGTYPE else 0, "/etc/passwd"
    return made


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_members_are_read_by_name(tmp_path: Path, mode: str) -> None:
    path = packed(tmp_path / "a.tar", info("./a/1.png"), info("a", kind=tarfile.DIRTYPE), info("b/2.png"), mode=mode)
    assert member_sizes(path, LAYOUT) == {"a/1.png": 3, "b/2.png": 3}
    assert dict(members(path, LAYOUT, {"b/2.png"})) == {"b/2.png": b"abc"}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_links_and_devices_are_refused_wanted_or_not(tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(ConfigError, match=r"a\.tar: the member 'notes.txt' is no regular file"):
        member_sizes(packed(tmp_path / "a.tar", info("a/1.png"), info("notes.txt", kind=kind)), LAYOUT)


@pytest.mark.parametrize("name", ["/etc/1.png", "../1.png", "a/../../1.png", "..\\a\\1.png"])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="leads out of the archive"):
        list(members(packed(tmp_path / "a.tar", info(name)), LAYOUT, {"a/1.png"}))


def declared(path: Path, size: int, kind: bytes = tarfile.REGTYPE) -> Path:
    """A compressed archive whose second member declares a size, and zeros without end after it."""
    first, second = info("a/1.png"), info("notes.txt", 1)
    second.size, second.type = size, kind
    head = first.tobuf() + b"abc".ljust(512, b"\0") + second.tobuf(tarfile.GNU_FORMAT)
    with gzip.open(path, "wb") as file:
        file.write(head)
        for _ in range(256):
            file.write(bytes(1 << 20))
    return path


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("size", [(64 << 20) + 1, 1 << 40])
def test_a_declared_size_is_refused_before_reading(tmp_path: Path, size: int, kind: bytes) -> None:
    path = declared(tmp_path / "a.tar.gz", size, kind)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigError, match=rf"a\.tar\.gz: the member 'notes.txt' has {size} bytes, more than the \d+"):
        list(members(path, LAYOUT, {"a/1.png"}))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10  # kB


def test_a_size_in_an_extended_header_is_refused_too(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        one = info("a/1.png")
        one.pax_headers = {"size": str(1 << 40)}
        archive.addfile(one, io.BytesIO(b"abc"))
    with pytest.raises(ConfigError, match=r"a\.tar"):
        list(members(path, LAYOUT, {"a/1.png"}))


def test_damage_is_one_line_that_names_the_archive(tmp_path: Path) -> None:
    draw, path = np.random.default_rng(0), tmp_path / "damaged.tar"
    whole = [
        packed(tmp_path / "whole", info("a/1.png"), info("b/" + 120 * "x"), mode=mode).read_bytes()
        for mode in ("w", "w:gz", "w:bz2", "w:xz")
    ]
    messages = []
    for number in range(400):
        data = bytearray(whole[number % 4])
        if number % 3:
            for place in draw.integers(0, min(len(data), 1600), 3):
                data[place] = draw.integers(0, 256)
        else:
            del data[int(draw.integers(0, len(data))) :]
        path.write_bytes(data)
        try:
            list(members(path, LAYOUT, member_sizes(path, LAYOUT)))
        except ConfigError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert all(message.startswith(str(path)) and "\n" not in message for message in messages)

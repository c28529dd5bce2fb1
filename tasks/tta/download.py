"""Downloads of public datasets: resumed where they were cut off, checked, then unpacked."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dembench.records import refuse_links

CHUNK = 1 << 20
TIMEOUT = 60  # seconds without a byte


@dataclass(frozen=True)
class Archive:
    """A tar archive: ``md5`` and ``size`` (bytes) as published, ``folder`` is what it unpacks to, ``key`` is how a
    run is told of it ("data.root" the folder itself, "data.source" the folder above)."""

    url: str
    md5: str
    size: int
    folder: str
    key: str
    licence: str

    @property
    def file(self) -> str:
        return self.url.partition("?")[0].rpartition("/")[2]


_ZENODO, _TORONTO = "https://zenodo.org/records", "https://www.cs.toronto.edu/~kriz"
ARCHIVES = {
    "cifar10c": Archive(
        f"{_ZENODO}/2535967/files/CIFAR-10-C.tar?download=1",
        *("56bf5dcef84df0e2308c6dcbcbbd8499", 2_918_471_680, "CIFAR-10-C", "data.root", "CC BY 4.0"),
    ),
    "cifar100c": Archive(
        f"{_ZENODO}/3555552/files/CIFAR-100-C.tar?download=1",
        *("11f0ed0f1191edbf9fa23466ae6021d3", 2_918_473_216, "CIFAR-100-C", "data.root", "CC BY 4.0"),
    ),
    "cifar10": Archive(
        f"{_TORONTO}/cifar-10-python.tar.gz",
        *("c58f30108f718f92721af3b95e74349a", 170_498_071, "cifar-10-batches-py", "data.source", "none stated"),
    ),
    "cifar100": Archive(
        f"{_TORONTO}/cifar-100-python.tar.gz",
        *("eb9058c3a382ffc7106e4002c42a8d85", 169_001_437, "cifar-100-python", "data.source", "none stated"),
    ),
}

Report = Callable[[str, int, int], None]  # what is being done, bytes so far, bytes in all


def fetch(archive: Archive, to: Path, report: Report = lambda doing, done, total: None) -> Path:
    """The unpacked folder in ``to``; what is there already is not fetched again.

    An archive in ``to`` is used in place of a download. A download that is cut off leaves <archive>.part and
    goes on from there the next time; the folder appears when it is complete, and then the download is removed.
    Raises: OSError where there is no connection, too little space or no right to write; ValueError for an archive with
        another checksum, or with members that lead out of the folder.
    """
    target = to / archive.folder
    if target.is_dir():
        return target
    to.mkdir(parents=True, exist_ok=True)
    whole, part = to / archive.file, to / f"{archive.file}.part"
    placed = whole.is_file()  # by the user, who may want to keep it
    if not placed:
        have = part.stat().st_size if part.is_file() else 0
        free = shutil.disk_usage(to).free
        need = 2 * archive.size - have
        if free < need:
            raise OSError(f"{to} has {free / 1e9:.1f} GB free, {need / 1e9:.1f} GB are needed to fetch and unpack")
        _download(archive, part, whole, report)
    if (found := _md5(whole, report)) != archive.md5:
        if not placed:
            whole.unlink()
        advice = f"remove {whole}" if placed else "it was removed"
        raise ValueError(f"{archive.file}: expected md5 {archive.md5}, got {found}; {advice} and fetch it again")
    _unpack(whole, archive, to, report)
    if not placed:
        whole.unlink()
    return target


def _download(archive: Archive, part: Path, whole: Path, report: Report) -> None:
    refuse_links(part)
    have = part.stat().st_size if part.is_file() else 0
    if have != archive.size:
        have = have if have < archive.size else 0
        request = urllib.request.Request(archive.url, headers={"User-Agent": "dembench"})
        if have:
            request.add_header("Range", f"bytes={have}-")
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                if answer.status != 206:  # the server sends all of it
                    have = 0
                with part.open("ab" if have else "wb") as file:
                    while chunk := answer.read(CHUNK):
                        file.write(chunk)
                        have += len(chunk)
                        report("fetching", have, archive.size)
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason = getattr(error, "reason", error)
            raise OSError(
                f"{archive.url} could not be fetched ({reason}); run this again to go on, or fetch it elsewhere and "
                f"put it at {whole}"
            ) from error
        if have < archive.size:
            raise OSError(f"{archive.url} was cut off at {have} of {archive.size} bytes; run this again to go on")
    os.replace(part, whole)


def _md5(path: Path, report: Report) -> str:
    digest, done, size = hashlib.md5(usedforsecurity=False), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            done += len(chunk)
            report("checking", done, size)
    return digest.hexdigest()


def _unpack(path: Path, archive: Archive, to: Path, report: Report) -> None:
    """Unpacks beside the target and moves the folder there at the end; links, devices and ways out are refused."""
    if not hasattr(tarfile, "data_filter"):
        raise OSError("unpacking needs a Python with tarfile's data filter: 3.11.4 or later")
    aside = to / f".{archive.folder}.unpacking"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with path.open("rb") as raw, tarfile.open(fileobj=raw) as opened:
            for member in opened:
                if not (member.isdir() or member.isreg()):
                    raise ValueError(f"{archive.file}: the member {member.name!r} is no regular file")
                opened.extract(member, aside, filter="data")
                report("unpacking", raw.tell(), path.stat().st_size)
        if not (aside / archive.folder).is_dir():
            raise ValueError(f"{archive.file} has no folder {archive.folder}")
        os.replace(aside / archive.folder, to / archive.folder)
    except tarfile.TarError as error:  # its filter's refusals, too
        raise ValueError(f"{archive.file} cannot be unpacked: {' '.join(str(error).split())}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)

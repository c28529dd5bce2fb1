"""Fetching a dataset from a server of our own: resumed, checked, unpacked, and refused where it is not what it says."""

import hashlib
import io
import re
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dembench.scripts import data
from dembench.tasks.tta import download
from dembench.tasks.tta.download import ARCHIVES, Archive, fetch


def tar_of(*members):
    """A gzipped tar of (name, content) pairs, or TarInfo objects."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))
    return file.getvalue()


GOOD = tar_of(("made/labels.npy", b"labels"), ("made/fog.npy", bytes(range(256)) * 4000))


class Server:
    """Serves one file; ``cut`` bytes at most in an answer, with or without ranges; notes what it was asked."""

    def __init__(self, content):
        self.content, self.cut, self.ranges, self.asked = content, None, True, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                wanted = self.headers.get("Range")
                outer.asked.append(wanted)
                start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and outer.ranges else 0
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(outer.content) - start))
                self.end_headers()
                self.wfile.write(outer.content[start : None if outer.cut is None else start + outer.cut])

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def archive(self, content=None, folder="made"):
        content = self.content if content is None else content
        url = f"http://127.0.0.1:{self.http.server_port}/made.tar.gz?download=1"
        return Archive(url, hashlib.md5(content).hexdigest(), len(content), folder, "data.root", "CC BY 4.0")


@pytest.fixture
def server():
    made = Server(GOOD)
    yield made
    made.http.shutdown()
    made.http.server_close()


def test_a_dataset_is_fetched_checked_and_unpacked_once(server, tmp_path):
    steps = []
    folder = fetch(server.archive(), tmp_path / "new", lambda doing, done, total: steps.append((doing, done, total)))
    assert (folder / "fog.npy").read_bytes() == bytes(range(256)) * 4000
    assert [path.name for path in folder.parent.iterdir()] == ["made"]  # no archive, no left-overs
    assert list(dict.fromkeys(doing for doing, _, _ in steps)) == ["fetching", "checking", "unpacking"]
    assert ("fetching", len(GOOD), len(GOOD)) in steps
    assert fetch(server.archive(), tmp_path / "new") == folder
    assert server.asked == [None]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_was_cut_off_goes_on(ranges, server, tmp_path):
    server.cut, server.ranges = 1000, ranges
    with pytest.raises(OSError, match=rf"cut off at 1000 of {len(GOOD)} bytes; run this again|could not be fetched"):
        fetch(server.archive(), tmp_path)
    assert (tmp_path / "made.tar.gz.part").stat().st_size == 1000
    assert not (tmp_path / "made").exists()
    server.cut = None
    assert (fetch(server.archive(), tmp_path) / "labels.npy").read_bytes() == b"labels"
    assert server.asked == [None, "bytes=1000-"]


def test_another_checksum_is_refused_and_nothing_is_unpacked(server, tmp_path):
    wrong = server.archive(GOOD[:-1] + b"x")
    with pytest.raises(ValueError, match=f"expected md5 {wrong.md5}, got .*; it was removed and fetch it again"):
        fetch(wrong, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_that_was_put_there_is_used_and_kept(server, tmp_path):
    (tmp_path / "made.tar.gz").write_bytes(GOOD)
    fetch(server.archive(), tmp_path)
    assert server.asked == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "made.tar.gz"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "made.tar.gz").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"expected md5 .*; remove .*made.tar.gz and fetch it again"):
        fetch(server.archive(), other)


def member(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "bad",
    [
        ("../outside.txt", b"x"),
        ("made/../../outside.txt", b"x"),
        member("made/link", tarfile.SYMTYPE, "/etc/passwd"),
        member("made/hard", tarfile.LNKTYPE, "../outside.txt"),
        member("made/pipe", tarfile.FIFOTYPE),
        member("made/device", tarfile.CHRTYPE),
    ],
    ids=lambda bad: bad[0] if isinstance(bad, tuple) else bad.name,
)
def test_members_that_lead_out_are_refused(bad, server, tmp_path):
    server.content = tar_of(("made/labels.npy", b"labels"), bad)
    inside = tmp_path / "inside"
    with pytest.raises(ValueError, match="made.tar.gz.*(cannot be unpacked|is no regular file)"):
        fetch(server.archive(), inside)
    assert not (inside / "made").exists()
    assert not (tmp_path / "outside.txt").exists()


def test_an_absolute_name_stays_inside(server, tmp_path):
    server.content = tar_of(("made/labels.npy", b"labels"), (f"{tmp_path}/absolute.txt", b"x"))
    fetch(server.archive(), tmp_path / "inside")
    assert not (tmp_path / "absolute.txt").exists()


def test_an_archive_of_something_else_is_refused(server, tmp_path):
    with pytest.raises(ValueError, match=r"made.tar.gz has no folder CIFAR-10-C"):
        fetch(server.archive(folder="CIFAR-10-C"), tmp_path)
    server.content = b"<html>no archive</html>"
    with pytest.raises(ValueError, match="cannot be unpacked"):
        fetch(server.archive(), tmp_path / "other")


def test_no_connection_and_no_space_are_explained(server, tmp_path, monkeypatch):
    archive = server.archive()
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(OSError, match=r"could not be fetched \(.*refused\); run this again to go on, or fetch it else"):
        fetch(archive, tmp_path)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(OSError, match=r"0.0 GB free, .* GB are needed"):
        fetch(archive, tmp_path)


def test_the_published_checksums_of_cifar_are_torchvisions():
    from torchvision.datasets import CIFAR10, CIFAR100

    for name, known in (("cifar10", CIFAR10), ("cifar100", CIFAR100)):
        archive = ARCHIVES[name]
        assert (archive.url, archive.md5, archive.folder) == (known.url, known.tgz_md5, known.base_folder)
        assert archive.file == known.filename


# --- the command


def test_the_command_prints_the_folder_last(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(ARCHIVES, "cifar10c", server.archive())
    monkeypatch.setenv("DEMBENCH_DATA", str(tmp_path))
    assert data.main(["fetch", "cifar10c"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'data' / 'made'}\n"
    assert f"give it to a run as data.root={tmp_path / 'data' / 'made'}" in said.err
    assert data.main(["fetch", "cifar10c", "--to", str(tmp_path / "elsewhere")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'elsewhere' / 'made'}\n"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("imagenet_c", "imagenet_c is not fetched by this command; noise.tar, .*zenodo.org/records/2235448"),
        ("imagenet_a", "imagenet_a is not fetched by this command; .*imagenet-a.tar, unpacked"),
        ("digits", "digits needs no download"),
        ("cifar10d", "unknown dataset 'cifar10d'; nearest: cifar10, cifar10c"),
    ],
)
def test_the_command_says_where_others_are(name, said, capsys):
    assert data.main(["fetch", name]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert re.search(said, told.err)
    assert told.err.count("\n") == 1


def test_the_command_fails_in_one_line(server, tmp_path, monkeypatch, capsys):
    server.content = b"<html>"
    monkeypatch.setitem(ARCHIVES, "cifar10", server.archive())
    assert data.main(["fetch", "cifar10", "--to", str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert "dembench data: made.tar.gz cannot be unpacked" in told.err

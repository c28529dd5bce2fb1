"""Hashes of files by their bytes, remembered."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path

import pytest

from dembench.tasks.base import ConfigError
from dembench.tasks.common import hashes
from dembench.tasks.common.hashes import content_hashes, names_hash, path_hash

OLD = time.time() - 1000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "folder"
    for name in ("a/1", "a/2", "b/1"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
        os.utime(root / name, (OLD, OLD))
    return root


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read."""
    done: list[str] = []
    plain = hashes._hash
    monkeypatch.setattr(hashes, "_hash", lambda path: (done.append(Path(path).name), plain(path))[1])
    return done


def paths(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def test_hashes_are_sha256_and_files_are_read_once(folder: Path, tmp_path: Path, read: list[str]) -> None:
    wanted = [hashlib.sha256(path.read_bytes()).digest() for path in paths(folder)]
    assert content_hashes(paths(folder), tmp_path / "cache") == wanted
    assert len(read) == 3
    assert content_hashes(paths(folder), tmp_path / "cache") == wanted
    assert len(read) == 3
    (folder / "a" / "2").write_bytes(b"X/2")  # the same size
    assert content_hashes(paths(folder), tmp_path / "cache")[1] == hashlib.sha256(b"X/2").digest()
    assert read[3:] == ["2"]


def test_a_file_that_has_just_changed_is_not_remembered(folder: Path, tmp_path: Path) -> None:
    path = folder / "a" / "1"
    for content in (b"one", b"two"):
        path.write_bytes(content)
        now = time.time()
        os.utime(path, (now, now))
        about = path.stat()
        assert content_hashes([path], tmp_path / "cache") == [hashlib.sha256(content).digest()]
        os.utime(path, ns=(about.st_mtime_ns, about.st_mtime_ns))  # a clock that ticks too slowly for two writes
        path.write_bytes(b"abc")
        os.utime(path, ns=(about.st_mtime_ns, about.st_mtime_ns))
        assert content_hashes([path], tmp_path / "cache") == [hashlib.sha256(b"abc").digest()]


def test_a_damaged_memory_is_not_believed(folder: Path, tmp_path: Path) -> None:
    wanted = content_hashes(paths(folder), tmp_path / "cache")
    (store,) = (tmp_path / "cache" / "hashes").iterdir()
    whole = store.read_bytes()
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        store.write_bytes(damaged)
        assert content_hashes(paths(folder), tmp_path / "cache") == wanted
    for content in (b"", whole[:40], whole[:-1]):
        store.write_bytes(content)
        assert content_hashes(paths(folder), tmp_path / "cache") == wanted


def test_a_cache_that_cannot_be_written_costs_time_only(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert len(content_hashes(paths(folder), tmp_path / "file" / "cache")) == 3


def test_pipes_and_folders_are_no_files(folder: Path, tmp_path: Path) -> None:
    os.mkfifo(folder / "pipe")
    for path in (folder / "pipe", folder):
        with pytest.raises(ConfigError, match="is not a regular file"):
            content_hashes([path], tmp_path)


def test_a_copy_is_the_same_and_names_and_bytes_count(folder: Path, tmp_path: Path) -> None:
    first = path_hash(folder, tmp_path / "cache")
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / ".DS_Store").write_bytes(b"x")
    assert path_hash(copy, tmp_path / "cache") == first
    os.symlink(folder / "b", tmp_path / "copy" / "c")
    assert path_hash(copy, tmp_path / "cache") != first
    (folder / "a" / "1").write_bytes(b"b/1")
    assert path_hash(folder, tmp_path / "cache") != first
    assert path_hash(folder / "b" / "1") == hashlib.sha256(b"b/1").hexdigest()
    assert path_hash(tmp_path / "none") == "absent"
    assert names_hash("ab", [b"1", b"2"]) == names_hash("ba", [b"2", b"1"]) != names_hash("ab", [b"2", b"1"])

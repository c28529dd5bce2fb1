"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from dembench.harness import experiment, runs, sweeps
from dembench.harness.compose import compose
from dembench.records import write_plain
from dembench.tasks.base import Artifact, ConfigError
from dembench.tasks.common import files
from dembench.tasks.common.files import clear_scratch, plain_lock, scratch, write_atomic


def test_write_atomic_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    write_atomic(path, "one")
    write_atomic(path, "two")
    assert path.read_text() == "two"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.json"]


def test_a_function_writes_the_file_and_one_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "array.npy"
    write_atomic(path, lambda file: file.write(b"whole"))
    assert path.read_bytes() == b"whole"

    def half(file: BinaryIO) -> None:
        file.write(b"half")
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        write_atomic(path, half)
    assert path.read_bytes() == b"whole"
    assert [entry.name for entry in tmp_path.iterdir()] == ["array.npy"]


WRITER = """
import sys
from pathlib import Path
from dembench.tasks.common import files
from dembench.tasks.common.files import clear_scratch, plain_lock, scratch, write_atomic
i = 0
while True:
    write_atomic(Path(sys.argv[1]), f"{i}:" + str(i % 10) * 200_000)
    i += 1
"""


def test_a_writer_that_is_killed_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], env=environment)
        until = time.monotonic() + 60
        before = path.stat().st_mtime_ns if path.exists() else None
        while time.monotonic() < until and not (path.exists() and path.stat().st_mtime_ns != before):
            time.sleep(0.01)
        process.kill()
        process.wait()
        number, _, body = path.read_text().partition(":")
        assert body == str(int(number) % 10) * 200_000


def odd(path: Path, kind: str) -> Path:
    """Puts something at ``path`` that a process must not open for writing; returns a file that would change with it."""
    victim = path.parent / "victim"
    victim.write_text("precious")
    if kind == "symlink":
        path.symlink_to(victim)
    elif kind == "dangling":
        path.symlink_to(path.parent / "made by a link")
    elif kind == "hard link":
        os.link(victim, path)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    return victim


@pytest.mark.parametrize("kind", ["symlink", "dangling", "hard link", "fifo", "folder"])
def test_links_and_odd_files_are_not_opened_for_writing(tmp_path: Path, kind: str) -> None:
    (tmp_path / "run").mkdir()
    victim = odd(tmp_path / "run" / ".lock", kind)
    start = time.monotonic()
    for attempt in (
        lambda: plain_lock(tmp_path / "run" / ".lock"),
        lambda: write_plain(tmp_path / "run" / ".lock", "x"),
    ):
        with pytest.raises(OSError, match="is a link or not a regular file"):
            attempt()
    with pytest.raises(ConfigError, match="is a link or not a regular file"), runs.lock(tmp_path / "run"):
        pass
    if kind != "hard link":  # what is renamed to a name leaves the others as they are
        with pytest.raises(OSError, match="is a link or not a regular file"):
            write_atomic(tmp_path / "run" / ".lock", "other")
    assert victim.read_text() == "precious"
    assert not (tmp_path / "run" / "made by a link").exists()
    assert time.monotonic() - start < 2


def test_pictures_are_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / "files").symlink_to(tmp_path / "elsewhere")
    recorder = runs.Recorder()
    recorder.add(Artifact("agent.gif", b"GIF89a"))
    with pytest.raises(OSError, match="is a link"):
        recorder.write(tmp_path / "run")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_temporary_files_of_the_dead_go_with_the_next_writing(tmp_path: Path) -> None:
    old, young, other = (tmp_path / name for name in (".a.json.1.tmp", ".a.json.2.tmp", ".b.json.3.tmp"))
    for path in (old, young, other):
        path.write_text("half")
    for path in (old, other):
        os.utime(path, (time.time() - 2 * files.STALE,) * 2)
    write_atomic(tmp_path / "a.json", "{}")
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", young.name, other.name}


HOLDER = """
import sys, time
from dembench.tasks.common.files import scratch
with scratch("test") as folder:
    (folder / "log").write_text("x")
    print(folder, flush=True)
    time.sleep(60)
"""


def test_folders_of_processes_that_were_killed_go_at_the_next_start(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(files, "YOUNG", 0.0)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", HOLDER], env=environment, stdout=subprocess.PIPE, text=True)
    folder = Path(process.stdout.readline().strip())
    assert folder.parent == tmp_path
    (tmp_path / "dembench-of-mine").mkdir()  # without a lock: not ours
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / ".lock").touch()
    (tmp_path / "dembench-link").symlink_to(tmp_path / "elsewhere")
    clear_scratch()
    assert (folder / "log").is_file()  # its process lives
    process.kill()
    process.wait()
    with scratch("test") as own:
        assert not folder.exists()
        clear_scratch()
        assert own.is_dir()
    assert not own.exists()
    assert (tmp_path / "dembench-of-mine").is_dir()
    assert (tmp_path / "elsewhere" / ".lock").is_file()


@pytest.mark.parametrize("again", ["run", "sweep"])
def test_what_a_kill_left_beside_a_result_goes_at_the_next_start(tmp_path, stub_configs, again) -> None:
    (tmp_path / "data").write_text("1")
    words = {"task": "stub", "out": str(tmp_path / "runs"), "data.root": str(tmp_path / "data"), "progress": False}
    prepared = experiment.prepare(compose(words, stub_configs))
    folder = experiment.run(prepared).path.parent
    whole = {path.name for path in folder.iterdir()}
    (folder / "files").mkdir()
    for name in ("checkpoint.pt", ".result.json.x.tmp", "files/.agent.gif.x.tmp"):
        (folder / name).write_text("half")
    with runs.lock(folder):  # another process is at it
        experiment.run(prepared)
        assert (folder / "checkpoint.pt").exists()
    if again == "run":
        assert not experiment.run(prepared).ran
    else:
        assert sweeps.plan([words], stub_configs)[0].done
    assert {path.name for path in folder.iterdir()} == whole | {"files"}
    assert not list((folder / "files").iterdir())

"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from dembench.tasks.common.files import write_atomic


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
from dembench.tasks.common.files import write_atomic
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

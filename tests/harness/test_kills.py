"""A process that is killed before any of its file operations, one after the other: the next one ends with the same
numbers, no result is lost or half, and nothing is left beside it."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from dembench.harness import experiment
from dembench.harness.compose import compose

RUNS = {
    "tta": "method=tent loss=adadem protocol.corruptions=[fog] data.num_images=40 protocol.batch_size=10",
    "semi": "task=semi method=fixmatch loss=em model.width=4 protocol.iterations=4 protocol.eval_every=2"
    " protocol.batch_size=4",
}
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "os.symlink", "os.truncate")
MOST = 400  # operations of one run


def run_in_a_process(words: list[str], root: Path, kill_at: int | None = None) -> tuple[int, int]:
    """Forks a process that runs, and kills itself before operation ``kill_at`` on a file below ``root``.

    Returns: its exit status, negative for a signal, and how many operations it began.
    """
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        status = 1
        try:
            count = 0

            def watch(event: str, arguments: tuple[Any, ...]) -> None:
                nonlocal count
                writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
                if (writes or event in CHANGES) and str(root) in str(arguments[0]):
                    if count == kill_at:
                        os.kill(os.getpid(), signal.SIGKILL)
                    count += 1
                    os.write(write, b".")

            sys.addaudithook(watch)
            experiment.run(experiment.prepare(compose(words)))
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as told:
        count = len(told.read())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), count


def measured(folder: Path) -> dict[str, Any]:
    """What a finished run holds, without times, places, and the note that says that it was resumed."""
    result = json.loads((folder / "result.json").read_text())
    found = {key: result[key] for key in ("id", "status", "flags", "rows", "histograms", "fingerprints", "labels")}
    found["notes"] = [note for note in result["notes"] if note["key"] != "resumed"]
    for name in ("curve.csv", "series.csv"):
        found[name] = (folder / name).read_text() if (folder / name).exists() else None
    return found


@pytest.mark.slow
@pytest.mark.parametrize("task", RUNS)
def test_killed_before_every_file_operation(task: str, tmp_path: Path) -> None:
    words = [*RUNS[task].split(), "device=cpu", "progress=false"]
    experiment.run(experiment.prepare(compose([*words, f"out={tmp_path / 'warm'}"])))
    status, operations = run_in_a_process([*words, f"out={tmp_path / 'whole'}"], tmp_path)
    assert status == 0
    assert 10 < operations < MOST
    (whole,) = (tmp_path / "whole").iterdir()
    expected, names = measured(whole), {path.name for path in whole.rglob("*")}
    lost = []
    for kill_at in range(operations):
        out = tmp_path / f"killed-{kill_at}"
        assert run_in_a_process([*words, f"out={out}"], tmp_path, kill_at)[0] == -signal.SIGKILL
        result = out / whole.name / "result.json"
        before = result.read_bytes() if result.exists() else None  # whole, or not at all
        assert run_in_a_process([*words, f"out={out}"], tmp_path)[0] == 0
        if measured(result.parent) != expected or (before is not None and result.read_bytes() != before):
            lost.append(kill_at)
        assert {path.name for path in result.parent.rglob("*")} == names, kill_at
    print(f"{task}: {operations} kills, {len(lost)} lost")
    assert not lost

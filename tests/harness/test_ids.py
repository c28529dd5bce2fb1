"""Runs recorded with the first versions are found again: their ids, over all tasks, have not changed since."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dembench.harness.compose import parse
from dembench.harness.sweeps import plan

RECORDED = json.loads((Path(__file__).parents[1] / "golden" / "run_ids.json").read_text())
TASKS = sorted({command.split()[0].removeprefix("task=") for command in RECORDED})


def test_all_tasks_are_there() -> None:
    assert TASKS == ["longtail", "minigrid", "prompt", "segmentation", "semi", "tta"]


@pytest.mark.parametrize("task", TASKS)
def test_ids_of_recorded_runs_stay_as_they_are(task: str, tmp_path: Path) -> None:
    commands = [command for command in RECORDED if command.startswith(f"task={task} ")]
    own = {"device": "cpu", "out": str(tmp_path)}
    words = [{**{o.key_or_group: o.value() for o in parse(command.split())}, **own} for command in commands]
    assert [run.id for run in plan(words)] == [RECORDED[command] for command in commands]

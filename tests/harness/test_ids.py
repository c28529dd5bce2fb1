"""Runs recorded with the first versions are found again: their ids, over all tasks, have not changed since."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from dembench.harness import experiment, runs
from dembench.harness.compose import compose, parse
from dembench.harness.sweeps import plan

TESTS = Path(__file__).parents[1]
RECORDED = json.loads((TESTS / "golden" / "run_ids.json").read_text())
TASKS = sorted({command.split()[0].removeprefix("task=") for command in RECORDED})
VERSIONS = dict(line.split("==") for line in (TESTS.parent / "constraints.txt").read_text().splitlines()[1:])


def words_of(command: str) -> dict[str, Any]:
    return {**{o.key_or_group: o.value() for o in parse(command.split())}, "device": "cpu"}


def test_all_tasks_are_there() -> None:
    assert TASKS == ["longtail", "minigrid", "prompt", "segmentation", "semi", "tta"]


@pytest.mark.parametrize("command", RECORDED)
def test_a_configuration_has_the_id_that_was_recorded(command: str) -> None:
    config = experiment.resolve(compose(words_of(command)))
    assert runs.run_id(config, RECORDED[command]["fingerprints"]) == RECORDED[command]["id"]


@pytest.mark.skipif(
    any(version(name) != VERSIONS[name] for name in ("torch", "numpy", "pillow")),
    reason="other versions draw and train embedded data and models a little otherwise",
)
@pytest.mark.parametrize("task", TASKS)
def test_runs_are_found_again(task: str, tmp_path: Path) -> None:
    commands = [command for command in RECORDED if command.startswith(f"task={task} ")]
    planned = plan({**words_of(command), "out": str(tmp_path)} for command in commands)
    assert [run.id for run in planned] == [RECORDED[command]["id"] for command in commands]

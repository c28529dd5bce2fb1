"""Every number that a configuration holds has a range, and what is out of it is one line before anything is loaded."""

from __future__ import annotations

import math

import pytest
from omegaconf import OmegaConf

from dembench.harness import ranges
from dembench.harness.compose import GROUPS, ConfigError, check_signatures, compose, options
from dembench.harness.ranges import Range

TASKS = options("task")
NAMED = [
    (task, group, name)
    for task in TASKS
    for group in GROUPS
    if group != "task" and (group != "loss" or task == TASKS[0])
    for name in options(group, task)
]


@pytest.mark.parametrize("task", TASKS)
def test_every_number_of_every_configuration_has_a_range_and_lies_in_it(task: str) -> None:
    seen = 0
    for owner, group, name in NAMED:
        if owner == task:
            node = OmegaConf.to_container(compose({"task": task, group: name}, complete=False)[group])
            for key, value in ranges.numbers(node, group):
                assert (wanted := ranges.range_of(key)) is not None, f"{key} of {task} {name} has no range"
                assert all(item in wanted for item in (value if isinstance(value, list) else [value])), (key, value)
                seen += 1
    assert seen > 10


def test_no_range_is_of_a_key_that_nothing_has() -> None:
    """Keys of arguments that no file sets are found by the constructors' annotations."""
    from dembench.harness.compose import arguments, locate

    names: set[str] = {"seed", "threads", "search_share", "search_seed", "lstm_hidden_size", "momentum"}

    def walk(node: object) -> None:
        if isinstance(node, dict):
            names.update(map(str, node))
            if isinstance(target := node.get("_target_"), str) and target != "???":
                names.update(arguments(locate(target, "x"))[0] or ())
            for value in node.values():
                walk(value)

    for task, group, name in NAMED:
        walk(OmegaConf.to_container(compose({"task": task, group: name}, complete=False)[group]))
    assert {key.rpartition(".")[2] for key in ranges.RANGES} - names == set()


@pytest.mark.parametrize(
    ("range_", "inside", "outside", "text"),
    [
        (ranges.ABOVE, (1e-30, 1e30), (0, -1, math.inf, math.nan), "a number > 0"),
        (ranges.COUNT, (1, 10**9), (0, 1.5, -4), "an integer >= 1"),
        (ranges.SHARE, (0, 1, 0.5), (-1e-9, 1.0001), "a number from 0 to 1"),
        (ranges.SHARE_ABOVE, (1e-9, 1), (0, 1.1), "a number > 0 and <= 1"),
        (ranges.SHARE_BELOW, (0, 0.999), (1, -0.1), "a number >= 0 and < 1"),
        (ranges.INSIDE, (0.2,), (0, 1), "a number > 0 and < 1"),
        (Range(0, 2**31 - 1, whole=True), (0, 2**31 - 1), (2**31, -1), "an integer from 0 to 2147483647"),
    ],
)
def test_a_range(range_: Range, inside: tuple[float, ...], outside: tuple[float, ...], text: str) -> None:
    assert all(value in range_ for value in inside)
    assert not any(value in range_ for value in outside)
    assert str(range_) == text


def test_what_a_users_own_class_is_given_is_its_own_to_judge() -> None:
    node = {"loss": {"_target_": "mine.Loss", "alpha": -3.0, "lr": -1.0}}
    ranges.check(node, ("loss",))
    node["loss"]["_target_"] = "dembench.core.DEM"
    with pytest.raises(ConfigError, match=r"^loss.lr: expected a number > 0, got -1.0$"):
        ranges.check(node, ("loss",))


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("lr", None, "method.lr: expected a number, got null"),
        ("steps", "two", "method.steps: expected an integer, got two"),
        ("steps", 1.5, "method.steps: expected an integer, got 1.5"),
        ("episodic", 1, "method.episodic: expected true or false, got 1"),
        ("strength", 1, "unknown argument of method 'strength'"),
    ],
)
def test_annotations_say_what_fits_also_behind_unpack(key: str, value: object, text: str) -> None:
    node = OmegaConf.to_container(compose(["method=tent"]).method)
    check_signatures({"method": node})
    with pytest.raises(ConfigError, match="^" + text.replace(".", r"\.")):
        check_signatures({"method": {**node, key: value}})

"""One claim, one number: what a report says of a loss in two places, it says with the same mean and interval."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from report_runs import Page, interval, make_run

from dembench.report import write_report
from dembench.report.judge.compare import compare
from dembench.report.judge.selection import select, side
from dembench.report.read.load import load
from dembench.report.tables.table import slug

SAID = re.compile(r"([+−][\d.]+) (?:[a-z ]+\()?(?:95% interval )?\[([+−][\d.]+), ([+−][\d.]+)\]")
METRICS = {"semi": "accuracy", "minigrid": "return"}
Triple = tuple[str, ...]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(runs, report): three tasks, two methods, four seeds, with gains that differ from seed to seed."""
    root = tmp_path_factory.mktemp("claims")
    draws = np.random.default_rng(0)
    for task, data, method in (
        ("tta", "cifar10c", "tent"), ("tta", "imagenet-c", "tent"), ("tta", "imagenet-c", "eta"),
        ("semi", "stl10", "fixmatch"), ("minigrid", "DoorKey", "ppo"),
    ):  # fmt: skip
        for seed in range(4):
            for loss in ("em", "dem", "adadem"):
                value = float(draws.uniform(0.2, 0.4))
                own = {"loss": loss, "seed": seed, "method": method, "data": data, "config": {"data.id": data}}
                own |= {"params": {"tau": 1.1, "alpha": 0.0}} if loss == "dem" else {}
                if task == "tta":
                    make_run(root / "runs", (value,), slices=("fog/5",), **own)
                else:
                    rows = [{"slice": "mean", "metric": METRICS[task], "value": value, "unit": "", "n": 9}]
                    make_run(root / "runs", task=task, rows=rows, protocol="p", **own)
    return root / "runs", write_report([root / "runs"], root / "out", with_figures=False).parent


def table(report: tuple[Path, Path], name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((report[1] / "tables" / f"{name}.csv").open()))


def triple(row: dict[str, str], column: str) -> Triple:
    return tuple(row[f"{column}: {part}"] for part in ("gain", "low", "high"))


def single(report: tuple[Path, Path]) -> dict[tuple[str, str, str], Triple]:
    """{(comparison, method, loss): gain and interval} of the table of single comparisons."""
    found = table(report, "summary")
    assert len(found) == 10
    return {(row["Comparison"], row["Method"], row["Loss"].partition(" ")[0]): triple(row, "gain") for row in found}


def test_the_table_of_a_comparison_says_what_the_table_of_all_says(report: tuple[Path, Path]):
    tasks = {"cifar10c": "tta", "imagenet-c": "tta", "stl10": "semi", "DoorKey": "minigrid"}
    for (comparison, method, loss), gain in single(report).items():
        rows = table(report, slug("main", tasks[comparison.partition(" ")[0]], comparison))
        (row,) = (row for row in rows if row["Method"] == method)
        column = next(name for name in row if name.startswith((f"{loss} ", f"{loss}:")))
        head = column.partition(":")[0]
        assert (row[f"{head}: gain over EM"], row[f"{head}: low"], row[f"{head}: high"]) == gain


def test_gains_over_tasks_are_those_of_the_tests_and_of_a_single_comparison(report: tuple[Path, Path]):
    across = {row["Task"]: row for row in table(report, "across-tasks")}
    alone = 0
    for row in table(report, "tests"):
        own = across[row["Task"]]
        assert triple(own, row["Loss"]) == triple(row, "mean gain")
        if own["cells: cells"] == "1":
            data = {"Semi-supervised learning": "stl10", "Reinforcement learning": "DoorKey"}[row["Task"]]
            (gain,) = (v for (c, _, loss), v in single(report).items() if c.startswith(data) and loss == row["Loss"])
            assert triple(own, row["Loss"]) == gain
            alone += 1
    assert alone == 4


def test_compare_says_what_the_report_says_and_both_what_scipy_says(report: tuple[Path, Path]):
    runs = load([report[0]]).runs
    methods = {"Tent": "tent", "ETA": "eta", "FixMatch": "fixmatch", "PPO": "ppo"}
    for (comparison, method, loss), gain in single(report).items():
        where = f"data={comparison.partition(' ')[0]} method={methods[method]}"
        a, b = (select(side(f"{where} loss={name}", report[0]), runs) for name in ("em", loss.lower()))
        (pair,) = compare(a, b).pairs
        values = np.array(list(pair.gains.values()))
        digits = pair.metric.digits
        assert gain == tuple(f"{v:.{digits}f}" for v in (pair.gain.mean, pair.gain.low, pair.gain.high))
        assert (pair.gain.low, pair.gain.high) == pytest.approx(interval(values))


def test_every_interval_in_a_sentence_is_one_of_a_table(report: tuple[Path, Path]):
    known: set[Triple] = set(single(report).values())
    for name in ("tests", "across-tasks"):
        for row in table(report, name):
            known |= {triple(row, key.removesuffix(": gain")) for key in row if key.endswith(": gain")}
    page = Page((report[1] / "index.html").read_text())
    said = {tuple(text.replace("−", "-").removeprefix("+") for text in found) for found in SAID.findall(page.text)}
    best = re.findall(r"Best against second best: (\S+) \[(\S+), (\S+)\]", page.text)  # of two losses, not over EM
    said -= {tuple(text.replace("−", "-").removeprefix("+") for text in found) for found in best}
    assert len(said) >= 8
    assert said <= known

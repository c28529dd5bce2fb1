"""Tables over environments, from made returns whose aggregates can be worked out by hand or by SciPy."""

from __future__ import annotations

import json

import numpy as np
import pytest
from report_runs import make_run
from scipy import stats

from dembench.report.judge.group import build_blocks
from dembench.report.read.load import load
from dembench.report.tables.environments import aggregate_table, environment_tables, seeds_table

EM = {"Door": [0.0, 0.0, 0.9, 0.95], "Empty": [0.96, 0.97, 0.96, 0.97]}
ADADEM = {"Door": [0.1, 0.0, 0.95, 0.9], "Empty": [0.97, 0.97, 0.97, 0.97]}


def add(root, data, loss, seed, value):
    rows = [
        {"slice": "mean", "metric": name, "value": number, "unit": unit, "n": 100}
        for name, number, unit in (
            ("return", value, "return"),
            ("success", float(value > 0.5), "fraction"),
            ("episode_sd", 0.1, "return"),
        )
    ]
    made = make_run(
        root, method="ppo", loss=loss, seed=seed, data=data, protocol="zoo", task="minigrid", rows=rows,
        config={"data.id": data},
    )  # fmt: skip
    assert json.loads((made / "result.json").read_text())["rows"] == rows


@pytest.fixture
def blocks(tmp_path):
    for data in EM:
        for seed in range(4):
            add(tmp_path, data, "em", seed, EM[data][seed])
            add(tmp_path, data, "adadem", seed, ADADEM[data][seed])
    return build_blocks(load([tmp_path]).runs)


def test_aggregates_are_scipys(blocks):
    table = aggregate_table(blocks, "zoo")
    rows = {row[2].text: row for row in table.rows}
    assert list(rows) == ["EM", "AdaDEM"]
    pooled = np.concatenate([ADADEM["Door"], ADADEM["Empty"]])
    runs, iqm, mean, gap, better, difference = rows["AdaDEM"][3:]
    assert runs.text == "8"
    assert iqm.sort == pytest.approx(stats.trim_mean(pooled, 0.25))
    assert mean.sort == pytest.approx(pooled.mean())
    assert gap.sort == pytest.approx(1 - pooled.mean())
    expected = [stats.mannwhitneyu(ADADEM[data], EM[data]).statistic / 16 for data in EM]
    assert better.sort == pytest.approx(np.mean(expected))
    em = np.concatenate([EM["Door"], EM["Empty"]])
    assert difference.sort == pytest.approx(stats.trim_mean(pooled, 0.25) - stats.trim_mean(em, 0.25))
    low, high = (float(text) for text in difference.numbers[1:])
    assert low <= difference.sort <= high
    assert rows["EM"][7].text == rows["EM"][8].text == "–"
    assert "DoorKey" not in table.caption
    assert "2 environments (Door, Empty)" in table.caption


def test_seed_by_seed(blocks):
    rows = {(row[0].text, row[3].text): row for row in seeds_table(blocks, "zoo").rows}
    door = rows["Door", "AdaDEM"]
    assert door[4].sort == pytest.approx(np.mean(ADADEM["Door"]))
    assert door[5].sort == pytest.approx(np.std(ADADEM["Door"], ddof=1))
    assert door[6].sort == pytest.approx(0.1)
    assert door[7].sort == pytest.approx(np.median(ADADEM["Door"]))
    assert door[8].text == "2 of 4"
    assert door[9].numbers == ("2", "1", "1", "1.000")
    assert rows["Empty", "AdaDEM"][9].numbers == ("2", "2", "0", "0.500")
    assert rows["Door", "EM"][9].text == "–"


def test_one_environment_has_no_aggregate_and_other_tasks_no_table(tmp_path):
    for seed in range(2):
        add(tmp_path / "rl", "Door", "em", seed, 0.5)
        make_run(tmp_path / "tta", seed=seed)
    tables = environment_tables(build_blocks(load([tmp_path / "rl"]).runs))
    assert [table.title for table in tables] == ["Each environment, seed by seed"]
    assert environment_tables(build_blocks(load([tmp_path / "tta"]).runs)) == []


def test_a_loss_that_one_environment_lacks_is_left_out(blocks, tmp_path):
    add(tmp_path, "Door", "dem", 0, 0.5)
    table = aggregate_table(build_blocks(load([tmp_path]).runs), "zoo")
    assert [row[2].text for row in table.rows] == ["EM", "AdaDEM"]

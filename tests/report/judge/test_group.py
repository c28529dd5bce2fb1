"""What is compared with what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from report_runs import ADADEM, EM, make_run, only_block

from dembench.report import write_report
from dembench.report.judge.group import build_blocks
from dembench.report.judge.stats import paired
from dembench.report.judge.verdict import said, verdicts
from dembench.report.read.load import load
from dembench.report.tables.results import main_table


@pytest.mark.parametrize(
    ("change", "label"),
    [
        ({"protocol.batch_size": 10}, "batch_size 10"),
        ({"protocol.severity": 3}, "severity 3"),
        ({"device": "cuda"}, "cuda"),
        ({"data.frost": "/photos"}, "frost given"),
        ({"task.option": 2}, "option 2"),
    ],
)
def test_other_protocols_get_tables_of_their_own(tmp_path: Path, change: dict[str, Any], label: str):
    make_run(tmp_path, EM[0])
    make_run(tmp_path, ADADEM[0], loss="adadem", config=change)
    blocks = build_blocks(load([tmp_path]).runs)
    assert len(blocks) == 2
    assert any(label in block.title for block in blocks)
    assert not any(verdicts(block) for block in blocks)


def test_seed_and_paths_do_not_split_a_table(tmp_path: Path):
    for place in ("here", "there"):
        for seed in (1, 2):
            make_run(tmp_path / place, EM[seed], seed=seed, loss="em" if place == "here" else "adadem")
    assert len(build_blocks(load([tmp_path]).runs)) == 1


def test_data_of_one_name_and_two_contents_are_kept_apart(tmp_path: Path):
    make_run(tmp_path / "a", EM[0], fingerprints={"data": "aaaa"})
    make_run(tmp_path / "b", EM[1], seed=1, fingerprints={"data": "bbbb"})
    assert len(build_blocks(load([tmp_path]).runs)) == 2


def test_the_same_configuration_twice_is_used_once_and_listed(tmp_path: Path):
    make_run(tmp_path, EM[0])
    make_run(tmp_path, EM[1], config={"out": "x", "choices.note": "one"}, id="ffffffffffff", data="digits-c")
    block = only_block(tmp_path)
    assert [len(cell.runs) for cell in block.cells.values()] == [1]
    assert [aside.name for aside in block.aside] == ["ffffffffffff"]
    assert "ffffffffffff" in write_report([tmp_path], tmp_path / "out", with_figures=False).read_text()


def test_loss_settings_are_columns_and_name_their_values(tmp_path: Path):
    for tau, alpha in ((1.0, 1.0), (1.1, 0.0)):
        make_run(tmp_path, EM[0], loss="dem", params={"tau": tau, "alpha": alpha})
    titles = [column.title for column in main_table(only_block(tmp_path)).columns]
    assert titles == ["Method", "DEM τ 1.1, α 0", "DEM τ 1, α 1"]


def test_of_many_loss_settings_the_plain_and_the_best_are_shown(tmp_path: Path):
    for step in range(12):
        error = 0.3 - 0.01 * step if step < 9 else 0.4
        make_run(tmp_path, (error,) * 3, loss="dem", params={"tau": 1.0, "alpha": round(0.2 * step, 1)})
    table = main_table(only_block(tmp_path))
    assert [column.title for column in table.columns] == ["Method", "DEM τ 1, α 1", "DEM τ 1, α 1.6"]
    assert "10 further settings" in " ".join(table.footnotes)


def test_seeds_that_change_nothing_support_no_claim():
    alike = paired({0: 0.3, 1: 0.3, 2: 0.3}, {0: 0.2, 1: 0.2, 2: 0.2})
    assert (alike.low, alike.high, alike.verdict, alike.n) == (None, None, 0, 3)
    assert "one and the same number, no interval" in said(alike, 2, "points")


def test_a_metric_that_is_better_when_higher(tmp_path: Path):
    for loss, value in (("em", 0.4), ("adadem", 0.7)):
        for seed in range(2):
            rows = [
                {"slice": s, "metric": "return", "value": value * (1 + seed / 30), "unit": "return", "n": 5}
                for s in ("a", "mean")
            ]
            make_run(tmp_path, loss=loss, seed=seed, task="minigrid", rows=rows)
    block = only_block(tmp_path)
    em, adadem = main_table(block).rows[0][1:]
    assert (em.mark, adadem.mark, adadem.sub) == ("", "best", "+0.305 [+0.241, +0.369]")  # 12.706 * 0.005
    assert "higher is better" in main_table(block).caption
    assert "better than EM" in verdicts(block)[0].headline

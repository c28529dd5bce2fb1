"""The table of what else was recorded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from report_runs import EM, make_run, only_block, percent

from dembench.report.tables.measures import further_table


def table_of(root: Path) -> dict[str, list[str]]:
    """{heading: texts}"""
    table = further_table(only_block(root))
    return {column.title: [row[i].text for row in table.rows] for i, column in enumerate(table.columns)}


def test_means_and_deviations_are_those_of_the_runs(golden: tuple[Path, Path]):
    found = table_of(golden[0])
    em = next(i for i, pair in enumerate(zip(found["Loss"], found["Setting"], strict=True))
              if pair[0] == "EM" and "1e-3" in pair[1])  # fmt: skip
    errors = percent(EM)
    assert found["ECE ↓"][em] == f"{errors.mean() / 4:.2f} ± {np.std(errors / 4, ddof=1):.2f}"
    nll = 2 * errors / 100
    assert found["NLL (nats) ↓"][em] == f"{nll.mean():.3f} ± {nll.std(ddof=1):.3f}"
    assert "error ↓" not in found  # the main table has it


def test_what_was_chosen_on_the_test_is_not_ranked(tmp_path: Path):
    for loss, value in (("em", 0.5), ("adadem", 0.9)):
        for seed in range(3):
            rows = [
                {"slice": "mean", "metric": metric, "value": value + seed * value / 100, "unit": "fraction", "n": 10}
                for metric in ("accuracy", "accuracy_test_best", "geometric_mean")
            ]
            make_run(tmp_path, task="longtail", rows=rows, loss=loss, seed=seed)
    table = further_table(only_block(tmp_path))
    marks = {column.title: [row[i].mark for row in table.rows] for i, column in enumerate(table.columns)}
    assert marks["geometric mean of recalls ↑"] == ["", "best"]
    assert marks["best accuracy on the test (parity only)"] == ["", ""]
    assert "Not ranked: best accuracy on the test (parity only)." in table.caption


def test_a_flagged_cell_says_so_and_is_not_ranked(tmp_path: Path):
    for seed in range(2):
        make_run(tmp_path, (0.1, 0.1, 0.1 + seed / 10), seed=seed, status=("collapse", "nan")[seed])
        make_run(tmp_path, (0.3, 0.2, 0.1 + seed / 10), seed=seed, loss="adadem")
    table = further_table(only_block(tmp_path))
    assert [row[1].text for row in table.rows] == ["EM †1 ‡1", "AdaDEM"]
    assert not any(entry.mark for entry in table.rows[0])
    assert {note.split(":")[0] for note in table.footnotes} == {"†k", "‡k"}


def test_a_missing_number_is_a_dash(tmp_path: Path):
    for loss, metric in (("em", "f1"), ("adadem", "precision")):
        rows = [{"slice": "mean", "metric": m, "value": 0.5, "unit": "fraction", "n": 9} for m in ("accuracy", metric)]
        make_run(tmp_path, task="semi", rows=rows, loss=loss)
    assert table_of(tmp_path)["F1 ↑"] == ["50.00", "–"]


def test_nothing_else_is_no_table(tmp_path: Path):
    make_run(tmp_path, rows=[{"slice": "mean", "metric": "error", "value": 0.5, "unit": "fraction", "n": 9}])
    assert further_table(only_block(tmp_path)) is None


@pytest.mark.parametrize("suffix", ["csv", "md", "tex"])
def test_it_is_written_beside_the_page(golden: tuple[Path, Path], suffix: str):
    (file,) = (golden[1] / "tables").glob(f"metrics-*.{suffix}")
    assert "ECE" in file.read_text()

"""Which cells are set in bold or underlined."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_runs import make_run, only_block

from dembench.report.judge.verdict import verdicts
from dembench.report.tables.headlines import headlines
from dembench.report.tables.results import detail_table, main_table


def two_losses(root: Path, adadem: tuple[float, ...], seeds: int = 3, **options) -> None:
    for seed, gap in zip(range(seeds), adadem, strict=False):
        for loss, error in (("em", 0.2 + 0.01 * seed), ("adadem", 0.2 + 0.01 * seed - gap)):
            make_run(root, (error,) * 3, loss=loss, seed=seed, **options)


def marks(table) -> list[str]:
    return [entry.mark for row in table.rows for entry in row if entry.text[:1].isdigit()]


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ((0.010, 0.011, 0.012), ["", "best"]),  # 1.1 +- 0.25 points
        ((0.010, -0.002, 0.012), ["tied", "tied"]),  # the interval holds zero
        ((0.00001, 0.00002, 0.00003), ["tied", "tied"]),  # told apart, and printed alike
        ((0.010, 0.010, 0.010), ["", "tied"]),  # the same difference three times is one
    ],
)
def test_bold_needs_an_interval_clear_of_zero(tmp_path: Path, gains: tuple[float, ...], expected: list[str]):
    two_losses(tmp_path, gains)
    block = only_block(tmp_path)
    assert marks(main_table(block)) == expected
    detail = [[entry.mark for entry in row[2:]] for row in detail_table(block).rows]
    assert detail == [[mark] * 4 for mark in expected]  # three slices and the mean


def test_a_biased_source_stays_in_the_ranking(tmp_path: Path):
    """One class on one slice is the model's own doing where nothing adapts."""
    two_losses(tmp_path, (0.010, 0.011, 0.012))
    for seed, wobble in enumerate((0.0, 0.001, 0.002)):
        make_run(tmp_path, (0.1 + wobble,) * 3, method="source", seed=seed, status="collapse")
    table = main_table(only_block(tmp_path))
    assert (table.rows[0][1].mark, table.rows[0][1].text[-2:]) == ("best", "†3")
    assert any("no collapse of adaptation" in note for note in table.footnotes)


def test_headlines_speak_of_every_loss_and_of_the_baselines(tmp_path: Path):
    two_losses(tmp_path, (0.010, 0.011, 0.012))
    two_losses(tmp_path, (-0.010, -0.011, -0.012), method="eta")
    two_losses(tmp_path, (0.010, -0.020, 0.012), method="sar")
    for seed in range(3):
        worse = (0.25 + 0.011 * seed,) * 3
        make_run(tmp_path, worse, loss="dem", seed=seed, params={"tau": 1.1, "alpha": 0.0})
        make_run(tmp_path, (0.5 + 0.002 * seed,) * 3, method="source", seed=seed)
    block = only_block(tmp_path)
    dem, adadem, baseline = headlines(block, verdicts(block))
    assert dem.strong == "DEM τ 1.1, α 0 is worse than EM."
    assert adadem.strong == "AdaDEM against EM in 3 methods: better in 1, worse in 1, not told apart in 1."
    assert (dem.sign, adadem.sign, baseline.sign) == (-1, 0, 1)
    assert "ETA −1.10 [" in adadem.text
    assert baseline.strong == "Best mean of a loss: Tent + AdaDEM, error 19.90 %."
    assert baseline.text.startswith("Gain over Source +30.30 percentage points")  # 50.2 - 19.9
    for seed in range(3):
        make_run(tmp_path, (0.1,) * 3, method="t3a", seed=seed)
    block = only_block(tmp_path)
    *_, baseline = headlines(block, verdicts(block))
    assert baseline.strong == "Best mean of a loss: Tent + AdaDEM, error 19.90 % (T3A, without a loss: 10.00)."


def test_every_setting_has_a_row_where_other_things_than_the_rate_vary(tmp_path: Path):
    for robust, select, error in ((True, False, 0.3), (False, True, 0.2), (True, True, 0.1)):
        make_run(tmp_path, (error,) * 3, method="ttc", config={"method.robust": robust, "method.select": select})
    settings = [row[2].text for row in detail_table(only_block(tmp_path)).rows]
    assert settings == ["robust no, select yes", "robust yes, select no", "robust yes, select yes (best)"]

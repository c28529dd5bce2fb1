"""What the report claims from the numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from report_runs import ADADEM, ADADEM_FAST, EM, interval, make_run, only_block, percent

from dembench.report.judge.verdict import verdicts
from dembench.report.tables.summary import summary_table


def test_verdict_compares_at_equal_and_at_best_rate(golden: tuple[Path, Path]):
    (verdict,) = verdicts(only_block(golden[0]))
    low, high = interval(percent(EM) - percent(ADADEM_FAST))
    gain = (percent(EM) - percent(ADADEM_FAST)).mean()
    assert (verdict.em.lr, verdict.own.lr) == (1e-3, 1e-2)
    assert (verdict.best.mean, verdict.best.low, verdict.best.high) == pytest.approx((gain, low, high))
    assert f"+{gain:.2f} percentage points (95% interval [−{-low:.2f}, +{high:.2f}], n = 3 seeds)" in verdict.sentence
    assert "cannot be told apart" in verdict.headline
    assert "chosen on the test stream itself" in verdict.sentence
    assert "EM 1e-3, edge of the grid; AdaDEM 1e-2, edge of the grid" in verdict.sentence
    equal = {cell.lr: gain for cell, gain in verdict.equal}
    assert equal[1e-3].mean == pytest.approx((percent(EM) - percent(ADADEM)).mean())
    assert (equal[1e-2].n, equal[1e-2].low) == (1, None)
    assert "better at 1, worse at 0, undecided at 0, one seed only at 1 of 2" in verdict.sentence
    assert "(1 seed) †" in verdict.sentence
    assert summary_table([verdict]).rows[0][0].text == "AdaDEM"


@pytest.mark.parametrize(
    ("offsets", "words", "sign"),
    [
        ((0.02, 0.021, 0.019), "worse", "−"),
        ((-0.02, -0.021, -0.019), "better", "+"),
        ((0.05, -0.05, 0.01), "told", "−"),
    ],
)
def test_verdict_says_what_the_numbers_say(tmp_path: Path, offsets: tuple[float, ...], words: str, sign: str):
    for seed, offset in enumerate(offsets):
        make_run(tmp_path, EM[seed], seed=seed)
        make_run(tmp_path, tuple(e + offset for e in EM[seed]), loss="adadem", seed=seed)
    (verdict,) = verdicts(only_block(tmp_path))
    assert words in verdict.headline
    assert f": {sign}{abs(100 * np.mean(offsets)):.2f} percentage points" in verdict.sentence


def test_best_rate_needs_all_seeds(tmp_path: Path):
    for seed in range(3):
        make_run(tmp_path, EM[seed], seed=seed)
        make_run(tmp_path, EM[seed], loss="adadem", seed=seed)
        make_run(tmp_path, EM[seed], loss="adadem", seed=seed, lr=1e-2)
    make_run(tmp_path, (0.01, 0.01, 0.01), seed=0, lr=1e-2)  # lucky, and one seed only
    block = only_block(tmp_path)
    assert block.best("tent", block.em).lr == 1e-3
    said = "Only settings with the most seeds can be the best one."
    assert said in summary_table(verdicts(block)).caption
    for seed in (1, 2):
        make_run(tmp_path, (0.01, 0.01, 0.01), seed=seed, lr=1e-2)
    block = only_block(tmp_path)
    assert block.best("tent", block.em).lr == 1e-2
    assert said not in summary_table(verdicts(block)).caption

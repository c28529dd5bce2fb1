"""The width of the range of good rates, by hand-made curves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from report_runs import make_run

from dembench.report.judge.tolerance import curves, resamples, width
from dembench.report.read.load import load
from dembench.report.read.names import Metric

ERROR = Metric("error", "error", "%", 100, -1, 2)
RETURN = Metric("return", "return", "", 1, 1, 3)
RATES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def curve(*rows):
    """{rate: {seed: value}} of one row per rate; a row is a number or a number per seed."""
    values = [row if isinstance(row, tuple) else (row,) for row in rows]
    return {rate: dict(enumerate(row)) for rate, row in zip(RATES, values, strict=True)}


@pytest.mark.parametrize(
    ("rows", "decades", "best", "ends"),
    [
        ((20, 12, 10, 12, 20), 1.0, 1e-3, (False, False)),  # half a decade to each side
        ((30, 20, 10, 11, 12), 1.1, 1e-3, (False, False)),  # 0.1 to the left, a whole one to the right
        ((30, 20, 10, 10.5, 10.9), 2.1, 1e-3, (False, True)),  # and to the end of what was tried
        ((10, 10, 10, 10, 10), 4.0, 1e-5, (True, True)),
        ((10, 30, 10.5, 30, 30), 0.05, 1e-5, (True, False)),  # the other good rate is behind a hill
        ((30, 30, 10, 10, math.nan), 1.05, 1e-3, (False, False)),  # a NaN is worse than any number
    ],
)
def test_width_of_a_curve(rows, decades, best, ends):
    found = width(curve(*rows), ERROR)
    assert found.decades == pytest.approx(decades)
    assert (found.best, found.lower, found.upper) == (best, *ends)
    assert (found.low, found.high, found.seeds) == (None, None, 1)
    mirrored = width({rate: {s: -v for s, v in own.items()} for rate, own in curve(*rows).items()}, Metric(
        "accuracy", "accuracy", "%", 100, 1, 2))  # fmt: skip
    assert mirrored == found


def test_a_point_of_a_return_is_a_hundredth():
    assert width(curve(0.5, 0.88, 0.9, 0.88, 0.5), RETURN).decades == pytest.approx(1.0)


def test_the_interval_is_that_of_all_resamples_of_two_seeds():
    # seed 0 falls by 2 points a decade, seed 1 by 4: widths 1.0 and 0.5, of their mean 2/3
    found = width(curve((20, 30), (12, 14), (10, 10), (12, 14), (20, 30)), ERROR)
    assert found.decades == pytest.approx(2 / 3)
    drawn = [1.0, 2 / 3, 2 / 3, 0.5]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
    assert [len(resamples(n)) for n in (2, 3, 4, 5)] == [4, 27, 256, 2000]


def test_the_interval_holds_the_width_of_the_mean_curve():
    rng = np.random.default_rng(1)
    slopes, hits = np.array([10, 2, 0, 2, 10.0]), 0
    for _ in range(200):
        rows = 10 + slopes[:, None] + rng.normal(0, 0.5, (5, 8))
        found = width(curve(*map(tuple, rows)), ERROR)
        hits += found.low <= 1.0 <= found.high
    assert hits >= 200 * 0.8  # a bootstrap of 8 seeds, of a best rate that is chosen


def test_without_three_rates_or_a_common_seed_there_is_none():
    assert width({1e-3: {0: 1.0}, 1e-2: {0: 1.0}}, ERROR) is None
    assert width({1e-3: {0: 1.0}, 1e-2: {1: 1.0}, 1e-1: {0: 1.0}}, ERROR) is None
    assert width(curve(*[math.nan] * 5), ERROR) is None


def test_any_sweep_over_rates_gives_its_curves(tmp_path):
    for seed in (0, 1):
        for rate in (1e-4, 1e-3, 1e-2):
            for loss in ("em", "adadem"):
                make_run(tmp_path, (0.1, 0.2, 0.3 + rate), loss=loss, seed=seed, lr=rate)
        make_run(tmp_path, loss="dem", seed=seed, lr=1e-3, params={"tau": 1.2, "alpha": 1.0})
    make_run(tmp_path, loss="em", lr=1e-1, status="collapse")
    found = {one.loss: one for one in curves(load([tmp_path]).runs)}
    assert set(found) == {"em", "adadem"}  # DEM has one rate
    assert found["adadem"].values == {
        rate: pytest.approx(dict.fromkeys((0, 1), 100 * (0.6 + rate) / 3)) for rate in (1e-4, 1e-3, 1e-2)
    }
    assert math.isnan(found["em"].values[1e-1][0])
    assert found["em"].chosen == {}

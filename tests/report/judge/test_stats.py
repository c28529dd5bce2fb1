"""The interval over several data sets: against SciPy's tests and bootstrap, by simulation, and with few numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from dembench.report.judge.stats import pooled


def draw(rng, strata, cells, seeds, scale=1.0):
    """Differences whose seeds move all cells of a stratum together, as a shared stream does."""
    return [
        scale * (rng.normal(size=(cells, seeds)) + rng.normal(size=(1, seeds))) / math.sqrt(2) for _ in range(strata)
    ]


def test_the_mean_counts_cells_alike():
    strata = [np.array([[1.0, 3.0, 5.0], [2.0, math.nan, 4.0]]), np.array([[10.0, 20.0]])]
    found = pooled(strata)
    assert found.mean == pytest.approx((3 + 3 + 15) / 3)
    assert (found.cells, found.alone, found.over) == (3, 0, "seeds")


def test_with_many_seeds_it_is_scipys_percentile_bootstrap():
    """SciPy draws the strata of a statistic of several samples independently."""
    rng = np.random.default_rng(3)
    samples = [rng.exponential(size=(1, 400)), 2 * rng.exponential(size=(1, 300))]
    found = pooled(samples)

    def mean(x, y, axis=-1):
        return (x.mean(axis) + y.mean(axis)) / 2

    expected = stats.bootstrap([s[0] for s in samples], mean, method="percentile", rng=np.random.default_rng(4))
    width = expected.confidence_interval.high - expected.confidence_interval.low
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.04 * width)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.04 * width)


def test_for_one_data_set_it_is_students_interval_of_the_mean_per_seed():
    values = np.random.default_rng(5).normal(size=(3, 5))
    found = pooled([values])
    expected = stats.t.interval(0.95, 4, values.mean(), stats.sem(values.mean(0)))
    assert (found.low, found.high) == pytest.approx(expected)


def test_for_two_data_sets_it_is_welchs():
    """The mean of x and -y is half the difference of their means, for which SciPy has Welch's interval."""
    rng = np.random.default_rng(6)
    x, y = rng.normal(1, 1, 3), rng.normal(0, 4, 7)
    found = pooled([x[None], -y[None]])
    welch = stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.95)
    assert (2 * found.low, 2 * found.high) == pytest.approx((welch.low, welch.high))


@pytest.mark.parametrize(("strata", "cells", "seeds"), [(1, 2, 3), (3, 2, 3), (6, 1, 2)])
def test_coverage_by_simulation(strata, cells, seeds):
    """Of 400 intervals of nothing, 95% should hold zero; a plain percentile bootstrap holds it in 75% of the first."""
    rng = np.random.default_rng(strata * 10 + seeds)
    held = [found.low <= 0 <= found.high for found in (pooled(draw(rng, strata, cells, seeds)) for _ in range(400))]
    assert 0.92 <= np.mean(held) <= 0.985


def test_the_same_numbers_give_the_same_interval_and_orders_do_not_matter():
    strata = draw(np.random.default_rng(0), 3, 2, 3)
    assert pooled(strata) == pooled([stratum.copy() for stratum in strata])
    shifted = pooled([stratum + 7 for stratum in strata])
    assert (shifted.low, shifted.high) == pytest.approx((pooled(strata).low + 7, pooled(strata).high + 7))


def test_single_seeds_are_left_out_where_most_cells_have_more():
    strata = [np.array([[1.0, 2.0, 3.0], [5.0, 6.0, 8.0], [100.0, math.nan, math.nan]])]
    found = pooled(strata)
    assert found.mean == pytest.approx((2 + 19 / 3) / 2)
    assert (found.cells, found.alone, found.over) == (2, 1, "seeds")


def test_cells_are_drawn_where_most_have_one_seed():
    found = pooled([np.array([[1.0], [2.0], [3.0], [2.5]]), np.array([[1.0, 2.0]])])
    assert (found.cells, found.alone, found.over) == (5, 0, "cells")
    assert found.mean == pytest.approx(np.mean([1, 2, 3, 2.5, 1.5]))
    assert found.low < found.mean < found.high
    assert found.verdict == 1


@pytest.mark.parametrize(
    "strata",
    [
        [],
        [np.empty((0, 0))],
        [np.array([[1.0]]), np.array([[2.0]])],  # two cells of one seed
        [np.array([[math.nan, math.nan]])],
    ],
)
def test_too_little_has_no_interval(strata):
    found = pooled(strata)
    assert (found.low, found.high, found.over, found.verdict) == (None, None, "", 0)


def test_seeds_that_change_nothing_have_no_interval():
    found = pooled([np.full((2, 3), 1.25), np.full((1, 3), 0.75)])
    assert (found.low, found.over) == (None, "")
    assert found.mean == pytest.approx((1.25 * 2 + 0.75) / 3)
    half = pooled([np.full((1, 3), 1.0), np.array([[1.0, 2.0, 3.0]])])
    assert half.low < half.mean < half.high  # one data set varies

"""Seeds needed, against published tables of the paired t test, a simulation, and the normal limit."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dembench.report.judge.power import needed, needed_short, needed_text, pairs_needed, power
from dembench.report.judge.stats import estimate
from dembench.report.read.names import Metric

ERROR = Metric("error", "error", "%", 100, -1, 2)
RETURN = Metric("return", "return", "", 1, 1, 3)


@pytest.mark.parametrize(("effect", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10), (1.5, 6), (2.0, 5)])
def test_pairs_are_those_of_gpower(effect, pairs):
    assert pairs_needed(effect) == pairs_needed(-effect) == pairs


@pytest.mark.parametrize(("pairs", "effect"), [(2, 30.0), (3, 1.5), (5, 2.0), (10, 0.5), (34, 0.5)])
def test_power_is_how_often_scipys_test_tells(pairs, effect):
    draws = np.random.default_rng(0).normal(effect, 1, (20_000, pairs))
    told = (stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean()
    assert power(pairs, effect) == pytest.approx(told, abs=0.011)  # 3 standard errors


@pytest.mark.parametrize("effect", [0.03, 0.07, 0.3, 0.9, 3.0, 30.0])
def test_it_is_the_fewest(effect):
    pairs = pairs_needed(effect)
    assert power(pairs, effect) >= 0.8
    assert pairs == 2 or power(pairs - 1, effect) < 0.8
    if effect < 0.1:
        assert pairs == pytest.approx((2.8016 / effect) ** 2, abs=3)


def test_only_what_was_not_told_apart_says_how_many():
    open_, told = estimate([1.0, -0.4, 0.9]), estimate([1.0, 1.1, 0.9])
    assert (open_.verdict, told.verdict) == (0, 1)
    assert needed(told, ERROR) == needed(estimate([1.0]), ERROR) == needed(estimate([1.0, 1.0]), ERROR) == ()
    sd = np.std([1.0, -0.4, 0.9], ddof=1)
    sizes = dict(needed(open_, ERROR))
    assert sizes == {"a difference of this size": pairs_needed(0.5 / sd), "0.5 points": pairs_needed(0.5 / sd)}
    assert needed_text(open_, ERROR) == (
        "80 % power takes 22 paired seeds for a difference of this size, 22 for 0.5 points"
    )
    assert needed_short(open_, RETURN) == "22"  # half a point is of a metric in %
    assert needed_text(told, ERROR) == ""
    assert needed_short(estimate([1.0, -1.0]), ERROR).startswith("over 10,000; ")

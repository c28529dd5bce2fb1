"""Aggregates over tasks against SciPy, numbers worked out by hand, and the coverage that intervals claim."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dembench.report.judge import aggregate
from dembench.report.judge.aggregate import bootstrap, bootstrap_difference, bootstrap_improvement, improvement, iqm

RNG = np.random.default_rng(0)


def test_interquartile_mean_is_scipys_trimmed_mean():
    for runs, tasks in ((6, 9), (10, 3), (3, 1), (5, 2)):
        scores = [RNG.normal(size=runs) for _ in range(tasks)]
        assert iqm(scores) == pytest.approx(stats.trim_mean(np.concatenate(scores), 0.25))
    assert iqm([np.array([0.0, 1, 2, 99])]) == 1.5


def test_gap_mean_and_profile_by_hand():
    scores = [np.array([0.5, 1.5]), np.array([0.0, 1.0, 1.0, 1.0])]
    assert aggregate.mean(scores) == pytest.approx((1.0 + 0.75) / 2)
    assert aggregate.optimality_gap(scores) == pytest.approx((0.25 + 0.25) / 2)  # 1.5 counts as 1
    shares = aggregate.profile(scores, np.array([0.0, 0.75, 1.0]))
    assert shares == pytest.approx([(1 + 0.75) / 2, (0.5 + 0.75) / 2, (0.5 + 0) / 2])


def test_probability_of_improvement_is_mann_whitney():
    scores = [RNG.normal(size=7), RNG.integers(0, 3, 5).astype(float)]
    base = [RNG.normal(size=4), RNG.integers(0, 3, 6).astype(float)]
    expected = [stats.mannwhitneyu(a, b).statistic / (len(a) * len(b)) for a, b in zip(scores, base, strict=True)]
    assert improvement(scores, base) == pytest.approx(np.mean(expected))
    assert improvement(scores, scores) == pytest.approx(0.5)
    assert improvement([np.array([2.0])], [np.array([1.0])]) == 1


def test_bootstrap_repeats_and_stays_within_the_scores():
    scores = [RNG.random(6), RNG.random(4)]
    one, two = bootstrap(scores, iqm), bootstrap(scores, iqm)
    assert one == two
    assert min(map(np.min, scores)) <= one.low < one.value < one.high <= max(map(np.max, scores))
    assert bootstrap(scores, iqm, seed=1) != one


def test_bootstrap_is_stratified():
    """Runs of one task never stand in for those of another: constant tasks have no spread, whatever their values."""
    found = bootstrap([np.full(5, 0.0), np.full(5, 1.0)], aggregate.mean)
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


def test_bootstrap_of_a_mean_against_scipy():
    scores = RNG.normal(size=30)
    ours = bootstrap([scores], aggregate.mean)
    theirs = stats.bootstrap((scores,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_pairs_are_resampled_whole():
    """With one difference in all pairs there is nothing uncertain, however far the runs lie apart."""
    base = [RNG.normal(size=8), RNG.normal(size=8)]
    found = bootstrap_difference([task + 0.25 for task in base], base, aggregate.mean)
    assert (found.low, found.high) == pytest.approx((0.25, 0.25))
    apart = bootstrap_improvement([task + 0.25 for task in base], base)
    assert apart.low < 0.5 < apart.high
    with pytest.raises(ValueError, match="the same runs on both sides"):
        bootstrap_difference([np.zeros(2)], [np.zeros(3)], iqm)


def test_interval_of_the_mean_covers_as_it_says():
    rng, hits = np.random.default_rng(1), 0
    for _ in range(200):
        found = bootstrap([rng.normal(size=40)], aggregate.mean, repetitions=400)
        hits += found.low <= 0 <= found.high
    assert 180 <= hits <= 199  # 95% of 200, within 3 deviations and the method's known shortfall


def test_sign_test_is_scipys_binomial_test():
    assert aggregate.sign_test(np.array([1.0, 2, 3, -1, 0])) == pytest.approx(stats.binomtest(3, 4).pvalue)
    assert aggregate.sign_test(np.array([-1.0] * 6)) == pytest.approx(stats.binomtest(0, 6).pvalue)
    assert aggregate.sign_test(np.zeros(3)) == 1

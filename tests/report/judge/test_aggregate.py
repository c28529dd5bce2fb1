"""IQM, optimality gap and probability of improvement, derived again from their definitions (Agarwal et al. 2021) with
plain loops over runs and tasks, as matrices of runs x tasks."""

from __future__ import annotations

import math
import time
from fractions import Fraction

import numpy as np
import pytest

from dembench.report.judge.aggregate import (
    affordable,
    bootstrap,
    bootstrap_improvement,
    improvement,
    iqm,
    optimality_gap,
)

RNG = np.random.default_rng(11)
MATRICES = [RNG.normal(0.5, 0.5, (runs, tasks)) for runs, tasks in ((3, 3), (5, 2), (7, 6), (4, 1))]


def columns(matrix):
    return list(matrix.T)


@pytest.mark.parametrize("matrix", MATRICES)
def test_iqm_drops_a_quarter_of_all_runs_at_both_ends(matrix):
    ordered = sorted(matrix.ravel())
    cut = math.floor(Fraction(len(ordered), 4))
    kept = ordered[cut : len(ordered) - cut]
    assert iqm(columns(matrix)) == pytest.approx(sum(kept) / len(kept))


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("target", [1.0, 0.25])
def test_optimality_gap_is_the_mean_shortfall(matrix, target):
    shortfall = [max(0.0, target - score) for score in matrix.ravel()]
    assert optimality_gap(columns(matrix), target) == pytest.approx(sum(shortfall) / len(shortfall))


@pytest.mark.parametrize("levels", [None, 3])
def test_probability_of_improvement_counts_pairs(levels):
    ours, theirs = RNG.normal(size=(4, 3)), RNG.normal(size=(6, 3))
    if levels:
        ours, theirs = ours.round(), theirs.round()  # with ties
    by_task = []
    for task in range(3):
        pairs = [(x > y) + 0.5 * (x == y) for x in ours[:, task] for y in theirs[:, task]]
        by_task.append(sum(pairs) / len(pairs))
    assert improvement(columns(ours), columns(theirs)) == pytest.approx(sum(by_task) / 3)


def test_improvement_is_resampled_on_both_sides_within_each_task():
    """Against drawing the runs themselves, by their indices, and counting pairs."""
    ours, theirs = columns(RNG.normal(0.3, 1, (6, 2)).round(1)), columns(RNG.normal(0, 1, (5, 2)).round(1))
    found = bootstrap_improvement(ours, theirs)
    rng = np.random.default_rng(1)
    drawn = [
        improvement([rng.choice(task, len(task)) for task in ours], [rng.choice(task, len(task)) for task in theirs])
        for _ in range(4000)
    ]
    assert found.value == improvement(ours, theirs)
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.02)


def test_many_runs_have_fewer_resamples_and_take_no_long_time():
    scores = [RNG.normal(size=150) for _ in range(9)]
    assert (affordable([np.zeros(10)]), affordable(scores), affordable([np.zeros(10**6)])) == (20_000, 2_962, 2_000)
    start = time.process_time()
    bootstrap(scores, iqm)
    bootstrap_improvement(scores, scores)
    assert time.process_time() - start < 10  # a table of pairs of all resamples would not even fit into memory

"""One number for an algorithm over several tasks, with an interval: interquartile mean, optimality gap, probability of
improvement, by bootstrap stratified by task.

Scores are given as one array per task, (runs,), higher is better. Every interval is a percentile interval of
``REPETITIONS`` resamples, fewer of many runs, with a generator of its own, so that the same scores give the same
interval.

Source: Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

REPETITIONS = 20_000
DRAWN = 4_000_000  # scores in all resamples together, beyond which there are fewer resamples, but never below FEWEST
FEWEST = 2_000
LEVEL = 0.95

Scores = Sequence[np.ndarray]  # per task, (..., runs)
Statistic = Callable[[Scores], np.ndarray]


@dataclass(frozen=True, slots=True)
class Interval:
    """A statistic of the scores and its 95% interval."""

    value: float
    low: float
    high: float


def mean(scores: Scores) -> np.ndarray:
    """The mean over tasks of the mean over runs."""
    return np.mean([task.mean(-1) for task in scores], 0)


def iqm(scores: Scores) -> np.ndarray:
    """Interquartile mean: the mean of the middle half of all runs of all tasks; a quarter is cut at both ends, rounded
    down to whole runs."""
    pooled = np.concatenate(scores, -1)
    n = pooled.shape[-1]
    cut = int(0.25 * n)
    return np.partition(pooled, (cut, n - cut - 1), -1)[..., cut : n - cut].mean(-1)


def optimality_gap(scores: Scores, target: float = 1.0) -> np.ndarray:
    """How far runs stay below ``target`` on average, over tasks; what is above it counts as reached."""
    return np.mean([target - np.minimum(task, target).mean(-1) for task in scores], 0)


def improvement(scores: Scores, base: Scores) -> np.ndarray:
    """The probability that a run is better than one of ``base``, ties counting half, mean over tasks.

    On one task this is the Mann-Whitney statistic over the number of pairs.
    """
    better = []
    for ours, theirs in zip(scores, base, strict=True):
        difference = np.sign(ours[..., :, None] - theirs[..., None, :])
        better.append((difference.mean((-2, -1)) + 1) / 2)
    return np.mean(better, 0)


def profile(scores: Scores, thresholds: np.ndarray) -> np.ndarray:
    """Performance profile: the share of runs above each threshold, (thresholds,), mean over tasks."""
    return np.mean([(task[..., None, :] > thresholds[:, None]).mean(-1) for task in scores], 0)


def bootstrap(scores: Scores, statistic: Statistic, *, seed: int = 0, repetitions: int = REPETITIONS) -> Interval:
    """``statistic`` with the percentile interval under resampling of the runs within each task."""
    rng = np.random.default_rng(seed)
    repetitions = affordable(scores, repetitions)
    drawn = [task[_indices(rng, repetitions, len(task))] for task in scores]
    return _interval(statistic(scores), statistic(drawn))


def bootstrap_improvement(scores: Scores, base: Scores, *, seed: int = 0, repetitions: int = REPETITIONS) -> Interval:
    """``improvement`` with the interval under resampling of the runs of both sides, each within its task."""
    rng = np.random.default_rng(seed)
    repetitions = affordable([*scores, *base], repetitions)
    drawn = []
    for ours, theirs in zip(scores, base, strict=True):  # how often a run is drawn is all that its pairs depend on
        better = (np.sign(ours[:, None] - theirs[None, :]) + 1) / 2
        mine, others = (rng.multinomial(n, np.full(n, 1 / n), repetitions) / n for n in better.shape)
        drawn.append(((mine @ better) * others).sum(1))
    return _interval(improvement(scores, base), np.mean(drawn, 0))


def bootstrap_difference(
    scores: Scores, base: Scores, statistic: Statistic, *, seed: int = 0, repetitions: int = REPETITIONS
) -> Interval:
    """``statistic`` of the scores less that of ``base``, for runs in pairs: run i of both has the same seed, and pairs
    are resampled whole.

    Raises: ValueError where a task has not as many runs on both sides.
    """
    if [len(task) for task in scores] != [len(task) for task in base]:
        raise ValueError("paired differences need the same runs on both sides")
    rng = np.random.default_rng(seed)
    repetitions = affordable(scores, repetitions)
    rows = [_indices(rng, repetitions, len(task)) for task in scores]
    sides = [[task[index] for task, index in zip(side, rows, strict=True)] for side in (scores, base)]
    return _interval(statistic(scores) - statistic(base), statistic(sides[0]) - statistic(sides[1]))


def affordable(scores: Scores, repetitions: int = REPETITIONS) -> int:
    """How many resamples are drawn of so many runs."""
    return min(repetitions, max(FEWEST, DRAWN // max(1, sum(map(len, scores)))))


def _indices(rng: np.random.Generator, repetitions: int, runs: int) -> np.ndarray:
    return rng.integers(0, runs, (repetitions, runs))


def _interval(value: np.ndarray, drawn: np.ndarray) -> Interval:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(value), float(low), float(high))


def sign_test(difference: np.ndarray) -> float:
    """Two-sided p value of as many or more pairs on one side, by the binomial; ties are left out, 1 without a pair."""
    from scipy.stats import binomtest

    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    n = wins + losses
    return float(binomtest(wins, n).pvalue) if n else 1.0

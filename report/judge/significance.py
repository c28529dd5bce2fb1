"""Tests over cells and data sets: Wilcoxon's signed ranks with Holm's correction, Friedman's ranks with Nemenyi's
critical difference.

Source: Demsar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 7 (2006).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.05
FEWEST_ROWS, FEWEST_COLUMNS = 3, 3  # below, no outcome of Friedman's test is significant, or there are but two to rank


@dataclass(frozen=True, slots=True)
class SignedRanks:
    """Wilcoxon's test of ``n`` differences, of which ``ties`` are zero. ``p`` is two-sided, and None where not even
    differences of one sign would reach 5%; ``smallest`` is the p value that those would have."""

    p: float | None
    n: int
    ties: int
    smallest: float


def signed_ranks(differences: Sequence[float]) -> SignedRanks:
    """Wilcoxon's signed-rank test of paired differences, zeros split between the signs as in Demsar (2006).

    Exact up to 50 pairs without ties, over all signs up to 13 pairs with ties, else by the normal approximation.
    """
    from scipy.stats import wilcoxon

    values = np.asarray(differences, dtype=float)
    n, ties = len(values), int((values == 0).sum())
    smallest = min(1.0, 2.0 ** (1 - (n - ties)))
    p = float(wilcoxon(values, zero_method="zsplit").pvalue) if smallest < LEVEL else None
    return SignedRanks(p, n, ties, smallest)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """P values adjusted for the number of tests by Holm's step-down rule, in the given order; None stays None and is no
    test."""
    tests = sorted((p, i) for i, p in enumerate(values) if p is not None)
    adjusted: list[float | None] = [None] * len(values)
    reached = 0.0
    for done, (p, i) in enumerate(tests):
        reached = max(reached, min(1.0, (len(tests) - done) * p))
        adjusted[i] = reached
    return adjusted


def ranks(scores: np.ndarray) -> np.ndarray:
    """The rank of each column within its row, 1 for the highest score, equal scores sharing the mean rank: (rows,
    columns) to (rows, columns)."""
    from scipy.stats import rankdata

    return rankdata(-np.asarray(scores, dtype=float), axis=1)


@dataclass(frozen=True, slots=True)
class Ranking:
    """Mean ranks over ``rows`` rows, Friedman's statistic and p value, that of Iman and Davenport, and Nemenyi's
    critical difference at 5%; all but the ranks are None where there is nothing to test."""

    mean: tuple[float, ...]
    rows: int
    friedman: float | None = None
    p: float | None = None
    iman_davenport: float | None = None
    difference: float | None = None

    def groups(self) -> list[tuple[int, ...]]:
        """The largest sets of columns, best first, whose mean ranks lie within the critical difference; each column is
        given by its place in ``mean``."""
        if self.difference is None:
            return []
        order = sorted(range(len(self.mean)), key=lambda column: self.mean[column])
        found: list[tuple[int, ...]] = []
        reached = 0
        for first in range(len(order)):
            last = first
            while last + 1 < len(order) and self.mean[order[last + 1]] - self.mean[order[first]] <= self.difference:
                last += 1
            if last > first and last > reached:
                found.append(tuple(order[first : last + 1]))
                reached = last
        return found


def friedman(scores: np.ndarray) -> Ranking:
    """Friedman's test of complete rows, (rows, columns), higher is better.

    No test is made of fewer than 3 rows or 3 columns, nor where all rows are one tie.
    """
    table = ranks(scores)
    rows, columns = table.shape
    mean = tuple(float(value) for value in table.mean(0))
    if rows < FEWEST_ROWS or columns < FEWEST_COLUMNS or bool((table == table[:, :1]).all()):
        return Ranking(mean, rows)
    from scipy.stats import friedmanchisquare

    statistic, p = friedmanchisquare(*table.T)
    bound = rows * (columns - 1)
    improved = math.inf if math.isclose(statistic, bound) else float((rows - 1) * statistic / (bound - statistic))
    return Ranking(mean, rows, float(statistic), float(p), improved, critical_difference(columns, rows))


def critical_difference(columns: int, rows: int, level: float = LEVEL) -> float:
    """Nemenyi's critical difference of mean ranks: q * sqrt(k (k + 1) / (6 N)), q the quantile of the studentised range
    of k groups over sqrt(2)."""
    from scipy.stats import studentized_range

    q = float(studentized_range.ppf(1 - level, columns, np.inf)) / math.sqrt(2)
    return q * math.sqrt(columns * (columns + 1) / (6 * rows))

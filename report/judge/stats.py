"""Means, deviations and intervals over seeds: Student's t for one cell, Welch and Satterthwaite's over several data
sets.

A cell is one method on one data set under one protocol; a stratum is one data set, or environment, with all its cells,
which share what a seed decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

LEVEL = 0.95
FEWEST = 3  # cells that an interval over cells needs


@dataclass(frozen=True, slots=True)
class Estimate:
    """Mean of ``n`` values, their standard deviation (n - 1 in the denominator) and the 95% Student-t interval of the
    mean. With one value deviation and interval are None: nothing is claimed; with none, the mean is NaN. Equal values
    are one value said several times, as of seeds that change nothing, and have no interval either. Where seeds were
    added until a rule was met, ``looks`` is how often it looks, and the interval has the level 1 - 0.05 / looks."""

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    n: int
    looks: int = 1

    @property
    def verdict(self) -> int:
        """1 or -1 where the interval lies above or below zero, 0 where it holds zero or does not exist."""
        if self.low is None or self.high is None:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def estimate(values: list[float], looks: int = 1) -> Estimate:
    """Mean and 95% t interval of finite ``values``, at one of several ``looks`` that share the 5%."""
    n = len(values)
    if n == 0:
        return Estimate(math.nan, None, None, None, 0)
    mean = float(np.mean(values))
    if n == 1:
        return Estimate(mean, None, None, None, 1)
    sd = float(np.std(values, ddof=1))
    if max(values) - min(values) <= 1e-12 * max(1.0, abs(mean)):
        return Estimate(mean, 0.0, None, None, n)
    half = t_quantile(n - 1, looks) * sd / math.sqrt(n)
    return Estimate(mean, sd, mean - half, mean + half, n, looks)


def paired(values: dict[int, float], base: dict[int, float], looks: int = 1) -> Estimate:
    """The difference ``values - base`` over the seeds that both have."""
    return estimate([values[seed] - base[seed] for seed in sorted(values.keys() & base.keys())], looks)


@dataclass(frozen=True, slots=True)
class Pooled:
    """The mean over ``cells`` cells of their mean difference, and its 95% interval. ``over`` says what the
    interval covers: "seeds", "cells" where most cells have one seed, or nothing where there is no interval. ``alone``
    cells had one seed where most had more, and are left out."""

    mean: float
    low: float | None
    high: float | None
    cells: int
    alone: int
    over: str

    @property
    def verdict(self) -> int:
        """1 or -1 where the interval lies above or below zero, 0 where it holds zero or does not exist."""
        if self.low is None or self.high is None:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def pooled(strata: Sequence[np.ndarray], looks: int = 1) -> Pooled:
    """The mean difference over all cells, each counting alike, with Welch and Satterthwaite's 95% t interval.

    Seeds vary within each stratum, for all its cells at once, since they share what a seed decides. Where most cells
    have one seed, the interval is over cells instead, if there are ``FEWEST`` or more.

    Args:
        strata: for each data set, paired differences (cells, seeds); NaN where a cell lacks the seed.
        looks: see ``Estimate``.
    """
    counts = [(~np.isnan(stratum)).sum(1) for stratum in strata]
    single = sum(int((count == 1).sum()) for count in counts)
    repeated = sum(int((count > 1).sum()) for count in counts) >= max(1, single)
    needed = 2 if repeated else 1
    kept = [stratum[count >= needed] for stratum, count in zip(strata, counts, strict=True)]
    kept = [stratum[:, ~np.isnan(stratum).all(0)] for stratum in kept if len(stratum)]
    cells = sum(map(len, kept))
    alone = single if repeated else 0
    if not cells:
        return Pooled(math.nan, None, None, 0, 0, "")
    mean = float(np.concatenate([np.nanmean(stratum, 1) for stratum in kept]).mean())
    if not repeated:
        kept = [np.concatenate([np.nanmean(stratum, 1) for stratum in kept])[None]]
    if not repeated and cells < FEWEST:
        return Pooled(mean, None, None, cells, alone, "")
    half = half_width(kept, looks)
    if half is None:
        return Pooled(mean, None, None, cells, alone, "")
    return Pooled(mean, mean - half, mean + half, cells, alone, "seeds" if repeated else "cells")


def half_width(strata: list[np.ndarray], looks: int = 1) -> float | None:
    """Half the 95% interval of the mean over cells, of strata (cells, seeds) of two seeds or more; None without spread.

    Source: Welch, "The Generalization of 'Student's' Problem when Several Different Population Variances are Involved"
    (1947). Identity: one stratum gives Student's t interval of its mean per seed.
    """
    seeds = np.array([stratum.shape[1] for stratum in strata])
    shares = np.array([len(stratum) for stratum in strata]) / sum(map(len, strata))
    spread = np.array([np.nanmean(stratum, 0).std(ddof=1) for stratum in strata])
    if not (spread > 1e-12 * max(1.0, *(np.nanmax(np.abs(stratum)) for stratum in strata))).any():
        return None
    variances = (shares * spread) ** 2 / seeds
    freedom = variances.sum() ** 2 / (variances**2 / (seeds - 1)).sum()
    return t_quantile(float(freedom), looks) * math.sqrt(variances.sum())


@cache
def t_quantile(freedom: float, looks: int = 1) -> float:
    """The two-sided quantile of Student's t, of 95% or at one of several looks that share the 5%."""
    from scipy.special import stdtrit  # the quantile behind scipy.stats.t, without that module's slow import

    return float(stdtrit(freedom, 1 - (1 - LEVEL) / 2 / looks if looks > 1 else (1 + LEVEL) / 2))

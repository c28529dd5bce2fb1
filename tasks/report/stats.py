"""Means, deviations and Student-t intervals over seeds. Everything about randomness between seeds is here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """Mean of ``n`` values, their standard deviation (n - 1 in the denominator) and the 95% Student-t interval of the
    mean. With one value deviation and interval are None: nothing is claimed; with none, the mean is NaN. Equal values
    are one value said several times, as of seeds that change nothing, and have no interval either."""

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    n: int

    @property
    def verdict(self) -> int:
        """1 or -1 where the interval lies above or below zero, 0 where it holds zero or does not exist."""
        if self.low is None or self.high is None:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def estimate(values: list[float]) -> Estimate:
    """Mean and 95% t interval of finite ``values``."""
    n = len(values)
    if n == 0:
        return Estimate(math.nan, None, None, None, 0)
    mean = float(np.mean(values))
    if n == 1:
        return Estimate(mean, None, None, None, 1)
    sd = float(np.std(values, ddof=1))
    if max(values) - min(values) <= 1e-12 * max(1.0, abs(mean)):
        return Estimate(mean, 0.0, None, None, n)
    half = t_quantile(n - 1) * sd / math.sqrt(n)
    return Estimate(mean, sd, mean - half, mean + half, n)


def paired(values: dict[int, float], base: dict[int, float]) -> Estimate:
    """The difference ``values - base`` over the seeds that both have."""
    return estimate([values[seed] - base[seed] for seed in sorted(values.keys() & base.keys())])


@cache
def t_quantile(freedom: int) -> float:
    """The two-sided 95% quantile of Student's t."""
    from scipy.special import stdtrit  # the quantile behind scipy.stats.t, without that module's slow import

    return float(stdtrit(freedom, (1 + LEVEL) / 2))

"""How many paired seeds a comparison needs: the power of the paired t test.

Source: Cohen, "Statistical Power Analysis for the Behavioral Sciences" (1988), chapter 2, by the noncentral t
distribution.
"""

from __future__ import annotations

import math
from functools import lru_cache

from dembench.report.judge.stats import LEVEL, Estimate
from dembench.report.read.names import Metric

POWER = 0.8
MOST = 10_000  # pairs; beyond, the answer is "more"
HALF_POINT = 0.5  # in shown units of a metric in %


def power(pairs: int, effect: float) -> float:
    """The probability that the two-sided paired t test at 5% tells a true difference of ``effect`` standard deviations
    of the paired differences, with so many pairs."""
    from scipy.stats import chi2, nct, t

    freedom, shift = pairs - 1, abs(effect) * math.sqrt(pairs)
    limit = t.ppf((1 + LEVEL) / 2, freedom)
    told = float(nct.sf(limit, freedom, shift) + nct.cdf(-limit, freedom, shift))
    # SciPy has no number for a far shift, beside which the normal part of the noncentral t hardly varies
    return told if math.isfinite(told) else float(chi2.cdf((shift / limit) ** 2 * freedom, freedom))


@lru_cache(maxsize=4096)
def pairs_needed(effect: float) -> int | None:
    """The fewest pairs with 80 % power for ``effect`` standard deviations; None where it is none or takes over
    ``MOST``."""
    if not effect or not math.isfinite(effect):
        return None
    normal = ((1.959964 + 0.841621) / effect) ** 2  # the limit of many pairs, which is a little too low
    if normal > MOST:
        return None
    pairs = max(2, int(normal))
    while power(pairs, effect) < POWER:
        pairs += 1
    while pairs > 2 and power(pairs - 1, effect) >= POWER:
        pairs -= 1
    return pairs


def needed(gain: Estimate, metric: Metric) -> tuple[tuple[str, int | None], ...]:
    """("a difference of this size", pairs) and, for a metric in %, ("0.5 points", pairs), of a comparison whose
    interval holds zero; empty for others. The standard deviation is that of the pairs at hand."""
    if gain.sd is None or not gain.sd or gain.low is None or gain.verdict:
        return ()
    sizes = [("a difference of this size", abs(gain.mean))]
    sizes += [(f"{HALF_POINT} points", HALF_POINT)] if metric.unit == "%" else []
    return tuple((name, pairs_needed(round(size / gain.sd, 6))) for name, size in sizes)


def needed_text(gain: Estimate, metric: Metric) -> str:
    """ "80 % power takes 12 paired seeds for a difference of this size, 40 for 0.5 points"; empty where it was told."""
    found = needed(gain, metric)
    if not found:
        return ""
    listed = [f"{count(pairs)}{' paired seeds' if not i else ''} for {name}" for i, (name, pairs) in enumerate(found)]
    return f"80 % power takes {', '.join(listed)}"


def needed_short(gain: Estimate, metric: Metric) -> str:
    """ "12; 40": pairs for a difference of this size, and for 0.5 points; empty where it was told."""
    return "; ".join(count(pairs) for _, pairs in needed(gain, metric))


def count(pairs: int | None) -> str:
    return f"over {MOST:,}" if pairs is None else str(pairs)

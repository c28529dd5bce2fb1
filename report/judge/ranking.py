"""Which cells of a table are best, as far as the seeds can tell. One rule for every table."""

from __future__ import annotations

import math
from collections.abc import Iterable

from dembench.report.judge.group import Cell
from dembench.report.judge.wording import number
from dembench.report.read.names import Metric

BEST, TIED = "best", "tied"
RULE = (
    "Bold: the best mean, where its paired 95% interval against the second best lies clear of zero. Where it does not, "
    "nothing is bold, and the best mean is underlined with all those that the seeds do not tell from it."
)


def ranks(cells: Iterable[Cell], metric: Metric, part: str = "mean", digits: int | None = None) -> dict[int, str]:
    """{id(cell): BEST or TIED} among the cells that may be ranked and have all their seeds.

    Means that print alike with ``digits`` decimals are a tie. Without an interval (one seed, or seeds that change
    nothing) no cell is BEST.
    """
    digits = metric.digits if digits is None else digits
    ranked = leaders(cells, metric, part)
    if len(ranked) < 2:
        return {}
    first, others = ranked[0], ranked[1:]
    top = number(first.estimate(metric, part).mean, digits)
    alike = {id(cell) for cell in others if number(cell.estimate(metric, part).mean, digits) == top}
    gains = {id(cell): first.gain(cell, metric, part) for cell in others}
    if not alike and gains[id(others[0])].verdict > 0:
        return {id(first): BEST}
    undecided = {key for key, gain in gains.items() if gain.low is not None and gain.verdict == 0}
    return dict.fromkeys({id(first)} | alike | undecided, TIED)


def leaders(cells: Iterable[Cell], metric: Metric, part: str = "mean") -> list[Cell]:
    """The cells that may be ranked and have all their seeds, the best mean first."""
    found = [(cell.estimate(metric, part), cell) for cell in cells if cell.clean]
    most = max((score.n for score, _ in found), default=0)
    ranked = [(score.mean, cell) for score, cell in found if score.n == most and math.isfinite(score.mean)]
    return [cell for _, cell in sorted(ranked, key=lambda pair: -metric.sign * pair[0])]

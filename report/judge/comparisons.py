"""Every loss against EM over all cells of a task. A cell is one method on one data set under one protocol."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dembench.report.judge.group import VARIANTS, Block, Cell, Key
from dembench.report.judge.significance import Ranking, SignedRanks, friedman, signed_ranks
from dembench.report.judge.stats import Pooled, pooled
from dembench.report.judge.verdict import Verdict
from dembench.report.read.names import Metric, rank

BASE = "em"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One cell: the verdict on each loss against EM, each at its best setting where there are several."""

    block: Block
    method: str
    verdicts: dict[str, Verdict]

    @property
    def em(self) -> Cell:
        return next(iter(self.verdicts.values())).em

    def cell(self, loss: str) -> Cell | None:
        if loss == BASE:
            return self.em
        return self.verdicts[loss].own if loss in self.verdicts else None

    def gains(self, loss: str) -> dict[int, float]:
        """{seed: gain over EM} in shown units over the seeds that both have, positive where the loss is better."""
        metric, verdict = self.block.metric, self.verdicts[loss]
        mine, base = verdict.own.values(metric), verdict.em.values(metric)
        return {seed: metric.sign * (mine[seed] - base[seed]) for seed in sorted(mine.keys() & base.keys())}

    def scores(self, losses: Sequence[str]) -> list[float] | None:
        """The mean of each loss over the seeds that all have, higher always better; None where a loss or a common seed
        is missing."""
        cells = [self.cell(loss) for loss in losses]
        values = [cell.values(self.block.metric) for cell in cells if cell is not None]
        if len(values) < len(losses) or not (shared := sorted(set.intersection(*(set(v) for v in values)))):
            return None
        return [self.block.metric.sign * float(np.mean([v[seed] for seed in shared])) for v in values]


@dataclass(frozen=True)
class Family:
    """All comparisons of one task that are judged by one metric."""

    task: str
    metric: Metric
    comparisons: tuple[Comparison, ...]

    @cached_property
    def losses(self) -> list[str]:
        return losses_of(self.comparisons)

    def having(self, loss: str) -> list[Comparison]:
        return [one for one in self.comparisons if loss in one.verdicts and one.verdicts[loss].best.n]

    @cached_property
    def gains(self) -> dict[str, Pooled]:
        """The mean gain of each loss over its cells, with its interval, deviations within each data set."""
        return {loss: pooled(strata(own := self.having(loss), loss), looks(own, loss)) for loss in self.losses}

    @cached_property
    def tests(self) -> dict[str, SignedRanks]:
        """Wilcoxon's test of each loss over its cells."""
        return {loss: signed_ranks([one.verdicts[loss].best.mean for one in self.having(loss)]) for loss in self.losses}

    @cached_property
    def ranking(self) -> tuple[list[str], Ranking | None]:
        return ranking(self.comparisons)

    def tally(self, loss: str) -> dict[int | None, int]:
        """Cells in which the loss is better (1), worse (-1), not told apart (0) or without an interval (None), each by
        its own paired t interval over seeds."""
        found: dict[int | None, int] = {1: 0, -1: 0, 0: 0, None: 0}
        for one in self.having(loss):
            best = one.verdicts[loss].best
            found[None if best.low is None else best.verdict] += 1
        return found

    def time(self, loss: str) -> float:
        """The median over runs of the wall time over that of EM with the same setting and seed; NaN without a pair."""
        return median([ratio for one in self.having(loss) for ratio in time_ratios(one.verdicts[loss])])

    def choices(self, loss: str) -> tuple[int, int]:
        """The largest number of settings of the loss, and of EM, that a cell's best one was taken from."""
        counts = [(settings_of(one, loss), settings_of(one, BASE)) for one in self.having(loss)]
        return max((mine for mine, _ in counts), default=0), max((ems for _, ems in counts), default=0)


def families(verdicts: Iterable[Sequence[Verdict]]) -> list[Family]:
    """Comparisons by task and metric, from the verdicts of each block."""
    grouped: dict[tuple[str, str], list[Comparison]] = defaultdict(list)
    metrics: dict[str, Metric] = {}
    for of_block in verdicts:
        by_method: dict[str, list[Verdict]] = defaultdict(list)
        for verdict in of_block:
            by_method[verdict.method].append(verdict)
        for method, found in by_method.items():
            block = found[0].block
            metrics[block.metric.name] = block.metric
            names = sorted({verdict.column[0] for verdict in found}, key=lambda name: (rank("loss", name), name))
            chosen = {name: best_of([v for v in found if v.column[0] == name]) for name in names}
            grouped[block.task, block.metric.name].append(Comparison(block, method, chosen))
    ordered = sorted(grouped, key=lambda key: (rank("task", key[0]), key))
    return [Family(task, metrics[name], tuple(grouped[task, name])) for task, name in ordered]


def best_of(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict on one loss in one cell: that of its best column; an ablation stands for its loss only where nothing
    else does."""
    plain = [verdict for verdict in verdicts if not ablated(verdict.column)] or list(verdicts)
    metric = plain[0].block.metric
    return max(plain, key=lambda verdict: (verdict.best.n, metric.sign * verdict.own.estimate(metric).mean))


def ablated(column: Key) -> bool:
    """Whether a column is the loss without one of its parts."""
    params = dict(column[1])
    return any(key in params and params[key] == value for key, value in VARIANTS)


def losses_of(comparisons: Iterable[Comparison]) -> list[str]:
    names = {loss for one in comparisons for loss in one.verdicts}
    return sorted(names, key=lambda name: (rank("loss", name), name))


def strata(comparisons: Iterable[Comparison], loss: str) -> list[np.ndarray]:
    """Gains over EM by data set, (cells, seeds), NaN where a cell lacks the seed."""
    by_data: dict[str, list[dict[int, float]]] = defaultdict(list)
    for one in comparisons:
        by_data[one.block.data].append(one.gains(loss))
    found = []
    for gains in by_data.values():
        seeds = sorted({seed for gain in gains for seed in gain})
        found.append(np.array([[gain.get(seed, math.nan) for seed in seeds] for gain in gains]))
    return found


def looks(comparisons: Iterable[Comparison], loss: str) -> int:
    """How often the gains of a loss were looked at while seeds were added."""
    return max((one.verdicts[loss].best.looks for one in comparisons), default=1)


def ranking(comparisons: Sequence[Comparison]) -> tuple[list[str], Ranking | None]:
    """Mean ranks of EM and of the losses that at least half of the cells have, over the cells that have all of them."""
    counts = {loss: sum(loss in one.verdicts for one in comparisons) for loss in losses_of(comparisons)}
    names = sorted([BASE, *(loss for loss, n in counts.items() if 2 * n >= len(comparisons))],
                   key=lambda name: (rank("loss", name), name))  # fmt: skip
    rows = [scores for one in comparisons if (scores := one.scores(names)) is not None]
    return names, friedman(np.array(rows)) if rows and len(names) > 1 else None


def time_ratios(verdict: Verdict) -> list[float]:
    """Wall time over that of EM, for each run of the loss that EM has with the same setting and seed."""
    ratios = []
    for cell, _ in verdict.equal:
        base = verdict.block.twin(cell)
        times = {run.seed: run.cost.get("wall_seconds", 0.0) for run in base.runs} if base else {}
        for run in cell.runs:
            mine, ems = run.cost.get("wall_seconds", 0.0), times.get(run.seed, 0.0)
            if mine > 0 and ems > 0:
                ratios.append(mine / ems)
    return ratios


def median(values: Sequence[float]) -> float:
    return float(np.median(values)) if len(values) else math.nan


def settings_of(one: Comparison, loss: str) -> int:
    """From how many cells the best one of a loss was taken."""
    block = one.block
    columns = [column for column in block.losses_of(one.method) if column[0] == loss and not ablated(column)]
    if loss == BASE:
        columns = [column for column in columns if column == block.em]
    return max(1, sum(len(block.settings(one.method, column)) for column in columns))

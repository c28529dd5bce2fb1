"""How wide the range of good rates is: the decades within a point of the best, from any curve over the rate."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dembench.report.judge.group import contexts_of, flatten, freeze, method_of, setting_of
from dembench.report.read.load import Run
from dembench.report.read.names import Metric, metric_of, primary

RATES = ("method.lr", "method.learning_rate", "protocol.lr")
FEWEST = 3  # rates of a curve
DRAWS = 2_000  # resamples of the seeds, all of them where they are fewer
POINT = {"%": 1.0}  # what "within a point" means in shown units; elsewhere a hundredth

Values = Mapping[float, Mapping[int, float]]  # {rate: {seed: value in shown units}}


@dataclass(frozen=True, slots=True)
class Curve:
    """The main metric of one method with one loss over the rate, everything else alike. ``chosen`` maps a rule of
    choice to its rate, if the rates were tried for that; the values are then those of the searched part."""

    task: str
    names: tuple[str, ...]  # data, model, protocol, and what else tells it from others
    method: str
    loss: str
    params: tuple[tuple[str, Any], ...]
    metric: Metric
    values: dict[float, dict[int, float]]
    chosen: dict[str, float]

    @property
    def title(self) -> str:
        return " · ".join(name for name in self.names if name != "none")


@dataclass(frozen=True, slots=True)
class Width:
    """Decades within a point of the best, the 95% bootstrap interval over seeds (None of one seed), the best rate, and
    whether the range reaches the ``lower`` and the ``upper`` end of what was tried, so that it may be wider."""

    decades: float
    low: float | None
    high: float | None
    best: float
    seeds: int
    lower: bool
    upper: bool


def width(values: Values, metric: Metric) -> Width | None:
    """Of the contiguous range around the best rate in which the mean over the seeds that all rates have, a line between
    neighbours over the logarithm of the rate, is within a point of the best mean; None without ``FEWEST`` rates above 0
    or a common seed. A value that is not finite is worse than any other;
    ``curves`` makes one of each run that collapsed or met a NaN.
    """
    rates = sorted(rate for rate in values if rate > 0)
    seeds = sorted(set.intersection(*(set(values[rate]) for rate in rates))) if rates else []
    if len(rates) < FEWEST or not seeds:
        return None
    scores = metric.sign * np.array([[values[rate][seed] for seed in seeds] for rate in rates])  # (rates, seeds)
    scores = np.where(np.isfinite(scores), scores, -np.inf)
    if not np.isfinite(scores.mean(1)).any():
        return None
    at, tolerance = np.log10(rates), POINT.get(metric.unit, 0.01)
    left, right, best = _range(at, scores.mean(1), tolerance)

    known: dict[tuple[int, ...], float] = {}  # few seeds give few different draws

    def decades(rows: Sequence[int]) -> float:
        key = tuple(sorted(rows))
        if key not in known:
            first, last, _ = _range(at, scores[:, key].mean(1), tolerance)
            known[key] = last - first
        return known[key]

    drawn = [decades(rows) for rows in resamples(len(seeds))] if len(seeds) > 1 else None
    low, high = (None, None) if drawn is None else map(float, np.quantile(drawn, [0.025, 0.975]))
    reached = bool(left <= at[0]), bool(right >= at[-1])
    return Width(right - left, low, high, rates[best], len(seeds), *reached)


def _range(at: np.ndarray, mean: np.ndarray, tolerance: float) -> tuple[float, float, int]:
    """Where the range around the best begins and ends, in decades, and the place of the best."""
    best = int(mean.argmax())
    floor = mean[best] - tolerance

    def walk(step: int) -> float:
        here = best
        while 0 <= here + step < len(at):
            further = here + step
            if mean[further] < floor:
                share = (mean[here] - floor) / (mean[here] - mean[further])  # 0 where the neighbour is not finite
                return float(at[here] + share * (at[further] - at[here]))
            here = further
        return float(at[here])

    return walk(-1), walk(1), best


def resamples(seeds: int) -> Sequence[Sequence[int]]:
    """Places of seeds drawn with replacement: every draw where there are few, else ``DRAWS`` of a fixed generator."""
    if seeds**seeds <= DRAWS:
        return list(itertools.product(range(seeds), repeat=seeds))
    return np.random.default_rng(0).integers(0, seeds, (DRAWS, seeds)).tolist()


def curves(runs: Iterable[Run]) -> list[Curve]:
    """Every curve over a rate in runs, and of tuned runs those of their trials."""
    runs = list(runs)
    return [*swept([run for run in runs if run.tuned is None]), *tried([run for run in runs if run.tuned is not None])]


def swept(runs: Sequence[Run]) -> list[Curve]:
    """Curves of runs that differ in their rate and seed only."""
    found: dict[tuple[Any, ...], dict[float, dict[int, Run]]] = defaultdict(lambda: defaultdict(dict))
    by_task: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_task[run.task].append(run)
    for own in by_task.values():
        for run, context in zip(own, contexts_of(own), strict=True):
            if run.cost.get("backward_passes") == 0:
                continue
            flat = flatten({group: run.config.get(group) or {} for group in ("method", "protocol")})
            for rate in RATES:
                if isinstance(flat.get(rate), int | float):
                    rest = freeze({key: value for key, value in context.items() if key != rate})
                    setting = setting_of(run.config.get("method"))
                    setting = tuple((k, v) for k, v in setting if f"method.{k}" != rate)
                    names = (run.data, run.model, run.protocol)
                    key = (rate, run.task, names, method_of(run), run.loss, setting_of(run.config.get("loss")))
                    found[*key, setting, rest][float(flat[rate])].setdefault(run.seed, run)
    curves = []
    for (_, task, names, method, loss, params, *_), by_rate in found.items():
        if len(by_rate) >= FEWEST:
            metric = primary(task, [run for seeds in by_rate.values() for run in seeds.values()])
            values = {
                rate: {
                    seed: math.nan if run.status != "ok" else run.score(metric.name) * metric.scale
                    for seed, run in seeds.items()
                }
                for rate, seeds in by_rate.items()
            }
            curves.append(Curve(task, names, method, loss, params, metric, values, {}))
    return curves


def tried(runs: Sequence[Run]) -> list[Curve]:
    """Curves of the trials that tuned runs tell of, where one rate was tuned."""
    found: dict[str, Curve] = {}
    for run in runs:
        tune = run.tuned or {}
        keys, trials = tune.get("keys") or [], tune.get("trials") or []
        if len(keys) != 1 or len(trials) < FEWEST:
            continue
        metric = metric_of(run.task, str(tune["metric"]))
        values: dict[float, dict[int, float]] = {}
        for trial in trials:
            seeds = {int(seed): one.get(metric.name) for seed, one in trial["seeds"].items()}
            values[float(trial["values"][keys[0]])] = {
                seed: math.nan if value is None or trial["status"] != "ok" else metric.scale * value
                for seed, value in seeds.items()
            }
        chosen = {kind: float(one["values"][keys[0]]) for kind, one in tune["choices"].items()}
        names = (run.data, run.model, run.protocol)
        params = setting_of(run.config.get("loss"))
        found.setdefault(
            str(tune["id"]), Curve(run.task, names, method_of(run), run.loss, params, metric, values, chosen)
        )
    return list(found.values())

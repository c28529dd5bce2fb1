"""Two sets of runs side by side: what they differ in, pairs of runs alike in all else, and what has no pair."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from dembench.lookup import lookup
from dembench.report.judge.group import contexts_of, label, leaf, method_of, own_setting, show
from dembench.report.judge.selection import NAMES
from dembench.report.judge.stats import Estimate, Pooled, estimate, paired, pooled
from dembench.report.judge.wording import run_label
from dembench.report.read.load import Run
from dembench.report.read.names import COSTS, Metric, pretty, primary, rank
from dembench.report.read.names import metric_of as metric_named

Features = dict[str, Any]
Difference = dict[str, tuple[tuple[str, ...], tuple[str, ...]]]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Runs that differ in nothing but the seed and in what the two sides differ in. ``a`` and ``b`` map seeds to values
    in shown units; ``gain`` is that of B over A, positive where B is better."""

    task: str
    labels: Features
    own_a: Features
    own_b: Features
    data: str
    metric: Metric
    a: dict[int, float]
    b: dict[int, float]
    looks: int = 1  # see ``Estimate``

    @property
    def gains(self) -> dict[int, float]:
        return {seed: self.metric.sign * (self.b[seed] - self.a[seed]) for seed in sorted(self.a)}

    @property
    def gain(self) -> Estimate:
        return paired(self.gains, dict.fromkeys(self.gains, 0.0), self.looks)

    def spread(self, side: str) -> Estimate:
        values = self.a if side == "a" else self.b
        return estimate([values[seed] for seed in sorted(values)])


@dataclass(frozen=True, slots=True)
class Compared:
    """The result: pairs, what differs by task, the mean gain by task and by method and loss where a side has several,
    and in words the runs of each side without a pair."""

    a: tuple[Run, ...]
    b: tuple[Run, ...]
    pairs: tuple[Pairs, ...]
    differs: dict[str, Difference]
    totals: dict[str, dict[str, Pooled]]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]


def features(runs: Sequence[Run]) -> list[Features]:
    """What a number depends on besides the seed, for each run, under the keys of the command line."""
    found = []
    for run, context in zip(runs, contexts_of(list(runs)), strict=True):
        own: Features = {name: getattr(run, name) for name in ("data", "model", "protocol", "loss")}
        own["method"] = method_of(run)
        own |= {f"{group}.{key}": value for group in ("method", "loss") for key, value in own_setting(run, group)}
        found.append(own | {key: value for key, value in context.items() if key not in own})
    return found


def metric_of(name: str | None, task: str, runs: Sequence[Run]) -> Metric:
    """The metric to compare by: the task's own, or the one asked for, which may be a cost.

    Raises: ValueError for a name that no run recorded.
    """
    if name is None:
        return primary(task, runs)
    recorded = sorted({metric for run in runs for metric in (*run.units, *run.cost)})
    lookup(name, recorded, "metric")
    if name in COSTS:
        return Metric(name, COSTS[name][0], "", 1, -1, max(2, COSTS[name][1]))
    return metric_named(task or runs[0].task, name)


def value_of(run: Run, metric: Metric) -> float:
    found = run.cost.get(metric.name, math.nan) if metric.name in COSTS else run.score(metric.name)
    return found * metric.scale


def compare(a: Sequence[Run], b: Sequence[Run], metric: str | None = None) -> Compared:
    """Pairs each run of A with those of B that are alike in everything but what the sides differ in.

    A key takes part in the pairing where some value of it is found on both sides, within a task; a key whose values are
    all different on the two sides is what is compared.

    Raises: ValueError where nothing pairs, and for an unknown metric.
    """
    if {(run.id, run.store.path) for run in a} == {(run.id, run.store.path) for run in b}:
        raise ValueError("A and B are the same runs")
    if metric is not None:
        metric_of(metric, "", [*a, *b])
    pairs: list[Pairs] = []
    differs: dict[str, Difference] = {}
    only: dict[str, list[str]] = {"a": [], "b": []}
    for task in sorted({run.task for run in (*a, *b)}, key=lambda name: (rank("task", name), name)):
        ours, theirs = ([run for run in runs if run.task == task] for runs in (a, b))
        known = features([*ours, *theirs])
        left, right = known[: len(ours)], known[len(ours) :]
        if ours and theirs:
            found, used = pair(task, ours, theirs, left, right, metric_of(metric, task, [*ours, *theirs]))
            pairs += found
            differs[task] = {key: (shown(left, key), shown(right, key)) for key in compared(left, right)[1]}
            differs[task] |= environments(ours, theirs)
        else:
            used = (set(), set())
        for name, runs, own, places in (("a", ours, left, used[0]), ("b", theirs, right, used[1])):
            only[name] += without_pair(runs, own, places)
    if not pairs:
        raise ValueError(why_nothing(a, b))
    grouped: dict[str, dict[str, list[Pairs]]] = defaultdict(lambda: defaultdict(list))
    for row in pairs:
        grouped[row.task][kind(row)].append(row)
    totals = {task: {name: total(rows) for name, rows in kinds.items()} for task, kinds in grouped.items()}
    return Compared(tuple(a), tuple(b), tuple(pairs), differs, totals, tuple(only["a"]), tuple(only["b"]))


def compared(left: Sequence[Features], right: Sequence[Features]) -> tuple[list[str], list[str]]:
    """The keys that runs are paired by, and those that the sides differ in: no value of them is on both sides. A
    setting of a method or loss that is itself compared counts where it is set."""
    keys = list(dict.fromkeys(key for found in (*left, *right) for key in found))
    values = {key: ({freeze(own.get(key)) for own in left}, {freeze(own.get(key)) for own in right}) for key in keys}
    heads = [key for key in ("method", "loss") if not values[key][0] & values[key][1]]
    apart = []
    for key in keys:
        shared = values[key][0] & values[key][1]
        if key.partition(".")[0] in heads:
            shared -= {freeze(None)}
        if not shared:
            apart.append(key)
    return [key for key in keys if key not in apart], apart


def pair(
    task: str,
    ours: Sequence[Run],
    theirs: Sequence[Run],
    left: Sequence[Features],
    right: Sequence[Features],
    metric: Metric,
) -> tuple[list[Pairs], tuple[set[int], set[int]]]:
    """Rows of paired runs of one task, and the places of the runs in them."""
    keys, apart = compared(left, right)
    index: dict[tuple[Any, ...], tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for place, (runs, found) in enumerate(((ours, left), (theirs, right))):
        for i, own in enumerate(found):
            index[runs[i].seed, *(freeze(own.get(key)) for key in keys)][place].append(i)
    rows: dict[tuple[str, ...], Pairs] = {}
    used: tuple[set[int], set[int]] = (set(), set())
    for (seed, *_), (those, others) in index.items():
        for i, j in product(those, others):
            x, y = value_of(ours[i], metric), value_of(theirs[j], metric)
            if not (math.isfinite(x) and math.isfinite(y)):
                continue
            labels = {key: left[i].get(key) for key in keys}
            mine, other = ({key: own[key] for key in apart if key in own} for own in (left[i], right[j]))
            row = tuple(map(freeze, (labels, mine, other)))
            if row not in rows:
                rows[row] = Pairs(task, labels, mine, other, str(left[i]["data"]), metric, {}, {})
            rows[row].a[seed], rows[row].b[seed] = x, y
            most = max(rows[row].looks, ours[i].looks, theirs[j].looks)
            rows[row] = rows[row] if most == rows[row].looks else replace(rows[row], looks=most)
            used[0].add(i)
            used[1].add(j)
    return brief(sorted(rows.values(), key=lambda row: order_of({**row.labels, **row.own_a, **row.own_b}))), used


def order_of(own: Features) -> tuple[Any, ...]:
    """Rows as in the report: data, model, protocol, method, loss, then the rest as text."""
    names = [str(own.get(name)) for name in ("data", "model", "protocol", "method", "loss")]
    places = [rank(group, name) for group, name in zip(("protocol", "method", "loss"), names[2:], strict=True)]
    return (*names[:2], *(item for pair in zip(places, names[2:], strict=True) for item in pair), freeze(own))


def brief(rows: Sequence[Pairs]) -> list[Pairs]:
    """Rows without what all of them share; a setting stands only where it varies within its method, loss or data."""
    labels = shorten([row.labels for row in rows])
    owns = [shorten([getattr(row, name) for row in rows]) for name in ("own_a", "own_b")]
    return [
        replace(row, labels=label, own_a=mine, own_b=other)
        for row, label, mine, other in zip(rows, labels, *owns, strict=True)
    ]


def shorten(found: Sequence[Features]) -> list[Features]:
    """Each without the keys of one value: of a method or loss wherever it is, of others on the same data, model and
    protocol."""

    def place(own: Features, key: str) -> tuple[str, ...]:
        head = key.partition(".")[0]
        names = () if key in NAMES else (head,) if head in ("method", "loss") else ("data", "model", "protocol")
        return (key, *(freeze(own.get(name)) for name in names))

    values: dict[tuple[str, ...], set[str]] = defaultdict(set)
    keys = dict.fromkeys(key for own in found for key in own)
    for own in found:
        for key in keys:
            values[place(own, key)].add(freeze(own.get(key)))
    return [{key: value for key, value in own.items() if len(values[place(own, key)]) > 1} for own in found]


def without_pair(runs: Sequence[Run], found: Sequence[Features], used: set[int]) -> list[str]:
    """Runs that are in no pair, those that differ in the seed alone in one line."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, own in enumerate(found):
        if i not in used:
            groups[freeze(own)].append(i)
    short = shorten(found)
    said = []
    for places in sorted(groups.values(), key=lambda places: order_of(found[places[0]])):
        run, settings = runs[places[0]], short[places[0]]
        names = {name: found[places[0]][name] for name in ("data", "model", "protocol", "method", "loss")}
        listed = ", ".join(map(str, sorted(runs[i].seed for i in places)))
        text = described({**names, **settings})
        nan = " (a NaN)" if all(runs[i].status == "nan" for i in places) else ""
        said.append(f"{pretty(run.task)}: {text}, seed{'s' * (len(places) > 1)} {listed}{nan}")
    return said


def described(found: Features) -> str:
    """Keys and values in words: "digits-c · Tent lr 1e-3 · DEM α 0, τ 1.1"."""
    left, parts = dict(found), []
    for name in ("data", "model", "protocol"):
        if (value := left.pop(name, "none")) != "none":
            parts.append(str(value))
    for name in ("method", "loss"):
        own = {
            key: value for key in sorted(left) if key.startswith(f"{name}.") and (value := left.pop(key)) is not None
        }
        text = label(pretty(str(left.pop(name))) if name in left else "", tuple(own.items()), tuple(own))
        parts += [text] * bool(text)
    parts += [f"{leaf(key)} {show(value)}" for key, value in left.items() if value is not None]
    return " · ".join(parts)


def environments(ours: Iterable[Run], theirs: Iterable[Run]) -> Difference:
    """What the runs of the two sides were made with, where nothing of it is on both."""
    found = {}
    for key in ("commit", "torch", "device_name"):
        mine, others = ({str(run.environment.get(key) or "")[:24] for run in runs} for runs in (ours, theirs))
        if not mine & others and all(mine | others):
            found[key] = (tuple(sorted(mine)), tuple(sorted(others)))
    return found


def why_nothing(a: Sequence[Run], b: Sequence[Run]) -> str:
    """What keeps two sets of runs apart."""
    for name in ("task", "seed"):
        mine, others = ({getattr(run, name) for run in runs} for runs in (a, b))
        if not mine & others:
            text = "; ".join(f"{side} has {', '.join(map(str, sorted(v)))}" for side, v in (("A", mine), ("B", others)))
            return f"no pair: A and B have no {name} in common ({text})"
    return f"no pair: no run of B is like one of A in everything else; A has {run_label(a[0])}; B has {run_label(b[0])}"


def kind(row: Pairs) -> str:
    """The methods and losses of a row that not all rows of its side share, in words."""
    heads = (("A", row.own_a), ("B", row.own_b))
    named: list[tuple[str, Features]] = [
        (name, {key: own[key] for key in ("method", "loss") if key in own}) for name, own in heads
    ]
    return "; ".join(f"{name}: {described(own)}" for name, own in named if own)


def total(rows: Sequence[Pairs]) -> Pooled:
    """The mean gain over all rows of a task, with its interval, deviations within each data set."""
    strata: dict[str, list[dict[int, float]]] = defaultdict(list)
    for row in rows:
        strata[row.data].append(row.gains)
    return pooled([matrix(gains) for gains in strata.values()], max(row.looks for row in rows))


def matrix(gains: Sequence[dict[int, float]]) -> np.ndarray:
    seeds = sorted({seed for gain in gains for seed in gain})
    return np.array([[gain.get(seed, math.nan) for seed in seeds] for gain in gains])


def freeze(value: Any) -> str:
    return repr(value)


def shown(found: Iterable[Features], key: str) -> tuple[str, ...]:
    """The values of a key on one side, in words."""
    return tuple(sorted({show(own[key]) if key in own else "not set" for own in found}))

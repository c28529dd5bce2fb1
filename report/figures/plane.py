"""Searches of DEM*: the searched plane of (tau, alpha) as a map, and a table of what each search found and cost."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dembench import records
from dembench.report.figures.drawing import GREY, INK, STYLE, Figure, canvas
from dembench.report.judge.wording import number, plain
from dembench.report.read.names import Metric, metrics_of, pretty
from dembench.report.tables.table import Column, Entry, Table, slug

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

FOLDER, FILE = "searches", "search.json"
STEP, MOST = 0.1, 2.0  # of the grid, and the largest tau and alpha
LEVELS = 8  # of colour
MAPS = 12  # that are drawn of one task; the table has all searches


@dataclass(frozen=True, slots=True)
class Trial:
    """A pair that was tried; ``value`` in the recorded unit, None where it was not finite."""

    number: int
    tau: float
    alpha: float
    value: float | None
    ok: bool


@dataclass(frozen=True, slots=True)
class Record:
    """A finished search."""

    id: str
    task: str
    names: tuple[str, ...]  # data, model, protocol, method
    metric: Metric
    best: tuple[float, float, float]  # tau, alpha, value
    at_one_one: float | None
    trials: tuple[Trial, ...]
    settings: dict[str, Any]
    subset: str
    samples: int
    cost: dict[str, float]
    command: str

    @property
    def title(self) -> str:
        return f"{' · '.join(self.names[:3])}: search of DEM*, {pretty(self.names[3])}"

    @property
    def how(self) -> str:
        """The search in a sentence."""
        kept = self.settings
        seeds = ", ".join(map(str, kept.get("run_seeds", ())))
        order = "alpha beside τ = 1 first, then τ" if kept.get("order") == "sequential" else "both numbers at once"
        return (
            f"{len(self.trials)} trials of Optuna's TPE (seed {kept.get('seed')}, the first {kept.get('startup')} at "
            f"random), {kept.get('space')} space, {order}; each the mean over run seeds {seeds}, on {self.samples} "
            f"labelled samples ({self.subset}). Search {self.id}."
        )


def find(roots: Iterable[Path]) -> list[Record]:
    """The finished searches at or under ``roots``, by title; what cannot be read is left out."""
    paths: dict[Path, None] = {}
    for root in roots:
        for folder, children, files in os.walk(root):
            if FILE in files:
                paths.setdefault(Path(folder).resolve() / FILE)
                children.clear()
            children[:] = sorted(
                name for name in children if not name.startswith(".") and not records.RUN_ID.fullmatch(name)
            )
    found: dict[str, Record] = {}
    for path in paths:
        try:
            record = read(path)
        except (OSError, ValueError, KeyError):
            continue
        found.setdefault(record.id, record)
    return sorted(found.values(), key=lambda record: (record.task, record.title, record.id))


def read(path: Path) -> Record:
    """One ``search.json``; OSError, ValueError or KeyError where it is not one."""
    found = records.read_json(path, records.SEARCH)
    metric = metrics_of(found["task"])[found["metric"]]
    trials = tuple(
        Trial(t["number"], float(t["tau"]), float(t["alpha"]), t["value"], t["status"] == "ok") for t in found["trials"]
    )
    pair = found["pair"]
    return Record(
        id=found["id"],
        task=found["task"],
        names=tuple("none" if found[key] is None else found[key] for key in ("data", "model", "protocol", "method")),
        metric=metric,
        best=(float(pair["tau"]), float(pair["alpha"]), float(found["value"])),
        at_one_one=found["at_one_one"],
        trials=trials,
        settings=found["settings"],
        subset=found["subset"]["text"],
        samples=found["subset"]["samples"],
        cost={key: float(value) for key, value in found["cost"].items()},
        command=found["command"],
    )


def figure(record: Record) -> Figure:
    """The plane with a coloured mark for each pair that was tried, better ones darker."""
    import matplotlib

    canvas_, axes = canvas(5.4, 4.4)
    with matplotlib.rc_context(STYLE):
        draw(axes[0][0], record)
    unit = f" in {record.metric.unit}" if record.metric.unit else ""
    bad = sum(not trial.ok for trial in record.trials)
    broken = f"× marks {bad} trials with a NaN or in which one class took nearly all predictions; they cannot win. "
    caption = (
        f"{record.metric.label.capitalize()}{unit} over the plane of τ and α of DEM on the searched samples, better "
        f"pairs darker; dotted pairs were drawn at random, the others by the estimator. {broken if bad else ''}"
        f"Hatched: outside of Proposition A.1, τ ≤ 2/α. {record.how}"
    )
    return Figure(slug("plane", record.task, *record.names, record.id), record.title, caption, canvas_)


def draw(axes: Axes, record: Record) -> None:
    """Map, excluded region, the best pair and (1, 1)."""
    metric = record.metric
    pairs: dict[tuple[float, float], list[Trial]] = {}
    for trial in record.trials:
        pairs.setdefault((trial.tau, trial.alpha), []).append(trial)
    shown = {pair: same[0].value for pair, same in pairs.items() if same[0].ok and same[0].value is not None}
    values = [metric.scale * value for value in shown.values()]
    mapped = colours(values, metric)
    grid = record.settings.get("space") == "grid"
    tau = [1 + 0.01 * k for k in range(101)]
    axes.fill_between(
        tau, [2 / t for t in tau], MOST + STEP / 2, facecolor="none", edgecolor=GREY, hatch="///", linewidth=0
    )
    axes.plot(tau, [2 / t for t in tau], color=GREY, linewidth=1.0)
    axes.scatter(
        [pair[0] for pair in shown],
        [pair[1] for pair in shown],
        s=110 if grid else 55,
        marker="s" if grid else "o",
        c=list(mapped.to_rgba(np.array(values))),
        edgecolors=GREY,
        linewidths=0.5,
        zorder=2,
    )
    startup = int(record.settings.get("startup", 0))
    early = [pair for pair in shown if any(0 < trial.number < startup for trial in pairs[pair])]
    axes.plot([p[0] for p in early], [p[1] for p in early], ".", color=GREY, markersize=3.5, zorder=3)
    broken = [pair for pair, same in pairs.items() if not same[0].ok]
    axes.plot([p[0] for p in broken], [p[1] for p in broken], "x", color=INK, markersize=6, zorder=3)

    def told(value: float | None) -> str:
        return "no number" if value is None else number(metric.scale * value, metric.digits)

    best_tau, best_alpha, best_value = record.best
    style: dict[str, Any] = {"linestyle": "none", "markerfacecolor": "#ffffff", "zorder": 4}
    one = f"(1, 1), where DEM is EM: {told(record.at_one_one)}"
    axes.plot(1, 1, marker="o", markersize=7, markeredgecolor="#c8501e", markeredgewidth=1.6, label=one, **style)
    best = f"best, ({best_tau:.3g}, {best_alpha:.3g}): {told(best_value)}"
    axes.plot(
        best_tau,
        best_alpha,
        marker="*",
        markersize=13,
        markeredgecolor="#8a6d00",
        markeredgewidth=1.1,
        label=best,
        **style,
    )
    axes.set_xlim(0, MOST + STEP)
    axes.set_ylim(-STEP, MOST + STEP / 2)
    axes.set_aspect("equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([0.0, 0.5, 1.0, 1.5, 2.0])
    axes.set_xlabel("τ")
    axes.set_ylabel("α")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, handletextpad=0.3)
    label = f"{metric.label} ({metric.unit})" if metric.unit else metric.label
    bar = axes.figure.colorbar(mapped, ax=axes, label=label, spacing="proportional")
    bar.outline.set_visible(False)


def colours(values: list[float], metric: Metric) -> ScalarMappable:
    """Steps of colour from the best value to as far behind the median as that is behind the best, so that a few bad
    pairs do not make all others alike."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm
    from matplotlib.ticker import MaxNLocator

    best = max(values) if metric.sign > 0 else min(values)
    far = best + 2 * (statistics.median(values) - best)
    low, high = sorted((best, best - metric.sign if far == best else far))
    levels = list(MaxNLocator(LEVELS).tick_values(low, high))
    below, above = min(values) < levels[0], max(values) > levels[-1]
    ends: Literal["neither", "both", "min", "max"] = "min" if below else "max" if above else "neither"
    norm = BoundaryNorm(levels, 256, extend="both" if below and above else ends)
    return ScalarMappable(norm, "Blues_r" if metric.sign < 0 else "Blues")


def table(records: list[Record]) -> Table:
    """A row for each search."""
    columns = [
        *(Column(title, numeric=False) for title in ("Data", "Model", "Protocol", "Method")),
        Column("τ"),
        Column("α"),
        Column("On the searched samples", ("value", "at (1, 1)")),
        Column("Trials"),
        Column("Cost", ("wall seconds", "backward passes")),
    ]
    rows = []
    for record in records:
        tau, alpha, value = record.best
        metric = record.metric
        reached = number(metric.scale * value, metric.digits)
        one = "" if record.at_one_one is None else number(metric.scale * record.at_one_one, metric.digits)
        seconds, passes = record.cost.get("wall_seconds", 0.0), record.cost.get("backward_passes", 0.0)
        unit = f" {metric.unit}" if metric.unit else ""
        rows.append(
            [
                *(Entry(pretty(name)) for name in record.names),
                Entry(f"{tau:.3g}", sort=tau),
                Entry(f"{alpha:.3g}", sort=alpha),
                Entry(
                    f"{metric.label} {reached}{unit}",
                    f"{one or 'no number'} at (1, 1)",
                    (plain(reached), plain(one)),
                    value,
                ),
                Entry(str(len(record.trials)), sort=len(record.trials)),
                Entry(
                    f"{seconds:.0f} s", f"{passes:.0f} backward passes", (f"{seconds:.1f}", f"{passes:.0f}"), seconds
                ),
            ]
        )
    name = pretty(records[0].task)
    caption = (
        "The pair (τ, α) that each search found, and what it cost. Its value is the best of the trials on the very "
        "samples that chose it, so it is optimistic; the comparisons below judge the pair."
    )
    notes = [f"{record.title}: {record.how} {record.command}" for record in records]
    return Table(slug("searches", records[0].task), f"{name}: searches of DEM*", caption, columns, rows, notes)

"""Figures of a tuning: the main metric over the rate on the searched part, with what each rule chose."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from dembench.report.figures.drawing import COLOURS, GREY, INK, SPARE, STYLE, Figure, canvas
from dembench.report.judge.group import show
from dembench.report.judge.stats import estimate
from dembench.report.judge.tolerance import Curve
from dembench.report.read.names import pretty, rank
from dembench.report.tables.fair import named
from dembench.report.tables.table import capital, slug

MARKS = {"fixed": ("o", "preset"), "oracle": ("*", "with labels"), "information": ("^", "no labels: information"),
         "consistency": ("s", "no labels: consistency")}  # fmt: skip


def choice_figures(found: Sequence[Curve]) -> list[Figure]:
    """One for each comparison and method, a line for each loss."""
    groups: dict[tuple[str, ...], list[Curve]] = defaultdict(list)
    for curve in found:
        if curve.chosen:
            groups[curve.task, curve.title, curve.method].append(curve)
    return [choice_figure(sorted(own, key=lambda c: (rank("loss", c.loss), c.params))) for own in groups.values()]


def choice_figure(curves: Sequence[Curve]) -> Figure:
    import matplotlib

    first = curves[0]
    metric = first.metric
    figure, axes = canvas(6.4, 3.2)
    ax = axes[0][0]
    with matplotlib.rc_context(STYLE):
        spare = iter(SPARE * len(curves))
        used: set[str] = set()
        for curve in curves:
            colour = COLOURS.get(curve.loss, "")
            colour = next(spare) if not colour or colour in used else colour
            used.add(colour)
            rates = sorted(curve.values)
            scores = [estimate([v for v in curve.values[rate].values() if np.isfinite(v)]) for rate in rates]
            mean = [score.mean for score in scores]
            ax.plot(rates, mean, color=colour, marker=".", markersize=4, label=named(curve))
            low, high = ([np.nan if (v := getattr(s, side)) is None else v for s in scores] for side in ("low", "high"))
            ax.fill_between(rates, low, high, color=colour, alpha=0.14, linewidth=0)
            at = dict(zip(rates, mean, strict=True))
            for kind, rate in curve.chosen.items():
                size = 12 if kind == "oracle" else 8
                ax.plot(rate, at.get(rate, np.nan), MARKS[kind][0], markersize=size, markeredgecolor=colour,
                        markerfacecolor="none", markeredgewidth=1.4)  # fmt: skip
        for kind, (mark, name) in MARKS.items():
            if any(kind in curve.chosen for curve in curves):
                ax.plot([], [], mark, markeredgecolor=INK, markerfacecolor="none", linestyle="none", label=name)
        means = np.array([line.get_ydata() for line in ax.get_lines() if len(line.get_ydata()) > 1], dtype=float)
        spread = np.nanmax(means) - np.nanmin(means) if means.size else 0
        if spread > 0:  # intervals of few seeds must not make all lines flat
            ax.set_ylim(np.nanmin(means) - 0.15 * spread, np.nanmax(means) + 0.15 * spread)
        ax.set_xscale("log")
        rates = sorted({rate for curve in curves for rate in curve.values})
        ax.set_xticks(rates, [show(rate) for rate in rates], rotation=30 if len(rates) > 6 else 0)
        ax.set_xticks([], minor=True)
        ax.set_xlabel("learning rate")
        ax.set_ylabel(metric.column)
        ax.grid(color=GREY)
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    caption = (
        f"{capital(metric.label)} of the trials over the learning rate on the searched part, mean over seeds with 95% "
        "t intervals where there are several; marked: what each rule chose."
    )
    title = f"{first.title}: learning rates tried, {pretty(first.method)}"
    return Figure(slug("chosen", first.task, first.title, first.method), title, caption, figure)

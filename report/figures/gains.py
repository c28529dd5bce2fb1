"""Forest plot over all tasks: a panel per task, in its own unit."""

from __future__ import annotations

import numpy as np

from dembench.report.figures.drawing import COLOURS, GREY, SPARE, STYLE, Figure, canvas
from dembench.report.judge.comparisons import Family
from dembench.report.read.names import pretty
from dembench.report.tables.gains import losses_in

ACROSS = 3  # panels in a row


def gains_figure(found: list[Family], narrow: bool = False) -> Figure:
    """For each task a row per loss: the mean gain over EM with its interval, and every cell's gain as a thin tick.
    ``narrow``: one panel below the other, for a telephone."""
    import matplotlib

    losses = losses_in(found)
    others = [loss for loss in losses if loss not in COLOURS]
    columns = 1 if narrow else 2 if len(found) == 4 else min(ACROSS, len(found))
    rows = -(-len(found) // columns)
    wide = 3.6 if narrow else max(5.6, 3.1 * columns + 0.4)
    figure, axes = canvas(wide, rows * (0.75 + 0.3 * len(losses)), rows, columns)
    with matplotlib.rc_context(STYLE):
        for ax in axes.flat[len(found) :]:
            ax.set_visible(False)
        for number, (ax, family) in enumerate(zip(axes.flat, found, strict=False)):
            ax.axvline(0, color=GREY, linewidth=1)
            for height, loss in enumerate(losses):
                colour = COLOURS.get(loss) or SPARE[others.index(loss) % len(SPARE)]
                gain = family.gains.get(loss)
                if gain is None or not gain.cells:
                    ax.annotate("not run", (0, height), xytext=(4, 0), textcoords="offset points", va="center",
                                color=GREY, fontsize=7.5)  # fmt: skip
                    continue
                cells = np.array([one.verdicts[loss].best.mean for one in family.having(loss)])
                if len(cells) > 1:
                    ax.plot(cells, np.full(len(cells), height + 0.27), linestyle="none", marker="|", markersize=4,
                            color=colour, alpha=0.6)  # fmt: skip
                if gain.low is not None:
                    ax.plot([gain.low, gain.high], [height, height], color=colour, linewidth=1.6)
                filled = colour if gain.low is not None else "none"
                ax.plot([gain.mean], [height], marker="o", markersize=5.5, color=colour, markerfacecolor=filled)
            reach = max(abs(value) for value in ax.get_xlim())
            ax.set_xlim(-reach, reach)
            ax.locator_params(axis="x", nbins=5)
            ax.set_ylim(len(losses) - 0.4, -0.6)
            ax.set_yticks(range(len(losses)), map(pretty, losses) if number % columns == 0 else [""] * len(losses))
            ax.grid(axis="y", visible=False)
            ax.set_title(wrapped(pretty(family.task)))
            ax.set_xlabel(family.metric.gain_unit)
    caption = (
        "Mean gain over EM with its 95% interval, to the right of zero where the loss is better; each panel in the "
        "unit of its own task and with its own scale, so lengths do not compare between panels. Thin ticks: single "
        "cells. A hollow mark has no interval. The numbers are those of the table of gains."
    )
    return Figure("gains-across-tasks" + "-narrow" * narrow, "Gain over EM in every task", caption, figure)


def wrapped(title: str, width: int = 34) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(title, width))

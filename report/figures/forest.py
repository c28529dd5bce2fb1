"""Figure of gains: each loss against EM in every method, with its paired interval."""

from __future__ import annotations

import numpy as np

from dembench.report.figures.drawing import COLOURS, GREY, SPARE, STYLE, Figure, canvas
from dembench.report.judge.group import Block
from dembench.report.judge.verdict import Verdict, best_per_method
from dembench.report.judge.wording import points
from dembench.report.read.names import pretty, rank
from dembench.report.tables.table import slug

MARKERS = ("o", "s", "D", "^")


def forest_figure(block: Block, verdicts: list[Verdict]) -> Figure | None:
    """A row per method, a mark per loss: the gain over EM, each at its best setting, and its 95% interval."""
    import matplotlib

    methods = list(dict.fromkeys(verdict.method for verdict in verdicts))
    if len(methods) < 2:
        return None
    losses = sorted({v.column[0] for v in verdicts}, key=lambda name: (rank("loss", name), name))
    figure, axes = canvas(6.8, 0.9 + 0.24 * len(methods) * max(2, len(losses)))
    ax = axes[0][0]
    with matplotlib.rc_context(STYLE):
        ax.axvline(0, color=GREY, linewidth=1)
        for number, loss in enumerate(losses):
            own = [v for v in best_per_method(verdicts, loss) if v.best.n]
            offset = (number - (len(losses) - 1) / 2) * 0.7 / len(losses)
            y = np.array([methods.index(v.method) + offset for v in own])
            x = np.array([v.best.mean for v in own])
            colour = COLOURS.get(loss, SPARE[number % len(SPARE)])
            for v, height in zip(own, y, strict=True):
                if v.best.low is not None:
                    ax.plot([v.best.low, v.best.high], [height, height], color=colour, linewidth=1.2)
            ax.plot(x, y, linestyle="none", marker=MARKERS[number % 4], markersize=5, color=colour, label=pretty(loss))
        ax.set_yticks(range(len(methods)), [pretty(method) for method in methods])
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
        ax.set_xlabel(f"gain over EM in {points(block.metric)} (right: better than EM)")
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    swept = any(verdict.swept for verdict in verdicts)
    caption = (
        "Gain over EM in each method with its paired 95% t interval over seeds (none where there is no interval)"
        + (", each loss at its best setting on this stream" if swept else "")
        + "."
    )
    return Figure(slug("gains", block.task, block.title), f"{block.title}: gain over EM", caption, figure)

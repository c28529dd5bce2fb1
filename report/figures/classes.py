"""Figure of the F1 of each class, and of their mean (arXiv 2511.03256, figure 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dembench.report.figures.drawing import INK, STYLE, Figure, canvas, colour_of, line_of
from dembench.report.judge.group import Block, Cell, Key
from dembench.report.judge.wording import number
from dembench.report.read.names import Metric, pretty
from dembench.report.tables.table import slug

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BARS = 20  # classes up to which there are bars and not lines
F1 = Metric("f1", "F1", "%", 100, 1, 2)
Cells = dict[Key, Cell]


def class_figure(block: Block) -> Figure | None:
    """A panel per method: the F1 of every class in the order of the data, a bar per loss at its best setting."""
    import matplotlib

    classes = [part for part in block.slices if any((part, "f1") in run.scores for run in block.runs)]
    panels: list[tuple[str, Cells]] = []
    for method in block.methods:
        columns = [column for column in block.losses_of(method) if column in block.shown_columns]
        best = {column: cell for column in columns if (cell := block.best(method, column))}
        if cells := {column: cell for column, cell in best.items() if cell.estimate(F1).n}:
            panels.append((method, cells))
    if not classes or not panels:
        return None
    across = min(2 if len(classes) <= BARS else 1, len(panels))
    rows = -(-len(panels) // across)
    figure, axes = canvas(5.2 * across + 0.4 if len(classes) <= BARS else 8.5, 2.6 * rows, rows, across, sharey=True)
    with matplotlib.rc_context(STYLE):
        for ax, (method, cells) in zip(axes.flat, panels, strict=False):
            class_panel(ax, block, classes, cells)
            ax.set_title(pretty(method) if len(panels) > 1 else "")
        for ax in axes.flat[len(panels) :]:
            ax.set_axis_off()
        for ax in axes[:, 0]:
            ax.set_ylabel("F1 (%)")
    first = "; the first class has most labelled samples, the last one fewest" if block.task == "longtail" else ""
    caption = (
        f"F1 of each class on the test set, mean over seeds{first}. Thin lines or bands: 95% t intervals (none for one "
        "seed). In brackets, and on the right where there are bars: the mean over classes (macro F1)."
    )
    return Figure(slug("classes", block.task, block.title), f"{block.title}: F1 of each class", caption, figure)


def class_panel(ax: Axes, block: Block, classes: list[str], cells: Cells) -> None:
    x = np.arange(len(classes) + 1.0)
    x[-1] += 0.6  # the mean stands apart
    width = 0.84 / len(cells)
    for place, (column, cell) in enumerate(cells.items()):
        scores = [cell.estimate(F1, part) for part in (*classes, "mean")]
        mean = np.array([score.mean for score in scores])
        bounds = [(score.mean if e is None else e) for score in scores for e in (score.low, score.high)]
        low, high = np.array(bounds).reshape(-1, 2).clip(0, 100).T
        setting = block.setting_label(cell)
        name = f"{block.loss_label(cell)}{f', {setting}' if setting else ''} ({number(mean[-1], 1)})"
        colour = colour_of(column, block)
        if len(classes) <= BARS:
            at = x + (place - (len(cells) - 1) / 2) * width
            ax.bar(at, mean, width * 0.92, color=colour, label=name)
            ax.vlines(at, low, high, color=INK, linewidth=0.6)
        else:
            ax.plot(x[:-1], mean[:-1], color=colour, linestyle=line_of(column, block), linewidth=1, label=name)
            ax.fill_between(x[:-1], low[:-1], high[:-1], color=colour, alpha=0.14, linewidth=0)
            ax.axhline(mean[-1], color=colour, linestyle=":", linewidth=0.8)
    if len(classes) <= BARS:
        tilted = max(map(len, classes)) > 4
        ax.set_xticks(x, [*classes, "mean"], rotation=35 * tilted, ha="right" if tilted else "center")
        ax.axvline((x[-2] + x[-1]) / 2, color=INK, linewidth=0.5, linestyle="--")
    else:
        ax.set_xlabel("class, in the order of the data")
        ax.set_xlim(0, len(classes) - 1)
    ax.grid(axis="x", visible=False)
    ax.set_ylim(0, 100)
    names = ax.get_legend_handles_labels()[1]
    columns = len(names) if sum(map(len, names)) < 60 else 2
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=columns, fontsize=7.5)  # beside the title

"""Figure of the predicted classes: sorted shares against those of the labels (arXiv 2511.03256, figure 2, right)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from dembench.report.figures.drawing import INK, STYLE, Figure, canvas, colour_of, line_of
from dembench.report.judge.group import Block, Cell, Key
from dembench.report.read.load import Run
from dembench.report.read.names import pretty
from dembench.report.tables.results import default_cell, default_label
from dembench.report.tables.table import slug

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BARS = 20  # classes up to which there are bars and not lines
CROWD = 4  # losses up to which their names have room among the bars
Cells = dict[Key, Cell]


def shares(runs: Iterable[Run]) -> tuple[np.ndarray, np.ndarray] | None:
    """Predicted and true share of each class in %, sorted within each slice from the largest down, then averaged over
    slices and runs; (classes,) each."""
    found = [
        (100 * np.sort(predicted)[::-1] / max(1, predicted.sum()), 100 * np.sort(label)[::-1] / max(1, label.sum()))
        for run in runs
        for predicted, label in ((np.array(p, float), np.array(t, float)) for p, t in run.histograms().values())
    ]
    if not found or len({len(array) for pair in found for array in pair}) != 1:
        return None
    predicted, label = (np.stack(arrays).mean(0) for arrays in zip(*found, strict=True))
    return predicted, label


def share_figure(block: Block, method: str) -> Figure | None:
    """Sorted shares of the predicted classes against the labels', at the default setting and at the best."""
    panels: list[tuple[str, Cells]] = []
    columns = [column for column in block.losses_of(method) if column in block.shown_columns]
    for best, pick in ((False, default_cell), (True, Block.best)):
        cells = {c: cell for c in columns if (cell := pick(block, method, c)) and shares(cell.runs)}
        if not cells or any({id(x) for x in cells.values()} == {id(x) for x in old.values()} for _, old in panels):
            continue
        at = "each loss at its best setting" if best else default_label(block, cells.values())
        panels.append((at, cells))
    title = f"{block.title}: predicted against true classes, {pretty(method)}"
    return draw(block, panels, slug("shares", block.task, block.title, method), title, 2)


def shares_figure(block: Block) -> Figure | None:
    """The same for many methods, a panel each, every loss at its best setting."""
    panels = []
    for method in block.methods:
        columns = [column for column in block.losses_of(method) if column in block.shown_columns]
        cells = {c: cell for c in columns if (cell := block.best(method, c)) and shares(cell.runs)}
        if cells:
            panels.append((pretty(method), cells))
    title = f"{block.title}: predicted against true classes"
    return draw(block, panels, slug("shares", block.task, block.title), title, 3)


def draw(block: Block, panels: list[tuple[str, Cells]], name: str, title: str, across: int) -> Figure | None:
    import matplotlib

    if not panels:
        return None
    columns = min(across, len(panels))
    rows = -(-len(panels) // columns)
    width, height = (4.4, 2.9) if across == 2 else (3.1, 2.2)
    figure, axes = canvas(width * columns + 0.4, height * rows, rows, columns, sharey=True)
    with matplotlib.rc_context(STYLE):
        for number, (ax, (label, cells)) in enumerate(zip(axes.flat, panels, strict=False)):
            share_panel(ax, block, label, cells, legend=across == 2)
            if across > 2 and not number:  # the panels share one, above them
                handles, names = ax.get_legend_handles_labels()
                figure.legend(handles, names, loc="outside upper left", ncols=len(names))
        for ax in axes.flat[len(panels) :]:
            ax.set_axis_off()
        for ax in axes[:, 0]:
            ax.set_ylabel("share of predictions (%)")
    caption = (
        "Share of each class among the predictions, sorted from the most to the least predicted within each slice, "
        "then averaged over slices and seeds; dashed: the labels, sorted likewise. Flatter is less biased."
    )
    return Figure(name, title, caption, figure)


def share_panel(ax: Axes, block: Block, title: str, cells: Cells, legend: bool) -> None:
    label = np.zeros(1)
    for number, (column, cell) in enumerate(cells.items()):
        predicted, label = shares(cell.runs) or (label, label)
        x = np.arange(1, len(predicted) + 1)
        setting = block.setting_label(cell) if "best" in title else ""
        name = block.loss_label(cell) + (f" ({setting})" if setting else "")
        if len(x) <= BARS:
            width = 0.8 / len(cells)
            at = x + (number - (len(cells) - 1) / 2) * width
            ax.bar(at, predicted, width * 0.92, color=colour_of(column, block), label=name)
        else:
            ax.plot(x, predicted, color=colour_of(column, block), linestyle=line_of(column, block), label=name)
    x = np.arange(1, len(label) + 1)
    ax.step(np.r_[x - 0.5, x[-1] + 0.5], np.r_[label, label[-1]], where="post", color=INK, linewidth=1.1,
            linestyle="--", label="labels")  # fmt: skip
    ax.set_title(title)
    ax.set_xlabel("class, sorted by predicted share")
    ax.grid(axis="x", visible=False)
    ax.set_xlim(0.4, len(x) + 0.6)
    if len(x) <= BARS:
        ax.set_xticks(x)
    if legend and len(cells) > CROWD:
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    elif legend:
        ax.legend(loc="upper right")

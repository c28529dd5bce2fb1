"""Figure of the stream: accuracy over its batches, one panel per choice of settings or, of many methods, per method."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from dembench.report.figures.drawing import GREY, LINES, STYLE, Figure, canvas, colour_of, line_of
from dembench.report.judge.group import Block, Cell
from dembench.report.judge.wording import FEW, slice_labels
from dembench.report.read.load import Run
from dembench.report.read.names import pretty
from dembench.report.tables.results import default_cell, default_label
from dembench.report.tables.table import slug

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WINDOW = 5  # batches of a running accuracy
BASELINES = ("source", "norm")  # what stays of the loss-free methods where there are many
Panel = tuple[str, list[Cell]]


def window_accuracy(run: Run, window: int) -> tuple[tuple[str, ...], np.ndarray] | None:
    """The slice of each batch and the accuracy in % over the last ``window`` batches of the same slice, (batches,)."""
    curve = run.curve()
    if curve is None:
        return None
    at = np.arange(len(curve.n))
    fresh = np.array([True, *(a != b for a, b in pairwise(curve.slices))])
    start = np.maximum.accumulate(np.where(fresh, at, 0))
    first = np.maximum(start, at - window + 1)
    seen, correct = (np.r_[0, np.cumsum(x)] for x in (curve.n, curve.correct))
    seen, correct = seen[1:] - seen[first], correct[1:] - correct[first]
    accuracy = np.divide(100 * correct, seen, out=np.full(len(at), np.nan), where=seen > 0)
    return curve.slices, accuracy


def stream_figure(block: Block, method: str) -> Figure | None:
    """Accuracy over the batches of the stream, one panel at the default setting and one at each loss's best."""
    columns = [column for column in block.losses_of(method) if column in block.shown_columns]
    panels: list[Panel] = []
    defaults = [cell for column in columns if (cell := default_cell(block, method, column))]
    bests = [cell for column in columns if (cell := block.best(method, column))]
    if defaults:
        panels.append((default_label(block, defaults), defaults))
    if bests and {id(cell) for cell in bests} != {id(cell) for cell in defaults}:
        panels.append(("each loss at its best setting (chosen on this stream)", bests))
    if not panels:
        if block.cells or not block.free or method != block.methods[0]:
            return None
        panels.append(("", []))
    title = f"{block.title}: accuracy over the stream, {pretty(method)}"
    return draw(block, panels, 2.55, slug("stream", block.task, block.title, method), title)


def streams_figure(block: Block) -> Figure | None:
    """Accuracy over the stream for many methods: a panel per method, each loss at its best setting."""
    panels = []
    for method in block.methods:
        columns = [column for column in block.losses_of(method) if column in block.shown_columns]
        cells = [cell for column in columns if (cell := block.best(method, column))]
        if cells:
            swept = any(len(block.settings(method, column)) > 1 for column in columns)
            panels.append((pretty(method) + (", each loss at its best setting" if swept else ""), cells))
    title = f"{block.title}: accuracy over the stream"
    return draw(block, panels, 1.75, slug("stream", block.task, block.title), title) if panels else None


def draw(block: Block, panels: list[Panel], height: float, name: str, title: str) -> Figure | None:
    import matplotlib

    free = [block.free[row] for row in block.rows if row in block.free]
    if len(free) > FEW:
        free = [cell for cell in free if cell.method in BASELINES]
    figure, axes = canvas(9.2, 0.55 + height * len(panels), len(panels), 1, sharex=True, sharey=True)
    with matplotlib.rc_context(STYLE):
        pairs = zip(axes[:, 0], panels, strict=True)
        drawn = [
            stream_panel(ax, block, free + cells, name, named=not i or height > 2)
            for i, (ax, (name, cells)) in enumerate(pairs)
        ]
        if not any(drawn):
            return None
        axes[-1][0].set_xlabel("batch")
        for ax in axes[:-1]:
            ax[0].tick_params(labelbottom=False)
    caption = (
        f"Accuracy in % over the last {WINDOW} batches of the same slice, mean over seeds, band ± 1 standard "
        f"deviation. Vertical lines: a new slice begins."
    )
    return Figure(name, title, caption, figure)


def stream_panel(axes: Axes, block: Block, cells: list[Cell], title: str, named: bool = True) -> bool:
    """Draws cells whose runs kept a curve; False where none did. ``named`` writes the slices above."""
    lines = []
    for cell in cells:
        found = [curve for run in cell.runs if (curve := window_accuracy(run, WINDOW)) is not None]
        if found:
            order, _ = Counter(slices for slices, _ in found).most_common(1)[0]
            lines.append((cell, order, np.stack([values for slices, values in found if slices == order])))
    if not lines:
        return False
    order = Counter(order for _, order, _ in lines).most_common(1)[0][0]
    free = [key for key in block.rows if key in block.free]
    for cell, slices, values in lines:
        if slices != order:
            continue
        column = block.column_of(cell)
        colour = colour_of(column, block)
        style = line_of(column, block) if column else LINES[1 + free.index((cell.method, cell.setting)) % 3]
        name = block.loss_label(cell) if column else pretty(cell.method)
        best = "best" in title and block.setting_label(cell)
        x, mean = np.arange(len(order)), values.mean(0)
        axes.plot(x, mean, color=colour, linestyle=style, label=f"{name} ({best})" if best else name,
                  linewidth=1.1 if column is None else 1.5)  # fmt: skip
        if len(values) > 1:
            sd = values.std(0, ddof=1)
            axes.fill_between(x, mean - sd, mean + sd, color=colour, alpha=0.16, linewidth=0)
    starts = [i for i in range(len(order)) if i == 0 or order[i] != order[i - 1]]
    names = slice_labels([order[i] for i in starts])
    for start, end, name in zip(starts, [*starts[1:], len(order)], names, strict=True):
        if start:
            axes.axvline(start - 0.5, color=GREY, linewidth=0.6, alpha=0.6)
        if named and len(starts) <= 40:
            axes.text(
                (start + end - 1) / 2, 1.01, name.replace(" ", "\n"), transform=axes.get_xaxis_transform(),
                ha="center", va="bottom", fontsize=5.9, color=GREY, linespacing=0.95,
            )  # fmt: skip
    axes.grid(axis="x", visible=False)
    axes.set_xlim(-0.5, len(order) - 0.5)
    axes.set_ylabel("accuracy (%)")
    axes.set_title(title, pad=22 if named else 4)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=2.2)
    return True

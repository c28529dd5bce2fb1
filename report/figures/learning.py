"""Figure of learning: recorded curves (series.csv), mean over seeds with a 95% band, a line per method and loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dembench.report.figures.drawing import LINES, STYLE, Figure, canvas, colour_of
from dembench.report.judge.group import Block, Cell
from dembench.report.judge.stats import t_quantile
from dembench.report.read.names import metrics_of, pretty
from dembench.report.tables.table import slug

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = 6
MOST = 16  # lines of a panel
GRID = 200  # points of a curve that are drawn
Series = dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]


def learning_figure(block: Block) -> Figure | None:
    """A panel for each recorded (slice, metric), the main metric first; at most PANELS."""
    import matplotlib

    cells = [block.free[row] for row in block.rows if row in block.free]
    cells += [block.cells[row, c] for row in block.rows for c in block.columns if (row, c) in block.cells]
    few = ""
    if len(cells) > MOST:
        best = [block.best(method, column) for method in block.methods for column in block.losses_of(method)]
        chosen = {id(cell) for cell in (*block.free.values(), *best)}
        cells = [cell for cell in cells if id(cell) in chosen][:MOST]
        few = f"Settings are many: each loss at its best one, {len(cells)} lines at most. "
    series = {id(run): run.series() for cell in cells for run in cell.runs}
    found = dict.fromkeys(key for curves in series.values() for key in curves)
    if not found:
        return None
    order = [block.metric.name, *metrics_of(block.task)]
    keys = sorted(found, key=lambda key: order.index(key[1]) if key[1] in order else len(order))
    shown, columns = keys[:PANELS], min(2, len(keys))
    rows = -(-len(shown) // columns)
    figure, axes = canvas(4.9 * columns + 0.6, 2.7 * rows, rows, columns)
    slices = {part for part, _ in keys}
    with matplotlib.rc_context(STYLE):
        for number, (ax, key) in enumerate(zip(axes.flat, shown, strict=False)):
            learning_panel(ax, block, cells, [series[id(run)] for cell in cells for run in cell.runs], key)
            ax.set_ylabel(ylabel(block.task, key[1]))
            ax.set_xlabel("step")
            ax.set_title(key[0] if len(slices) > 1 else "")
            if not number:
                ax.legend(loc="best", fontsize=7)
        for ax in axes.flat[len(shown) :]:
            ax.set_axis_off()
    left = f"{len(keys) - len(shown)} more are in series.csv of the runs. " if len(keys) > len(shown) else ""
    caption = (
        "Recorded curves, mean over seeds with a 95% t band (none for one seed), between recorded steps by straight "
        f"lines, as far as every seed goes. {few}{left}"
    )
    name = slug("learning", block.task, block.title)
    return Figure(name, f"{block.title}: learning curves", caption, figure)


def learning_panel(
    axes: Axes, block: Block, cells: Sequence[Cell], curves: Sequence[Series], key: tuple[str, str]
) -> None:
    used: dict[str, int] = {}
    at = 0
    for cell in cells:
        mine = [curve[key] for curve in curves[at : at + len(cell.runs)] if key in curve]
        at += len(cell.runs)
        if not (band := mean_band(mine)):
            continue
        column = block.column_of(cell)
        colour = colour_of(column, block)
        used[colour] = used.get(colour, -1) + 1
        steps, mean, half = band
        name = " ".join(filter(None, [pretty(cell.method), block.setting_label(cell)]))
        name += "" if column is None else f" + {block.loss_label(cell)}"
        axes.plot(steps, mean, color=colour, linestyle=LINES[used[colour] % len(LINES)], label=name)
        if half is not None:
            axes.fill_between(steps, mean - half, mean + half, color=colour, alpha=0.16, linewidth=0)


def mean_band(
    curves: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None] | None:
    """Steps (GRID,), mean and half width of the 95% t interval over ``curves`` of (steps, values), on the steps that
    all of them cover; half is None for one curve."""
    curves = [(steps[np.isfinite(values)], values[np.isfinite(values)]) for steps, values in curves]
    curves = [(steps, values) for steps, values in curves if len(steps)]
    if not curves:
        return None
    first, last = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
    if last < first:
        return None
    grid = np.unique(np.concatenate([steps for steps, _ in curves]))
    grid = grid[(grid >= first) & (grid <= last)]
    if len(grid) > GRID:
        grid = np.linspace(first, last, GRID)
    values = np.stack([np.interp(grid, steps, value) for steps, value in curves])
    if len(values) == 1:
        return grid, values[0], None
    half = t_quantile(len(values) - 1) * values.std(0, ddof=1) / np.sqrt(len(values))
    return grid, values.mean(0), half


def ylabel(task: str, name: str) -> str:
    """The metric as recorded, unscaled."""
    declared = metrics_of(task)
    return declared[name].label if name in declared else name.replace("_", " ")

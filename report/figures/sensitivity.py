"""Figures of sensitivity: the main metric against the learning rate, against a loss's own parameters, and against what
else differs between comparisons, such as the batch size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dembench.report.figures.drawing import GREY, LINES, SPARE, STYLE, Figure, canvas, colour_of, line_of
from dembench.report.judge.group import Block, Cell, Key, Setting, leaf, show
from dembench.report.judge.wording import number
from dembench.report.read.names import pretty
from dembench.report.tables.table import capital, slug

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREEK = {"tau": "τ", "alpha": "α"}


def axis_label(block: Block) -> str:
    return f"{block.metric.label} ({block.metric.unit})" if block.metric.unit else block.metric.label


def numeric(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def draw_line(axes: Axes, block: Block, x: Sequence[float], cells: Sequence[Cell], **style: Any) -> None:
    """Means over seeds with their 95% t band; a cross where a run collapsed or met a NaN."""
    scores = [cell.estimate(block.metric) for cell in cells]
    at, mean = np.array(x, dtype=float), np.array([score.mean for score in scores])
    axes.plot(at, mean, marker="o", markersize=3.5, **style)
    low = np.array([np.nan if s.low is None else s.low for s in scores])
    high = np.array([np.nan if s.high is None else s.high for s in scores])
    axes.fill_between(at, low, high, color=style["color"], alpha=0.16, linewidth=0)
    bad = np.array([not cell.clean for cell in cells])
    axes.plot(at[bad], mean[bad], linestyle="none", marker="x", markersize=8, color=style["color"])


def draw_free(axes: Axes, block: Block) -> None:
    """A grey line for each method that learns nothing."""
    for i, row in enumerate(row for row in block.rows if row in block.free):
        score = block.free[row].estimate(block.metric)
        if score.n:
            axes.axhline(score.mean, color=GREY, linestyle=LINES[1 + i % 3], linewidth=1.1, label=block.row_label(row))


CROSSES = "× marks settings at which a run collapsed or met a NaN. "


def crosses(cells: Iterable[Cell]) -> str:
    return CROSSES if any(not cell.clean for cell in cells) else ""


def swept_key(block: Block, method: str) -> str | None:
    """The hyperparameter of a figure: the learning rate where it varies, else the only one that does, as a number."""
    keys = block.varying[method]
    if rate := next((key for key in keys if leaf(key) == "lr"), None):
        return rate
    values = [dict(setting).get(keys[0]) for name, setting in block.rows if name == method] if len(keys) == 1 else []
    return keys[0] if values and all(map(numeric, values)) else None


def rate_figure(block: Block, method: str) -> Figure | None:
    """The main metric against the learning rate, or against what else varies alone, a line per loss with 95% bands."""
    import matplotlib

    key = swept_key(block, method)
    if key is None:
        return None
    what = "learning rate" if leaf(key) == "lr" else leaf(key).replace("_", " ")
    others = most_swept(block, method, key)
    series = {}
    for column in block.losses_of(method):
        if column in block.shown_columns:
            found = {
                float(value): cell
                for cell in block.settings(method, column)
                if (value := along(cell, key, block)) is not None and without(cell.setting, key) == others
            }
            if len(found) > 1:
                series[column] = sorted(found.items())
    if not series:
        return None
    means = [cell.estimate(block.metric).mean for cells in series.values() for _, cell in cells]
    low, middle, high = min(means), float(np.median(means)), max(means)
    closer = block.metric.sign < 0 and high - low > 4 * (middle - low) > 0
    figure, axes = canvas(8.4 if closer else 5.6, 3.2, 1, 2 if closer else 1)
    with matplotlib.rc_context(STYLE):
        for ax in axes[0]:
            rate_panel(ax, block, series, what)
        if closer:
            reach = 3 * (middle - low)
            axes[0][1].set_ylim(low - 0.15 * reach, low + reach)
            axes[0][1].set_title("the same, closer")
        axes[0][0].set_ylabel(axis_label(block))
        axes[0][-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    marked = crosses(cell for cells in series.values() for _, cell in cells)
    fixed = "".join(f", {leaf(name)} {show(value)}" for name, value in others if name in block.varying[method])
    caption = (
        f"{capital(block.metric.label)} against {what}{fixed}, mean over seeds with 95% t intervals; "
        f"grey lines learn nothing. {marked}"
    )
    title = f"{block.title}: sensitivity to {'the ' * (leaf(key) == 'lr')}{what}, {pretty(method)}"
    return Figure(slug(leaf(key), block.task, block.title, method), title, caption, figure)


def along(cell: Cell, key: str, block: Block) -> float | None:
    """Where a cell stands on the axis of ``key``, if it does and has a value."""
    value = dict(cell.setting).get(key)
    return float(value) if value is not None and numeric(value) and cell.values(block.metric) else None


def without(setting: Setting, key: str) -> Setting:
    return tuple((name, value) for name, value in setting if name != key)


def most_swept(block: Block, method: str, key: str) -> Setting:
    """The other hyperparameters, such as the optimizer, with which most values of ``key`` were run: a line that changed
    them on its way would not be one over ``key``."""
    values: dict[Setting, set[float]] = {}
    for column in block.losses_of(method):
        for cell in block.settings(method, column):
            if (value := along(cell, key, block)) is not None:
                values.setdefault(without(cell.setting, key), set()).add(value)
    return max(values, key=lambda others: len(values[others]), default=())


def rate_panel(axes: Axes, block: Block, series: dict[Key, list[tuple[float, Cell]]], what: str) -> None:
    for column, cells in series.items():
        style = {"color": colour_of(column, block), "linestyle": line_of(column, block)}
        draw_line(
            axes, block, [lr for lr, _ in cells], [c for _, c in cells], label=block.column_label(column), **style
        )
    draw_free(axes, block)
    rates = sorted({lr for cells in series.values() for lr, _ in cells})
    if rates[0] > 0 and rates[-1] >= 5 * rates[0]:
        axes.set_xscale("log")
    axes.set_xticks(rates, [show(rate) for rate in rates])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(what)


def params_figure(block: Block, method: str, loss: str) -> Figure | None:
    """The main metric against the parameters of a loss: a line over one that varies, a plane of colours over two."""
    import matplotlib

    keys = block.varying_params.get(loss, ())
    columns = [column for column in block.losses_of(method) if column[0] == loss]
    cells = [cell for column in columns if (cell := block.best(method, column)) is not None]
    cells = [cell for cell in cells if all(numeric(dict(cell.params).get(key)) for key in keys)]
    if len(keys) not in (1, 2) or len(cells) < 3:
        return None
    at = {id(cell): tuple(float(dict(cell.params)[key]) for key in keys) for cell in cells}
    cells.sort(key=lambda cell: at[id(cell)])
    swept = any(len(block.settings(method, column)) > 1 for column in columns)
    figure, axes = canvas(5.6, 3.2 if len(keys) == 1 else 3.8)
    ax = axes[0][0]
    with matplotlib.rc_context(STYLE):
        if len(keys) == 1:
            style = {"color": colour_of(columns[0], block), "label": pretty(loss)}
            draw_line(ax, block, [at[id(cell)][0] for cell in cells], cells, **style)
            base = block.best(method, block.em) if block.em and loss != "em" else None
            if base is not None:
                mean = base.estimate(block.metric).mean
                ax.axhline(mean, color=colour_of(block.em, block), linewidth=1.1, label="EM")
            draw_free(ax, block)
            ax.set_ylabel(axis_label(block))
            ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        else:
            plane(ax, block, cells, [at[id(cell)] for cell in cells])
            ax.set_ylabel(GREEK.get(leaf(keys[1]), leaf(keys[1])))
        ax.set_xlabel(GREEK.get(leaf(keys[0]), leaf(keys[0])))
    names = " and ".join(GREEK.get(leaf(key), leaf(key)) for key in keys)
    how = "95% t intervals over seeds" if len(keys) == 1 else "mean over seeds; × collapsed or NaN runs"
    caption = (
        f"{capital(block.metric.label)} against {names} of {pretty(loss)}{', best setting of the method' * swept}; "
        f"{how}. {crosses(cells) if len(keys) == 1 else ''}"
    )
    title = f"{block.title}: {names} of {pretty(loss)}, {pretty(method)}"
    return Figure(slug("params", block.task, block.title, method, loss), title, caption, figure)


def plane(axes: Axes, block: Block, cells: Sequence[Cell], at: Sequence[tuple[float, ...]]) -> None:
    """Coloured squares with their numbers, better ones darker."""
    xs, ys = (sorted({point[i] for point in at}) for i in (0, 1))
    values = np.full((len(ys), len(xs)), np.nan)
    for cell, (x, y) in zip(cells, at, strict=True):
        values[ys.index(y), xs.index(x)] = cell.estimate(block.metric).mean
    shown = block.metric.sign * values
    axes.imshow(shown, cmap="Blues", aspect="auto", origin="lower", alpha=0.85)
    middle = (np.nanmin(shown) + np.nanmax(shown)) / 2
    for cell, (x, y) in zip(cells, at, strict=True):
        i, j = ys.index(y), xs.index(x)
        text = number(values[i, j], 1) + (" ×" if not cell.clean else "") if np.isfinite(values[i, j]) else "–"
        colour = "#ffffff" if np.isfinite(shown[i, j]) and shown[i, j] > middle else "#16181d"
        axes.text(j, i, text, ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(xs)), [show(x) for x in xs])
    axes.set_yticks(range(len(ys)), [show(y) for y in ys])
    axes.grid(visible=False)


def across_figure(blocks: Sequence[Block]) -> Figure | None:
    """The main metric against the one number in which ``blocks`` differ, such as the batch size; a line per method,
    setting and loss."""
    import matplotlib

    keys = {key for block in blocks for key in block.distinct}
    (key,) = keys if len(keys) == 1 else (None,)
    found = [block.distinct.get(key) for block in blocks] if key else []
    values = [float(value) for value in found if value is not None and numeric(value)]
    if len(values) < 2 or len(values) < len(found):
        return None
    lines: dict[str, list[tuple[float, Block, Cell]]] = {}
    for value, block in sorted(zip(values, blocks, strict=True), key=lambda pair: pair[0]):
        for row in block.rows:
            for cell in filter(None, [block.free.get(row), *(block.cells.get((row, c)) for c in block.columns)]):
                name = block.row_label(row) + ("" if cell.loss is None else f" + {block.loss_label(cell)}")
                lines.setdefault(name, []).append((float(value), block, cell))
    lines = {name: points for name, points in lines.items() if len(points) > 1}
    if not 0 < len(lines) <= 2 * len(LINES):
        return None
    first = blocks[0]
    losses = {block.column_of(cell) for points in lines.values() for _, block, cell in points}
    single = len(losses) == 1  # then colours tell methods apart
    figure, axes = canvas(7.2, 3.4)
    with matplotlib.rc_context(STYLE):
        used: dict[str, int] = {}
        for i, (name, points) in enumerate(lines.items()):
            column = points[0][1].column_of(points[0][2])
            shades = (colour_of(column, points[0][1]), *((*SPARE, GREY) if single else ()))
            colour = shades[i % len(shades)]
            used[colour] = used.get(colour, -1) + 1
            style = {"color": colour, "linestyle": LINES[used[colour] % len(LINES)], "label": name}
            draw_line(axes[0][0], first, [x for x, _, _ in points], [cell for *_, cell in points], **style)
        axes[0][0].set_xlabel(leaf(key or "").replace("_", " "))
        axes[0][0].set_ylabel(axis_label(first))
        if min(values) > 0 and max(values) >= 10 * min(values):
            axes[0][0].set_xscale("log")
            axes[0][0].set_xticks(sorted(values), [show(value) for value in sorted(values)])
            axes[0][0].set_xticks([], minor=True)
        axes[0][0].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    cells = [cell for points in lines.values() for *_, cell in points]
    what = leaf(key or "").replace("_", " ")
    caption = (
        f"{capital(first.metric.label)} against {what}, mean over seeds with 95% t intervals, over the comparisons "
        f"below that differ in nothing else. {crosses(cells)}"
    )
    names = " · ".join((first.data, first.model, first.protocol))
    return Figure(slug("across", first.task, names, what), f"{names}: against {what}", caption, figure)

"""Figures of the report: accuracy over the stream, learning-rate sensitivity, prediction shares, reward curves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.report.content import default_cell, describe, slice_labels
from tasks.report.drawing import COLOURS, GREY, INK, LINES, PALETTE, SPARE, STYLE, Figure, canvas
from tasks.report.group import Block, Cell, Key, pretty, show
from tasks.report.load import Run
from tasks.report.tables import slug

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def colour_of(column: Key | None, block: Block) -> str:
    if column is None:
        return GREY
    if column[0] in COLOURS:
        return COLOURS[column[0]]
    others = sorted({loss for loss, _ in block.columns} - COLOURS.keys())
    return SPARE[others.index(column[0]) % len(SPARE)]


def line_of(column: Key, block: Block) -> Any:
    same = [key for key in block.columns if key[0] == column[0]]
    return LINES[same.index(column) % len(LINES)]


# --- accuracy over the stream ---


def window_accuracy(run: Run, window: int) -> tuple[tuple[str, ...], np.ndarray] | None:
    """The slice of each batch and the accuracy in % over the last ``window`` batches of the same slice, (batches,)."""
    curve = run.curve()
    if curve is None:
        return None
    accuracy = np.empty(len(curve.n))
    start = 0
    for i, name in enumerate(curve.slices):
        if i and name != curve.slices[i - 1]:
            start = i
        first = max(start, i - window + 1)
        seen = curve.n[first : i + 1].sum()
        accuracy[i] = 100 * curve.correct[first : i + 1].sum() / seen if seen else np.nan
    return curve.slices, accuracy


def stream_figure(block: Block, method: str, window: int = 5) -> Figure | None:
    """Accuracy over the batches of the stream, one panel at the default setting and one at each loss's best."""
    import matplotlib

    columns = [column for column in block.losses_of(method) if column in block.shown_columns]
    panels: list[tuple[str, list[Cell]]] = []
    defaults = [cell for column in columns if (cell := default_cell(block, method, column))]
    bests = [cell for column in columns if (cell := block.best(method, column))]
    if defaults:
        what = block.setting_label(defaults[0])
        panels.append((f"every loss at {what}" if what else "", defaults))
    if bests and {id(cell) for cell in bests} != {id(cell) for cell in defaults}:
        panels.append(("each loss at its best setting (chosen on this stream)", bests))
    free = [block.free[row] for row in block.rows if row in block.free]
    if not panels:
        if block.cells or not free or method != block.methods[0]:
            return None
        panels.append(("", []))
    figure, axes = canvas(9.2, 0.55 + 2.55 * len(panels), len(panels), 1, sharex=True, sharey=True)
    with matplotlib.rc_context(STYLE):
        pairs = zip(axes, panels, strict=True)
        drawn = [stream_panel(ax[0], block, free + cells, title, window) for ax, (title, cells) in pairs]
        if not any(drawn):
            return None
        axes[-1][0].set_xlabel("batch")
        for ax in axes[:-1]:
            ax[0].tick_params(labelbottom=False)
    caption = (
        f"Accuracy in % over the last {window} batches of the same slice, mean over seeds, band ± 1 standard "
        "deviation. "
        f"Vertical lines: a new slice begins. {describe(block)}"
    )
    title = f"{block.title}: accuracy over the stream, {pretty(method)}"
    return Figure(slug("stream", block.task, block.title, method), title, caption, figure)


def stream_panel(axes: Axes, block: Block, cells: list[Cell], title: str, window: int) -> bool:
    lines = []
    for cell in cells:
        found = [curve for run in cell.runs if (curve := window_accuracy(run, window)) is not None]
        if found:
            order, _ = Counter(slices for slices, _ in found).most_common(1)[0]
            lines.append((cell, order, np.stack([values for slices, values in found if slices == order])))
    if not lines:
        return False
    order = Counter(order for _, order, _ in lines).most_common(1)[0][0]
    for cell, slices, values in lines:
        if slices != order:
            continue
        column = None if cell.loss is None else (cell.loss, cell.params)
        colour = colour_of(column, block)
        free = [key for key in block.rows if key in block.free]
        style = line_of(column, block) if column else LINES[1 + free.index((cell.method, cell.setting)) % 3]
        name = block.column_label(column) if column else pretty(cell.method)
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
        axes.text(
            (start + end - 1) / 2, 1.01, name.replace(" ", "\n"), transform=axes.get_xaxis_transform(),
            ha="center", va="bottom", fontsize=5.9, color=GREY, linespacing=0.95,
        )  # fmt: skip
    axes.grid(axis="x", visible=False)
    axes.set_xlim(-0.5, len(order) - 0.5)
    axes.set_ylabel("accuracy (%)")
    axes.set_title(title, pad=22)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=2.2)
    return True


# --- learning-rate sensitivity ---


def rate_figure(block: Block, method: str) -> Figure | None:
    """The main metric against the learning rate, a line per loss with 95% bands."""
    import matplotlib

    series = {}
    for column in block.losses_of(method):
        if column in block.shown_columns:
            best: dict[float, Cell] = {}
            for cell in block.settings(method, column):
                if cell.lr and cell.lr > 0 and cell.values(block.metric):
                    best.setdefault(cell.lr, cell)
            if len(best) > 1:
                series[column] = sorted(best.items())
    if not series:
        return None
    means = [cell.estimate(block.metric).mean for cells in series.values() for _, cell in cells]
    low, middle, high = min(means), float(np.median(means)), max(means)
    closer = block.metric.sign < 0 and high - low > 4 * (middle - low) > 0
    figure, axes = canvas(8.4 if closer else 5.6, 3.2, 1, 2 if closer else 1)
    with matplotlib.rc_context(STYLE):
        for ax in axes[0]:
            rate_panel(ax, block, series)
        if closer:
            reach = 3 * (middle - low)
            axes[0][1].set_ylim(low - 0.15 * reach, low + reach)
            axes[0][1].set_title("the same, closer")
        unit = f" ({block.metric.unit})" if block.metric.unit else ""
        axes[0][0].set_ylabel(f"{block.metric.label}{unit}")
        axes[0][-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    flagged = any(not cell.clean for cells in series.values() for _, cell in cells)
    crosses = "× marks rates at which a run collapsed or met a NaN. " if flagged else ""
    caption = (
        f"{block.metric.label.capitalize()} against learning rate, mean over seeds with 95% t intervals; "
        f"grey lines learn nothing. {crosses}{describe(block)}"
    )
    title = f"{block.title}: sensitivity to the learning rate, {pretty(method)}"
    return Figure(slug("lr", block.task, block.title, method), title, caption, figure)


def rate_panel(axes: Axes, block: Block, series: dict[Key, list[tuple[float, Cell]]]) -> None:
    for column, cells in series.items():
        scores = [cell.estimate(block.metric) for _, cell in cells]
        x, mean = np.array([lr for lr, _ in cells]), np.array([score.mean for score in scores])
        colour, style = colour_of(column, block), line_of(column, block)
        axes.plot(x, mean, color=colour, linestyle=style, marker="o", markersize=3.5, label=block.column_label(column))
        low = np.array([np.nan if s.low is None else s.low for s in scores])
        high = np.array([np.nan if s.high is None else s.high for s in scores])
        axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
        bad = np.array([not cell.clean for _, cell in cells])
        axes.plot(x[bad], mean[bad], linestyle="none", marker="x", markersize=8, color=colour)
    for i, row in enumerate(row for row in block.rows if row in block.free):
        score = block.free[row].estimate(block.metric)
        if score.n:
            axes.axhline(score.mean, color=GREY, linestyle=LINES[1 + i % 3], linewidth=1.1, label=block.row_label(row))
    rates = sorted({lr for cells in series.values() for lr, _ in cells})
    axes.set_xscale("log")
    axes.set_xticks(rates, [show(lr) for lr in rates])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("learning rate")


# --- prediction shares ---


def shares(runs: Iterable[Run]) -> tuple[np.ndarray, np.ndarray] | None:
    """Predicted and true share of each class in %, sorted within each slice from the largest down, then averaged over
    slices and runs; (classes,) each."""
    found = [
        (100 * np.sort(predicted)[::-1] / max(1, predicted.sum()), 100 * np.sort(label)[::-1] / max(1, label.sum()))
        for run in runs
        for predicted, label in ((np.array(p, float), np.array(t, float)) for p, t in run.histograms.values())
    ]
    if not found or len({len(array) for pair in found for array in pair}) != 1:
        return None
    predicted, label = (np.stack(arrays).mean(0) for arrays in zip(*found, strict=True))
    return predicted, label


def share_figure(block: Block, method: str) -> Figure | None:
    """Sorted shares of the predicted classes against the labels', at the default setting and at the best."""
    import matplotlib

    panels = {}
    columns = [column for column in block.losses_of(method) if column in block.shown_columns]
    for title, pick in (("default", default_cell), ("best", Block.best)):
        cells = {c: cell for c in columns if (cell := pick(block, method, c)) and shares(cell.runs)}
        if cells and not any(
            {id(x) for x in cells.values()} == {id(x) for x in old.values()} for old in panels.values()
        ):
            panels[title] = cells
    if not panels:
        return None
    figure, axes = canvas(4.4 * len(panels) + 0.4, 2.9, 1, len(panels), sharey=True)
    with matplotlib.rc_context(STYLE):
        for ax, (title, cells) in zip(axes[0], panels.items(), strict=True):
            for number, (column, cell) in enumerate(cells.items()):
                predicted, label = shares(cell.runs)
                x = np.arange(1, len(predicted) + 1)
                setting = block.setting_label(cell)
                name = block.column_label(column) + (f" ({setting})" if setting and title == "best" else "")
                if len(x) <= 20:
                    width = 0.8 / len(cells)
                    at = x + (number - (len(cells) - 1) / 2) * width
                    ax.bar(at, predicted, width * 0.92, color=colour_of(column, block), label=name)
                else:
                    ax.plot(x, predicted, color=colour_of(column, block), linestyle=line_of(column, block), label=name)
            ax.step(np.r_[x - 0.5, x[-1] + 0.5], np.r_[label, label[-1]], where="post", color=INK, linewidth=1.1,
                    linestyle="--", label="labels")  # fmt: skip
            setting = block.setting_label(next(iter(cells.values())))
            at = f"every loss at {setting}" if setting else ""
            ax.set_title(at if title == "default" else "each loss at its best setting")
            ax.set_xlabel("class, sorted by predicted share")
            ax.grid(axis="x", visible=False)
            ax.set_xlim(0.4, len(x) + 0.6)
            if len(x) <= 20:
                ax.set_xticks(x)
            ax.legend(loc="upper right")
        axes[0][0].set_ylabel("share of predictions (%)")
    caption = (
        "Share of each class among the predictions, sorted from the most to the least predicted within each slice, "
        "then averaged over slices and seeds; dashed: the labels, sorted likewise. Flatter is less biased. "
        + describe(block)
    )
    title = f"{block.title}: predicted against true classes, {pretty(method)}"
    return Figure(slug("shares", block.task, block.title, method), title, caption, figure)


# --- the losses themselves ---


def reward_curves(num_classes: int = 10) -> Figure:
    """Reward of the top logit against the top probability: EM, DEM over tau and alpha, AdaDEM; see ``rewards``."""
    import matplotlib

    from tasks.report.rewards import curves

    panels = curves(num_classes)
    figure, axes = canvas(9.2, 5.8, 2, 2)
    own = {
        "EM": (COLOURS["em"], "-"), "CADF (rewards)": (COLOURS["dem"], "--"), "GMC (penalises)": (GREY, "--"),
        "AdaDEM, fresh table": (COLOURS["adadem"], "-"), "AdaDEM, easy class": (COLOURS["adadem"], "--"),
        "norm only": (SPARE[0], ":"), "MEC only": (SPARE[1], "-."),
    }  # fmt: skip
    with matplotlib.rc_context(STYLE):
        for ax, (panel, lines) in zip(axes.flat, panels.items(), strict=True):
            ax.axhline(0, color=GREY, linewidth=0.7)
            for i, (name, line) in enumerate(lines.items()):
                shade = (*PALETTE[3:7], COLOURS["dem"], GREY)[i % 6]
                plain_em = name in ("τ = 1.0", "α = 1.0")
                colour, style = own.get(name, (COLOURS["em"], "-") if plain_em else (shade, LINES[i % len(LINES)]))
                label = f"{name} (EM)" if plain_em else name
                ax.plot(line.p, line.top, color=colour, linestyle=style, label=label)
                if panel.startswith("EM"):
                    ax.plot(line.p, line.other, color=colour, linestyle=":", linewidth=0.9)
            ax.set_title(panel)
            ax.set_xlim(1 / num_classes, 1)
            ax.set_xlabel("probability of the top class")
            ax.set_ylabel("reward of its logit")
            low, high = ax.get_ylim()
            crowded = len(lines) > 5
            ax.set_ylim(low, high + 0.3 * (high - low) * crowded)
            ax.legend(loc="upper center" if crowded else "best", ncols=3 if crowded else 1, fontsize=7.5)
    caption = (
        f"Reward (minus the gradient of the loss) of the top logit against its probability, {num_classes} classes, the "
        "others equally likely; computed from the library's losses by autograd. Thin dots: each other logit. EM's "
        "reward "
        "falls to zero at both ends (reward collapse); τ and α reshape it; AdaDEM's stays up at high confidence unless "
        "the table says that the class is predicted easily. After figures 2 to 4 (left) of arXiv 2511.03256."
    )
    return Figure("reward-curves", "Reward curves of the losses", caption, figure)

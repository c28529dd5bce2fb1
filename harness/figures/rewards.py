"""Figures 2 to 4 of DEM: reward curves on the left, and on the right what runs give, where there are runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dembench.report.figures.drawing import COLOURS, GREY, LINES, PALETTE, STYLE, Figure, canvas
from dembench.report.figures.rewards import curves
from dembench.report.figures.sensitivity import axis_label, draw_free, draw_line, numeric
from dembench.report.figures.shares import share_panel, shares
from dembench.report.judge.group import Block, build_blocks
from dembench.report.read.load import load

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLASSES = 10


def draw_collapse(overrides: Sequence[str] = (), runs: Sequence[Path] = ()) -> Figure:
    """EM's reward falls to zero at high confidence, AdaDEM's does not; and sorted shares of the predicted classes."""
    panels = curves(CLASSES)
    lines = {
        "EM": panels["EM and its parts"]["EM"],
        "CADF": panels["EM and its parts"]["CADF (rewards)"],
        "AdaDEM, fresh table": panels["AdaDEM and its parts"]["AdaDEM, fresh table"],
        "AdaDEM, easy class": panels["AdaDEM and its parts"]["AdaDEM, easy class"],
    }
    styles = {
        "EM": (COLOURS["em"], "-"), "CADF": (COLOURS["dem"], "--"),
        "AdaDEM, fresh table": (COLOURS["adadem"], "-"), "AdaDEM, easy class": (COLOURS["adadem"], "--"),
    }  # fmt: skip

    def left(axes: Axes) -> None:
        for name, line in lines.items():
            axes.plot(line.p, line.top, color=styles[name][0], linestyle=styles[name][1], label=name)

    def right(axes: Axes, block: Block) -> bool:
        method = next((m for m in block.methods if block.losses_of(m)), None)
        columns = block.losses_of(method) if method else []
        cells = {c: cell for c in columns if (cell := block.best(str(method), c)) and shares(cell.runs)}
        if cells:
            share_panel(axes, block, "", cells, legend=True)
            axes.set_ylabel("share of predictions (%)")
        return bool(cells)

    return two_panels("dem_figure2", "Reward collapse and predicted classes", left, right, overrides, runs)


def draw_tau(overrides: Sequence[str] = (), runs: Sequence[Path] = ()) -> Figure:
    """DEM over tau at alpha 1."""
    return over("dem_figure3", "tau", "τ", "DEM, α = 1", overrides, runs)


def draw_alpha(overrides: Sequence[str] = (), runs: Sequence[Path] = ()) -> Figure:
    """DEM over alpha at tau 1."""
    return over("dem_figure4", "alpha", "α", "DEM, τ = 1", overrides, runs)


def over(name: str, key: str, letter: str, panel: str, overrides: Sequence[str], runs: Sequence[Path]) -> Figure:
    lines = curves(CLASSES)[panel]

    def left(axes: Axes) -> None:
        for i, (label, line) in enumerate(lines.items()):
            plain = label.endswith("= 1.0")
            colour = COLOURS["em"] if plain else (*PALETTE[3:7], COLOURS["dem"], GREY)[i % 6]
            style = "-" if plain else LINES[i % len(LINES)]
            axes.plot(line.p, line.top, color=colour, linestyle=style, label=f"{label} (EM)" if plain else label)

    def right(axes: Axes, block: Block) -> bool:
        other = {"tau": "alpha", "alpha": "tau"}[key]
        cells = [c for c in block.cells.values() if c.loss == "dem" and dict(c.params).get(other) == 1]
        cells = [c for c in cells if numeric(dict(c.params).get(key))]
        rows = [(c.method, c.setting) for c in cells]
        row = max(dict.fromkeys(rows), key=rows.count, default=None)  # the method and setting with most points
        cells = sorted((c for c in cells if (c.method, c.setting) == row), key=lambda c: float(dict(c.params)[key]))
        if len(cells) < 2:
            return False
        x = [float(dict(c.params)[key]) for c in cells]
        draw_line(axes, block, x, cells, color=COLOURS["dem"], label="DEM")
        draw_free(axes, block)
        axes.set_xlabel(letter)
        axes.set_ylabel(axis_label(block))
        axes.legend(loc="best")
        return True

    return two_panels(name, f"DEM over {letter}", left, right, overrides, runs)


def two_panels(
    name: str,
    title: str,
    left: Callable[[Axes], None],
    right: Callable[[Axes, Block], bool],
    overrides: Sequence[str],
    runs: Sequence[Path],
) -> Figure:
    """Rewards, and a panel for each comparison of the runs that has something to show.

    Raises: ValueError for settings, and for runs none of which can be shown.
    """
    import matplotlib

    if overrides:
        raise ValueError(f"{name} takes --runs and no settings")
    blocks = build_blocks(load(list(runs)).runs) if runs else []
    figure, axes = canvas(4.4 * (1 + len(blocks)), 3.2, 1, 1 + len(blocks))
    with matplotlib.rc_context(STYLE):
        first = axes[0][0]
        first.axhline(0, color=GREY, linewidth=0.7)
        left(first)
        first.set_xlim(1 / CLASSES, 1)
        first.set_xlabel("probability of the top class")
        first.set_ylabel("reward of its logit")
        first.legend(loc="best", fontsize=7)
        shown = []
        for ax, block in zip(axes[0][1:], blocks, strict=True):
            if right(ax, block):
                shown.append(block.title)
                ax.set_title(block.title, fontsize=8)
            else:
                ax.set_axis_off()
        if runs and not shown:
            raise ValueError(f"{name}: these runs have nothing that it shows; see `dembench sweep study={name}`")
    caption = (
        "Left: reward (minus the gradient of the loss) of the top logit against its probability, "
        f"{CLASSES} classes, the others equally likely."
    )
    return Figure(name, title, caption + (f" Right: {'; '.join(shown)}." if shown else ""), figure)

"""Critical-difference diagram: mean ranks on a line, bars over losses that the ranks do not tell apart.

Source: Demsar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 7 (2006), figure 1.
"""

from __future__ import annotations

from collections.abc import Sequence

from dembench.report.figures.drawing import COLOURS, GREY, INK, SPARE, STYLE, Figure, canvas
from dembench.report.judge.significance import LEVEL, Ranking
from dembench.report.read.names import pretty


def critical_figure(names: Sequence[str], ranks: Ranking | None) -> Figure | None:
    """The diagram of at least three losses over at least three cells; None where there is nothing to test."""
    import matplotlib

    if ranks is None or ranks.difference is None or ranks.p is None:
        return None
    groups, count = ranks.groups(), len(names)
    order = sorted(range(count), key=lambda place: ranks.mean[place])
    others = [name for name in names if name not in COLOURS]
    figure, axes = canvas(5.6, 0.95 + 0.17 * len(groups) + 0.22 * ((count + 1) // 2))
    ax = axes[0][0]
    bars = 0.35 + 0.3 * len(groups)
    with matplotlib.rc_context(STYLE):
        ax.set_xlim(0.55, count + 0.45)
        ax.set_ylim(bars + 0.45 * ((count + 1) // 2 - 1) + 0.3, -1.35)
        ax.axis("off")
        ax.plot([1, count], [0, 0], color=INK, linewidth=1)
        for tick in range(1, count + 1):
            ax.plot([tick, tick], [-0.12, 0], color=INK, linewidth=1)
            ax.text(tick, -0.2, str(tick), ha="center", va="bottom")
        shown = min(ranks.difference, count - 1)
        ax.plot([1, 1 + shown], [-0.95, -0.95], color=GREY, linewidth=2)
        ax.text(
            1 + shown / 2, -1.02, f"critical difference {ranks.difference:.2f}", ha="center", va="bottom", color=GREY
        )
        for level, group in enumerate(groups):
            ends = [ranks.mean[place] for place in group]
            height = 0.3 + 0.3 * level
            ax.plot([min(ends) - 0.04, max(ends) + 0.04], [height, height], color=INK, linewidth=3.5,
                    solid_capstyle="butt")  # fmt: skip
        for place, column in enumerate(order):
            left = place < (count + 1) // 2
            depth = bars + 0.45 * (place if left else count - 1 - place)
            value, name = ranks.mean[column], names[column]
            colour = COLOURS.get(name) or SPARE[others.index(name) % len(SPARE)]
            edge = 0.95 if left else count + 0.05
            ax.plot([value, value, edge], [0, depth, depth], color=colour, linewidth=1.1)
            ax.plot([value], [0], marker="o", markersize=4.5, color=colour)
            ax.text(edge + (-0.04 if left else 0.04), depth, f"{pretty(name)} {value:.2f}",
                    ha="right" if left else "left", va="center")  # fmt: skip
    told = "the ranks differ" if ranks.p < LEVEL else "no difference between the ranks is shown"
    wide = ", more than there are ranks" if ranks.difference > count - 1 else ""
    caption = (
        f"Mean ranks over the {ranks.rows} cells of all tasks that have these losses, 1 is best. Friedman's χ² "
        f"{ranks.friedman:.2f}, p {ranks.p:.3f}: {told}"
        + (" (an approximation below 10 cells)" if ranks.rows < 10 else "")
        + f". Bars join losses whose ranks differ by less than Nemenyi's critical difference at 5%{wide} (Demsar "
        "2006). Cells that share data or method are not independent, so that the test sees differences too easily."
    )
    return Figure("critical-difference", "Mean ranks and critical difference", caption, figure)

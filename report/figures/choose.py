"""Which figures a comparison gets, and the reward curves of the losses."""

from __future__ import annotations

from collections.abc import Iterator

from dembench.report.figures.classes import class_figure
from dembench.report.figures.drawing import COLOURS, GREY, LINES, PALETTE, SPARE, STYLE, Figure, canvas
from dembench.report.figures.forest import forest_figure
from dembench.report.figures.learning import learning_figure
from dembench.report.figures.rewards import curves
from dembench.report.figures.sensitivity import params_figure, rate_figure
from dembench.report.figures.shares import share_figure, shares_figure
from dembench.report.figures.stream_accuracy import stream_figure, streams_figure
from dembench.report.judge.group import Block
from dembench.report.judge.verdict import Verdict
from dembench.report.judge.wording import FEW


def block_figures(block: Block, verdicts: list[Verdict]) -> Iterator[Figure]:
    """Gains, classes, learning curves and sensitivities, then streams and shares: a figure per method where these are
    few, and one with a panel per method where they are many."""
    found = [forest_figure(block, verdicts), class_figure(block), learning_figure(block)]
    for method in block.methods:
        found.append(rate_figure(block, method))
        found += [params_figure(block, method, loss) for loss in dict.fromkeys(c[0] for c in block.losses_of(method))]
    if sum(bool(block.losses_of(method)) for method in block.methods) > FEW:
        found += [streams_figure(block), shares_figure(block)]
    else:
        for method in block.methods:
            found += [stream_figure(block, method), share_figure(block, method)]
    yield from filter(None, found)


def reward_curves(num_classes: int = 10) -> Figure:
    """Reward of the top logit against the top probability: EM, DEM over tau and alpha, AdaDEM; see ``rewards``."""
    import matplotlib

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
        "others equally likely; by the closed forms of the paper. Thin dots: each other logit. EM's reward "
        "falls to zero at both ends (reward collapse); τ and α reshape it; AdaDEM's stays up at high confidence unless "
        "the table says that the class is predicted easily. After figures 2 to 4 (left) of arXiv 2511.03256."
    )
    return Figure("reward-curves", "Reward curves of the losses", caption, figure)

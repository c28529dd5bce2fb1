"""What descent on a loss does to one prediction: the probability of each class, step by step (TTC, figure 1).

The source's figure has EM and does not say in which variables the descent runs. Here it runs in the logits, as in a
network whose last layer is free; AdaDEM's table follows along, as it does in a stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dembench.core import DEM, EM, AdaDEM
from dembench.report.figures.drawing import COLOURS, GREY, STYLE, Figure, canvas

CLASSES = (2, 3, 5, 10)
STEPS, RATE = 60, 0.5
TAU, ALPHA = 1.1, 0.0  # published for Tent with ResNet-50 on ImageNet-C, single-domain
LOSSES: dict[str, tuple[str, Callable[[int], Callable[[Tensor], Tensor]]]] = {
    "em": ("EM", lambda classes: EM()),
    "dem": (f"DEM, τ {TAU:g}, α {ALPHA:g}", lambda classes: DEM(tau=TAU, alpha=ALPHA)),
    "adadem": ("AdaDEM", lambda classes: AdaDEM(classes)),
}


def start(classes: int) -> Tensor:
    """Probabilities (C,), the first largest, falling by equal steps to half of it."""
    p = torch.linspace(1.0, 0.5, classes, dtype=torch.float64)
    return p / p.sum()


def descend(loss: Callable[[Tensor], Tensor], p: Tensor, steps: int = STEPS, rate: float = RATE) -> np.ndarray:
    """Probabilities (steps + 1, C) of gradient descent on ``loss`` in the logits, from log ``p`` (C,)."""
    logits = p.log()[None].clone().requires_grad_()
    found = [p.numpy()]
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(loss(logits).sum(), logits)
        logits = (logits - rate * gradient).detach().requires_grad_()
        found.append(logits.detach().softmax(1)[0].numpy())
    return np.stack(found)


def draw(overrides: Sequence[str] = (), runs: Sequence[Path] = ()) -> Figure:
    """A row per loss, a column per number of classes. Takes neither overrides nor runs: ValueError."""
    import matplotlib

    if overrides or runs:
        raise ValueError("this figure is computed from the losses alone and takes no settings and no runs")
    figure, axes = canvas(9.6, 6.2, len(LOSSES), len(CLASSES), sharex=True, sharey=True)
    with matplotlib.rc_context(STYLE):
        for row, (key, (name, make)) in zip(axes, LOSSES.items(), strict=True):
            for ax, classes in zip(row, CLASSES, strict=True):
                lines = descend(make(classes), start(classes))
                for k in range(classes - 1, 0, -1):
                    ax.plot(lines[:, k], color=GREY, linewidth=0.9, alpha=1 - 0.6 * k / classes)
                ax.plot(lines[:, 0], color=COLOURS[key], linewidth=1.8)
                ax.set_title(f"{name}, K = {classes}" if classes == CLASSES[0] else f"K = {classes}")
                ax.set_ylim(0, 1.02)
            row[0].set_ylabel("probability")
        for ax in axes[-1]:
            ax.set_xlabel("step")
    caption = (
        f"Probability of each of K classes under gradient descent on the loss in the logits (rate {RATE}), from "
        "probabilities that fall evenly to half the largest; the largest in colour. AdaDEM's table starts uniform and "
        "follows. After TTC, figure 1, which shows EM."
    )
    return Figure("ttc_figure1", "Probabilities under descent on the losses", caption, figure)

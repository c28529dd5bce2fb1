"""Reward curves of the losses, from the losses themselves by autograd (arXiv 2511.03256, figures 2 to 4, left).

The reward of a logit is minus the gradient of the loss with respect to it. The family of predictions is the paper's:
one class has probability p, from 1/C to 1, and the other classes share the rest equally.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Rewards:
    """Probability of the top class, reward of its logit, and of each other logit; arrays of (points,)."""

    p: np.ndarray
    top: np.ndarray
    other: np.ndarray


def family(num_classes: int = 10, points: int = 400) -> tuple[Tensor, Tensor]:
    """Probabilities p (points,) from 1/C up to 1 - 1e-9 and logits (points, C) in float64, the top class first."""
    p = torch.linspace(1 / num_classes, 1 - 1e-9, points, dtype=torch.float64)
    rest = ((1 - p) / (num_classes - 1)).log()
    logits = rest[:, None].repeat(1, num_classes)
    logits[:, 0] = p.log()
    return p, logits


def rewards(loss: Loss, num_classes: int = 10, points: int = 400) -> Rewards:
    """The reward curve of any per-sample loss, (N, C) logits to (N,)."""
    p, logits = family(num_classes, points)
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(logits).sum(), logits)
    return Rewards(p.numpy(), -gradient[:, 0].numpy(), -gradient[:, 1].numpy())


def curves(num_classes: int = 10) -> dict[str, dict[str, Rewards]]:
    """{panel: {label: curve}}: EM and its parts, DEM over tau, DEM over alpha, AdaDEM and its parts.

    AdaDEM is shown with its starting table (1/C everywhere) and, as an easy class, with a table row that already holds
    the mean prediction of 0.9 for that class.
    """
    from dembench.core import DEM, EM, AdaDEM
    from dembench.core import functional as F

    def fixed(easy: float | None = None, **options: bool) -> Loss:
        module = AdaDEM(num_classes, **options).eval()  # eval: the table stays as it is
        row = torch.full((num_classes,), 1 / num_classes, dtype=torch.float64)
        if easy is not None:
            row[:] = (1 - easy) / (num_classes - 1)
            row[0] = easy
        module.table = row.repeat(num_classes, 1)
        return module

    groups: dict[str, dict[str, Loss]] = {
        "EM and its parts": {"EM": EM(), "CADF (rewards)": F.cadf, "GMC (penalises)": F.gmc},
        "DEM, α = 1": {f"τ = {tau}": DEM(tau=tau, alpha=1.0) for tau in (0.5, 0.8, 1.0, 1.3, 1.6, 2.0)},
        "DEM, τ = 1": {f"α = {alpha}": DEM(tau=1.0, alpha=alpha) for alpha in (0.0, 0.5, 0.8, 1.0, 1.3, 1.6)},
        "AdaDEM and its parts": {
            "EM": EM(),
            "AdaDEM, fresh table": fixed(),
            "AdaDEM, easy class": fixed(easy=0.9),
            "norm only": fixed(mec=False),
            "MEC only": fixed(norm=False),
        },
    }
    return {
        panel: {name: rewards(loss, num_classes) for name, loss in losses.items()} for panel, losses in groups.items()
    }

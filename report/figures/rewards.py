"""Reward curves of the losses, by their closed forms (arXiv 2511.03256, figures 2 to 4, left, and equations 5, 11, 12).

The reward of a logit is minus the gradient of the loss with respect to it. The family of predictions is the paper's:
one class has probability p, from 1/C to 1, and the other classes share the rest equally.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Reward = Callable[[np.ndarray], np.ndarray]  # logits (points, C), normalised, to rewards of the same shape


@dataclass(frozen=True, slots=True)
class Rewards:
    """Probability of the top class, reward of its logit, and of each other logit; arrays of (points,)."""

    p: np.ndarray
    top: np.ndarray
    other: np.ndarray


def family(num_classes: int = 10, points: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities p (points,) from 1/C up to 1 - 1e-9 and their logarithms (points, C), the top class first."""
    p = np.linspace(1 / num_classes, 1 - 1e-9, points)
    z = np.log((1 - p) / (num_classes - 1))[:, None].repeat(num_classes, 1)
    z[:, 0] = np.log(p)
    return p, z


def dem(tau: float, alpha: float) -> Reward:
    """Equation 11; (1, 1) is EM, (1, 0) CADF."""

    def reward(z: np.ndarray) -> np.ndarray:
        q = np.exp(z / tau)
        q /= q.sum(1, keepdims=True)
        mean = (q * z).sum(1, keepdims=True)
        return q * (1 + (z - mean) / tau) - alpha * np.exp(z)

    return reward


def adadem(easy: float | None = None, *, norm: bool = True, mec: bool = True) -> Reward:
    """Equation 12 with the starting table, 1/C everywhere, or for an ``easy`` class with a row that already holds this
    mean prediction for it; without ``norm`` delta is 1, without ``mec`` the calibrator is that of EM."""

    def reward(z: np.ndarray) -> np.ndarray:
        classes = z.shape[1]
        row = np.full(classes, 1 / classes)
        if easy is not None:
            row = np.where(np.arange(classes) == 0, easy, (1 - easy) / (classes - 1))
        own = dem(1, 0)(z)
        delta = np.abs(own).sum(1, keepdims=True) if norm else 1.0
        return (own - (row if mec else np.exp(z))) / delta

    return reward


def curves(num_classes: int = 10) -> dict[str, dict[str, Rewards]]:
    """{panel: {label: curve}}: EM and its parts, DEM over tau, DEM over alpha, AdaDEM and its parts."""
    groups: dict[str, dict[str, Reward]] = {
        "EM and its parts": {
            "EM": dem(1, 1),
            "CADF (rewards)": dem(1, 0),
            "GMC (penalises)": lambda z: -np.exp(z),
        },
        "DEM, α = 1": {f"τ = {tau}": dem(tau, 1) for tau in (0.5, 0.8, 1.0, 1.3, 1.6, 2.0)},
        "DEM, τ = 1": {f"α = {alpha}": dem(1, alpha) for alpha in (0.0, 0.5, 0.8, 1.0, 1.3, 1.6)},
        "AdaDEM and its parts": {
            "EM": dem(1, 1),
            "AdaDEM, fresh table": adadem(),
            "AdaDEM, easy class": adadem(easy=0.9),
            "norm only": adadem(mec=False),
            "MEC only": adadem(norm=False),
        },
    }
    p, z = family(num_classes)

    def curve(reward: Reward) -> Rewards:
        found = reward(z)
        return Rewards(p, found[:, 0], found[:, 1])

    return {panel: {name: curve(reward) for name, reward in own.items()} for panel, own in groups.items()}

"""Noise: Gaussian, shot and impulse.

Each function takes uint8 (N, 3, S, S), a severity 1..5, the draws and a recipe, and returns uint8 of that shape.
Formulas: the scripts of Hendrycks and Dietterich (ICLR 2019, arXiv 1903.12261).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dembench.tasks.common.corruptions.draws import Draws
from dembench.tasks.common.corruptions.pixels import divide, per_device, to_float, to_uint8
from dembench.tasks.common.corruptions.recipes import CIFAR, Recipe


def gaussian_noise(images: Tensor, severity: int, draws: Draws, recipe: Recipe = CIFAR) -> Tensor:
    """Adds normal noise to every value."""
    return to_uint8(to_float(images) + draws.normal("noise", *images.shape[1:]) * recipe.gaussian_noise[severity - 1])


@per_device
def poisson_table(photons: int) -> Tensor:
    """Cumulative Poisson probabilities of the 256 grey levels' rates, as one rising int64 sequence (256 * K,).

    Entry g * K + k is (g + P(count <= k)) * 2**53, so that one sorted search among all finds the count for any level.
    """
    most = int(photons + 12 * photons**0.5 + 20)  # P(more) < 1e-20 at the highest rate
    rate = torch.arange(256, dtype=torch.float64)[:, None] / 255 * photons
    count = torch.arange(most + 1, dtype=torch.float64)
    mass = torch.exp(torch.xlogy(count, rate) - rate - torch.lgamma(count + 1))
    below = (mass.cumsum(1).clamp(max=1) * 2.0**53).long()
    below[:, -1] = 2**53
    return (below + torch.arange(256)[:, None] * 2**53).flatten()


def poisson_counts(images: Tensor, uniform: Tensor, photons: int) -> Tensor:
    """Poisson counts at rate grey / 255 * photons by inversion: the smallest k with P(count <= k) > u; int64."""
    table = poisson_table(photons, images.device)
    grey = images.long()
    found = torch.searchsorted(table, (uniform * 2.0**53).long() + grey * 2**53, right=True)
    return found - grey * (len(table) // 256)


def shot_noise(images: Tensor, severity: int, draws: Draws, recipe: Recipe = CIFAR) -> Tensor:
    """Replaces every value by a Poisson count of photons."""
    photons = recipe.shot_noise[severity - 1]
    counts = poisson_counts(images, draws.uniform("noise", *images.shape[1:]), photons)
    return to_uint8(divide(counts.to(torch.float64), photons))


def impulse_noise(images: Tensor, severity: int, draws: Draws, recipe: Recipe = CIFAR) -> Tensor:
    """Sets a share of the values, each channel by itself, to 0 or 255 with equal chance."""
    hit = draws.uniform("hit", *images.shape[1:]) < recipe.impulse_noise[severity - 1]
    salt = draws.uniform("salt", *images.shape[1:]) < 0.5
    return torch.where(hit, salt.to(torch.uint8) * 255, images)

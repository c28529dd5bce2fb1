"""Noise of CIFAR-10-C: Gaussian, shot and impulse.

Each function takes uint8 (N, 3, 32, 32), a severity 1..5 and the draws, and returns uint8 of that shape. Constants
and formulas: the CIFAR-10-C script of Hendrycks and Dietterich (ICLR 2019, arXiv 1903.12261).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dembench.tasks.common.corruptions.draws import Draws
from dembench.tasks.common.corruptions.pixels import SIZE, divide, per_device, to_float, to_uint8

GAUSSIAN = (0.04, 0.06, 0.08, 0.09, 0.10)  # standard deviation
SHOT = (500, 250, 100, 75, 50)  # photons in a white pixel
IMPULSE = (0.01, 0.02, 0.03, 0.05, 0.07)  # share of values replaced


def gaussian_noise(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Adds normal noise to every value."""
    return to_uint8(to_float(images) + draws.normal("noise", 3, SIZE, SIZE) * GAUSSIAN[severity - 1])


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


def shot_noise(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Replaces every value by a Poisson count of photons."""
    photons = SHOT[severity - 1]
    counts = poisson_counts(images, draws.uniform("noise", 3, SIZE, SIZE), photons)
    return to_uint8(divide(counts.to(torch.float64), photons))


def impulse_noise(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Sets a share of the values, each channel by itself, to 0 or 255 with equal chance."""
    hit = draws.uniform("hit", 3, SIZE, SIZE) < IMPULSE[severity - 1]
    salt = draws.uniform("salt", 3, SIZE, SIZE) < 0.5
    return torch.where(hit, salt.to(torch.uint8) * 255, images)

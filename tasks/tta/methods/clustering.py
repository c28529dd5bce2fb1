"""The parts of test-time clustering (TTC), which any method with an entropy can take."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from dembench.lookup import lookup


@dataclass(frozen=True)
class Clustering:
    """Switches of TTC's four parts; the default has all of them off.

    Args:
        augment: "hflip", "vflip", "rotation", "resized_crop" or "noise" makes the copy that the first two parts use.
        robust: robust label assignment: the logits are the mean of those of the batch and of its copy (eq. 7).
        similarity: sigma of the similarity-preserving constraint, or None (eq. 10).
        select: keep the samples whose entropy is at most the batch's mean (eq. 12).
        accumulate: samples whose gradients are summed for one update, or None; Q = accumulate / N batches of N.
    Raises: ValueError for an unknown augmentation or a sigma or number that is not positive.
    Source: Lin et al., Improving Entropy-Based Test-Time Adaptation from a Clustering View, algorithm 1.
    """

    augment: str = "hflip"
    robust: bool = False
    similarity: float | None = None
    select: bool = False
    accumulate: int | None = None

    def __post_init__(self) -> None:
        lookup(self.augment, AUGMENTATIONS, "augmentation")
        if self.similarity is not None and not self.similarity > 0:
            raise ValueError(f"clustering: expected similarity, the sigma, > 0 or null, got {self.similarity}")
        if self.accumulate is not None and self.accumulate < 1:
            raise ValueError(f"clustering: expected accumulate >= 1 or null, got {self.accumulate}")

    @classmethod
    def of(cls, options: Clustering | Mapping[str, Any] | None) -> Clustering:
        """From a mapping, such as a part of a configuration; None has every part off. ValueError for unknown keys."""
        if isinstance(options, Clustering):
            return options
        given = {str(key): value for key, value in (options or {}).items()}
        for key in given:
            lookup(key, cls.__dataclass_fields__, "part of clustering")
        return cls(**given)

    @property
    def augments(self) -> bool:
        return self.robust or self.similarity is not None

    def augmented(self, x: Tensor, generator: Generator) -> Tensor:
        """A copy of a batch (N, 3, H, W), changed."""
        return AUGMENTATIONS[self.augment](x, generator)

    def constraint(self, logits: Tensor, others: Tensor, features: Tensor, other_features: Tensor) -> Tensor:
        """kappa ||f(x) - f(x')||^2 per sample, kappa = exp(-||g(x) - g(x')||^2 / 2 sigma^2).

        kappa is a constant, as the weights of the graph are in spectral clustering; the paper does not say.
        """
        assert self.similarity is not None
        distance = (features - other_features).detach().to(logits.dtype).square().sum(1)
        return (-distance / (2 * self.similarity**2)).exp() * (logits - others).square().sum(1)

    def batches_per_update(self, size: int) -> int:
        """Q for batches of a size, at least 1."""
        return 1 if self.accumulate is None else max(1, round(self.accumulate / size))


def hflip(x: Tensor, generator: Generator) -> Tensor:
    return x.flip(3)


def vflip(x: Tensor, generator: Generator) -> Tensor:
    return x.flip(2)


def rotation(x: Tensor, generator: Generator) -> Tensor:
    """By an angle for each image, uniform over the circle; black where no image is."""
    angle = (2 * _uniform(x, generator) - 1) * math.pi
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return _resample(x, torch.stack([cos, -sin, zero, sin, cos, zero], 1))


def resized_crop(x: Tensor, generator: Generator) -> Tensor:
    """A box for each image with 8 to 100 % of its area and sides at 3/4 to 4/3, cut off at the border, to full size."""
    area = 0.08 + 0.92 * _uniform(x, generator)
    ratio = ((2 * _uniform(x, generator) - 1) * math.log(4 / 3)).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    across = (1 - width) * (2 * _uniform(x, generator) - 1)
    down = (1 - height) * (2 * _uniform(x, generator) - 1)
    zero = torch.zeros_like(area)
    return _resample(x, torch.stack([width, zero, across, zero, height, down], 1))


def noise(x: Tensor, generator: Generator) -> Tensor:
    """Gaussian, standard deviation 0.05 on the scale of [0, 1]."""
    drawn = torch.empty_like(x).normal_(generator=generator)
    return (x + 0.05 * drawn).clamp(0, 1)


AUGMENTATIONS: dict[str, Callable[[Tensor, Generator], Tensor]] = {
    "hflip": hflip,
    "vflip": vflip,
    "rotation": rotation,
    "resized_crop": resized_crop,
    "noise": noise,
}  # the paper names them; strengths are torchvision's defaults where it has some, and ours for rotation and noise


def _uniform(x: Tensor, generator: Generator) -> Tensor:
    return torch.rand(len(x), generator=generator, device=x.device, dtype=x.dtype)


def _resample(x: Tensor, affine: Tensor) -> Tensor:
    grid = F.affine_grid(affine.view(-1, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)

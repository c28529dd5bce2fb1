"""Shared by the tests of the corruptions: pictures, numbers given instead of drawn ones, comparison by grey level."""

from __future__ import annotations

import numpy as np
import scipy.ndimage
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor


class Replay:
    """Given numbers in place of drawn ones, by purpose."""

    def __init__(self, **numbers: ArrayLike) -> None:
        self.numbers = {
            name: torch.from_numpy(np.ascontiguousarray(np.asarray(values))) for name, values in numbers.items()
        }

    def uniform(self, purpose: str, *_: object) -> Tensor:
        """The numbers for ``purpose``, whatever the shape asked for."""
        return self.numbers[purpose]

    normal = below = uniform


def pictures(count: int = 12, side: int = 32) -> Tensor:
    """Random blots, with even white, even grey and black images among them; uint8 (count, 3, side, side)."""
    rng = np.random.default_rng(0)
    images = scipy.ndimage.gaussian_filter(rng.normal(size=(count, 3, side, side)), (0, 0.5, 2, 2))
    images = np.clip(images * 300 + 128, 0, 255).astype(np.uint8)
    images[1], images[2], images[3] = 255, 77, 0
    images[4] = images[4, :1]  # grey
    return torch.from_numpy(images)


def last(images: Tensor) -> NDArray:
    """(N, 3, 32, 32) to float64 (N, 32, 32, 3) in [0, 1]."""
    return images.permute(0, 2, 3, 1).numpy() / 255.0


def assert_near(images: Tensor, expected: NDArray, share: float = 0.0) -> None:
    """Grey levels as truncated; a ``share`` of the values may differ by 1 where a sum ends at a whole grey level."""
    expected = np.clip(expected, 0, 1) * 255
    difference = np.abs(images.permute(0, 2, 3, 1).numpy().astype(int) - expected.astype(np.uint8).astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= share

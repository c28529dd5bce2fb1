"""Which of the images of a dataset are used, and the checks that all datasets share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dembench.tasks.common.corruptions import SEVERITIES
from dembench.tasks.common.corruptions.draws import Draws


def balanced_subset(labels: np.ndarray, num_images: int | None) -> np.ndarray:
    """Positions of ``num_images`` entries, as many of each class as possible, ascending; None takes all.

    Every class gives the same number, and the first classes one more where it does not divide evenly; a class that has
    fewer gives all. A class's k of its m images are those at floor(j * m / k) in its own order.
    Raises: ValueError where there are fewer than ``num_images``.
    """
    if num_images is None:
        return np.arange(len(labels))
    if num_images > len(labels):
        raise ValueError(f"num_images: expected at most {len(labels)}, the images that there are, got {num_images}")
    own = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    sizes = np.array([len(positions) for positions in own])
    level = max(k for k in range(num_images + 1) if np.minimum(sizes, k).sum() <= num_images)
    counts = np.minimum(sizes, level)
    counts[np.flatnonzero(sizes > level)[: num_images - counts.sum()]] += 1
    chosen = [positions[np.arange(k) * len(positions) // max(k, 1)] for positions, k in zip(own, counts, strict=True)]
    return np.sort(np.concatenate(chosen))


def draw(count: int, wanted: int, seed: int) -> Tensor:
    """``wanted`` of ``count`` positions, or all where there are fewer, in random order; by hash."""
    return Draws(seed, "clean", 0, torch.arange(count)).bits("order").argsort()[:wanted]


def check_numbers(what: str, num_images: int | None, seed: int) -> None:
    if num_images is not None and (isinstance(num_images, bool) or not isinstance(num_images, int) or num_images < 1):
        raise ValueError(f"{what}: expected num_images to be a whole number > 0 or null, got {num_images!r}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"{what}: expected a whole number >= 0 as seed, got {seed!r}")


def check_severity(severity: int) -> None:
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise ValueError(f"expected a severity of 1 to 5, got {severity!r}")

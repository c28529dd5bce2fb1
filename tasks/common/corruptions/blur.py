"""Blurs: defocus, glass, motion and zoom.

Each function takes uint8 (N, 3, S, S), a severity 1..5, the draws and a recipe, and returns uint8 of that shape.
Formulas: the scripts of Hendrycks and Dietterich (ICLR 2019, arXiv 1903.12261); motion blur as ImageMagick defines it,
Gaussian blur as scikit-image does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dembench.tasks.common.corruptions.draws import Draws
from dembench.tasks.common.corruptions.pixels import (
    GUARD,
    added,
    centre_zoom,
    divide,
    gather_pixels,
    gaussian_weights,
    per_device,
    reflect,
    to_float,
    to_uint8,
)
from dembench.tasks.common.corruptions.recipes import CIFAR, Recipe


@per_device
def disc(radius: float, sigma: float) -> Tensor:
    """(K, K) float32, the disc smoothed by a Gaussian of 3 pixels a side, above radius 8 of 5.

    It is float32, as OpenCV computes it: its sum misses 1 by some 1e-8, which keeps even areas of one colour off the
    edge of a grey level.
    """
    reach = math.floor(radius) if radius > 8 else min(math.floor(radius) + 2, 8)
    place = torch.arange(-reach, reach + 1)
    kernel = (place[:, None] ** 2 + place**2 <= radius**2).to(torch.float32)
    kernel = kernel / kernel.sum()
    steps = 1 if radius <= 8 else 2
    weights = [math.exp(-0.5 * step**2 / sigma**2) for step in range(steps + 1)]
    weights = torch.tensor(weights, dtype=torch.float64).div(weights[0] + 2 * sum(weights[1:])).to(torch.float32)
    for axis in (1, 0):
        smooth = kernel * weights[0]
        for step in range(1, steps + 1):
            before, after = (reflect(place + reach + way, len(place)) for way in (-step, step))
            smooth = smooth + (kernel.index_select(axis, before) + kernel.index_select(axis, after)) * weights[step]
        kernel = smooth
    return kernel


@per_device
def disc_spectrum(radius: float, sigma: float, side: int) -> Tensor:
    """Transform of the disc on a grid that holds the image and its mirrored borders, complex128."""
    kernel = disc(radius, sigma, torch.device("cpu")).double()
    size = grid(side, len(kernel))
    padded = torch.zeros(size, size, dtype=torch.float64)
    padded[: len(kernel), : len(kernel)] = kernel.flip(0, 1)
    return torch.fft.rfft2(padded)


def grid(side: int, width: int) -> int:
    """The next size from ``side`` + ``width`` - 1 on that has no prime factor above 3: its transforms are fast."""
    size = side + width - 1
    while math.gcd(size, 2**10 * 3**6) != size:
        size += 1
    return size


def defocus_blur(images: Tensor, severity: int, draws: Draws | None = None, recipe: Recipe = CIFAR) -> Tensor:
    """Averages over a small disc, borders mirrored."""
    side = images.shape[-1]
    radius, sigma = recipe.defocus_blur[severity - 1]
    width = len(disc(radius, sigma, images.device))
    spectrum = disc_spectrum(radius, sigma, side, images.device)
    place = reflect(torch.arange(-(width // 2), side + width // 2, device=images.device), side)
    values = to_float(images).index_select(2, place).index_select(3, place)
    size = grid(side, width)
    blurred = torch.fft.irfft2(torch.fft.rfft2(values, s=(size, size)) * spectrum, s=(size, size))
    return to_uint8(blurred[..., width - 1 : width - 1 + side, width - 1 : width - 1 + side])


def gaussian(values: Tensor, sigma: float) -> Tensor:
    """The Gaussian filter of scikit-image on (N, C, S, S) float64: cut off at 4 sigma, borders repeated.

    Added up tap by tap in scipy's order, so that truncation to grey levels falls as it does there.
    """
    weights = gaussian_weights(sigma, 4.0)
    radius = len(weights) // 2
    if radius == 0:
        return values
    side = values.shape[-1]
    place = torch.arange(-radius, side + radius, device=values.device).clamp(0, side - 1)
    for axis in (2, 3):
        padded = values.index_select(axis, place)
        total = values * weights[radius]
        for step in range(radius, 0, -1):
            pair = padded.narrow(axis, radius - step, side) + padded.narrow(axis, radius + step, side)
            total += pair.mul_(weights[radius + step])
        values = total
    return values


def glass_blur(images: Tensor, severity: int, draws: Draws, recipe: Recipe = CIFAR) -> Tensor:
    """Gaussian blur, each pixel overwritten by a near one, Gaussian blur.

    The original scans rows and columns from high to low and copies (not swaps: NumPy's views) the pixel at an offset of
    -reach .. reach - 1 on each axis. One that was scanned before holds by then what it was overwritten with.
    """
    sigma, reach, passes = recipe.glass_blur[severity - 1]
    side = images.shape[-1]
    images = to_uint8(gaussian(to_float(images), sigma))
    offsets = draws.below("offsets", 2 * reach, passes, 2, side, side) - reach
    place = torch.arange(side, device=images.device)
    scanned = (place > reach) & (place <= side - reach)
    moved = scanned & scanned[:, None]
    for number in range(passes):
        down, right = (offsets[:, number] * moved).unbind(1)
        source = (place[:, None] + down) * side + place + right
        source = originals(source.flatten(1), moved.flatten()).view_as(source)
        images = gather_pixels(images, source // side, source % side)
    return to_uint8(gaussian(to_float(images), sigma))


def originals(source: Tensor, moved: Tensor) -> Tensor:
    """Whose old value each place ends with, if places are overwritten one after the other, the last first.

    Args:
        source: (N, P) int64, the place that is copied from.
        moved: (P,) bool, places that are overwritten at all; the others keep their value.
    Returns: (N, P) int64.
    """
    place = torch.arange(source.shape[1], device=source.device)
    # a place that was overwritten before passes on what it got: follow, twice as far each time, until none is left
    passed = (source > place) & moved[source]
    while passed.any():
        source, passed = (
            torch.where(passed, source.gather(1, source), source),
            passed & passed.gather(1, source),
        )
    return source


def motion(images: Tensor, degrees: Tensor, radius: int, sigma: float) -> Tensor:
    """ImageMagick's motion blur: the mean along a line from each pixel, weights falling like half a Gaussian.

    Args:
        images: (N, C, S, S) uint8 or float64.
        degrees: (N,) float64, direction of the line, 0 to the right and 90 down.
        radius, sigma: the line has 2 * radius + 1 pixels.
    Returns: (N, C, S, S) float64. Outside the image its border pixel goes on.
    Source: MotionBlurImage of ImageMagick's effect.c.
    """
    height, width = images.shape[2:]
    steps = torch.arange(2 * radius + 1, device=images.device, dtype=torch.float64)
    weights = [math.exp(-(step**2) / (2 * sigma**2)) for step in range(2 * radius + 1)]
    whole = added(weights)
    angle = degrees * (math.pi / 180)
    right = torch.ceil(steps * angle.cos()[:, None] - 0.5).long().tolist()
    down = torch.ceil(steps * angle.sin()[:, None] - 0.5).long().tolist()
    reach = 2 * radius
    rows, columns = (
        torch.arange(-reach, side + reach, device=images.device).clamp(0, side - 1) for side in (height, width)
    )
    padded = images.to(torch.float64).index_select(2, rows).index_select(3, columns)
    total = torch.zeros_like(images, dtype=torch.float64)
    for own, source, down_steps, right_steps in zip(total, padded, down, right, strict=True):
        for weight, y, x in zip(weights, down_steps, right_steps, strict=True):
            own += source[:, reach + y : reach + y + height, reach + x : reach + x + width] * (weight / whole)
    return total


def eight_bit(values: Tensor) -> Tensor:
    """float64 grey levels to uint8 as ImageMagick does: rounded to 16 bits and then cut to 8."""
    return ((values * 257 + 0.5).long() // 257).to(torch.uint8)


def motion_blur(images: Tensor, severity: int, draws: Draws, recipe: Recipe = CIFAR) -> Tensor:
    """Motion blur at a random angle within 45 degrees of the horizontal."""
    return eight_bit(motion(images, draws.uniform("angle") * 90 - 45, *recipe.motion_blur[severity - 1]))


def zoom_blur(images: Tensor, severity: int, draws: Draws | None = None, recipe: Recipe = CIFAR) -> Tensor:
    """Averages the image with enlargements of its centre."""
    count, step = recipe.zoom_blur[severity - 1]
    values = to_float(images)
    total = values.clone()
    for number in range(count):
        factor = 1 + number * ((1 + step) - 1)  # numpy.arange's own rounding: it decides sizes at 1.25
        total += centre_zoom(values, factor)
    return to_uint8(divide(total, count + 1), GUARD)

"""Blurs of CIFAR-10-C: defocus, glass, motion and zoom.

Each function takes uint8 (N, 3, 32, 32), a severity 1..5 and the draws, and returns uint8 of that shape. Constants
and formulas: the CIFAR-10-C script of Hendrycks and Dietterich (ICLR 2019, arXiv 1903.12261); motion blur as
ImageMagick defines it, Gaussian blur as scikit-image does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dembench.tasks.common.corruptions.draws import Draws
from dembench.tasks.common.corruptions.pixels import (
    GUARD,
    SIZE,
    centre_zoom_matrix,
    gather_pixels,
    gaussian_weights,
    per_device,
    reflect,
    to_float,
    to_uint8,
)

DEFOCUS = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))  # radius of the disc, sigma that smooths it
GLASS = ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))  # sigma, passes; a pixel moves by at most 1
MOTION = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))  # radius, sigma
ZOOM = (7, 12, 16, 21, 26)  # factors 1, 1.01, ..; a float range includes the end for the first two only


@per_device
def defocus_matrix(severity: int) -> Tensor:
    """(1024, 1024) float64: correlation with the smoothed disc, mirrored borders; image row vectors times this.

    The kernel is float32, as OpenCV computes it: its sum misses 1 by some 1e-8, which keeps even areas of one colour
    off the edge of a grey level.
    """
    radius, sigma = DEFOCUS[severity - 1]
    reach = torch.arange(-3, 4)
    disc = (reach[:, None] ** 2 + reach**2 <= radius**2).to(torch.float32)
    disc = disc / disc.sum()
    side = math.exp(-0.5 / sigma**2)
    middle, side = torch.tensor([1.0, side], dtype=torch.float64).div(1 + 2 * side).to(torch.float32)
    for axis in (1, 0):
        disc = disc * middle + (disc.roll(1, axis) + disc.roll(-1, axis)) * side
    matrix = torch.zeros(SIZE, SIZE, SIZE, SIZE, dtype=torch.float64)  # source row, column; output row, column
    place = torch.arange(SIZE)
    for down in range(7):
        for right in range(7):
            rows, columns = reflect(place + down - 3), reflect(place + right - 3)
            matrix[rows[:, None], columns, place[:, None], place] += disc[down, right].double()
    return matrix.view(SIZE**2, SIZE**2)


def defocus_blur(images: Tensor, severity: int, draws: Draws | None = None) -> Tensor:
    """Averages over a small disc."""
    blurred = to_float(images).flatten(2) @ defocus_matrix(severity, images.device)
    return to_uint8(blurred.view(images.shape))


def gaussian(values: Tensor, sigma: float) -> Tensor:
    """The Gaussian filter of scikit-image on (N, C, 32, 32) float64: cut off at 4 sigma, borders repeated.

    Added up tap by tap in scipy's order, so that truncation to grey levels falls as it does there.
    """
    weights = gaussian_weights(sigma, 4.0)
    radius = len(weights) // 2
    if radius == 0:
        return values
    place = torch.arange(SIZE, device=values.device)
    for axis in (2, 3):
        total = values * weights[radius]
        for step in range(radius, 0, -1):
            before = values.index_select(axis, (place - step).clamp(min=0))
            after = values.index_select(axis, (place + step).clamp(max=SIZE - 1))
            total = total + (before + after) * weights[radius + step]
        values = total
    return values


def glass_blur(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Gaussian blur, each pixel overwritten by a near one, Gaussian blur.

    The original scans rows and columns 31 down to 2 and copies (not swaps: NumPy's views) the pixel at an offset of
    -1 or 0 on each axis. Such a pixel is scanned later, so it still holds its old value, and one pass is one gather.
    """
    sigma, passes = GLASS[severity - 1]
    images = to_uint8(gaussian(to_float(images), sigma))
    offsets = draws.below("offsets", 2, passes, 2, SIZE, SIZE) - 1
    place = torch.arange(SIZE, device=images.device)
    moved = (place >= 2) & (place[:, None] >= 2)
    for number in range(passes):
        down, right = (offsets[:, number] * moved).unbind(1)
        images = gather_pixels(images, place[:, None] + down, place + right)
    return to_uint8(gaussian(to_float(images), sigma))


def motion(images: Tensor, degrees: Tensor, radius: int, sigma: float) -> Tensor:
    """ImageMagick's motion blur: the mean along a line from each pixel, weights falling like half a Gaussian.

    Args:
        images: (N, C, 32, 32) uint8.
        degrees: (N,) float64, direction of the line, 0 to the right and 90 down.
        radius, sigma: the line has 2 * radius + 1 pixels.
    Returns: (N, C, 32, 32) uint8, rounded to 16 bits and then cut to 8. Outside the image its border pixel goes on.
    Source: MotionBlurImage of ImageMagick's effect.c.
    """
    steps = torch.arange(2 * radius + 1, device=images.device, dtype=torch.float64)
    weights = [math.exp(-(step**2) / (2 * sigma**2)) for step in range(2 * radius + 1)]
    whole = sum(weights)
    angle = degrees * (math.pi / 180)
    right = torch.ceil(steps * angle.cos()[:, None] - 0.5).long()
    down = torch.ceil(steps * angle.sin()[:, None] - 0.5).long()
    place = torch.arange(SIZE, device=images.device)
    rows = (place + down[..., None]).clamp(0, SIZE - 1)
    columns = (place + right[..., None]).clamp(0, SIZE - 1)
    values = images.to(torch.float64)
    total = torch.zeros_like(values)
    for step, weight in enumerate(weights):
        total += gather_pixels(values, rows[:, step, :, None], columns[:, step, None, :]) * (weight / whole)
    return ((total * 257 + 0.5).long() // 257).to(torch.uint8)


def motion_blur(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Motion blur at a random angle within 45 degrees of the horizontal."""
    return motion(images, draws.uniform("angle") * 90 - 45, *MOTION[severity - 1])


@per_device
def zoom_matrix(severity: int) -> Tensor:
    """(1024, 1024) float64: the mean of the image and its centre zooms; image row vectors times this."""
    count = ZOOM[severity - 1]
    total = torch.eye(SIZE**2, dtype=torch.float64)
    for step in range(count):
        one = centre_zoom_matrix(1 + step * (1.01 - 1))  # numpy.arange's own rounding: it decides sizes at 1.25
        total += torch.kron(one, one).T
    return total / (count + 1)


def zoom_blur(images: Tensor, severity: int, draws: Draws | None = None) -> Tensor:
    """Averages the image with enlargements of its centre."""
    blurred = to_float(images).flatten(2) @ zoom_matrix(severity, images.device)
    return to_uint8(blurred.view(images.shape), GUARD)

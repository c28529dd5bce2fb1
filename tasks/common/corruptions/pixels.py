"""What several corruptions share: uint8 to float64 and back, and resampling.

Sums run in float64 and end in ``to_uint8``, so the order of a sum (which differs with batch shape and device) moves a
value by some 1e-13 and a pixel only if it is that close to the edge of a grey level, which the guard keeps empty of
the values that are whole grey levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

GUARD = 1e-6  # grey levels; a sum that should be a whole grey level may come out a little below it


def divide(values: Tensor, by: float) -> Tensor:
    """Divides by a number, correctly rounded everywhere: with a Python number, CUDA multiplies by its inverse."""
    return values / torch.full((), by, dtype=values.dtype, device=values.device)


def to_float(images: Tensor) -> Tensor:
    """uint8 to float64 in [0, 1]."""
    return divide(images.to(torch.float64), 255)


def to_uint8(values: Tensor, guard: float = 0.0) -> Tensor:
    """[0, 1], clipped, to uint8 by truncation as the original script does, after ``guard`` grey levels are added."""
    return (values.clamp(0, 1) * 255 + guard).to(torch.uint8)


def per_device(build: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Builds a constant tensor on the CPU, once per arguments, and keeps a copy per device (last argument)."""
    on_cpu = cache(build)

    @cache
    def on_device(*args: Any) -> Tensor:
        *given, device = args
        return on_cpu(*given).to(device)

    return on_device


def along_both(matrix: Tensor, images: Tensor) -> Tensor:
    """Applies one (P, Q) matrix to the rows and to the columns of (..., Q, Q)."""
    return matrix @ (images @ matrix.T)


def reflect(position: Tensor, size: int) -> Tensor:
    """Positions outside 0 .. size - 1 mirrored at the border's pixel, as OpenCV's reflect-101: -1 is 1."""
    position = position.abs() % (2 * size - 2)
    return torch.minimum(position, 2 * size - 2 - position)


def mirror(position: Tensor, size: int) -> Tensor:
    """Positions outside 0 .. size - 1 mirrored at the border, as scipy.ndimage's "reflect": -1 is 0."""
    position = position % (2 * size)
    return torch.minimum(position, 2 * size - 1 - position)


def gaussian_weights(sigma: float, truncate: float) -> list[float]:
    """The 2 * int(truncate * sigma + 0.5) + 1 weights of scipy.ndimage's Gaussian filter."""
    radius = int(truncate * sigma + 0.5)
    weights = [math.exp(-0.5 * (step / sigma) ** 2) if step else 1.0 for step in range(-radius, radius + 1)]
    total = added(weights)
    return [weight / total for weight in weights]


def added(numbers: list[float]) -> float:
    """Their sum one after the other, as SciPy and C form it: from Python 3.12 on ``sum`` compensates what it rounds."""
    return reduce(add, numbers)


@per_device
def zoom_places(factor: float, side: int, trim: bool) -> Tensor:
    """(4, size) float64, along one axis: which pixel comes before each one of the zoomed image, which after, weights.

    Crop ceil(side / factor) at the centre, enlarge it linearly to ``size`` and, with ``trim``, cut ``side`` pixels from
    the centre of that. As scipy.ndimage.zoom places the grid: the ends of crop and output coincide. A last position
    that rounding puts beyond the crop is 0 there, and here.
    """
    crop = math.ceil(side / factor)
    top = (side - crop) // 2
    size = round(crop * factor)
    step = (crop - 1) / (size - 1)
    cut = (size - side) // 2 if trim else 0
    places = []
    for row in range(cut, cut + side if trim else size):
        position = row * step
        low = min(int(position), crop - 1)
        part = position - low
        weights = (1 - part, part) if position <= crop - 1 else (0.0, 0.0)
        places.append((top + low, top + min(low + 1, crop - 1), *weights))
    return torch.tensor(places, dtype=torch.float64).T.contiguous()


def centre_zoom(values: Tensor, factor: float, trim: bool = True) -> Tensor:
    """Enlarges the centre of (N, C, S, S) float64, see ``zoom_places``; (N, C, size, size)."""
    places = zoom_places(factor, values.shape[-1], trim, values.device)
    low, high = places[:2].long()
    before, after = places[2:]
    for _ in range(2):  # rows are contiguous in memory, so columns are turned into rows
        lines = values.index_select(2, low).mul_(before[:, None])
        values = lines.add_(values.index_select(2, high).mul_(after[:, None])).transpose(2, 3).contiguous()
    return values


def gather_pixels(images: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Pixels of (N, C, H, W) at rows and columns that broadcast to (N, h, w) int64, each image by its own."""
    place = row * images.shape[-1] + column
    flat = place.flatten(1)[:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, flat).view(*images.shape[:2], *place.shape[1:])

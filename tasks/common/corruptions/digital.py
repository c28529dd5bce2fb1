"""Digital corruptions: contrast, elastic transform, pixelate and JPEG.

Each function takes uint8 (N, 3, S, S), a severity 1..5, the draws and a recipe, and returns uint8 of that shape.
Formulas: the scripts of Hendrycks and Dietterich (ICLR 2019, arXiv 1903.12261); resizing as Pillow does, the affine map
as OpenCV does.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dembench.tasks.common.corruptions.draws import Draws
from dembench.tasks.common.corruptions.pixels import (
    along_both,
    divide,
    gather_pixels,
    gaussian_weights,
    mirror,
    per_device,
    reflect,
    to_float,
    to_uint8,
)
from dembench.tasks.common.corruptions.recipes import CIFAR, Recipe


def contrast(images: Tensor, severity: int, draws: Draws | None = None, recipe: Recipe = CIFAR) -> Tensor:
    """Scales each channel about its mean."""
    pixels = images.shape[2] * images.shape[3]
    means = divide(images.sum((2, 3), keepdim=True, dtype=torch.int64).to(torch.float64), 255 * pixels)
    return to_uint8((to_float(images) - means) * recipe.contrast[severity - 1] + means)


def affine(images: Tensor, moves: Tensor) -> Tensor:
    """Maps three points to themselves plus ``moves``, bilinear, mirrored borders.

    Args:
        images: (N, 3, S, S) float32.
        moves: (N, 3, 2) float64, x and y, of the points (high, high), (high, low) and (low, low), which lie a third of
            the side from the centre: (26, 26), (26, 6) and (6, 6) at 32 pixels.
    Returns: (N, 3, S, S) float32. Source: OpenCV's getAffineTransform and warpAffine, without the
    rounding of positions to 1/32 pixel of its older versions.
    """
    side = images.shape[-1]
    low, high = side // 2 - side // 3, side // 2 + side // 3
    points = torch.tensor([[high, high], [high, low], [low, low]], dtype=torch.float64, device=images.device)
    moved = points.to(torch.float32) + moves.to(torch.float32)  # as the original rounds them
    moved = moved.to(torch.float64)
    # columns of the linear part: what so many pixels along x and along y become
    along_x = divide(moved[:, 1] - moved[:, 2], high - low)
    along_y = divide(moved[:, 0] - moved[:, 1], high - low)
    shift = moved[:, 2] - along_x * low - along_y * low
    determinant = along_x[:, 0] * along_y[:, 1] - along_y[:, 0] * along_x[:, 1]
    inverse_x = torch.stack([along_y[:, 1], -along_y[:, 0]], 1) / determinant[:, None]
    inverse_y = torch.stack([-along_x[:, 1], along_x[:, 0]], 1) / determinant[:, None]
    place = torch.arange(side, device=images.device, dtype=torch.float64)

    def source(row: Tensor) -> tuple[Tensor, Tensor]:
        """Where each output pixel comes from along one axis: the pixel before, and the part of the way to the next."""
        start = row[:, 0] * shift[:, 0] + row[:, 1] * shift[:, 1]
        position = row[:, 0, None, None] * place + row[:, 1, None, None] * place[:, None] - start[:, None, None]
        before = position.floor()
        return before.long(), (position - before).to(torch.float32)[:, None]

    x, part_x = source(inverse_x)
    y, part_y = source(inverse_y)
    return bilinear(images, y, x, part_y, part_x, reflect)


def bilinear(
    values: Tensor, row: Tensor, column: Tensor, down: Tensor, right: Tensor, fold: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """(N, 3, S, S) values between pixels (N, S, S) and the next ones, ``down`` and ``right`` of the way to them.

    Steps from value to value, so that an area of one colour keeps it exactly; ``fold`` brings positions inside.
    """
    side = values.shape[-1]
    rows, columns = ((fold(place, side), fold(place + 1, side)) for place in (row, column))
    lines = []
    for line in rows:
        left, beyond = (gather_pixels(values, line, place) for place in columns)
        lines.append(left + (beyond - left) * right)
    return lines[0] + (lines[1] - lines[0]) * down


def displace(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Bilinear values of (N, 3, S, S) at each pixel's place plus its displacement (N, S, S), float32 pixels.

    Borders repeat their pixel and mirror on, as mode "reflect" of scipy.ndimage.map_coordinates.
    """
    place = torch.arange(images.shape[-1], device=images.device)
    y, x = place[:, None] + down.to(torch.float64), place + right.to(torch.float64)
    top, left = y.floor(), x.floor()
    parts = (y - top)[:, None], (x - left)[:, None]
    return bilinear(images.to(torch.float64), top.long(), left.long(), *parts, mirror).to(torch.float32)


@per_device
def smoothing_matrix(sigma: float, side: int) -> Tensor:
    """(side, side) float64: scikit-image's Gaussian filter along one axis, cut off at 3 sigma, mirrored borders."""
    weights = torch.tensor(gaussian_weights(sigma, 3.0), dtype=torch.float64)
    source = mirror(torch.arange(side)[:, None] + torch.arange(len(weights)) - len(weights) // 2, side)
    return torch.zeros(side, side, dtype=torch.float64).scatter_add_(1, source, weights.expand(side, -1))


def elastic_transform(images: Tensor, severity: int, draws: Draws, recipe: Recipe = CIFAR) -> Tensor:
    """A random affine map, then (of 32 pixels from severity 2 on) a smooth random displacement of each pixel."""
    side = images.shape[-1]
    size, sigma, reach = (share * recipe.elastic_side * side for share in recipe.elastic_transform[severity - 1])
    moves = draws.uniform("moves", 3, 2) * (2 * reach) - reach
    image = affine(divide(images.to(torch.float32), 255), moves)
    if size:
        matrix = smoothing_matrix(sigma, side, images.device)
        right, down = (
            (along_both(matrix, draws.uniform(axis, side, side) * 2 - 1) * size).to(torch.float32)
            for axis in ("right", "down")
        )
        image = displace(image, down, right)
    return to_uint8(image)


@per_device
def box_matrix(source: int, target: int) -> Tensor:
    """(target, source) float64 of whole numbers: Pillow's BOX filter in its 22-bit fixed point."""
    scale = source / target
    support = 0.5 * max(scale, 1.0)
    matrix = torch.zeros(target, source, dtype=torch.float64)
    for row in range(target):
        centre = (row + 0.5) * scale
        first = max(int(centre - support + 0.5), 0)
        last = min(int(centre + support + 0.5), source)
        inside = [-0.5 < (place - centre + 0.5) / max(scale, 1.0) <= 0.5 for place in range(first, last)]
        for place, kept in zip(range(first, last), inside, strict=True):
            matrix[row, place] = int(0.5 + kept / sum(inside) * 2**22)
    return matrix


def box_resize(images: Tensor, size: int) -> Tensor:
    """uint8 (N, C, H, H) to (N, C, size, size), equal to Pillow's BOX resize: whole numbers, so exact in any order."""
    matrix = box_matrix(images.shape[-1], size, images.device)
    for side in (1, 2):  # along the rows first, as Pillow: uint8 between the two
        values = images.to(torch.float64)
        values = values @ matrix.T if side == 1 else matrix @ values
        images = torch.floor((values + 2**21) / 2**22).clamp(0, 255).to(torch.uint8)
    return images


def pixelate(images: Tensor, severity: int, draws: Draws | None = None, recipe: Recipe = CIFAR) -> Tensor:
    """Shrinks and enlarges again, both by boxes."""
    side = images.shape[-1]
    return box_resize(box_resize(images, int(side * recipe.pixelate[severity - 1])), side)


def jpeg_compression(images: Tensor, severity: int, draws: Draws | None = None, recipe: Recipe = CIFAR) -> Tensor:
    """A round trip through Pillow's JPEG codec with its default settings; on the CPU, image by image."""
    result = np.empty((len(images), *images.shape[2:], 3), np.uint8)
    for number, image in enumerate(images.permute(0, 2, 3, 1).cpu().numpy()):
        file = BytesIO()
        Image.fromarray(np.ascontiguousarray(image)).save(file, "JPEG", quality=recipe.jpeg_compression[severity - 1])
        result[number] = np.asarray(Image.open(file))
    return torch.from_numpy(result).permute(0, 3, 1, 2).contiguous().to(images.device)

"""Digital corruptions of CIFAR-10-C: contrast, elastic transform, pixelate and JPEG.

Each function takes uint8 (N, 3, 32, 32), a severity 1..5 and the draws, and returns uint8 of that shape. Constants
and formulas: the CIFAR-10-C script of Hendrycks and Dietterich (ICLR 2019, arXiv 1903.12261); resizing as Pillow
does, the affine map as OpenCV does.
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
    SIZE,
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

CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)  # scale about the mean
ELASTIC = (  # pixels: size and smoothing sigma of the displacement, range of the affine map's three points
    (0.0, 0.0, 32 * 0.08),
    (32 * 0.05, 32 * 0.2, 32 * 0.07),
    (32 * 0.08, 32 * 0.06, 32 * 0.06),
    (32 * 0.1, 32 * 0.04, 32 * 0.05),
    (32 * 0.1, 32 * 0.03, 32 * 0.03),
)
PIXELATE = (30, 28, 27, 24, 20)  # pixels a side
JPEG = (80, 65, 58, 50, 40)  # quality


def contrast(images: Tensor, severity: int, draws: Draws | None = None) -> Tensor:
    """Scales each channel about its mean."""
    means = divide(images.sum((2, 3), keepdim=True, dtype=torch.int64).to(torch.float64), 255 * SIZE**2)
    return to_uint8((to_float(images) - means) * CONTRAST[severity - 1] + means)


def affine(images: Tensor, moves: Tensor) -> Tensor:
    """Maps three points to themselves plus ``moves``, bilinear, mirrored borders.

    Args:
        images: (N, 3, 32, 32) float32.
        moves: (N, 3, 2) float64, x and y, of the points (26, 26), (26, 6) and (6, 6).
    Returns: (N, 3, 32, 32) float32. Source: OpenCV's getAffineTransform and warpAffine, without the
    rounding of positions to 1/32 pixel of its older versions.
    """
    points = torch.tensor([[26.0, 26.0], [26.0, 6.0], [6.0, 6.0]], dtype=torch.float64, device=images.device)
    moved = points.to(torch.float32) + moves.to(torch.float32)  # as the original rounds them
    moved = moved.to(torch.float64)
    # columns of the linear part: what 20 pixels along x and along y become
    along_x = divide(moved[:, 1] - moved[:, 2], 20)
    along_y = divide(moved[:, 0] - moved[:, 1], 20)
    shift = moved[:, 2] - along_x * 6 - along_y * 6
    determinant = along_x[:, 0] * along_y[:, 1] - along_y[:, 0] * along_x[:, 1]
    inverse_x = torch.stack([along_y[:, 1], -along_y[:, 0]], 1) / determinant[:, None]
    inverse_y = torch.stack([-along_x[:, 1], along_x[:, 0]], 1) / determinant[:, None]
    place = torch.arange(SIZE, device=images.device, dtype=torch.float64)

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
    values: Tensor, row: Tensor, column: Tensor, down: Tensor, right: Tensor, fold: Callable[[Tensor], Tensor]
) -> Tensor:
    """(N, 3, 32, 32) values between pixels (N, 32, 32) and the next ones, ``down`` and ``right`` of the way to them.

    Steps from value to value, so that an area of one colour keeps it exactly; ``fold`` brings positions inside.
    """
    rows, columns = (fold(row), fold(row + 1)), (fold(column), fold(column + 1))
    lines = []
    for line in rows:
        left, beyond = (gather_pixels(values, line, place) for place in columns)
        lines.append(left + (beyond - left) * right)
    return lines[0] + (lines[1] - lines[0]) * down


def displace(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Bilinear values of (N, 3, 32, 32) at each pixel's place plus its displacement (N, 32, 32), float32 pixels.

    Borders repeat their pixel and mirror on, as mode "reflect" of scipy.ndimage.map_coordinates.
    """
    place = torch.arange(SIZE, device=images.device)
    y, x = place[:, None] + down.to(torch.float64), place + right.to(torch.float64)
    top, left = y.floor(), x.floor()
    parts = (y - top)[:, None], (x - left)[:, None]
    return bilinear(images.to(torch.float64), top.long(), left.long(), *parts, mirror).to(torch.float32)


@per_device
def smoothing_matrix(sigma: float) -> Tensor:
    """(32, 32) float64: along one axis, the Gaussian filter of scikit-image cut off at 3 sigma, mirrored borders."""
    weights = torch.tensor(gaussian_weights(sigma, 3.0), dtype=torch.float64)
    source = mirror(torch.arange(SIZE)[:, None] + torch.arange(len(weights)) - len(weights) // 2)
    return torch.zeros(SIZE, SIZE, dtype=torch.float64).scatter_add_(1, source, weights.expand(SIZE, -1))


def elastic_transform(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """A random affine map, then (from severity 2 on) a smooth random displacement of each pixel."""
    size, sigma, reach = ELASTIC[severity - 1]
    moves = draws.uniform("moves", 3, 2) * (2 * reach) - reach
    image = affine(divide(images.to(torch.float32), 255), moves)
    if size:
        matrix = smoothing_matrix(sigma, images.device)
        right, down = (
            (along_both(matrix, draws.uniform(axis, SIZE, SIZE) * 2 - 1) * size).to(torch.float32)
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


def pixelate(images: Tensor, severity: int, draws: Draws | None = None) -> Tensor:
    """Shrinks and enlarges again, both by boxes."""
    return box_resize(box_resize(images, PIXELATE[severity - 1]), SIZE)


def jpeg_compression(images: Tensor, severity: int, draws: Draws | None = None) -> Tensor:
    """A round trip through Pillow's JPEG codec with its default settings; on the CPU, image by image."""
    result = np.empty((len(images), SIZE, SIZE, 3), np.uint8)
    for number, image in enumerate(images.permute(0, 2, 3, 1).cpu().numpy()):
        file = BytesIO()
        Image.fromarray(np.ascontiguousarray(image)).save(file, "JPEG", quality=JPEG[severity - 1])
        result[number] = np.asarray(Image.open(file))
    return torch.from_numpy(result).permute(0, 3, 1, 2).contiguous().to(images.device)

"""RandAugment's 14 operations on batches of uint8 images (N, 3, H, W), a magnitude for each sample.

They give what Pillow gives, to the last grey level (rotations, shears and translations by its fixed-point arithmetic,
nearest neighbour, black beyond the edge), on any device. The geometric ones are named by their matrices, so that a
batch of different ones is a single look-up.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["GEOMETRIC", "OPERATIONS", "POINTWISE", "RANGES", "affine", "apply"]

_FIXED = 16  # bits behind the point


def gray(images: Tensor) -> Tensor:
    """ITU-R 601 luma, int32 (N, 1, H, W), rounded as Pillow's mode L."""
    red, green, blue = images.to(torch.int32).unbind(1)
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16)[:, None]


def blend(low: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """``low`` at factor 0, ``images`` at 1, truncated; factors (N,) from 0 to 1."""
    start = low.float()
    return (start + factor.float().view(-1, 1, 1, 1) * (images.float() - start)).to(torch.uint8)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Towards black."""
    return blend(torch.zeros_like(images), images, factor)


def color(images: Tensor, factor: Tensor) -> Tensor:
    """Towards grey."""
    return blend(gray(images), images, factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Towards the mean grey level of the whole image."""
    luma = gray(images).flatten(1)
    mean = (2 * luma.sum(1, dtype=torch.int64) + luma.shape[1]).div(2 * luma.shape[1], rounding_mode="floor")
    return blend(mean.view(-1, 1, 1, 1), images, factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Towards a smoothed image: weights 1 around 5, the outermost pixels as they are."""
    wide = images.to(torch.int32)
    smooth = wide.clone()
    if min(images.shape[2:]) > 2:
        rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
        total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * wide[:, :, 1:-1, 1:-1]
        smooth[:, :, 1:-1, 1:-1] = (2 * total + 13).div(26, rounding_mode="floor")  # nearest of total / 13
    return blend(smooth, images, factor)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keeps the uppermost bits, the whole number below ``bits`` but at least 1."""
    dropped = 8 - bits.to(torch.int32).clamp(min=1).view(-1, 1, 1, 1)
    return (images.to(torch.int32) >> dropped << dropped).to(torch.uint8)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Inverts grey levels that are not below the threshold."""
    return torch.where(images < threshold.view(-1, 1, 1, 1), images, 255 - images)


def autocontrast(images: Tensor, _: Tensor) -> Tensor:
    """Stretches each channel to 0..255."""
    flat = images.flatten(2)
    low, high = flat.amin(2).double(), flat.amax(2).double()
    scale = torch.full_like(high, 255) / (high - low).clamp(min=1)  # 255 / tensor would multiply by a reciprocal
    levels = torch.arange(256, dtype=torch.float64, device=images.device)
    table = (levels * scale[..., None] + (-low * scale)[..., None]).trunc().clamp(0, 255)
    return _look_up(images, torch.where((high > low)[..., None], table, levels).to(torch.uint8))


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """Flattens the histogram of each channel."""
    n, channels = images.shape[:2]
    flat = images.flatten(2).to(torch.int64)
    offsets = 256 * torch.arange(n * channels, device=images.device).view(n, channels, 1)
    counts = torch.bincount((flat + offsets).flatten(), minlength=256 * n * channels).view(n, channels, 256)
    last = counts.gather(2, flat.amax(2, keepdim=True))
    step = (flat.shape[2] - last).div(255, rounding_mode="floor")
    before = counts.cumsum(2) - counts + step.div(2, rounding_mode="floor")
    table = before.div(step.clamp(min=1), rounding_mode="floor").clamp(max=255)
    levels = torch.arange(256, device=images.device)
    return _look_up(images, torch.where(step > 0, table, levels).to(torch.uint8))


def identity(images: Tensor, _: Tensor) -> Tensor:
    return images


def _look_up(images: Tensor, table: Tensor) -> Tensor:
    """The entry of ``table`` (N, 3, 256) for each grey level."""
    return table.gather(2, images.flatten(2).to(torch.int64)).view_as(images)


def rotation(degrees: Tensor, height: int, width: int) -> Tensor:
    """Counter-clockwise about the middle."""
    angle = -degrees * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    x, y = width / 2, height / 2
    return torch.stack([cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y], 1)


def shear_x(slope: Tensor, height: int, width: int) -> Tensor:
    return _matrix(slope, 1)


def shear_y(slope: Tensor, height: int, width: int) -> Tensor:
    return _matrix(slope, 3)


def translate_x(share: Tensor, height: int, width: int) -> Tensor:
    """By a share of the width."""
    return _matrix(share * width, 2)


def translate_y(share: Tensor, height: int, width: int) -> Tensor:
    """By a share of the height."""
    return _matrix(share * height, 5)


def _matrix(values: Tensor, place: int) -> Tensor:
    matrix = torch.tensor([1.0, 0, 0, 0, 1, 0], dtype=torch.float64, device=values.device).repeat(len(values), 1)
    matrix[:, place] = values
    return matrix


def affine(images: Tensor, matrix: Tensor) -> Tensor:
    """Each output pixel (x, y) from (a x + b y + c, d x + e y + f), nearest neighbour, black beyond the edge.

    ``matrix`` is (N, 6) float64: a, b, c, d, e, f. In fixed point of 16 bits, as Pillow.
    """
    height, width = images.shape[2:]
    a, b, c, d, e, f = matrix.unbind(1)
    fixed = (torch.stack([a, b, c + (a + b) / 2, d, e, f + (d + e) / 2]) * 2**_FIXED + 0.5).floor()
    a, b, c, d, e, f = fixed.to(torch.int64)[..., None, None].unbind(0)
    x = torch.arange(width, device=images.device)
    y = torch.arange(height, device=images.device)[:, None]
    from_x, from_y = (a * x + (b * y + c)) >> _FIXED, (d * x + (e * y + f)) >> _FIXED
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    place = (from_y * width + from_x).masked_fill_(~inside, 0).flatten(1)[:, None]
    found = images.flatten(2).gather(2, place.expand(-1, images.shape[1], -1)).view_as(images)
    return found * inside[:, None]


Operation = Callable[[Tensor, Tensor], Tensor]
POINTWISE: dict[str, Operation] = {
    "autocontrast": autocontrast,
    "brightness": brightness,
    "color": color,
    "contrast": contrast,
    "equalize": equalize,
    "identity": identity,
    "posterize": posterize,
    "sharpness": sharpness,
    "solarize": solarize,
}
GEOMETRIC: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "rotate": rotation,
    "shear_x": shear_x,
    "shear_y": shear_y,
    "translate_x": translate_x,
    "translate_y": translate_y,
}
OPERATIONS = tuple(sorted((*POINTWISE, *GEOMETRIC)))
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), (0.05, 0.95)),
    "posterize": (4, 8),
    "solarize": (0, 256),
    "rotate": (-30, 30),
    **dict.fromkeys(("shear_x", "shear_y", "translate_x", "translate_y"), (-0.3, 0.3)),
    **dict.fromkeys(("autocontrast", "equalize", "identity"), (0, 0)),
}


def apply(name: str, images: Tensor, magnitude: Tensor) -> Tensor:
    """The operation ``name`` with magnitudes (N,) float64 in the unit of ``RANGES``."""
    if name in GEOMETRIC:
        return affine(images, GEOMETRIC[name](magnitude, *images.shape[2:]))
    return POINTWISE[name](images, magnitude)

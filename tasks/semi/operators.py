"""RandAugment's 14 operations on batches of uint8 images (N, 3, H, W), a magnitude for each sample.

They give what Pillow gives, to the last grey level (rotations, shears and translations by its fixed-point arithmetic,
nearest neighbour, black beyond the edge), on any device. They are of three families: a table of grey levels to look
up, a second image to blend with, or a matrix that says where each pixel comes from. So a batch of all of them takes
one look-up, one blend and one move; only tables, second images and matrices are made for each operation by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dembench.tasks.common.devices import count

__all__ = ["FAMILIES", "OPERATIONS", "POINTWISE", "RANGES", "Slot", "apply", "apply_each", "plan"]

_FIXED = 16  # bits behind the point


def autocontrast(images: Tensor, _: Tensor) -> Tensor:
    """Stretches each channel to 0..255."""
    flat = images.flatten(2)
    low, high = flat.amin(2).double(), flat.amax(2).double()
    scale = torch.full_like(high, 255) / (high - low).clamp(min=1)  # 255 / tensor would multiply by a reciprocal
    several = high > low  # a channel of one level stays as it is
    scale, start = torch.where(several, scale, 1.0), torch.where(several, -low * scale, 0.0)
    every = torch.arange(256, dtype=torch.float64, device=images.device)
    return (every * scale[..., None] + start[..., None]).clamp(0, 255)


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """Flattens the histogram of each channel."""
    n, channels = images.shape[:2]
    flat = images.flatten(2)
    offsets = 256 * torch.arange(n * channels, device=images.device).view(n, channels, 1)
    counts = count((flat + offsets).flatten(), 256 * n * channels).view(n, channels, 256)
    last = counts.gather(2, flat.amax(2, keepdim=True).to(torch.int64))
    step = (flat.shape[2] - last).div(255, rounding_mode="floor")
    before = counts.cumsum(2) - counts + step.div(2, rounding_mode="floor")
    table = before.div(step.clamp(min=1), rounding_mode="floor").clamp(max=255)
    return torch.where(step > 0, table, torch.arange(256, device=images.device))


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keeps the uppermost bits, the whole number below ``bits`` but at least 1."""
    dropped = 8 - bits.to(torch.int32).clamp(min=1).view(-1, 1, 1)
    every = torch.arange(256, dtype=torch.int32, device=images.device)
    return (every >> dropped << dropped).expand(-1, images.shape[1], -1)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Inverts grey levels that are not below the threshold."""
    every = torch.arange(256, device=images.device)
    return torch.where(every < threshold.view(-1, 1, 1), every, 255 - every).expand(-1, images.shape[1], -1)


def brightness(images: Tensor) -> Tensor:
    """Black."""
    return torch.zeros_like(images)


def color(images: Tensor) -> Tensor:
    """Grey: ITU-R 601 luma, rounded as Pillow's mode L; float32 holds 24 bits, so every sum is exact."""
    red, green, blue = images.unbind(1)
    luma = (19595 * red + 38470 * green + 7471 * blue + 2**15).mul_(2**-16).floor_()
    return luma[:, None].expand_as(images)


def contrast(images: Tensor) -> Tensor:
    """The mean grey level of the whole image."""
    luma = color(images)[:, 0].flatten(1)
    mean = (2 * luma.sum(1, dtype=torch.int64) + luma.shape[1]).div(2 * luma.shape[1], rounding_mode="floor")
    return mean.float().view(-1, 1, 1, 1).expand_as(images)


def sharpness(images: Tensor) -> Tensor:
    """A smoothed image: weights 1 around 5, the outermost pixels as they are."""
    smooth = images.clone()
    if min(images.shape[2:]) > 2:
        rows = images[:, :, :-2] + images[:, :, 1:-1] + images[:, :, 2:]
        total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * images[:, :, 1:-1, 1:-1]
        smooth[:, :, 1:-1, 1:-1] = total.div_(13).round_()  # of whole numbers: never near a half
    return smooth


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
    matrix = values.new_zeros(len(values), 6)
    matrix[:, ::4] = 1
    matrix[:, place] = values
    return matrix


# Images (N, 3, H, W) uint8 and magnitudes (N,) float64 to tables (N, 3, 256) of numbers from 0 to 255, then truncated.
TABLES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "autocontrast": autocontrast,
    "equalize": equalize,
    "posterize": posterize,
    "solarize": solarize,
}
# Images (N, 3, H, W) to what they become at factor 0, both float32 of whole numbers from 0 to 255.
LOWS: dict[str, Callable[[Tensor], Tensor]] = {
    "brightness": brightness,
    "color": color,
    "contrast": contrast,
    "sharpness": sharpness,
}
# Magnitudes (N,) float64, height and width to matrices (N, 6) float64, on the CPU: see ``_move``.
GEOMETRIC: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "rotate": rotation,
    "shear_x": shear_x,
    "shear_y": shear_y,
    "translate_x": translate_x,
    "translate_y": translate_y,
}
POINTWISE = ("identity", *TABLES, *LOWS)
FAMILIES = (*POINTWISE, *GEOMETRIC)  # those of a family side by side
OPERATIONS = tuple(sorted(FAMILIES))
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), (0.05, 0.95)),
    "posterize": (4, 8),
    "solarize": (0, 256),
    "rotate": (-30, 30),
    **dict.fromkeys(("shear_x", "shear_y", "translate_x", "translate_y"), (-0.3, 0.3)),
    **dict.fromkeys(("autocontrast", "equalize", "identity"), (0, 0)),
}


class Slot(NamedTuple):
    """One operation for each image, those of a family side by side, with what each family needs of its magnitudes.

    Args:
        counts: how many images each operation has, in the order of ``FAMILIES``.
        order, back: (N,) int64, the images in the order of ``FAMILIES``, and from there to where they were.
        magnitude: of the tables, float64, one an image.
        factor: of the blends, float32, (k, 1, 1, 1).
        matrix: of the moves, (6, k) int32, see ``_move``.
    """

    counts: dict[str, int]
    order: Tensor
    back: Tensor
    magnitude: Tensor
    factor: Tensor
    matrix: Tensor


def apply(name: str, images: Tensor, magnitude: Tensor) -> Tensor:
    """The operation ``name`` with magnitudes (N,) float64 in the unit of ``RANGES``, on the CPU."""
    number = torch.full((len(images),), FAMILIES.index(name))
    return apply_each(plan(number, magnitude, *images.shape[2:]), images)


def plan(number: Tensor, magnitude: Tensor, height: int, width: int) -> Slot:
    """For image i the operation ``FAMILIES[number[i]]`` with ``magnitude[i]``; all on the CPU."""
    order = number.argsort()
    magnitude = magnitude[order]
    counts = dict(zip(FAMILIES, number.bincount(minlength=len(FAMILIES)).tolist(), strict=True))
    parts = dict(zip(FAMILIES, magnitude.split([*counts.values()]), strict=True))
    matrices = [work(parts[name], height, width) for name, work in GEOMETRIC.items() if counts[name]]
    a, b, c, d, e, f = torch.cat(matrices or [magnitude.new_zeros(0, 6)]).unbind(1)
    fixed = (torch.stack([a, b, c + (a + b) / 2, d, e, f + (d + e) / 2]) * 2**_FIXED + 0.5).floor()
    return Slot(
        counts,
        order,
        order.argsort(),
        torch.cat([parts[name] for name in TABLES]),
        torch.cat([parts[name] for name in LOWS]).float().view(-1, 1, 1, 1),
        fixed.to(torch.int32),
    )


def apply_each(slot: Slot, images: Tensor) -> Tensor:
    """Every image after its operation, uint8 (N, 3, H, W); the tensors of ``slot`` are on the images' device."""
    images = images.index_select(0, slot.order)
    start = slot.counts["identity"]
    for family, work, values in (
        (TABLES, _look_up, slot.magnitude),
        (LOWS, _blend, slot.factor),
        (GEOMETRIC, _move, slot.matrix),
    ):
        present = {name: slot.counts[name] for name in family if slot.counts[name]}
        rows = slice(start, start := start + sum(present.values()))
        if present:
            images[rows] = work(images[rows], values, present)
    return images.index_select(0, slot.back)


def _look_up(images: Tensor, magnitude: Tensor, counts: dict[str, int]) -> Tensor:
    """``counts``, here and below: how many of the images, one after the other, each operation has."""
    sizes = [*counts.values()]
    parts = zip(counts, images.split(sizes), magnitude.split(sizes), strict=True)
    table = torch.cat([TABLES[name](part, value).to(torch.uint8) for name, part, value in parts])
    return table.gather(2, images.flatten(2).to(torch.int64)).view_as(images)


def _blend(images: Tensor, factor: Tensor, counts: dict[str, int]) -> Tensor:
    """From the second image at factor 0 to the image itself at 1, truncated."""
    wide = images.float()
    low = torch.cat([LOWS[name](part) for name, part in zip(counts, wide.split([*counts.values()]), strict=True)])
    return wide.sub_(low).mul_(factor).add_(low).to(torch.uint8)


def _move(images: Tensor, matrix: Tensor, _: dict[str, int]) -> Tensor:
    """Each output pixel (x, y) from (a x + b y + c, d x + e y + f), nearest neighbour, black beyond the edge.

    A matrix is a, b, c, d, e, f. In fixed point of 16 bits, as Pillow; 32 bits hold it for sides of some thousand.
    """
    height, width = images.shape[2:]
    a, b, c, d, e, f = matrix[..., None, None].unbind(0)
    x = torch.arange(width, dtype=torch.int32, device=images.device)
    y = torch.arange(height, dtype=torch.int32, device=images.device)[:, None]
    from_x, from_y = (a * x + (b * y + c)) >> _FIXED, (d * x + (e * y + f)) >> _FIXED
    near_x, near_y = from_x.clamp(0, width - 1), from_y.clamp(0, height - 1)
    inside = (from_x == near_x) & (from_y == near_y)
    place = (near_y * width + near_x).to(torch.int64).flatten(1)[:, None]
    found = images.flatten(2).gather(2, place.expand(-1, images.shape[1], -1)).view_as(images)
    return found * inside[:, None]

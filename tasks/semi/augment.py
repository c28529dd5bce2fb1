"""Weak and strong views of batches of uint8 images (N, 3, H, W): every sample has its own random numbers.

What is drawn and what is done with it are apart: the draws of a whole batch are made on the CPU by one generator, so
that they are the same on every device and can be divided over several. What follows from the draws alone is worked out
there as well, as a ``Plan``, so that the views of a step need one copy to a device and no answer from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from dembench.lookup import lookup
from dembench.tasks.common.devices import send
from dembench.tasks.semi.operators import FAMILIES, OPERATIONS, RANGES, Slot, apply_each
from dembench.tasks.semi.operators import plan as plan_slot

CUTOUT_COLOR = (125, 123, 114)
_TRIES = 10
_FIXED = 22


@dataclass(frozen=True)
class Recipe:
    """How a dataset is augmented.

    Args:
        size: side of the views in pixels; None is that of the images.
        pad: pixels of reflection around the images before the crop.
        hflip, vflip: mirror half of the samples.
        operations: of the strong view, of which ``slots`` are drawn with replacement; the magnitude is uniform.
        cutout: largest side of the square that is cut out of the strong view, as a share of the width.
        strong_scale: the strong view begins with a crop of so much of the image's area, least and most, resized to
            ``size``; None begins it with the weak view.
    Raises: ValueError for an unknown operation or a number out of range.
    """

    size: int | None = None
    pad: int = 4
    hflip: bool = True
    vflip: bool = False
    operations: Sequence[str] = OPERATIONS
    slots: int = 3
    cutout: float = 0.5
    strong_scale: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name in self.operations:
            lookup(name, OPERATIONS, "augmentation")
        if self.pad < 0 or self.slots < 0 or not 0 <= self.cutout <= 1 or (self.slots and not self.operations):
            raise ValueError(f"augmentation: expected pad, slots >= 0 and cutout from 0 to 1, got {self}")
        if self.strong_scale is not None and not 0 < self.strong_scale[0] <= self.strong_scale[1] <= 1:
            raise ValueError(f"augmentation: expected 0 < least <= most <= 1 of strong_scale, got {self.strong_scale}")


class _Draw:
    def take(self, rows: slice) -> _Draw:
        """The draws of some samples: the last axis is the sample."""
        return type(self)(*(getattr(self, field.name)[..., rows] for field in fields(self)))


@dataclass(frozen=True)
class WeakDraw(_Draw):
    """Where the crop begins in the padded image, and which samples are mirrored; (N,) each."""

    top: Tensor
    left: Tensor
    hflip: Tensor
    vflip: Tensor


@dataclass(frozen=True)
class ResizedDraw(_Draw):
    """Crops of the image in pixels, and which samples are mirrored; (N,) each."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    hflip: Tensor
    vflip: Tensor


@dataclass(frozen=True)
class StrongDraw(_Draw):
    """Operation numbers and magnitudes, (slots, N); side and centre of the cutout as shares of the side, (3, N)."""

    operation: Tensor
    magnitude: Tensor
    cutout: Tensor


def draw_weak(recipe: Recipe, n: int, height: int, width: int, generator: torch.Generator) -> WeakDraw:
    """Random numbers of ``n`` weak views of images of this height and width."""
    high, wide = (side + 2 * recipe.pad - (recipe.size or side) for side in (height, width))
    if min(high, wide) < 0:
        raise ValueError(f"augmentation: no crop of {recipe.size} pixels in an image of {height} x {width}")
    top = torch.randint(high + 1, (n,), generator=generator)
    left = torch.randint(wide + 1, (n,), generator=generator)
    flips = torch.rand(2, n, generator=generator) < 0.5
    return WeakDraw(top, left, flips[0] & recipe.hflip, flips[1] & recipe.vflip)


def draw_resized(recipe: Recipe, n: int, height: int, width: int, generator: torch.Generator) -> ResizedDraw:
    """Random numbers of ``n`` crops that will be resized: area by ``strong_scale``, sides as 3 : 4 to 4 : 3.

    As torchvision's RandomResizedCrop: the first of ten tries that fits into the image, else the largest middle part.
    """
    low, high = recipe.strong_scale
    area = height * width * torch.empty(_TRIES, n, dtype=torch.float64).uniform_(low, high, generator=generator)
    ratio = torch.empty(_TRIES, n, dtype=torch.float64).uniform_(-1, 1, generator=generator)
    ratio = (ratio * math.log(4 / 3)).exp()
    tries = torch.stack([area / ratio, area * ratio]).sqrt().round().to(torch.int64)  # heights and widths
    limits = torch.tensor([[height], [width]])
    fits = ((tries > 0) & (tries <= limits[..., None])).all(0)
    first, found = fits.to(torch.uint8).argmax(0), fits.any(0)
    largest = torch.tensor([[min(height, round(width * 4 / 3))], [min(width, round(height * 4 / 3))]])
    sides = torch.where(found, tries.gather(1, first.expand(2, 1, -1))[:, 0], largest)
    free = limits - sides
    start = (torch.rand(2, n, dtype=torch.float64, generator=generator) * (free + 1)).to(torch.int64)
    start = torch.where(found, start, free // 2)
    flips = torch.rand(2, n, generator=generator) < 0.5
    return ResizedDraw(*start, *sides, flips[0] & recipe.hflip, flips[1] & recipe.vflip)


def draw_strong(recipe: Recipe, n: int, generator: torch.Generator) -> StrongDraw:
    """Random numbers of what makes ``n`` crops strong views."""
    operation = torch.randint(max(len(recipe.operations), 1), (recipe.slots, n), generator=generator)
    share = torch.rand(recipe.slots, n, dtype=torch.float64, generator=generator)
    ranges = torch.tensor([RANGES[name] for name in recipe.operations] or [(0, 0)], dtype=torch.float64)
    low, high = ranges[operation].unbind(-1)
    cutout = torch.rand(3, n, dtype=torch.float64, generator=generator)
    cutout[0] *= recipe.cutout
    return StrongDraw(operation, low + (high - low) * share, cutout)


class Plan(NamedTuple):
    """All that makes one view of a batch, worked out on the CPU; ``devices.send`` brings it to a device.

    Args:
        place: of a crop, (N, size) int64 rows and columns of the images; None where they are resized.
        resize: of a resized crop, what ``_weigh`` takes across and down; None for a crop.
        slots: of the strong view.
        box: (5, N, 1) float64: first and last column and row of the cutout, and whether there is one; None without.
        color: of the cutout, (1, 3, 1, 1) uint8.
    """

    place: tuple[Tensor, Tensor] | None
    resize: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None
    slots: tuple[Slot, ...] = ()
    box: Tensor | None = None
    color: Tensor | None = None


def plan(
    recipe: Recipe, height: int, width: int, first: WeakDraw | ResizedDraw, second: StrongDraw | None = None
) -> Plan:
    """Of images of this height and width: a crop, plain or resized, and with ``second`` RandAugment and cutout."""
    high, wide = recipe.size or height, recipe.size or width
    place = resize = None
    if isinstance(first, WeakDraw):
        rows = _source(first.top, first.vflip, recipe, height)
        place = rows, _source(first.left, first.hflip, recipe, width)
    else:
        across = _triangles(first.left, first.width, first.hflip, wide)
        resize = across, _triangles(first.top, first.height, first.vflip, high)
    if second is None:
        return Plan(place, resize)
    return Plan(place, resize, _slots(recipe, second, high, wide), _box(second.cutout, high, wide), _color())


def view(images: Tensor, plan: Plan) -> Tensor:
    """The view of images (N, 3, H, W) uint8 that a plan on their device makes, uint8 (N, 3, size, size)."""
    if plan.place is not None:
        images = _crop(images, *plan.place)
    if plan.resize is not None:
        images = _resize(images, *plan.resize)
    for slot in plan.slots:
        images = apply_each(slot, images)
    return images if plan.box is None else _cut(images, plan.box, plan.color)


def weak(images: Tensor, recipe: Recipe, draw: WeakDraw) -> Tensor:
    """Crops of the images padded by reflection, mirrored; uint8 (N, 3, size, size)."""
    return view(images, send(plan(recipe, *images.shape[2:], draw), images.device))


def resized(images: Tensor, recipe: Recipe, draw: ResizedDraw) -> Tensor:
    """Crops resized as by Pillow's bilinear filter, and mirrored; uint8 (N, 3, size, size).

    Across, rounded, and then down, as Pillow to the last grey level; from version 13 it resizes tall crops down first,
    and of their grey levels some differ by 1.
    """
    return view(images, send(plan(recipe, *images.shape[2:], draw), images.device))


def strong(images: Tensor, recipe: Recipe, draw: StrongDraw) -> Tensor:
    """RandAugment and cutout on crops; uint8 (N, 3, H, W)."""
    height, width = images.shape[2:]
    made = Plan(None, None, _slots(recipe, draw, height, width), _box(draw.cutout, height, width), _color())
    return view(images, send(made, images.device))


def cutout(images: Tensor, shares: Tensor) -> Tensor:
    """Fills a square of each image, clipped at its edge, with grey.

    ``shares`` (3, N): its side as a share of the width, and its centre across and down. The square runs from
    centre - side / 2, not below 0 and rounded down, over side + 1 pixels: the far end is drawn, as Pillow does.
    """
    return _cut(images, *send((_box(shares, *images.shape[2:]), _color()), images.device))


def _source(start: Tensor, flip: Tensor, recipe: Recipe, side: int) -> Tensor:
    """Row or column of the image for each one of the view, (N, size)."""
    size = recipe.size or side
    place = torch.arange(size).expand(len(start), -1)
    place = torch.where(flip[:, None], size - 1 - place, place) + (start - recipe.pad)[:, None]
    return (side - 1) - ((side - 1) - place.abs()).abs()


def _crop(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    place = rows[:, :, None] * images.shape[3] + columns[:, None, :]
    flat = place.flatten(1)[:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, flat).view(len(images), -1, *place.shape[1:])


def _triangles(start: Tensor, side: Tensor, flip: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Rows or columns that make each of ``size``, and their weights as whole numbers; (how many, N, size) each."""
    scale = side.double()[:, None] / size
    reach = scale.clamp(min=1)  # half the foot of the triangle: a pixel of the larger one of both images
    place = torch.arange(size, dtype=torch.float64).expand(len(side), -1)
    middle = scale * (torch.where(flip[:, None], size - 1 - place, place) + 0.5)
    first = (middle - reach + 0.5).to(torch.int64).clamp(min=0)
    number = int(2 * reach.max()) + 1 if len(side) else 1
    pixel = first + torch.arange(number)[:, None, None]
    weight = (1 - ((pixel - middle + 0.5) / reach).abs()).clamp(min=0) * (pixel < side[:, None])
    fixed = (weight / weight.sum(0) * 2**_FIXED + 0.5).to(torch.int32)
    return pixel.minimum(side[:, None] - 1) + start[:, None], fixed


def _resize(images: Tensor, across: tuple[Tensor, Tensor], down: tuple[Tensor, Tensor]) -> Tensor:
    return _weigh(_weigh(images.transpose(2, 3), *across).transpose(2, 3), *down)


def _weigh(images: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of the rows of each image, rounded; in 32-bit whole numbers, as Pillow."""
    n, channels, height, width = images.shape
    every = images.flatten(0, 2)
    begin = height * torch.arange(n * channels, device=images.device).view(n, channels, 1)
    shape = n, channels, rows.shape[2], width
    total = torch.full(shape, 2 ** (_FIXED - 1), dtype=torch.int32, device=images.device)
    for row, weight in zip(rows, weights, strict=True):
        taken = every.index_select(0, (begin + row[:, None]).flatten()).view(shape)
        total += taken.to(torch.int32).mul_(weight[:, None, :, None])
    return (total >> _FIXED).to(torch.uint8)


def _slots(recipe: Recipe, draw: StrongDraw, height: int, width: int) -> tuple[Slot, ...]:
    numbers = torch.tensor([FAMILIES.index(name) for name in recipe.operations], dtype=torch.int64)
    drawn = zip(draw.operation, draw.magnitude, strict=True)
    return tuple(plan_slot(numbers[operation], magnitude, height, width) for operation, magnitude in drawn)


def _box(shares: Tensor, height: int, width: int) -> Tensor:
    """See ``Plan`` and ``cutout``."""
    side, x, y = shares[0] * width, shares[1] * width, shares[2] * height
    left, top = (x - side / 2).clamp(min=0).floor(), (y - side / 2).clamp(min=0).floor()
    right, bottom = (left + side).clamp(max=width).floor(), (top + side).clamp(max=height).floor()
    return torch.stack([left, right, top, bottom, (side > 0).to(left.dtype)])[..., None]


def _color() -> Tensor:
    return torch.tensor(CUTOUT_COLOR, dtype=torch.uint8).view(1, 3, 1, 1)


def _cut(images: Tensor, box: Tensor, color: Tensor) -> Tensor:
    height, width = images.shape[2:]
    column = torch.arange(width, device=images.device)
    row = torch.arange(height, device=images.device)
    across = (column >= box[0]) & (column <= box[1])
    down = (row >= box[2]) & (row <= box[3]) & (box[4] > 0)
    inside = (down[:, :, None].view(torch.uint8) * across[:, None, :].view(torch.uint8))[:, None]  # 0 or 1
    return images * (1 - inside) + color * inside


def to_float(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Network input: float32, (x / 255 - mean) / std, channels last in memory; mean and std are (3,)."""
    n, _, height, width = images.shape
    wide = torch.stack(images.unbind(1), 3).view(n * height, width * 3).float()  # long rows: the processor adds in bulk
    wide.mul_((1 / (255 * std)).repeat(width)).sub_((mean / std).repeat(width))
    return wide.view(n, height, width, 3).permute(0, 3, 1, 2)

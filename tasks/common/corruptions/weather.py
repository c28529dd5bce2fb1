"""Weather: snow, frost, fog and brightness.

Each function takes uint8 (N, 3, S, S), a severity 1..5, the draws and a recipe, and returns uint8 of that shape.
Formulas: the scripts of Hendrycks and Dietterich (ICLR 2019, arXiv 1903.12261).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dembench.tasks.common.corruptions.blur import eight_bit, motion
from dembench.tasks.common.corruptions.draws import Draws
from dembench.tasks.common.corruptions.pixels import centre_zoom, divide, to_float, to_uint8
from dembench.tasks.common.corruptions.recipes import CIFAR, Recipe


def snow(images: Tensor, severity: int, draws: Draws, recipe: Recipe = CIFAR) -> Tensor:
    """Whitens the image and adds falling flakes, together with the same flakes turned by 180 degrees."""
    mean, deviation, zoom, threshold, radius, sigma, keep = recipe.snow[severity - 1]
    side = images.shape[-1]
    layer = centre_zoom(draws.normal("flakes", 1, side, side) * deviation + mean, zoom, not recipe.package)
    layer = torch.where(layer < threshold, 0.0, layer)
    degrees = draws.uniform("angle") * 90 - 135
    if recipe.package:
        layer = motion(layer.clamp(0, 1), degrees, radius, sigma)[..., :side, :side]
        layer = (layer * 255).round().to(torch.uint8)
    else:
        layer = eight_bit(motion(to_uint8(layer), degrees, radius, sigma))
    image = divide(images.to(torch.float32), 255)  # float32 up to the sum, as the original
    red, green, blue = image[:, 0:1], image[:, 1:2], image[:, 2:3]
    grey = red * 0.299 + green * 0.587 + blue * 0.114
    image = image * keep + torch.maximum(image, grey * 1.5 + 0.5) * (1 - keep)
    layer = to_float(layer)
    return to_uint8(image.to(torch.float64) + layer + layer.flip(2, 3))


def frost(images: Tensor, severity: int, draws: Draws, recipe: Recipe = CIFAR, *, photos: tuple[Tensor, ...]) -> Tensor:
    """Adds a random crop of one of the photos, each uint8 (3, H, W) and already of the recipe's size."""
    keep, amount = recipe.frost[severity - 1]
    side = images.shape[-1]
    which = draws.below("photo", len(photos))
    sizes = torch.tensor([photo.shape[1:] for photo in photos], device=images.device)[which]
    top = draws.below("top", sizes[:, 0] - side)
    left = draws.below("left", sizes[:, 1] - side)
    layer = torch.empty_like(images)
    place = torch.arange(side, device=images.device)
    for number, photo in enumerate(photos):
        chosen = (which == number).nonzero()[:, 0]
        rows = (top[chosen, None] + place)[:, :, None]
        columns = (left[chosen, None] + place)[:, None, :]
        layer[chosen] = photo[:, rows, columns].transpose(0, 1)
    mixed = images.to(torch.float64) * keep + layer.to(torch.float64) * amount
    return mixed.clamp(0, 255).to(torch.uint8)


def plasma(uniform: Tensor, decay: float) -> Tensor:
    """Plasma fractal by diamond-square on a torus of S x S points, S a power of two; (N, S, S) float64 in [0, 1].

    Args:
        uniform: (N, S * S - 1) float64 in [0, 1).

    The numbers are used scale by scale, from coarse to fine: the centres of the squares, then the middles of the
    horizontal edges, then of the vertical ones. The amplitude is the square of 100 / decay**level.
    """
    size = math.isqrt(uniform.shape[1] + 1)
    heights = uniform.new_zeros(len(uniform), size, size)
    step, wibble, used = size, 100.0, 0

    def middle(total: Tensor) -> Tensor:
        nonlocal used
        count = total[0].numel()
        noise = uniform[:, used : used + count].view_as(total) * (2 * wibble) - wibble
        used += count
        return total / 4 + noise * wibble

    while step >= 2:
        half = step // 2
        corners = heights[:, ::step, ::step].clone()
        pairs = corners + corners.roll(-1, 1)
        centres = middle(pairs + pairs.roll(-1, 2))
        across = middle((centres + centres.roll(1, 1)) + (corners + corners.roll(-1, 2)))
        along = middle((centres + centres.roll(1, 2)) + (corners + corners.roll(-1, 1)))
        heights[:, half::step, half::step] = centres
        heights[:, ::step, half::step] = across
        heights[:, half::step, ::step] = along
        step, wibble = half, wibble / decay
    heights = heights - heights.amin((1, 2), keepdim=True)
    return heights / heights.amax((1, 2), keepdim=True)


def fog(images: Tensor, severity: int, draws: Draws, recipe: Recipe = CIFAR) -> Tensor:
    """Adds a plasma fractal and scales back to the image's own maximum."""
    amount, decay = recipe.fog[severity - 1]
    side = images.shape[-1]
    size = 2 ** (side - 1).bit_length()
    image = to_float(images)
    most = image.amax((1, 2, 3), keepdim=True)
    fractal = plasma(draws.uniform("heights", size**2 - 1), decay)[:, None, :side, :side]
    image = image + fractal * amount
    return to_uint8(image * most / (most + amount))


def brightness(images: Tensor, severity: int, draws: Draws | None = None, recipe: Recipe = CIFAR) -> Tensor:
    """Adds to the value of HSV; hue and saturation stay."""
    red, green, blue = to_float(images).unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    delta = value - torch.minimum(torch.minimum(red, green), blue)
    safe = torch.where(delta == 0, 1.0, delta)
    hue = torch.where(red == value, (green - blue) / safe, 0.0)
    hue = torch.where(green == value, 2 + (blue - red) / safe, hue)
    hue = torch.where(blue == value, 4 + (red - green) / safe, hue)
    hue = torch.where(delta == 0, 0.0, divide(hue, 6) % 1)
    saturation = torch.where(value == 0, 0.0, delta / torch.where(value == 0, 1.0, value))
    value = (value + recipe.brightness[severity - 1]).clamp(0, 1)
    sector = torch.floor(hue * 6)
    part = hue * 6 - sector
    low = value * (1 - saturation)
    fall = value * (1 - part * saturation)
    rise = value * (1 - (1 - part) * saturation)
    by_sector = (  # red, green, blue
        (value, rise, low),
        (fall, value, low),
        (low, value, rise),
        (low, fall, value),
        (rise, low, value),
        (value, low, fall),
    )
    sector = sector.long()[:, None] % 6
    bright = torch.stack(by_sector[0], 1)
    for number in range(1, 6):
        bright = torch.where(sector == number, torch.stack(by_sector[number], 1), bright)
    return to_uint8(bright)

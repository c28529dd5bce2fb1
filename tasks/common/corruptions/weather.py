"""Weather of CIFAR-10-C: snow, frost, fog and brightness.

Each function takes uint8 (N, 3, 32, 32), a severity 1..5 and the draws, and returns uint8 of that shape. Constants
and formulas: the CIFAR-10-C script of Hendrycks and Dietterich (ICLR 2019, arXiv 1903.12261).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dembench.tasks.common.corruptions.blur import motion
from dembench.tasks.common.corruptions.draws import Draws
from dembench.tasks.common.corruptions.pixels import (
    SIZE,
    along_both,
    centre_zoom_matrix,
    divide,
    per_device,
    to_float,
    to_uint8,
)

SNOW = (  # mean, deviation, zoom, threshold of the flakes; radius, sigma of their fall; share of the image kept
    (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
    (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
    (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
    (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
    (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
)
FROST = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))  # weight of the image, of the frost
FOG = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))  # amount, decay from scale to scale
BRIGHTNESS = (0.05, 0.1, 0.15, 0.2, 0.3)  # added to the value of HSV

flake_matrix = per_device(centre_zoom_matrix)


def snow(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Whitens the image and adds falling flakes, together with the same flakes turned by 180 degrees."""
    mean, deviation, zoom, threshold, radius, sigma, keep = SNOW[severity - 1]
    layer = draws.normal("flakes", 1, SIZE, SIZE) * deviation + mean
    layer = along_both(flake_matrix(zoom, images.device), layer)
    layer = to_uint8(torch.where(layer < threshold, 0.0, layer))
    layer = motion(layer, draws.uniform("angle") * 90 - 135, radius, sigma)
    image = divide(images.to(torch.float32), 255)  # float32 up to the sum, as the original
    red, green, blue = image[:, 0:1], image[:, 1:2], image[:, 2:3]
    grey = red * 0.299 + green * 0.587 + blue * 0.114
    image = image * keep + torch.maximum(image, grey * 1.5 + 0.5) * (1 - keep)
    layer = to_float(layer)
    return to_uint8(image.to(torch.float64) + layer + layer.flip(2, 3))


def frost(images: Tensor, severity: int, draws: Draws, photos: tuple[Tensor, ...]) -> Tensor:
    """Adds a random crop of one of the photos, each uint8 (3, H, W) and already shrunk for 32-pixel images."""
    keep, amount = FROST[severity - 1]
    which = draws.below("photo", len(photos))
    sizes = torch.tensor([photo.shape[1:] for photo in photos], device=images.device)[which]
    top = draws.below("top", sizes[:, 0] - SIZE)
    left = draws.below("left", sizes[:, 1] - SIZE)
    layer = torch.empty_like(images)
    place = torch.arange(SIZE, device=images.device)
    for number, photo in enumerate(photos):
        chosen = (which == number).nonzero()[:, 0]
        rows = (top[chosen, None] + place)[:, :, None]
        columns = (left[chosen, None] + place)[:, None, :]
        layer[chosen] = photo[:, rows, columns].transpose(0, 1)
    mixed = images.to(torch.float64) * keep + layer.to(torch.float64) * amount
    return mixed.clamp(0, 255).to(torch.uint8)


def plasma(uniform: Tensor, decay: float) -> Tensor:
    """Plasma fractal by diamond-square on a torus, from (N, 1023) uniform numbers; (N, 32, 32) float64 in [0, 1].

    The numbers are used scale by scale, from coarse to fine: the centres of the squares, then the middles of the
    horizontal edges, then of the vertical ones. The amplitude is the square of 100 / decay**level.
    """
    heights = uniform.new_zeros(len(uniform), SIZE, SIZE)
    step, wibble, used = SIZE, 100.0, 0

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


def fog(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Adds a plasma fractal and scales back to the image's own maximum."""
    amount, decay = FOG[severity - 1]
    image = to_float(images)
    most = image.amax((1, 2, 3), keepdim=True)
    image = image + plasma(draws.uniform("heights", SIZE**2 - 1), decay)[:, None] * amount
    return to_uint8(image * most / (most + amount))


def brightness(images: Tensor, severity: int, draws: Draws | None = None) -> Tensor:
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
    value = (value + BRIGHTNESS[severity - 1]).clamp(0, 1)
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

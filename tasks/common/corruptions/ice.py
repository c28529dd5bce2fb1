"""The layers that frost mixes in: the original's photos where given, else a made texture.

The photos of the original script have no stated origin, so none are shipped.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dembench.tasks.common.corruptions.draws import Draws
from dembench.tasks.common.corruptions.pixels import SIZE
from dembench.tasks.common.decoding import decode

PHOTOS = ("frost1", "frost2", "frost3", "frost4", "frost5")  # the original names six and never draws the sixth
SHRINK = 5


def load_photos(folder: str | Path) -> tuple[Tensor, ...]:
    """The five photos, shrunk to a fifth as OpenCV's bilinear resize does; uint8 (3, H, W) each.

    At a fifth, the bilinear sample falls on the middle of each five pixels, so nothing is averaged.
    Raises: FileNotFoundError where the folder or one of frost1 .. frost5 (any extension) is missing, ValueError where
    a file is no image or has fewer than 163 pixels a side.
    """
    folder = Path(folder)
    where = (
        "take frost1.png, frost2.png, frost3.png, frost4.jpg and frost5.jpg from ImageNet-C/create_c of the "
        "GitHub repository hendrycks/robustness and put them into one folder"
    )
    if not folder.is_dir():
        raise FileNotFoundError(f"frost: no folder {str(folder)!r}; {where}, or give no folder to use a made texture")
    found = {name: sorted(path for path in folder.glob(f"{name}.*") if path.is_file()) for name in PHOTOS}
    missing = [name for name in PHOTOS if not found[name]]
    if missing:
        raise FileNotFoundError(f"frost: {str(folder)!r} lacks {', '.join(missing)} (any image extension); {where}")
    return tuple(_load(found[name][0], found[name][0].stat().st_mtime_ns) for name in PHOTOS)


@lru_cache(maxsize=16)
def _load(path: Path, changed: int) -> Tensor:
    """One shrunk photo; ``changed`` is the file's time, so that another file under the same name is read anew."""
    photo = np.asarray(decode(path, f"frost: {str(path)!r}"))
    height, width = (round(side / SHRINK) for side in photo.shape[:2])
    if min(height, width) <= SIZE:
        raise ValueError(
            f"frost: expected at least {SIZE * SHRINK + 3} pixels a side, got "
            f"{photo.shape[1]} x {photo.shape[0]} in {str(path)!r}"
        )
    middle = SHRINK // 2
    return torch.from_numpy(photo[middle::SHRINK, middle::SHRINK][:height, :width].copy()).permute(2, 0, 1)


# Red, green and blue mean; their deviations; slope and share of the cloudy part; skewness. As many and as bright as the
# photos, of which two are the same.
TEXTURES = (
    ((78, 149, 166), (27, 16, 15), 2.2, 0.75, 0.5),
    ((201, 205, 214), (22, 22, 22), 2.0, 0.6, -1.0),
    ((201, 205, 214), (22, 22, 22), 2.0, 0.6, -1.0),
    ((138, 153, 166), (29, 29, 29), 1.9, 0.5, 0.2),
    ((112, 123, 135), (44, 43, 42), 1.3, 0.7, 0.5),
)
SIDE = 128


@cache
def made_textures() -> tuple[Tensor, ...]:
    """Five textures that stand in for the frost photos, uint8 (3, 128, 128): not Hendrycks's frost.

    Each is a cloudy field (power falling with frequency) and fine ice needles, grown in patches of three directions
    60 degrees apart. Colour, contrast and slope of the spectrum are near the photos'; shapes are not.
    """
    draws = Draws(0, "frost", 0, torch.arange(len(TEXTURES)))
    down, right = torch.meshgrid(*2 * [torch.fft.fftfreq(SIDE, dtype=torch.float64) * SIZE], indexing="ij")
    radius = torch.hypot(down, right)  # cycles per 32 pixels

    def field(purpose: str, amplitude: Tensor) -> Tensor:
        """Normal noise (5, 128, 128) with the given amplitude per frequency, mean 0, deviation 1."""
        return _standard(torch.fft.ifft2(torch.fft.fft2(draws.normal(purpose, SIDE, SIDE)) * amplitude).real)

    slopes = torch.tensor([texture[2] for texture in TEXTURES], dtype=torch.float64)[:, None, None]
    cloud = field("cloud", radius.clamp(min=1) ** (-slopes / 2))
    needles = torch.zeros_like(cloud)
    for degrees in (15, 75, 135):
        angle = math.radians(degrees)
        along = right * math.cos(angle) + down * math.sin(angle)
        patch = field(f"patch {degrees}", torch.exp(-((radius / 4) ** 2))).clamp(min=0)
        needles += patch * field(f"needles {degrees}", torch.exp(-((along / 5) ** 2)))
    needles = _standard(needles)
    made = []
    for number, (means, deviations, _, share, skew) in enumerate(TEXTURES):
        height = share**0.5 * cloud[number] + (1 - share) ** 0.5 * needles[number]
        height = _standard((height + skew / 6 * (height**2 - 1))[None])
        colour, scale = (torch.tensor(part, dtype=torch.float64)[:, None, None] for part in (means, deviations))
        made.append((colour + scale * height).clamp(0, 255).round().to(torch.uint8))
    return tuple(made)


def _standard(values: Tensor) -> Tensor:
    values = values - values.mean((1, 2), keepdim=True)
    return values / values.std((1, 2), keepdim=True)

"""The layers that frost mixes in: the original's photos where given, else a made texture.

The photos of the original script have no stated origin, so none are shipped. The package imagecorruptions has them.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dembench.tasks.common.corruptions.draws import Draws
from dembench.tasks.common.corruptions.recipes import CIFAR, Recipe
from dembench.tasks.common.decoding import decode

PHOTOS = ("frost1", "frost2", "frost3", "frost4", "frost5")  # the original names six and never draws the sixth
WHERE = (
    "the photos come with a package: pip install --no-deps imagecorruptions==1.1.2; or take frost1.png, frost2.png, "
    "frost3.png, frost4.jpg and frost5.jpg from ImageNet-C/create_c of the GitHub repository hendrycks/robustness and "
    "put them into one folder"
)


def photos_folder(asked: str | Path | None, *others: Path) -> Path | None:
    """Where the photos are: ``asked``, or, for None, in the installed package imagecorruptions or the first of
    ``others`` that has all five; None where there are none, and for "made".

    The package is not imported: it needs others that may not be there.
    """
    if asked is not None:
        return None if asked == "made" else Path(asked).expanduser()
    try:
        spec = find_spec("imagecorruptions")
    except (ImportError, ValueError):
        spec = None
    places = [] if spec is None else [Path(place) / "frost" for place in spec.submodule_search_locations or ()]
    return next((folder for folder in (*places, *others) if not _missing(folder)), None)


def _missing(folder: Path) -> list[str]:
    return [name for name in PHOTOS if not any(path.is_file() for path in folder.glob(f"{name}.*"))]


def load_photos(folder: str | Path, recipe: Recipe = CIFAR, side: int = 32) -> tuple[Tensor, ...]:
    """The five photos in the recipe's size for images of ``side`` pixels; uint8 (3, H, W) each.

    Shrunk to a fifth as OpenCV's bilinear resize does: the sample falls on the middle of each five pixels, so nothing
    is averaged. Of the package's recipe enlarged as OpenCV's cubic resize does, but for its fixed-point rounding.
    Raises: FileNotFoundError where the folder or one of frost1 .. frost5 (any extension) is missing, ValueError where
    a file is no image or has too few pixels a side.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"frost: no folder {str(folder)!r}; {WHERE}, or say made for a made texture")
    if missing := _missing(folder):
        raise FileNotFoundError(f"frost: {str(folder)!r} lacks {', '.join(missing)} (any image extension); {WHERE}")
    found = [next(path for path in sorted(folder.glob(f"{name}.*")) if path.is_file()) for name in PHOTOS]
    return tuple(_load(path, path.stat().st_mtime_ns, recipe, side) for path in found)


@lru_cache(maxsize=32)
def _load(path: Path, changed: int, recipe: Recipe, side: int) -> Tensor:
    """One photo; ``changed`` is the file's time, so that another file under the same name is read anew."""
    photo = np.array(decode(path, f"frost: {str(path)!r}"))
    if recipe.package:
        return _enlarged(torch.from_numpy(photo).permute(2, 0, 1), side)
    height, width = (round(extent / recipe.shrink) for extent in photo.shape[:2])
    if min(height, width) <= side:
        raise ValueError(
            f"frost: expected at least {side * recipe.shrink + recipe.shrink // 2 + 1} pixels a side, got "
            f"{photo.shape[1]} x {photo.shape[0]} in {str(path)!r}"
        )
    middle = recipe.shrink // 2
    cut = photo[middle :: recipe.shrink, middle :: recipe.shrink][:height, :width]
    return torch.from_numpy(cut.copy()).permute(2, 0, 1)


def _enlarged(photo: Tensor, side: int) -> Tensor:
    """By a tenth more than what makes it as large as an image of ``side`` pixels, or than nothing."""
    factor = 1.1 * max(1.0, *(side / extent for extent in photo.shape[1:]))
    size = [math.ceil(extent * factor) for extent in photo.shape[1:]]
    large = F.interpolate(photo[None].double(), size=size, mode="bicubic", align_corners=False)
    return large[0].round().clamp(0, 255).to(torch.uint8)


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
def made_textures(scale: int = 1) -> tuple[Tensor, ...]:
    """Five textures in place of the frost photos, uint8 (3, 128 * scale, 128 * scale): not Hendrycks's frost.

    Each is a cloudy field (power falling with frequency) and fine ice needles, grown in patches of three directions
    60 degrees apart. Colour, contrast and slope of the spectrum are near the photos'; shapes are not. ``scale`` 1 is
    for images of 32 pixels and photos shrunk to a fifth, 5 for photos as they are.
    """
    draws = Draws(0, "frost", 0, torch.arange(len(TEXTURES)))
    side = SIDE * scale
    down, right = torch.meshgrid(*2 * [torch.fft.fftfreq(side, dtype=torch.float64) * 32 * scale], indexing="ij")
    radius = torch.hypot(down, right)  # cycles per 32 pixels, or as many more

    def field(purpose: str, amplitude: Tensor) -> Tensor:
        """Normal noise (5, side, side) with the given amplitude per frequency, mean 0, deviation 1."""
        return _standard(torch.fft.ifft2(torch.fft.fft2(draws.normal(purpose, side, side)) * amplitude).real)

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

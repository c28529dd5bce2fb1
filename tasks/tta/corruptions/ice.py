"""The layers that frost mixes in: the original's photos where given, else a made texture.

The photos of the original script have no stated origin, so none are shipped.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tasks.tta.corruptions.draws import Draws
from tasks.tta.corruptions.pixels import SIZE

PHOTOS = ("frost1", "frost2", "frost3", "frost4", "frost5")  # the original names six and never draws the sixth
SHRINK = 5


def load_photos(folder: str | Path) -> tuple[Tensor, ...]:
    """The five photos, shrunk to a fifth as OpenCV's bilinear resize does; uint8 (3, H, W) each.

    At a fifth, the bilinear sample falls on the middle of each five pixels, so nothing is averaged.
    Raises: FileNotFoundError where the folder or one of frost1 .. frost5 (any extension) is missing, ValueError where
    a file is no image or has fewer than 165 pixels a side.
    """
    folder = Path(folder)
    where = "take frost1.png, frost2.png, frost3.png, frost4.jpg and frost5.jpg from ImageNet-C/create_c of the " \
        "GitHub repository hendrycks/robustness and put them into one folder"
    if not folder.is_dir():
        raise FileNotFoundError(f"frost: no folder {str(folder)!r}; {where}, or give no folder to use a made texture")
    found = {name: sorted(path for path in folder.glob(f"{name}.*") if path.is_file()) for name in PHOTOS}
    missing = [name for name in PHOTOS if not found[name]]
    if missing:
        raise FileNotFoundError(f"frost: {str(folder)!r} lacks {', '.join(missing)} (any image extension); {where}")
    return tuple(_load(found[name][0]) for name in PHOTOS)


def _load(path: Path) -> Tensor:
    try:
        with Image.open(path) as file:
            photo = np.array(file.convert("RGB"))
    except OSError as error:
        raise ValueError(f"frost: {str(path)!r} cannot be read as an image: {error}") from error
    height, width = (round(side / SHRINK) for side in photo.shape[:2])
    if min(height, width) <= SIZE:
        raise ValueError(f"frost: expected at least {(SIZE + 1) * SHRINK} pixels a side, got "
                         f"{photo.shape[1]} x {photo.shape[0]} in {str(path)!r}")
    middle = SHRINK // 2
    return torch.from_numpy(photo[middle::SHRINK, middle::SHRINK][:height, :width].copy()).permute(2, 0, 1)


@cache
def made_textures() -> tuple[Tensor, ...]:
    """Five textures that stand in for the frost photos, uint8 (3, 96, 128): not Hendrycks's frost."""
    draws = Draws(0, "frost", 0, torch.arange(5))
    grain = draws.normal("grain", 3, 96, 128) * 25 + 150
    return tuple(grain.clamp(0, 255).to(torch.uint8))

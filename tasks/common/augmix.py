"""AugMix as TPT's code (63ecbac) and MEMO's have it, at severity 1: nine operations of Pillow, chained and mixed.

The magnitude of an operation is that of Hendrycks et al. 2020, level / 10 of its greatest, with a level drawn from 0.1
to 1: posterising to 4 bits, rotating by up to 2 degrees, solarising above 231, shearing by up to 0.03, moving by up to
7 of 224 pixels. torchvision's AugMix at severity 1 takes level 0, where six of the nine leave the image as it is.
MEMO fills what comes in at a border with Pillow's colour 128, TPT with black.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageOps

CHAINS, MOST_OPERATIONS = 3, 3


def _drawn() -> float:
    return float(torch.rand(()))


def _level() -> float:
    """A tenth of the level that the operations scale."""
    return (0.1 + 0.9 * _drawn()) / 10


def _sign() -> int:
    return -1 if _drawn() > 0.5 else 1


def _affine(image: Image.Image, fill: int | None, *coefficients: float) -> Image.Image:
    bilinear = Image.Resampling.BILINEAR
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, resample=bilinear, fillcolor=fill)


def _autocontrast(image: Image.Image, fill: int | None) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, fill: int | None) -> Image.Image:
    return ImageOps.equalize(image)


def _posterize(image: Image.Image, fill: int | None) -> Image.Image:
    return ImageOps.posterize(image, 4 - int(_level() * 4))


def _rotate(image: Image.Image, fill: int | None) -> Image.Image:
    return image.rotate(int(_level() * 30) * _sign(), resample=Image.Resampling.BILINEAR, fillcolor=fill)


def _solarize(image: Image.Image, fill: int | None) -> Image.Image:
    return ImageOps.solarize(image, 256 - int(_level() * 256))


def _shear_x(image: Image.Image, fill: int | None) -> Image.Image:
    return _affine(image, fill, 1, _level() * 0.3 * _sign(), 0, 0, 1, 0)


def _shear_y(image: Image.Image, fill: int | None) -> Image.Image:
    return _affine(image, fill, 1, 0, 0, _level() * 0.3 * _sign(), 1, 0)


def _translate_x(image: Image.Image, fill: int | None) -> Image.Image:
    return _affine(image, fill, 1, 0, int(_level() * image.width / 3) * _sign(), 0, 1, 0)


def _translate_y(image: Image.Image, fill: int | None) -> Image.Image:
    return _affine(image, fill, 1, 0, 0, 0, 1, int(_level() * image.height / 3) * _sign())


OPERATIONS = (
    *(_autocontrast, _equalize, _posterize, _rotate, _solarize),
    *(_shear_x, _shear_y, _translate_x, _translate_y),
)


def augmix(image: Image.Image, fill: int | None = None) -> np.ndarray:
    """float32 (H, W, 3), grey levels from 0 to 255, of an RGB image; drawn from torch's global generator.

    Three chains of one to three operations, mixed with weights from Dirichlet(1, 1, 1); of the sum, and of the image
    itself, a share from Beta(1, 1), which is uniform. TPT mixes after the normalisation, which gives the same.
    """
    weights = torch.distributions.Dirichlet(torch.ones(CHAINS)).sample().tolist()
    share = _drawn()
    mixed = share * np.asarray(image, np.float32)
    for weight in weights:
        changed = image
        for _ in range(1 + int(torch.randint(MOST_OPERATIONS, ()))):
            changed = OPERATIONS[int(torch.randint(len(OPERATIONS), ()))](changed, fill)
        mixed += np.float32((1 - share) * weight) * np.asarray(changed, np.float32)
    return mixed

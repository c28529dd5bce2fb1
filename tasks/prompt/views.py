"""The views of an image: the plain one first, then random crops, the same for an image whenever it comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop, v2
from torchvision.transforms.v2 import functional as F

from dembench.tasks.common.augmix import augmix

VERSION = 1


@dataclass(frozen=True)
class Views:
    """How many views an image has and how they are made.

    View 0 is resized so that its shorter side fits and cropped at the centre. The others are random parts of the
    original image, resized bilinearly, mirrored with a probability, all drawn from a generator of the image's own.

    Args:
        count: all views, with view 0.
        scale: least and greatest share of the image's area in a crop; its sides' ratio is 3/4 to 4/3.
        flip: probability that a crop is mirrored.
        augmix: whether AugMix comes after the crop.
        augmix_of: "tpt", that of TPT's code, rounded to whole grey levels; or "torchvision", that of torchvision at
            severity 1, which changes images about a third as much.
        seed: of the draws.
    Raises: ValueError for a value that makes no sense.
    Source: Shu et al., Test-Time Prompt Tuning, 2022, and its code (63ecbac): 64 views, scale 0.08 to 1, flip 0.5.
    """

    count: int = 64
    scale: Sequence[float] = (0.08, 1.0)
    flip: float = 0.5
    augmix: bool = False
    seed: int = 0
    augmix_of: Literal["torchvision", "tpt"] = "torchvision"

    def __post_init__(self) -> None:
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
            raise ValueError(f"views: expected a whole count >= 1, got {self.count!r}")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"views: expected a scale of two shares, 0 < least <= greatest <= 1, got {self.scale!r}")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"views: expected flip to be a probability, got {self.flip!r}")
        if self.augmix_of not in ("torchvision", "tpt"):
            raise ValueError(f"views: expected augmix_of torchvision or tpt, got {self.augmix_of!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"views: expected a whole seed >= 0, got {self.seed!r}")

    @property
    def identity(self) -> str:
        """All that the views of an image depend on."""
        given = {**asdict(self), "scale": tuple(self.scale)}
        if not self.augmix or self.augmix_of == "torchvision":
            del given["augmix_of"]
        return repr((VERSION, given))

    def __call__(self, image: Any, number: int, size: int, interpolation: str = "bicubic") -> Tensor:
        """uint8 (count, 3, size, size) of a PIL image or a uint8 tensor (3, H, W), the ``number``-th of its set."""
        views = [plain_view(image, size, interpolation)]
        if self.count > 1:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1_000_003 * self.seed + number)
                views += [self._random(image, size) for _ in range(self.count - 1)]
        return torch.stack(views)

    def _random(self, image: Any, size: int) -> Tensor:
        box = RandomResizedCrop.get_params(image, list(self.scale), [3 / 4, 4 / 3])
        view = F.resized_crop(image, *box, [size, size], InterpolationMode.BILINEAR, antialias=True)
        if float(torch.rand(())) < self.flip:
            view = F.horizontal_flip(view)
        if self.augmix and self.augmix_of == "tpt":
            mixed = augmix(view if isinstance(view, Image.Image) else F.to_pil_image(view))
            return torch.from_numpy(mixed.round().astype(np.uint8)).permute(2, 0, 1)
        return _tensor(v2.AugMix(severity=1, all_ops=False)(view) if self.augmix else view)


def plain_view(image: Any, size: int, interpolation: str = "bicubic") -> Tensor:
    """uint8 (3, size, size) of a PIL image or a uint8 tensor: the shorter side resized to ``size``, then the centre."""
    image = F.resize(image, [size], InterpolationMode(interpolation), antialias=True)
    return _tensor(F.center_crop(image, [size, size]))


def _tensor(image: Any) -> Tensor:
    return image if isinstance(image, Tensor) else F.pil_to_tensor(image)

"""Image files of any size as batches of uint8 tensors: decoded in threads, a few batches ahead of their use."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dembench.lookup import lookup
from dembench.tasks.common.decoding import check_size, decode, workers

AHEAD = 3  # batches that are being decoded while one is in use


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes the input of a model, as its weights were evaluated: resize, then crop the centre.

    Args:
        resize: pixels of the shorter side (``squash``: of both sides) before the crop.
        crop: pixels of both sides afterwards; where the resized image is smaller, it is padded with zeros.
        interpolation: Pillow's, with its antialiasing.
    """

    resize: int
    crop: int
    interpolation: Literal["bilinear", "bicubic", "nearest", "lanczos"] = "bilinear"
    squash: bool = False

    def __post_init__(self) -> None:
        if self.resize < 1 or self.crop < 1:
            raise ValueError(f"Preprocess: expected sizes > 0, got resize {self.resize} and crop {self.crop}")
        lookup(self.interpolation, ("bilinear", "bicubic", "nearest", "lanczos"), "interpolation")

    def __str__(self) -> str:
        side = "both sides" if self.squash else "the shorter side"
        return f"{side} to {self.resize} ({self.interpolation}), centre crop {self.crop}"

    def __call__(self, image: Image.Image, where: str = "an image") -> np.ndarray:
        """RGB uint8 (crop, crop, 3). Raises: ConfigError, naming ``where``, for a resized image that is too large."""
        image = image.convert("RGB")
        width, height = image.size
        if self.squash:
            size = (self.resize, self.resize)
        else:  # the longer side is rounded down, as torchvision does
            short = min(width, height)
            size = (self.resize * width // short, self.resize * height // short)
        check_size(*size, where)
        if size != (width, height):
            image = image.resize(size, Image.Resampling[self.interpolation.upper()])
        left, top = (_margin(side, self.crop) for side in image.size)
        if (left, top, *image.size) != (0, 0, self.crop, self.crop):
            image = image.crop((left, top, left + self.crop, top + self.crop))
        return np.asarray(image)


def _margin(side: int, crop: int) -> int:
    """Where a centre crop begins, rounded as torchvision does; negative where it is padded."""
    return round((side - crop) / 2) if side >= crop else -((crop - side) // 2)


class ImageFiles:
    """Paths that act as uint8 images (N, 3, crop, crop); nothing is decoded before it is asked for.

    A domain of 50,000 images of 224 pixels would take 7.5 GB decoded; here ``AHEAD`` + 1 batches are in memory.
    """

    def __init__(self, paths: Sequence[str], preprocess: Preprocess) -> None:
        self.paths, self.preprocess = list(paths), preprocess

    @classmethod
    def below(cls, root: Path, names: Sequence[str], preprocess: Preprocess) -> ImageFiles:
        """The files ``names`` in the folder ``root``."""
        return cls([os.path.join(root, name) for name in names], preprocess)

    def __len__(self) -> int:
        return len(self.paths)

    def __add__(self, other: ImageFiles) -> ImageFiles:
        return ImageFiles(self.paths + other.paths, self.preprocess)

    def __getitem__(self, order: Tensor) -> ImageFiles:
        """The files at the positions ``order``, (M,) int64."""
        return ImageFiles([self.paths[k] for k in order.tolist()], self.preprocess)

    def batches(self, size: int) -> Iterator[Tensor]:
        """uint8 (size, 3, crop, crop) in channels-last memory, in order; the last may be smaller."""
        with ThreadPoolExecutor(workers()) as pool:
            waiting: deque[list[Future[np.ndarray]]] = deque()
            starts = iter(range(0, len(self), size))

            def ask(start: int) -> list[Future[np.ndarray]]:
                return [pool.submit(self._decode, path) for path in self.paths[start : start + size]]

            try:
                waiting.extend(ask(start) for start in islice(starts, AHEAD))
                while waiting:
                    batch = [future.result() for future in waiting.popleft()]
                    waiting.extend(ask(start) for start in islice(starts, 1))
                    yield torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)
            finally:
                pool.shutdown(cancel_futures=True)

    def tensor(self) -> Tensor:
        """All of them at once, uint8 (N, 3, crop, crop)."""
        return next(self.batches(max(1, len(self)))) if len(self) else torch.empty(0, 3, 0, 0, dtype=torch.uint8)

    def _decode(self, path: str) -> np.ndarray:
        return self.preprocess(decode(path), path)


def of_torchvision(preset: Any) -> Preprocess:
    """That of ``weights.transforms()``; ValueError for a preset of another kind."""
    try:
        (resize,), (crop,) = preset.resize_size, preset.crop_size
        return Preprocess(resize, crop, preset.interpolation.value)
    except (AttributeError, ValueError) as error:
        raise ValueError(f"torchvision: cannot read the preprocessing {preset!r}") from error


def of_timm(config: dict[str, Any]) -> Preprocess:
    """That of ``timm.data.resolve_data_config``; a crop mode other than squash is taken as centre."""
    size = int(config["input_size"][-1])
    squash = config.get("crop_mode") == "squash"
    return Preprocess(math.floor(size / config["crop_pct"]), size, config["interpolation"], squash)

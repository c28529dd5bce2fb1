"""The 15 corruptions of CIFAR-10-C and ImageNet-C in batched torch operations, on any device.

Each image's noise depends on (seed, corruption, severity, the image's index) only. ``corrupt`` is the way in.
Source: Hendrycks and Dietterich, ICLR 2019, arXiv 1903.12261; constants and departures in ``recipes``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dembench.lookup import lookup
from dembench.tasks.common.corruptions import blur, digital, ice, noise, weather
from dembench.tasks.common.corruptions.draws import Draws
from dembench.tasks.common.corruptions.recipes import CIFAR, Recipe

GENERATOR_VERSION = "1"  # a part of every cache key: change it whenever the output changes

_APPLY: dict[str, Callable[..., Tensor]] = {  # in the standard continual order
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "defocus_blur": blur.defocus_blur,
    "glass_blur": blur.glass_blur,
    "motion_blur": blur.motion_blur,
    "zoom_blur": blur.zoom_blur,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "brightness": weather.brightness,
    "contrast": digital.contrast,
    "elastic_transform": digital.elastic_transform,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
}
CORRUPTIONS: tuple[str, ...] = tuple(_APPLY)
SEVERITIES = (1, 2, 3, 4, 5)
_CHUNK = 64 * 32**2  # pixels at a time: float64 temporaries of 1.5 MB stay in the processor's cache


def corrupt(
    images: Tensor,
    corruption: str,
    severity: int,
    index: Tensor,
    *,
    seed: int = 0,
    frost: str | Path | None = None,
    recipe: Recipe = CIFAR,
) -> Tensor:
    """Corrupts square images, with the recipe ``CIFAR`` of 32 pixels, as CIFAR-10-C or ImageNet-C does.

    Args:
        images: (N, 3, S, S) uint8, on any device, S at least 32.
        corruption: one of ``CORRUPTIONS``.
        severity: 1 to 5.
        index: (N,) int64, each image's own number in its dataset.
        seed: any integer; another seed gives other noise.
        frost: folder of the original's frost photos; None mixes in a made texture, which is not the original's frost.
        recipe: the constants, see ``recipes``.
    Returns: (N, 3, S, S) uint8 on the same device. An image's result is the same in any batch.
    Raises: ValueError for an unknown corruption, another severity, a wrong shape or dtype, an unreadable photo;
    FileNotFoundError for a missing frost folder or photo.
    """
    lookup(corruption, CORRUPTIONS, "corruption")
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise ValueError(f"corrupt: expected a severity of 1 to 5, got {severity!r}")
    side = images.shape[-1] if recipe.side is None else recipe.side
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != (3, side, side) or side < 32:
        expected = "S, S" if recipe.side is None else f"{side}, {side}"
        raise ValueError(f"corrupt: expected images uint8 (N, 3, {expected}), got {_kind(images)}")
    if index.dtype != torch.int64 or index.shape != images.shape[:1]:
        raise ValueError(f"corrupt: expected index int64 ({len(images)},), got {_kind(index)}")
    severity = int(severity)
    apply: Callable[..., Tensor] = partial(_APPLY[corruption], recipe=recipe)
    if corruption == "frost":
        scale = 5 // recipe.shrink * -(-side // (5 // recipe.shrink * (ice.SIDE - 1)))
        photos = ice.made_textures(scale) if frost is None else ice.load_photos(frost, recipe, side)
        apply = partial(apply, photos=tuple(photo.to(images.device) for photo in photos))
    result = torch.empty_like(images, memory_format=torch.contiguous_format)
    index = index.to(images.device)
    on_cpu = images.device.type == "cpu"
    chunk = max(1, (_CHUNK if on_cpu else 32 * _CHUNK) // side**2)

    def make(start: int) -> None:
        part = slice(start, start + chunk)
        with torch.no_grad():
            draws = Draws(seed, corruption, severity, index[part])
            result[part] = apply(images[part].contiguous(), severity, draws)

    starts = range(0, len(images), chunk)
    threads = min(len(starts), _threads()) if on_cpu or corruption == "jpeg_compression" else 1
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(make, starts))
    else:
        for start in starts:
            make(start)
    return result


def _threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"

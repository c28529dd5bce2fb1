"""CIFAR-10-C's 15 corruptions in batched torch operations, on any device.

Each image's noise depends on (seed, corruption, severity, the image's index) only. ``corrupt`` is the way in.
Source: Hendrycks and Dietterich, ICLR 2019, arXiv 1903.12261, with the constants of their 32-pixel script.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dembench.lookup import lookup
from dembench.tasks.common.corruptions import blur, digital, ice, noise, weather
from dembench.tasks.common.corruptions.draws import Draws

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
_CHUNK = 64  # images at a time: float64 temporaries of 1.5 MB stay in the processor's cache


def corrupt(
    images: Tensor,
    corruption: str,
    severity: int,
    index: Tensor,
    *,
    seed: int = 0,
    frost: str | Path | None = None,
) -> Tensor:
    """Corrupts 32 x 32 images as CIFAR-10-C does.

    Args:
        images: (N, 3, 32, 32) uint8, on any device.
        corruption: one of ``CORRUPTIONS``.
        severity: 1 to 5.
        index: (N,) int64, each image's own number in its dataset.
        seed: any integer; another seed gives other noise.
        frost: folder of the original's frost photos; None mixes in a made texture, which is not the original's frost.
    Returns: (N, 3, 32, 32) uint8 on the same device. An image's result is the same in any batch.
    Raises: ValueError for an unknown corruption, another severity, a wrong shape or dtype, an unreadable photo;
    FileNotFoundError for a missing frost folder or photo.
    """
    lookup(corruption, CORRUPTIONS, "corruption")
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise ValueError(f"corrupt: expected a severity of 1 to 5, got {severity!r}")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != (3, 32, 32):
        raise ValueError(f"corrupt: expected images uint8 (N, 3, 32, 32), got {_kind(images)}")
    if index.dtype != torch.int64 or index.shape != images.shape[:1]:
        raise ValueError(f"corrupt: expected index int64 ({len(images)},), got {_kind(index)}")
    severity = int(severity)
    apply = _APPLY[corruption]
    if corruption == "frost":
        photos = ice.made_textures() if frost is None else ice.load_photos(frost)
        apply = partial(apply, photos=tuple(photo.to(images.device) for photo in photos))
    result = torch.empty_like(images, memory_format=torch.contiguous_format)
    index = index.to(images.device)
    chunk = _CHUNK if images.device.type == "cpu" else 32 * _CHUNK
    with torch.no_grad():
        for start in range(0, len(images), chunk):
            part = slice(start, start + chunk)
            draws = Draws(seed, corruption, severity, index[part])
            result[part] = apply(images[part].contiguous(), severity, draws)
    return result


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"

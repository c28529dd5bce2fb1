"""Features of all views of all images of a set, computed once and kept on disk.

They depend on the image tower, the views and the image alone, so every method, loss, learning rate and search reads the
same ones. A file holds a stretch of images and appears whole or not at all: a run that is stopped loses the stretch it
was at. They are rounded to ``dtype`` whether they are kept or not, so that both give the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from dembench.tasks.common.cache import (
    cache_folder,
    check_writable,
    load_array,
    save_array,
    short_hash,
)
from dembench.tasks.common.devices import send
from dembench.tasks.prompt.clip import Clip
from dembench.tasks.prompt.data import ImageSet
from dembench.tasks.prompt.views import Views

STRETCH = 128  # images in a file
AT_ONCE = 512  # views through the image tower
DTYPES = {"float16": torch.float16, "float32": torch.float32}


class ViewFeatures:
    """Unit features (N, V, E) of an image set, stretch by stretch.

    Args:
        clip: encodes images. views: makes them.
        dtype: "float16" or "float32", what the features are rounded to.
        cache: folder; None is $DEMBENCH_CACHE or the user's cache folder. keep: False writes and reads nothing.
    Raises: ValueError for another dtype; PermissionError where the cache folder cannot be written.
    """

    def __init__(
        self, clip: Clip, views: Views, *, dtype: str = "float16", cache: str | Path | None = None, keep: bool = True
    ):
        if dtype not in DTYPES:
            raise ValueError(f"unknown dtype {dtype!r} of features; valid: {', '.join(DTYPES)}")
        self.clip, self.views, self.keep = clip, views, keep
        self.dtype = DTYPES[dtype]
        self.folder = cache_folder(cache) / "views"
        if keep:
            check_writable(self.folder)
        self.encoded_images = 0  # that were not on disk

    def __call__(self, images: ImageSet, block: int, order: Tensor | None = None) -> Iterator[tuple[int, Tensor]]:
        """Place of the first image, and features (B, V, E), float32 on the model's device, of blocks of images.

        ``order`` (N,) gives the images another order than the set's; all features are then in memory, as ``dtype``.
        """
        stretches = [(start, min(start + STRETCH, len(images))) for start in range(0, len(images), STRETCH)]
        every = None if order is None else torch.cat([self._stretch(images, *stretch) for stretch in stretches])
        for start, stop in stretches:
            features = self._stretch(images, start, stop) if every is None else every[order[start:stop]]
            for first in range(start, stop, block):
                part = features[first - start : min(first + block, stop) - start]
                yield first, send(part, self.clip.device).float()

    def blocks(self, images: ImageSet, block: int) -> int:
        """How many blocks a call yields; none reaches over the end of a stretch."""
        whole, rest = divmod(len(images), STRETCH)
        return whole * -(-STRETCH // block) + -(-rest // block)

    def all(self, images: ImageSet) -> Tensor:
        """(N, V, E), float32, in one go."""
        return torch.cat([features for _, features in self(images, STRETCH)])

    def path(self, images: ImageSet, start: int) -> Path:
        """Where a stretch is kept."""
        clip = self.clip
        transform = (self.views.identity, clip.size, clip.interpolation, clip.mean.tolist(), clip.std.tolist())
        number = (str(self.dtype), clip.bf16, clip.device.type, torch.__version__)
        key = short_hash(clip.features_id, transform, number, images.fingerprint)
        return self.folder / key / f"{start:07d}.npy"

    def _stretch(self, images: ImageSet, start: int, stop: int) -> Tensor:
        path = self.path(images, start)
        shape = (stop - start, self.views.count)
        if self.keep:
            found = load_array(path)
            if (
                found is not None
                and found.shape[:2] == shape
                and found.dtype == torch.empty(0, dtype=self.dtype).numpy().dtype
            ):
                return torch.from_numpy(found)
        features = self._encode(images, start, stop)
        self.encoded_images += stop - start
        if self.keep:
            save_array(path, features.numpy())
        return features

    def _encode(self, images: ImageSet, start: int, stop: int) -> Tensor:
        """Whole images at a time, always the same ones together, so that the same bits come out."""
        together = max(1, AT_ONCE // self.views.count)
        parts = []
        for first in range(start, stop, together):
            numbers = range(first, min(first + together, stop))
            views = [
                self.views(images.image(k), images.number(k), self.clip.size, self.clip.interpolation) for k in numbers
            ]
            features = self.clip.encode_images(torch.cat(views)).to("cpu", self.dtype)
            parts.append(features.unflatten(0, (len(numbers), self.views.count)))
        return torch.cat(parts)

"""A pair of domains of coloured blocks, 32x48 pixels, three classes: made in milliseconds."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from dembench.tasks.segmentation.data import Pool, PooledPair


class Blocks(PooledPair):
    """The colour of a block says its class; the target has another blue, and 255 in the labels' first rows."""

    name = "blocks"
    classes = ("a", "b", "c")
    palette = ((0, 0, 0), (100, 0, 0), (0, 100, 0))
    tail = ("c",)
    fingerprint = "blocks"

    def __init__(self, images: int = 5, size: tuple[int, int] = (32, 48)) -> None:
        self.images, self.size = images, size

    @cached_property
    def pools(self) -> dict[str, Pool]:
        rng = np.random.default_rng(0)
        parts = {"source_train": 0, "target_train": 60, "target_test": 60, "source_test": 0}
        return {name: self.pool(rng, blue) for name, blue in parts.items()}

    def pool(self, rng: np.random.Generator, blue: int) -> Pool:
        height, width = self.size
        labels = rng.integers(0, 3, (self.images, height // 8, width // 8)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
        images = np.stack([labels * 80, 200 - labels * 60, np.full_like(labels, blue)], -1).astype(np.float64)
        images = (images + rng.normal(0, 10, images.shape)).clip(0, 255).astype(np.uint8)
        labels[:, :2] = 255
        return Pool(images, labels, tuple(f"{blue}-{i}" for i in range(self.images)))

"""The embedded pair ``street``: the same kind of small street scenes on a clear day and on a misty autumn evening."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property, lru_cache

import numpy as np

from dembench.tasks.base import Note
from dembench.tasks.common.cache import short_hash
from dembench.tasks.segmentation import scenes
from dembench.tasks.segmentation.data import Pool, PooledPair
from dembench.tasks.segmentation.scenes import Style

VERSION = 1
PARTS = ("source_train", "target_train", "test", "validation")  # each has layouts of its own


class Street(PooledPair):
    """Scenes of nine classes, three of them rare, drawn from a seed; see ``tasks.segmentation.scenes``.

    The two test sets are the same scenes in either style, so the difference between them is the style's alone.

    Args:
        source_style, target_style: appearance of the domains.
        source_images, target_images, test_images: how many of each.
        size: height and width in pixels, at least 32.
        seed: of all scenes; another one is another town.
        validation: tests on further scenes of the same kind, so that settings can be chosen without the test set.
    Raises: ValueError for sizes or counts below what can be drawn.
    """

    name = "street"
    classes = scenes.CLASSES
    palette = scenes.PALETTE
    tail = scenes.TAIL

    def __init__(
        self,
        source_style: Style,
        target_style: Style,
        source_images: int = 200,
        target_images: int = 200,
        test_images: int = 100,
        size: Sequence[int] = (64, 96),
        seed: int = 0,
        validation: bool = False,
    ) -> None:
        if len(size) != 2:
            raise ValueError(f"street: expected data.size as height and width, got {list(size)}")
        height, width = size
        if min(size) < 32:
            raise ValueError(f"street: expected a size of 32 pixels or more, got {height}x{width}")
        if min(source_images, target_images, test_images) < 1 or seed < 0:
            counts = f"{source_images}, {target_images}, {test_images}"
            raise ValueError(f"street: expected at least one image of each kind and a seed >= 0, got {counts}, {seed}")
        self.source_style, self.target_style = source_style, target_style
        self.size, self.seed = (int(height), int(width)), seed
        self.counts = source_images, target_images, test_images
        self.validation = validation

    @property
    def notes(self) -> tuple[Note, ...]:
        text = "street scenes are drawn, not photographed; both test sets are the same scenes in either style"
        found = [Note("street", text)]
        if self.validation:
            found.append(Note("validation", "scores are over validation scenes, not over the test scenes"))
        return tuple(found)

    @cached_property
    def fingerprint(self) -> str:
        styles = [tuple(asdict(style).items()) for style in (self.source_style, self.target_style)]
        return short_hash(
            self.name, VERSION, np.__version__, styles, self.counts, self.size, self.seed, self.validation
        )

    @cached_property
    def pools(self) -> dict[str, Pool]:
        source, target, test = self.counts
        judged = "validation" if self.validation else "test"
        return {
            "source_train": self.draw("source_train", self.source_style, source),
            "target_train": self.draw("target_train", self.target_style, target),
            "source_test": self.draw(judged, self.source_style, test),
            "target_test": self.draw(judged, self.target_style, test),
        }

    def draw(self, part: str, style: Style, count: int) -> Pool:
        """The first ``count`` scenes of a part in a style."""
        return draw(part, style, count, self.size, self.seed)


@lru_cache(maxsize=8)  # runs that follow each other in one process draw once
def draw(part: str, style: Style, count: int, size: tuple[int, int], seed: int) -> Pool:
    """``count`` scenes; each has a generator of its own, so that more images change none."""
    images, labels = np.empty((count, *size, 3), np.uint8), np.empty((count, *size), np.uint8)
    for i in range(count):
        key = [seed, PARTS.index(part), i]
        layout = scenes.draw_layout(np.random.default_rng([*key, 0]), *size)
        images[i] = scenes.paint(layout, style, np.random.default_rng([*key, 1]))
        labels[i] = layout.label
    images.flags.writeable = labels.flags.writeable = False
    return Pool(images, labels, tuple(f"{part}/{i:04d}" for i in range(count)))

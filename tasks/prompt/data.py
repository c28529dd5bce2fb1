"""Sets of images with class names: here the digits that need no download; CIFAR-10 and folders in their own modules.

A data set has ``name``, ``template`` (such as "a photo of a {}."), ``templates`` for the ensemble, ``notes`` that
belong beside its numbers, and ``fingerprint``. ``check()`` raises before any work starts; ``sets()`` are what is
tested, in order; ``shots(k, seed)`` are k labelled training images of each class, for CoOp.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from dembench.lookup import lookup
from dembench.tasks.base import Note
from dembench.tasks.common.cache import short_hash
from dembench.tasks.common.parts import DataPart, PartOf
from dembench.tasks.prompt.digits import (
    CORRUPTIONS,
    RENDERING,
    TEMPLATE,
    WORDS,
    as_rgb,
    corrupt,
    digits,
    style_templates,
)


@dataclass(frozen=True)
class ImageSet:
    """Labelled images in a fixed order.

    ``image(k)`` gives a PIL image or a uint8 tensor (3, H, W); ``numbers`` say which random views belong to an image
    (default: its position), so that they stay its own in a subset; ``shifted`` is False for the set that the model or
    its prompt was trained for, which the mean over shifted sets leaves out.
    """

    name: str
    class_names: tuple[str, ...]
    labels: Tensor
    image: Callable[[int], Any]
    fingerprint: str
    numbers: Tensor | None = None
    shifted: bool = True

    def __len__(self) -> int:
        return len(self.labels)

    def number(self, k: int) -> int:
        """The number that seeds the views of the ``k``-th image."""
        return k if self.numbers is None else int(self.numbers[k])


def part_of(images: ImageSet, part: DataPart) -> ImageSet:
    """The images of a part of a set; each keeps its own views."""
    chosen = part.choose(images.labels)
    numbers = torch.arange(len(images)) if images.numbers is None else images.numbers
    return replace(
        images,
        labels=images.labels[chosen],
        image=lambda k: images.image(int(chosen[k])),
        fingerprint=short_hash(images.fingerprint, part),
        numbers=numbers[chosen],
    )


class SetsPart(PartOf):
    """A part of the images of each set; labelled shots are not among them."""

    @property
    def notes(self) -> tuple[Note, ...]:
        total = sum(map(len, self.data.sets()))
        return (*self.data.notes, self.part.note("images, the same share of each set", total))

    def sets(self) -> list[ImageSet]:
        return [part_of(images, self.part) for images in self.data.sets()]


class Digits:
    """The embedded digits, clean and under six corruptions that the digits CLIP has not seen.

    Args:
        num_images: of each set, evenly spread over the 790 test digits; None takes all.
        corruptions: some of ``tasks.prompt.digits.CORRUPTIONS``; None takes all.
        seed: of the corruptions.
    Raises: ValueError for a wrong number or an unknown corruption.
    """

    name = "digits"
    template = TEMPLATE
    templates = style_templates()
    notes: ClassVar[tuple[Note, ...]] = (
        Note("digits", "8x8 digits and a CLIP of 1.5 million parameters: shows that the methods work, ranks no loss"),
    )

    def __init__(self, num_images: int | None = None, corruptions: Sequence[str] | None = None, seed: int = 0):
        images, labels = digits("test")
        total = len(labels)
        if num_images is not None and (not _is_whole(num_images) or not 1 <= num_images <= total):
            raise ValueError(f"Digits: expected num_images of 1 to {total} or null, got {num_images!r}")
        if not _is_whole(seed) or seed < 0:
            raise ValueError(f"Digits: expected a whole seed >= 0, got {seed!r}")
        for corruption in corruptions or ():
            lookup(corruption, CORRUPTIONS, "corruption")
        self._corruptions = tuple(CORRUPTIONS if corruptions is None else corruptions)
        count = num_images or total
        self._numbers = torch.arange(count) * total // count
        self._images, self._labels, self._seed = images, labels[self._numbers], seed
        self.fingerprint = short_hash(RENDERING, self._corruptions, count, seed)

    def check(self) -> None:
        """There is nothing that could be missing."""

    def sets(self) -> list[ImageSet]:
        return [self._set(name) for name in ("clean", *self._corruptions)]

    def shots(self, count: int, seed: int) -> ImageSet:
        """``count`` clean train digits of each class, drawn by ``seed``."""
        images, labels = digits("train")
        chosen = few_of_each(labels, count, seed)
        rgb = as_rgb(images[chosen])
        key = short_hash("shots", RENDERING, count, seed)
        return ImageSet("shots", WORDS, labels[chosen], rgb.__getitem__, key, chosen, shifted=False)

    def _set(self, name: str) -> ImageSet:
        images = self._images
        if name != "clean":
            images = corrupt(images, name, 1000 * self._seed + CORRUPTIONS.index(name))
        rgb = as_rgb(images[self._numbers])
        key = short_hash(RENDERING, name, len(self._numbers), self._seed)
        return ImageSet(name, WORDS, self._labels, rgb.__getitem__, key, self._numbers, shifted=name != "clean")


def few_of_each(labels: Tensor, count: int, seed: int) -> Tensor:
    """Positions of ``count`` images of each class, drawn by ``seed``, sorted; all of a class that has fewer."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    chosen = [order[labels[order] == label][:count] for label in labels.unique()]
    return torch.cat(chosen).sort().values


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

"""CIFAR-10 as images with class names: the test images, clean and under CIFAR-10-C's corruptions, and the captions that
a CLIP learns from its training images. None of the styles that captions name is among the corruptions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from torch import Tensor

from dembench.lookup import lookup
from dembench.tasks.base import Note
from dembench.tasks.common.cache import cache_folder, short_hash
from dembench.tasks.common.choice import balanced_subset, check_severity
from dembench.tasks.common.corruptions import CORRUPTIONS
from dembench.tasks.common.generated import GeneratedCIFAR10C
from dembench.tasks.common.originals import CIFAR10_CLASSES, Originals, Split, read_originals
from dembench.tasks.prompt.captions import style_templates
from dembench.tasks.prompt.data import ImageSet, few_of_each

WORDS = CIFAR10_CLASSES
STYLES = ("plain", "grey", "negative", "dark", "sepia", "posterized")
TEMPLATE = "a photo of a {}."
CAPTIONS = (  # see tasks.prompt.captions.caption
    "a {1}photo of a {0}.",
    "a {1}picture of the {0}.",
    "an image of a {1}{0}.",
    "a {1}drawing of a {0}.",
    "the {1}{0}.",
)
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601
SEPIA = (1.07, 0.84, 0.61)  # of the grey


class Cifar10:
    """The test images, clean and under corruptions at one severity; nothing is downloaded.

    Args:
        source: torchvision's CIFAR-10 folder, a folder of train/<class>/<image> and test/<class>/<image>, or a .tar.gz
            of one.
        num_images: of each set, class-balanced, see ``tasks.common.choice.balanced_subset``; None takes all.
        corruptions: some of ``tasks.common.corruptions.CORRUPTIONS``; None takes all 15.
        severity: 1 to 5. seed: of the corruptions. frost: folder of the original's frost photos; None uses a made
            texture, of which a note tells.
        cache: folder of decoded and corrupted images; None is $DEMBENCH_CACHE or the user's cache folder.
    Raises: ValueError for a wrong number or an unknown corruption; every other member also for a source that is
        something else, and FileNotFoundError where it is missing.
    """

    template = TEMPLATE
    templates = style_templates(STYLES, CAPTIONS)

    def __init__(
        self,
        source: str | Path,
        num_images: int | None = None,
        corruptions: Sequence[str] | None = None,
        severity: int = 5,
        seed: int = 0,
        frost: str | Path | None = None,
        cache: str | Path | None = None,
    ):
        for corruption in corruptions or ():
            lookup(corruption, CORRUPTIONS, "corruption")
        check_severity(severity)
        self._corruptions = tuple(CORRUPTIONS if corruptions is None else corruptions)
        self._source, self._cache, self._wanted, self._severity = source, cache, num_images, severity
        self._corrupted = GeneratedCIFAR10C(source, num_images, seed, frost, cache)
        self._domain = lru_cache(maxsize=1)(self._read)  # sets are gone through one after the other

    def check(self) -> None:
        """Reads the source and the frost photos and tries the cache folder."""
        self._corrupted.check()

    @property
    def name(self) -> str:
        return self._corrupted.name

    @property
    def notes(self) -> tuple[Note, ...]:
        lossy = Note("jpeg", "JPEG copies of CIFAR-10: numbers are not comparable to those of CIFAR-10 or CIFAR-10-C")
        notes = [lossy if note.key == "jpeg" else note for note in self._corrupted.notes]
        return tuple(note for note in notes if note.key != "frost" or "frost" in self._corruptions)

    @cached_property
    def fingerprint(self) -> str:
        return short_hash(self._corrupted.fingerprint, self._corruptions, self._severity)

    def sets(self) -> list[ImageSet]:
        """ "clean" and the corruptions; images are made when the first of a set is asked for."""
        return [self._set(name) for name in ("clean", *self._corruptions)]

    def shots(self, count: int, seed: int) -> ImageSet:
        """``count`` training images of each class, drawn by ``seed``."""
        train = originals(self._source, "train", self._cache)
        labels = torch.from_numpy(train.labels)
        chosen = few_of_each(labels, count, seed)
        images = torch.from_numpy(train.images)[chosen]
        key = short_hash("shots", train.fingerprint, count, seed)
        return ImageSet("shots", WORDS, labels[chosen], images.__getitem__, key, chosen, shifted=False)

    def _set(self, name: str) -> ImageSet:
        key = short_hash(self._corrupted.fingerprint, name, name != "clean" and self._severity)
        labels = torch.from_numpy(self._test.labels)[self._index]
        return ImageSet(name, WORDS, labels, self._image(name), key, self._index, shifted=name != "clean")

    def _image(self, name: str) -> Callable[[int], Tensor]:
        return lambda k: self._domain(name)[k]

    def _read(self, name: str) -> Tensor:
        """uint8 (N, 3, 32, 32)."""
        if name == "clean":
            return torch.from_numpy(self._test.images)[self._index]
        return self._corrupted.domain(name, self._severity)[0]

    @cached_property
    def _test(self) -> Originals:
        return originals(self._source, "test", self._cache)

    @cached_property
    def _index(self) -> Tensor:
        return torch.from_numpy(balanced_subset(self._test.labels, self._wanted))


def originals(source: str | Path, split: Split, cache: str | Path | None = None) -> Originals:
    """All images of a split, see ``tasks.common.originals.read_originals``."""
    return read_originals(Path(source).expanduser(), cache_folder(cache), split=split)


def stylise(images: Tensor, style: str) -> Tensor:
    """Images (N, 3, H, W) in [0, 1] in one of the styles; ValueError for an unknown one."""
    grey = (images * images.new_tensor(GREY).view(3, 1, 1)).sum(1, keepdim=True)
    match lookup(style, STYLES, "style"):
        case "grey":
            return grey.expand_as(images)
        case "negative":
            return 1 - images
        case "dark":
            return 0.4 * images
        case "sepia":
            return (grey * images.new_tensor(SEPIA).view(3, 1, 1)).clamp(max=1)
        case "posterized":
            return (3 * images).round() / 3
    return images

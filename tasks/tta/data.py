"""Streams of corrupted images made on this machine: digits that need no download, and CIFAR-10-C and CIFAR-100-C.

Every dataset has ``name``, ``num_classes``, ``class_names``, ``corruptions`` (of the standard stream), ``known`` (all
that there are), ``severities`` (none where a domain has no such), ``num_images`` (per domain), ``notes`` that belong
beside its numbers, and ``fingerprint``, a hash of all that the numbers depend on, equal on every machine that holds the
same files. ``check()`` raises before any work starts; ``domain(corruption, severity)`` returns uint8 images (N, 3, H,
W) and int64 labels (N,) on the CPU, in a fixed order that may be sorted by class: who streams them shuffles them.
``labels(corruption, severity)``, where there is one, returns the labels alone and makes no images.
``clean(num_images, seed)`` draws images that are not corrupted, and a note that says which, for methods that look at
some before the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from dembench.lookup import lookup
from dembench.tasks.base import Note
from dembench.tasks.common.cache import cache_folder, check_writable, load_array, short_hash
from dembench.tasks.common.choice import balanced_subset, check_numbers, check_severity, draw
from dembench.tasks.common.corruptions import CORRUPTIONS, GENERATOR_VERSION, SEVERITIES, corrupt
from dembench.tasks.common.corruptions.draws import Draws
from dembench.tasks.common.corruptions.ice import load_photos, photos_folder
from dembench.tasks.common.digits import RENDERING, digits
from dembench.tasks.common.files import write_atomic
from dembench.tasks.common.long_tail import long_tail_counts
from dembench.tasks.common.originals import CIFAR10, CIFAR100, Kind, Originals, read_originals
from dembench.tasks.common.parts import Around, PartOf

FROST_NOTE = Note(
    "frost",
    "frost is a made ice texture, not the photos of CIFAR-10-C (none were given): "
    "its numbers and means that contain it are not those of the published frost",
)


class DigitsC:
    """The embedded scikit-learn digits (test split) at 32x32 RGB under the 15 corruptions; nothing is downloaded.

    Args:
        num_images: a class-balanced subset, see ``balanced_subset``; None takes all 896.
        seed: of the corruptions.
    Raises: ValueError for a wrong number.
    """

    name = "digits-c"
    num_classes = 10
    class_names = tuple("0123456789")
    corruptions = known = CORRUPTIONS
    severities = SEVERITIES
    notes: ClassVar[tuple[Note, ...]] = (FROST_NOTE,)

    def __init__(self, num_images: int | None = None, seed: int = 0) -> None:
        check_numbers("DigitsC", num_images, seed)
        images, labels = digits("test")
        self._index = torch.from_numpy(balanced_subset(labels.numpy(), num_images))
        self._images, self._labels = images[self._index], labels[self._index]
        self._seed = seed
        self.num_images = len(self._index)
        self.fingerprint = short_hash(self.name, RENDERING, GENERATOR_VERSION, self.num_images, seed)

    def check(self) -> None:
        """There is nothing that could be missing."""

    def domain(self, corruption: str, severity: int) -> tuple[Tensor, Tensor]:
        """Images and labels of one corruption at one severity; ValueError for an unknown one."""
        return corrupt(self._images, corruption, severity, self._index, seed=self._seed), self._labels.clone()

    def labels(self, corruption: str, severity: int) -> Tensor:
        return self._labels.clone()

    def clean(self, num_images: int, seed: int) -> tuple[Tensor, Note]:
        """Of the train digits, uint8 (N, 3, 32, 32); none of them is in the stream."""
        images, _ = digits("train")
        chosen = draw(len(images), num_images, seed)
        return images[chosen], Note("clean", f"the method first saw {len(chosen)} clean digits of the train split")


class GeneratedCIFAR10C:
    """CIFAR-10-C made from test images on this machine; nothing is downloaded, generated domains are cached on disk.

    Args:
        source: torchvision's CIFAR-10 folder, a folder of test/<class>/<image> or <class>/<image>, or a .tar.gz of one.
        num_images: a class-balanced subset, see ``balanced_subset``; None takes all. An image's noise is the same in
            a subset: its index is its position in the complete test set (in torchvision's order, or sorted by class
            folder, then by file name).
        seed: of the corruptions.
        frost: folder of the original's frost photos; None takes those of the installed package imagecorruptions; where
            that is not installed, and for "made", a made texture, of which a note tells.
        cache: folder of generated images; None is $DEMBENCH_CACHE or the user's cache folder.
    Raises: ValueError for a wrong number; every other member also for a source that is something else, and
        FileNotFoundError where it is missing.
    """

    kind: Kind = CIFAR10
    corruptions = known = CORRUPTIONS
    severities = SEVERITIES

    def __init__(
        self,
        source: str | Path,
        num_images: int | None = None,
        seed: int = 0,
        frost: str | Path | None = None,
        cache: str | Path | None = None,
    ) -> None:
        check_numbers(type(self).__name__, num_images, seed)
        self._source = Path(source).expanduser()
        self._wanted, self._seed = num_images, seed
        self._frost = photos_folder(frost)
        self._cache = cache_folder(cache)

    def check(self) -> None:
        """Reads the source, the frost photos and tries the cache folder."""
        _ = self.fingerprint
        check_writable(self._cache)

    @property
    def name(self) -> str:
        return f"{self.kind.name}-{'jpeg' if self._originals.lossy else 'generated'}"

    @property
    def num_classes(self) -> int:
        return len(self.kind.classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.kind.classes

    @property
    def notes(self) -> tuple[Note, ...]:
        title = self.kind.title
        made = Note("data", f"corrupted on this machine, not the released {title}-C: the noise is drawn anew")
        jpeg = f"made from JPEG copies of {title}: a network trained on the originals loses about 10 points on them"
        return (
            made,
            *([Note("jpeg", jpeg)] if self._originals.lossy else []),
            *([FROST_NOTE] if self._frost is None else []),
        )

    @property
    def num_images(self) -> int:
        return len(self._index)

    @cached_property
    def fingerprint(self) -> str:
        frost = "made"
        if self._frost is not None:
            frost = short_hash(*(photo.numpy().tobytes() for photo in load_photos(self._frost)))
        return short_hash(self._originals.fingerprint, GENERATOR_VERSION, self._seed, frost, self.num_images)

    def domain(self, corruption: str, severity: int) -> tuple[Tensor, Tensor]:
        """Images and labels of one corruption at one severity; ValueError for an unknown one."""
        lookup(corruption, self.corruptions, "corruption")
        check_severity(severity)
        labels = self.labels(corruption, severity)
        path = self._cache / "domains" / self.fingerprint / f"{corruption}-{severity}.npy"
        cached = load_array(path)
        if cached is not None and cached.dtype == np.uint8 and cached.shape == (len(labels), 3, 32, 32):
            return torch.from_numpy(cached), labels
        images = torch.from_numpy(self._originals.images[self._index])
        index = torch.from_numpy(self._index)
        images = corrupt(images, corruption, severity, index, seed=self._seed, frost=self._frost)
        write_atomic(path, lambda file: np.save(file, images.numpy(), allow_pickle=False))
        return images, labels

    def labels(self, corruption: str, severity: int) -> Tensor:
        return torch.from_numpy(self._originals.labels[self._index])

    def clean(self, num_images: int, seed: int) -> tuple[Tensor, Note]:
        """Of the test images before corruption, uint8 (N, 3, 32, 32); EATA's authors, too, draw from the test set."""
        chosen = draw(len(self._originals.images), num_images, seed)
        note = f"the method first saw {len(chosen)} clean test images, some of them in the stream's domains, too"
        return torch.from_numpy(self._originals.images[chosen.numpy()]), Note("clean", note)

    @cached_property
    def _originals(self) -> Originals:
        return read_originals(self._source, self._cache, self.kind)

    @cached_property
    def _index(self) -> np.ndarray:
        return balanced_subset(self._originals.labels, self._wanted)


class GeneratedCIFAR100C(GeneratedCIFAR10C):
    """CIFAR-100-C made likewise from CIFAR-100."""

    kind = CIFAR100


def size_of(data: Any, corruption: str, severity: int | None) -> int:
    """How many images a domain of ``data`` has."""
    return data.size(corruption, severity) if hasattr(data, "size") else data.num_images


def labels_of(data: Any, corruption: str, severity: int | None) -> Tensor:
    """Labels (N,) of a domain of ``data``, which makes its images only where it has no other way."""
    labels = getattr(data, "labels", None)
    return labels(corruption, severity) if callable(labels) else data.domain(corruption, severity)[1]


class DomainsPart(PartOf):
    """A part of the images of each domain. Where domains show the same images in the same order, as corruptions of one
    set do, so do their parts."""

    @property
    def num_images(self) -> int:
        return self.part.size(self.data.num_images)

    @property
    def notes(self) -> tuple[Note, ...]:
        return (*self.data.notes, self.part.note("images of each domain", self.data.num_images))

    def size(self, corruption: str, severity: int) -> int:
        """How many images a domain has."""
        return self.part.size(size_of(self.data, corruption, severity))

    def labels(self, corruption: str, severity: int) -> Tensor:
        labels = labels_of(self.data, corruption, severity)
        return labels[self.part.choose(labels)]

    def domain(self, corruption: str, severity: int) -> tuple[Any, Tensor]:
        """As that of the data: images and labels of the part."""
        images, labels = self.data.domain(corruption, severity)
        chosen = self.part.choose(labels)
        return images[chosen], labels[chosen]


class LongTailedDomains(Around):
    """Of each domain as many images of each class as make a long tail; the classes of the test are out of balance.

    Which images of a class stay follows by hash from the seed, the name and the severity of the domain and the image's
    place in it; a larger rho leaves some of those that a smaller one leaves.

    Args:
        data: the domains.
        rho: largest class over smallest, >= 1, see ``tasks.common.long_tail``.
        reverse: the last class is the head, not the first.
        seed: of the choice.
    Raises: ValueError, in ``check`` and wherever a domain is asked for, where a class would have no image.
    """

    def __init__(self, data: Any, rho: float, reverse: bool, seed: int) -> None:
        super().__init__(data)
        self.rho, self.reverse, self.seed = rho, reverse, seed
        self._needed: tuple[tuple[str, int | None], ...] = ()
        self._kept: dict[tuple[str, int | None], tuple[Tensor, list[int]]] = {}

    def require(self, domains: Sequence[tuple[str, int | None]]) -> None:
        """Says what will be asked for; raises what the data raises."""
        self._needed = tuple(dict.fromkeys(domains))
        if hasattr(self.data, "require"):
            self.data.require(domains)

    def check(self) -> None:
        """As that of the data, and counts the classes of what will be asked for."""
        if hasattr(self.data, "check"):
            self.data.check()
        for domain in self._domains:
            self.size(*domain)

    @property
    def num_images(self) -> int:
        return self.size(*self._domains[0])

    @property
    def notes(self) -> tuple[Note, ...]:
        profiles = [self._keep(*domain)[1] for domain in self._domains]
        shown = _span([sum(profile) for profile in profiles])
        total = _span([size_of(self.data, *domain) for domain in self._domains])
        first, last = (_span([profile[place] for profile in profiles]) for place in (0, -1))
        text = (
            f"label-shifted stream: in each domain {shown} of {total} images, {first} of the first class to {last} of "
            f"the last (rho={self.rho:g}); the error counts images, f1 and recall are means over classes"
        )
        return (*self.data.notes, Note("long_tail", text))

    def size(self, corruption: str, severity: int | None) -> int:
        """How many images a domain has."""
        return len(self._keep(corruption, severity)[0])

    def labels(self, corruption: str, severity: int | None) -> Tensor:
        return labels_of(self.data, corruption, severity)[self._keep(corruption, severity)[0]]

    def domain(self, corruption: str, severity: int | None) -> tuple[Any, Tensor]:
        """As that of the data: images and labels of those that stay."""
        images, labels = self.data.domain(corruption, severity)
        kept, _ = self._keep(corruption, severity)
        return images[kept], labels[kept]

    @property
    def _domains(self) -> tuple[tuple[str, int | None], ...]:
        """What will be asked for; where that was not said, the first domain that there is."""
        severities = getattr(self.data, "severities", SEVERITIES)
        return self._needed or ((self.data.corruptions[0], severities[-1] if severities else None),)

    def _keep(self, corruption: str, severity: int | None) -> tuple[Tensor, list[int]]:
        """Positions of the images that stay, int64, ascending, and how many they are of each class."""
        if (corruption, severity) not in self._kept:
            labels = labels_of(self.data, corruption, severity)
            sizes = torch.bincount(labels, minlength=self.data.num_classes).tolist()
            counts = self._counts(min(sizes), corruption if severity is None else f"{corruption}/{severity}")
            draws = Draws(self.seed, corruption, severity or 0, torch.arange(len(labels)))
            order = draws.bits("long_tail").argsort()
            own = order[labels[order].argsort(stable=True)].split(sizes)  # class by class, each in random order
            kept = torch.cat([positions[:count] for positions, count in zip(own, counts, strict=True)])
            self._kept[corruption, severity] = kept.sort().values, counts
        return self._kept[corruption, severity]

    def _counts(self, head: int, name: str) -> list[int]:
        if not head:
            raise ValueError(f"protocol: rho={self.rho:g} needs images of every class, and {name} has a class without")
        counts, empty = long_tail_counts(head, self.rho, self.data.num_classes, reverse=self.reverse, tail="clamp")
        if empty:
            raise ValueError(
                f"protocol: rho={self.rho:g} leaves {empty} of {len(counts)} classes empty in {name}, whose head has "
                f"{head} images, as many as its smallest class; use a rho of at most {head}, or more images"
            )
        return counts


def _span(counts: Sequence[int]) -> str:
    least, most = min(counts), max(counts)
    return str(least) if least == most else f"{least} to {most}"

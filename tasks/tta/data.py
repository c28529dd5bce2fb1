"""Streams of corrupted digits that need no download, parts of streams, and streams with a long tail.

Every dataset has ``name``, ``num_classes``, ``class_names``, ``corruptions`` (of the standard stream), ``known`` (all
that there are), ``severities`` (none where a domain has none), ``num_images`` (per domain), ``notes`` that belong
beside its numbers, and ``fingerprint``, a hash of all that the numbers depend on, equal on every machine that holds the
same files. ``check()`` raises before any work starts; ``domain(corruption, severity)`` returns uint8 images (N, 3, H,
W) and int64 labels (N,) on the CPU, in a fixed order that may be sorted by class: who streams them shuffles them.
``labels(corruption, severity)``, where there is one, returns the labels alone and makes no images.
``clean(num_images, seed)`` draws images that are not corrupted, and a note that says which, for methods that need
some before the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from dembench.tasks.base import Note
from dembench.tasks.common.cache import short_hash
from dembench.tasks.common.choice import balanced_subset, check_numbers, draw
from dembench.tasks.common.corruptions import CORRUPTIONS, GENERATOR_VERSION, SEVERITIES, corrupt
from dembench.tasks.common.corruptions.draws import Draws
from dembench.tasks.common.digits import RENDERING, digits
from dembench.tasks.common.generated import FROST_NOTE
from dembench.tasks.common.long_tail import long_tail_counts
from dembench.tasks.common.parts import Around, PartOf


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

"""Class-imbalanced data: exponential profiles for labelled and unlabelled samples, disjoint, by their head counts."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from dembench.tasks.base import Note
from dembench.tasks.common.long_tail import long_tail_counts
from dembench.tasks.semi.data import SemiData, as_csv
from dembench.tasks.semi.sources import Images
from dembench.tasks.semi.splits import Split, choose


class LongTailData(SemiData):
    """Labelled and unlabelled samples whose class sizes fall from head to tail; the test set stays as it is.

    Args:
        images: where they come from.
        labelled_head: labelled samples of the largest class (N1).
        unlabelled_head: unlabelled samples of its largest class (M1); unused where they come from the test.
        rho: largest class over smallest, of both.
        rho_unlabelled: where the unlabelled samples have another.
        reverse: the unlabelled samples have their head where the labelled ones have their tail.
        tail: where a class would be empty: "refuse" it, or "clamp" it to one sample, which is noted.
        unlabelled_from: "train", or "test": the unlabelled stream is a long-tailed part of the test images, so that
            the run is test-time adaptation to shifted labels and not an estimate for unseen images.
        validation_per_class: training samples of each class held out for selection, balanced.
        split_seed: of the choice of samples.
    Raises: ValueError for numbers out of range; ``check`` also where a class has too few samples.
    """

    def __init__(
        self,
        images: Images,
        labelled_head: int,
        unlabelled_head: int,
        rho: float = 100.0,
        rho_unlabelled: float | None = None,
        reverse: bool = False,
        tail: Literal["refuse", "clamp"] = "refuse",
        unlabelled_from: Literal["train", "test"] = "train",
        validation_per_class: int = 0,
        split_seed: int = 0,
    ) -> None:
        super().__init__(images, 1, validation_per_class, False, split_seed)
        if labelled_head < 1 or unlabelled_head < 1 or rho < 1 or (rho_unlabelled or 1) < 1:
            got = f"{labelled_head}, {unlabelled_head}, {rho}, {rho_unlabelled}"
            raise ValueError(f"longtail: expected heads and ratios of at least 1, got {got}")
        self.labelled_head, self.unlabelled_head = labelled_head, unlabelled_head
        self.rho, self.rho_unlabelled = rho, rho if rho_unlabelled is None else rho_unlabelled
        self.reverse, self.tail, self.unlabelled_from = reverse, tail, unlabelled_from

    @property
    def name(self) -> str:
        return f"{self.images.name}-lt"

    @cached_property
    def _profiles(self) -> tuple[tuple[list[int], int], tuple[list[int], int]]:
        """Counts and number of clamped classes, of the labelled and of the unlabelled samples."""
        labelled = long_tail_counts(self.labelled_head, self.rho, self.num_classes, tail=self.tail)
        head = self.unlabelled_head
        if self.unlabelled_from == "test":
            head = int(torch.bincount(self.images.test.labels, minlength=self.num_classes).min())
        options = {"reverse": self.reverse, "tail": self.tail}
        return labelled, long_tail_counts(head, self.rho_unlabelled, self.num_classes, **options)

    @cached_property
    def split(self) -> Split:
        (labelled, _), (unlabelled, _) = self._profiles
        none = [0] * self.num_classes
        return choose(
            self.images.train.labels,
            labelled,
            none if self.unlabelled_from == "test" else unlabelled,
            validation=self.validation_per_class,
            seed=self.split_seed,
            names=self.class_names,
        )

    @cached_property
    def _stream(self) -> Tensor:
        """Positions in the test images of an unlabelled stream from there."""
        counts = self._profiles[1][0]
        return choose(self.images.test.labels, counts, seed=self.split_seed, names=self.class_names).labelled

    @property
    def unlabelled(self) -> Tensor:
        return self.test.images[self._stream] if self.unlabelled_from == "test" else super().unlabelled

    @property
    def num_unlabelled(self) -> int:
        return len(self._stream) if self.unlabelled_from == "test" else super().num_unlabelled

    @property
    def notes(self) -> tuple[Note, ...]:
        found = list(super().notes)
        for kind, (_, clamped) in zip(("labelled", "unlabelled"), self._profiles, strict=True):
            if clamped:
                text = f"{clamped} {kind} classes would be empty and have one sample: rho is less than asked for"
                found.append(Note(f"{kind}_tail", text))
        if self.unlabelled_from == "test":
            text = "unlabelled samples are test images (never their labels): adaptation, no estimate for unseen ones"
            found.append(Note("transductive", text))
        return tuple(found)

    def files(self) -> dict[str, str]:
        test = self.unlabelled_from == "test"
        index, pool = (self._stream, self.test) if test else (self.split.unlabelled, self.images.train)
        return {**super().files(), "unlabelled.csv": as_csv(index, pool.labels)}

"""Images with a split: what a semi-supervised run trains, selects and tests on; uint8 (N, 3, H, W), int64 labels."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dembench.tasks.base import Note
from dembench.tasks.common.cache import short_hash
from dembench.tasks.common.parts import PartOf
from dembench.tasks.semi.sources import Images, Pool
from dembench.tasks.semi.splits import Split, choose


class SemiData:
    """A few labelled samples of each class; the rest of the training images without labels.

    Args:
        images: where they come from, see ``tasks.semi.sources``.
        labels_per_class: labelled samples of each class; None labels all that are not held out.
        validation_per_class: training samples of each class that are held out; their labels choose between evaluations
            and train nothing. 0 takes the images' own validation set, if there is one.
        include_labelled: labelled samples are among the unlabelled ones, too, as in USB.
        split_seed: of the choice of samples.
    Raises: ValueError for negative numbers; ``check`` and the parts also what the images raise, and where a class has
        too few samples.
    """

    def __init__(
        self,
        images: Images,
        labels_per_class: int | None = 4,
        validation_per_class: int = 0,
        include_labelled: bool = True,
        split_seed: int = 0,
    ) -> None:
        if validation_per_class < 0 or split_seed < 0 or (labels_per_class is not None and labels_per_class < 1):
            raise ValueError(
                "data: expected labels_per_class >= 1 or null, validation_per_class and split_seed >= 0, got "
                f"{labels_per_class}, {validation_per_class}, {split_seed}"
            )
        self.images, self.labels_per_class, self.include_labelled = images, labels_per_class, include_labelled
        self.validation_per_class, self.split_seed = validation_per_class, split_seed
        self.recipe, self.mean, self.std = images.recipe, images.mean, images.std

    def check(self) -> None:
        """Reads the images and chooses the samples."""
        if reserved := {"mean", "training"} & set(self.class_names):
            raise ValueError(f"{self.name}: a class cannot be named {min(reserved)!r}, as a slice of the results is")
        _ = self.split, self.validation, self.test
        height, width = self.test.images.shape[2:]
        if self.recipe.pad >= min(height, width):
            raise ValueError(f"{self.name}: {height} x {width} pixels are too few to pad by {self.recipe.pad}")

    @property
    def name(self) -> str:
        return self.images.name

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.images.class_names

    @property
    def num_classes(self) -> int:
        return len(self.images.class_names)

    @property
    def fingerprint(self) -> str:
        """Of the images; the split follows from the configuration."""
        return short_hash(self.name, self.images.fingerprint)

    @property
    def notes(self) -> tuple[Note, ...]:
        found = list(self.images.notes)
        if len(self.validation.labels):
            text = f"{len(self.validation.labels)} labelled validation images, beyond the labelled ones, choose among "
            found.append(Note("validation", text + "evaluations for the validation-selected column and train nothing"))
        return tuple(found)

    @cached_property
    def split(self) -> Split:
        labels = self.images.train.labels
        counts = [self.labels_per_class or 0] * self.num_classes
        if self.labels_per_class is None:
            counts = [int((labels == c).sum()) - self.validation_per_class for c in range(self.num_classes)]
        return choose(
            labels,
            counts,
            validation=self.validation_per_class,
            include_labelled=self.include_labelled,
            seed=self.split_seed,
            names=self.class_names,
        )

    @property
    def view_size(self) -> tuple[int, int]:
        """Height and width of what a network is shown."""
        height, width = self.test.images.shape[2:]
        return (height, width) if self.recipe.size is None else (self.recipe.size, self.recipe.size)

    @property
    def num_unlabelled(self) -> int:
        return len(self.split.unlabelled)

    @property
    def training_counts(self) -> Tensor:
        """Labelled samples of each class, (C,) int64."""
        return torch.bincount(self.labelled.labels, minlength=self.num_classes)

    @property
    def labelled(self) -> Pool:
        return self.images.train.take(self.split.labelled)

    @property
    def unlabelled(self) -> Tensor:
        """Images alone."""
        return self.images.train.images[self.split.unlabelled]

    @property
    def validation(self) -> Pool:
        own = self.images.validation
        if self.validation_per_class or own is None:
            return self.images.train.take(self.split.validation)
        return own

    @property
    def test(self) -> Pool:
        return self.images.test

    def files(self) -> dict[str, str]:
        """The chosen samples as CSV, by file name: position in the training images, label."""
        labels = self.images.train.labels
        parts = {"labelled.csv": self.split.labelled, "validation.csv": self.split.validation}
        return {name: as_csv(index, labels) for name, index in parts.items() if len(index)}


class SearchPart(PartOf):
    """The same training, judged on the validation images in place of the test; nothing is left to choose among
    evaluations.

    Raises: ValueError from ``check`` where there are none.
    """

    def check(self) -> None:
        self.data.check()
        if not len(self.data.validation.labels):
            raise ValueError(
                f"part=search: {self.data.name} has no validation images to search on; data.validation_per_class=N "
                "holds out some of the training images (say it for the losses that are compared, too)"
            )

    @property
    def test(self) -> Pool:
        return self.data.validation

    @property
    def validation(self) -> Pool:
        return Pool(self.test.images[:0], self.test.labels[:0])

    @property
    def notes(self) -> tuple[Note, ...]:
        text = f"judged on the {len(self.test.labels)} validation images, the part for the search of DEM*"
        return (*(note for note in self.data.notes if note.key != "validation"), Note("part", text))


def as_csv(index: Tensor, labels: Tensor) -> str:
    """A line per sample: index,label."""
    lines = [f"{i},{label}" for i, label in zip(index.tolist(), labels[index].tolist(), strict=True)]
    return "\n".join(["index,label", *lines, ""])


def describe(data: Any) -> str:
    """Sizes in a line, for messages."""
    parts = (len(data.labelled.labels), data.num_unlabelled, len(data.validation.labels), len(data.test.labels))
    return "{} labelled, {} unlabelled, {} validation, {} test".format(*parts)

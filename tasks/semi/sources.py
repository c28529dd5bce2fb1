"""Where images come from: embedded digits, class folders; published data sets are in ``tasks.semi.published``.

Each has ``name``, ``class_names``, ``mean`` and ``std`` of its normalisation, ``recipe`` of its augmentation,
``notes``, ``fingerprint``, and pools ``train``, ``test`` and ``validation`` (None where there is no official one).
Nothing is read before a pool or the fingerprint is asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from dembench.tasks.base import Note
from dembench.tasks.common.cache import cache_folder, short_hash
from dembench.tasks.common.digits import RENDERING, digits
from dembench.tasks.semi.augment import Recipe
from dembench.tasks.semi.folders import LAYOUT, Folders, read_folders

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Pool:
    """Images (N, 3, H, W) uint8 and labels (N,) int64; -1 where the class is not known."""

    images: Tensor
    labels: Tensor

    def take(self, index: Tensor) -> Pool:
        return Pool(self.images[index], self.labels[index])

    @staticmethod
    def of(images: np.ndarray, labels: np.ndarray) -> Pool:
        """From arrays; images may be (N, 3, H, W), (N, H, W, 3) or grey (N, H, W)."""
        if images.ndim == 3:
            images = np.repeat(images[:, None], 3, 1)
        elif images.shape[1] != 3:
            images = images.transpose(0, 3, 1, 2)
        return Pool(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels.astype(np.int64)))

    @staticmethod
    def empty(like: Pool) -> Pool:
        return Pool(like.images[:0], like.labels[:0])


class Images:
    """What the sources have in common."""

    name: str
    class_names: tuple[str, ...]
    mean: Sequence[float] = IMAGENET[0]
    std: Sequence[float] = IMAGENET[1]
    recipe: Recipe = Recipe()
    notes: tuple[Note, ...] = ()
    validation: Pool | None = None
    train: Pool
    test: Pool

    @cached_property
    def fingerprint(self) -> str:
        """Of all images and labels."""
        digest = hashlib.sha256(repr((self.name, self.class_names)).encode())
        for pool in (self.train, self.test, self.validation):
            if pool is not None:
                digest.update(pool.images.numpy().tobytes() + pool.labels.numpy().tobytes())
        return digest.hexdigest()[:16]


class Digits(Images):
    """scikit-learn's 1,797 digits, 901 for training and 896 for the test; embedded.

    Drawn at 32x32 and averaged down to 16x16, as training on them has to be cheap. A mirrored digit is another sign,
    so nothing is mirrored.
    """

    name = "digits"
    class_names = tuple("0123456789")
    mean: ClassVar[Sequence[float]] = (0.35,) * 3
    std: ClassVar[Sequence[float]] = (0.2,) * 3
    recipe = Recipe(pad=1, hflip=False)

    @cached_property
    def train(self) -> Pool:
        return self._pool("train")

    @cached_property
    def test(self) -> Pool:
        return self._pool("test")

    @cached_property
    def fingerprint(self) -> str:
        return short_hash(self.name, RENDERING, 16)

    @staticmethod
    def _pool(split: str) -> Pool:
        images, labels = digits(split)
        small = torch.nn.functional.avg_pool2d(images.float(), 2).round().to(torch.uint8)
        return Pool(small, labels)


class ImageFolders(Images):
    """Class folders, or a tar archive of them: train/ and test/ (and val/), or class folders alone.

    Args:
        root: the folder or archive.
        name: of the dataset, as the record shows it.
        size: side in pixels to which images are resized; None where all have one size.
        train_share: where there is no test folder: the first so much of each class, by file name, trains.
        recipe: augmentation; None is the crop and the mirror image of CIFAR.
        mean, std: of the normalisation.
        cache: folder of decoded archives; None is $DEMBENCH_CACHE or the user's cache folder.
    Raises: ValueError for a share outside 0..1; the pools also FileNotFoundError and ValueError, which tell the layout.
    """

    def __init__(
        self,
        root: str | Path,
        name: str = "folders",
        size: int | None = None,
        train_share: float = 0.8,
        recipe: Recipe | None = None,
        mean: Sequence[float] = IMAGENET[0],
        std: Sequence[float] = IMAGENET[1],
        cache: str | Path | None = None,
    ) -> None:
        if not 0 < train_share < 1:
            raise ValueError(f"data: expected train_share between 0 and 1, got {train_share}")
        self._root, self.name, self._size, self._share = Path(root).expanduser(), name, size, train_share
        self.recipe, self.mean, self.std = recipe or Recipe(), mean, std
        self._cache = cache_folder(cache)

    @cached_property
    def _read(self) -> Folders:
        return read_folders(self._root, self._size, self._cache)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._read.class_names

    @property
    def fingerprint(self) -> str:
        return short_hash(self._read.fingerprint, self._size)

    @property
    def notes(self) -> tuple[Note, ...]:
        """On files that were left out."""
        return self._read.notes

    @cached_property
    def train(self) -> Pool:
        return self._part("train")

    @cached_property
    def test(self) -> Pool:
        return self._part("test")

    @cached_property
    def validation(self) -> Pool | None:
        parts = self._read.parts
        return Pool.of(*parts["validation"]) if "validation" in parts else None

    def _part(self, part: str) -> Pool:
        parts = self._read.parts
        if part in parts:
            return Pool.of(*parts[part])
        if "all" not in parts:
            raise ValueError(f"{self._root} has {' and '.join(parts)} but no {part} images; {LAYOUT}")
        pool = Pool.of(*parts["all"])
        return pool.take(prefix_rows(pool.labels, self._share, first=part == "train"))


def prefix_rows(labels: Tensor, share: float, *, first: bool) -> Tensor:
    """Positions of the first ``share`` of each class, in the order given, or of the rest."""
    rows = []
    for c in labels.unique():
        own = (labels == c).nonzero()[:, 0]
        cut = int(share * len(own))
        rows.append(own[:cut] if first else own[cut:])
    return torch.cat(rows).sort().values

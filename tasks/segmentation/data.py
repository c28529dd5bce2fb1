"""A pair of domains: labelled source images, unlabelled target images, a target test, as mmsegmentation's dicts.

A pair has ``name``, ``classes``, ``palette``, ``tail`` (rare classes), ``ignore_index``, ``notes``, ``fingerprint`` and
the datasets ``source_train``, ``target_train`` (without labels), ``target_train_labelled`` (for pictures and parity),
``target_test`` and ``source_test`` (None where there is none). Nothing is read before one of them is asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch.utils.data import Dataset, Subset

from dembench.tasks.base import Note
from dembench.tasks.common.parts import PartOf

IGNORE = 255
NORMALISATIONS: dict[str, dict[str, Any]] = {
    "imagenet": {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "rgb_to_bgr": False},
    "advent": {"mean": [104.00698793, 116.66876762, 122.67891434], "std": [1.0, 1.0, 1.0], "rgb_to_bgr": True},
}


@dataclass(frozen=True)
class Pool:
    """images (N, H, W, 3) uint8 RGB, labels (N, H', W') uint8 with 255 for ignored pixels, a name for each image."""

    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def digest(self) -> str:
        """sha256 of all images and labels, hexadecimal."""
        digest = hashlib.sha256("\0".join(self.names).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()


def pack(image: np.ndarray, label: np.ndarray | None, name: str) -> dict[str, Any]:
    """What mmsegmentation's PackSegInputs gives: "inputs" uint8 (3, H, W) RGB and a SegDataSample.

    Args:
        image: (H, W, 3) uint8 RGB.
        label: (H', W') class ids and 255, at the size at which predictions are judged; None leaves it out.
    """
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    size = image.shape[:2]
    sample = SegDataSample()
    if label is not None:
        sample.gt_sem_seg = PixelData(data=torch.from_numpy(label.astype(np.int64))[None])
    sample.set_metainfo(
        {"img_path": name, "ori_shape": size if label is None else label.shape, "img_shape": size, "pad_shape": size}
    )
    return {"inputs": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), "data_samples": sample}


class PoolDataset(Dataset):
    """A pool as a dataset of ``pack``'s dicts; with ``labelled`` False no labels are handed out."""

    def __init__(self, pool: Pool, *, labelled: bool = True) -> None:
        self.pool, self.labelled = pool, labelled

    def __len__(self) -> int:
        return len(self.pool)

    def __getitem__(self, i: int) -> dict[str, Any]:
        label = self.pool.labels[i] if self.labelled else None
        return pack(self.pool.images[i], label, self.pool.names[i])


class DomainPair:
    """What the pairs have in common. Subclasses set the class attributes and the datasets."""

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    tail: tuple[str, ...]
    subsets: ClassVar[dict[str, tuple[str, ...]]] = {}  # further sets of classes over which mIoU is reported
    normalisation: str = "imagenet"
    ignore_index = IGNORE
    notes: tuple[Note, ...] = ()
    fingerprint: str
    source_train: Dataset
    target_train: Dataset
    target_train_labelled: Dataset
    target_test: Dataset
    source_test: Dataset | None = None

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def preprocessor(self) -> dict[str, Any]:
        """Keyword arguments of SegDataPreProcessor: mean and std per channel (0 to 255), and whether to swap to BGR."""
        return dict(NORMALISATIONS[self.normalisation])

    def check(self) -> None:
        """Raises: ValueError or FileNotFoundError where the data cannot be used."""


class PooledPair(DomainPair):
    """A pair that fits in memory: ``pools`` maps "source_train", "target_train", "target_test" (and "source_test")."""

    @cached_property
    def pools(self) -> dict[str, Pool]:
        raise TypeError("a pair says where its pools come from")

    def check(self) -> None:
        for part, pool in self.pools.items():
            if not len(pool):
                raise ValueError(f"{self.name}: no images for {part}")
            check_ids(pool, self.classes)

    @property
    def source_train(self) -> Dataset:
        return PoolDataset(self.pools["source_train"])

    @property
    def target_train(self) -> Dataset:
        return PoolDataset(self.pools["target_train"], labelled=False)

    @property
    def target_train_labelled(self) -> Dataset:
        return PoolDataset(self.pools["target_train"])

    @property
    def target_test(self) -> Dataset:
        return PoolDataset(self.pools["target_test"])

    @property
    def source_test(self) -> Dataset | None:
        return PoolDataset(self.pools["source_test"]) if "source_test" in self.pools else None


class TestPart(PartOf):
    """A part of the target's test images: consecutive ones for the search, because frames of a film resemble their
    neighbours. Training is the same."""

    @property
    def target_test(self) -> Dataset:
        whole = self.data.target_test
        return Subset(whole, self.part.block(len(whole)).tolist())

    @property
    def notes(self) -> tuple[Note, ...]:
        return (*self.data.notes, self.part.note("test images of the target", len(self.data.target_test)))


def check_ids(pool: Pool, classes: Sequence[str]) -> None:
    """Raises ValueError, naming file and id, where a label is neither a class nor 255."""
    for name, label in zip(pool.names, pool.labels, strict=True):
        strange = np.setdiff1d(label, [*range(len(classes)), IGNORE])
        if len(strange):
            raise ValueError(
                f"{name}: unknown label id {int(strange[0])}; expected 0 to {len(classes) - 1} or {IGNORE} (ignored)"
            )

"""CIFAR-10-C and CIFAR-100-C made on this machine from clean test images, as ``tasks.tta.data`` describes data sets."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dembench.lookup import lookup
from dembench.tasks.base import Note
from dembench.tasks.common.cache import (
    cache_folder,
    check_writable,
    load_array,
    save_array,
    short_hash,
)
from dembench.tasks.common.choice import balanced_subset, check_numbers, check_severity, draw
from dembench.tasks.common.corruptions import CORRUPTIONS, GENERATOR_VERSION, SEVERITIES, corrupt
from dembench.tasks.common.corruptions.ice import load_photos, photos_folder
from dembench.tasks.common.originals import CIFAR10, CIFAR100, Kind, Originals, read_originals

FROST_NOTE = Note(
    "frost",
    "frost is a made ice texture, not the photos of CIFAR-10-C (none were given): "
    "its numbers and means that contain it are not those of the published frost",
)


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
            *self._originals.notes,
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
        save_array(path, images.numpy())
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

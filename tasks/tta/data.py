"""Streams of corrupted images: digits that need no download, the released CIFAR-10-C, and CIFAR-10-C made here.

Every dataset has ``name``, ``num_classes``, ``class_names``, ``corruptions``, ``num_images`` (per domain), ``notes``
that belong beside its numbers, and ``fingerprint``, a hash of all that the numbers depend on, equal on every machine
that holds the same files. ``check()`` raises before any work starts; ``domain(corruption, severity)`` returns uint8
images (N, 3, 32, 32) and int64 labels (N,) on the CPU, in a fixed order that may be sorted by class: who streams them
shuffles them.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from tasks.base import Note
from tasks.names import lookup
from tasks.tta.cache import cache_folder, check_writable, load_array, short_hash, write_atomically
from tasks.tta.corruptions import CORRUPTIONS, GENERATOR_VERSION, SEVERITIES, corrupt
from tasks.tta.corruptions.ice import load_photos
from tasks.tta.digits import RENDERING, digits
from tasks.tta.sources import CIFAR10_CLASSES, Originals, read_originals

FROST_NOTE = Note(
    "frost",
    "frost is a made ice texture, not the photos of CIFAR-10-C (none were given): "
    "its numbers and means that contain it are not those of the published frost",
)


def balanced_subset(labels: np.ndarray, num_images: int | None) -> np.ndarray:
    """Positions of ``num_images`` entries, as many of each class as possible, ascending; None takes all.

    Every class gives the same number, and the first classes one more where it does not divide evenly; a class that has
    fewer gives all. A class's k of its m images are those at floor(j * m / k) in its own order.
    Raises: ValueError where there are fewer than ``num_images``.
    """
    if num_images is None:
        return np.arange(len(labels))
    if num_images > len(labels):
        raise ValueError(f"num_images: expected at most {len(labels)}, the images that there are, got {num_images}")
    own = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    sizes = np.array([len(positions) for positions in own])
    level = max(k for k in range(num_images + 1) if np.minimum(sizes, k).sum() <= num_images)
    counts = np.minimum(sizes, level)
    counts[np.flatnonzero(sizes > level)[: num_images - counts.sum()]] += 1
    chosen = [positions[np.arange(k) * len(positions) // max(k, 1)] for positions, k in zip(own, counts, strict=True)]
    return np.sort(np.concatenate(chosen))


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
    corruptions = CORRUPTIONS
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


class CIFAR10C:
    """The released CIFAR-10-C: a folder with labels.npy and one <corruption>.npy for each of the 15 corruptions.

    Args:
        root: that folder, or the one that contains it as CIFAR-10-C.
        num_images: the first so many of each severity, as RobustBench does; None takes all.
    Raises: ValueError for a wrong number; ``check``, ``domain``, ``num_images`` and ``fingerprint`` also for files
        that are something else, and FileNotFoundError where they are missing.
    Source: Hendrycks and Dietterich, ICLR 2019; zenodo.org/records/2535967.
    """

    name = "cifar10-c"
    num_classes = 10
    class_names = CIFAR10_CLASSES
    corruptions = CORRUPTIONS
    notes: ClassVar[tuple[Note, ...]] = ()

    def __init__(self, root: str | Path, num_images: int | None = None) -> None:
        check_numbers("CIFAR10C", num_images, 0)
        root = Path(root).expanduser()
        self._root = root / "CIFAR-10-C" if (root / "CIFAR-10-C").is_dir() else root
        self._wanted = num_images

    def check(self) -> None:
        """Opens every file and compares shapes, dtypes and labels."""
        _ = self._files

    @property
    def num_images(self) -> int:
        total = len(self._files["gaussian_noise"]) // len(SEVERITIES)
        return total if self._wanted is None else self._wanted

    @cached_property
    def fingerprint(self) -> str:
        """Hashes names, sizes, all labels and every hundredth image: the files are too large to read for a hash."""
        digest = hashlib.sha256(repr((self.name, self._wanted)).encode())
        digest.update(self._labels.tobytes())
        for corruption, images in self._files.items():
            digest.update(f"{corruption}{images.shape}".encode())
            digest.update(np.ascontiguousarray(images[::100]).tobytes())
        return digest.hexdigest()[:16]

    def domain(self, corruption: str, severity: int) -> tuple[Tensor, Tensor]:
        """Images and labels of one corruption at one severity; ValueError for an unknown one."""
        lookup(corruption, self.corruptions, "corruption")
        check_severity(severity)
        images = self._files[corruption]
        total = len(images) // len(SEVERITIES)
        block = slice((severity - 1) * total, (severity - 1) * total + self.num_images)
        labels = self._labels[block] if len(self._labels) == len(images) else self._labels[: self.num_images]
        return torch.from_numpy(images[block].transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels.astype(np.int64))

    @cached_property
    def _labels(self) -> np.ndarray:
        return self._open("labels")

    @cached_property
    def _files(self) -> dict[str, np.ndarray]:
        """The 15 memory-mapped arrays, checked."""
        if not self._root.is_dir():
            raise FileNotFoundError(f"CIFAR-10-C: no folder {self._root}; {self._layout}")
        missing = [name for name in ("labels", *self.corruptions) if not (self._root / f"{name}.npy").is_file()]
        if missing:
            raise FileNotFoundError(f"CIFAR-10-C: {self._root} lacks {', '.join(missing)} (.npy); {self._layout}")
        files = {name: self._open(name) for name in self.corruptions}
        rows = len(files[self.corruptions[0]])
        for name, images in files.items():
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (32, 32, 3) or rows % 5 or not rows:
                got = f"{images.dtype} {images.shape}"
                raise ValueError(f"CIFAR-10-C: expected uint8 (5N, 32, 32, 3) in {name}.npy, got {got}; {self._layout}")
            if len(images) != rows:
                raise ValueError(f"CIFAR-10-C: {name}.npy has {len(images)} images, gaussian_noise.npy has {rows}")
        labels = self._labels
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) not in (rows, rows // 5):
            got = f"{labels.dtype} {labels.shape}"
            raise ValueError(f"CIFAR-10-C: expected {rows // 5} or {rows} integers in labels.npy, got {got}")
        if labels.min() < 0 or labels.max() > 9:
            raise ValueError(f"CIFAR-10-C: expected labels 0 to 9, got {labels.min()} to {labels.max()}")
        if self._wanted is not None and self._wanted > rows // 5:
            raise ValueError(f"CIFAR10C: expected num_images of at most {rows // 5}, got {self._wanted}")
        return files

    def _open(self, name: str) -> np.ndarray:
        path = self._root / f"{name}.npy"
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"CIFAR-10-C: {path} is no complete .npy file ({error}); {self._layout}") from error

    _layout = (
        "unpack CIFAR-10-C.tar of zenodo.org/records/2535967 and give the folder that has labels.npy and "
        "<corruption>.npy (uint8, 50000 x 32 x 32 x 3, severity 1 first)"
    )


class GeneratedCIFAR10C:
    """CIFAR-10-C made from test images on this machine; nothing is downloaded, generated domains are cached on disk.

    Args:
        source: torchvision's CIFAR-10 folder, a folder of test/<class>/<image> or <class>/<image>, or a .tar.gz of one.
        num_images: a class-balanced subset, see ``balanced_subset``; None takes all. An image's noise is the same in
            a subset: its index is its position in the complete test set (in torchvision's order, or sorted by class
            folder, then by file name).
        seed: of the corruptions.
        frost: folder of the original's frost photos; None uses a made texture, of which a note tells.
        cache: folder of generated images; None is $DEMBENCH_CACHE or the user's cache folder.
    Raises: ValueError for a wrong number; every other member also for a source that is something else, and
        FileNotFoundError where it is missing.
    """

    num_classes = 10
    class_names = CIFAR10_CLASSES
    corruptions = CORRUPTIONS

    def __init__(
        self,
        source: str | Path,
        num_images: int | None = None,
        seed: int = 0,
        frost: str | Path | None = None,
        cache: str | Path | None = None,
    ) -> None:
        check_numbers("GeneratedCIFAR10C", num_images, seed)
        self._source = Path(source).expanduser()
        self._wanted, self._seed = num_images, seed
        self._frost = None if frost is None else Path(frost).expanduser()
        self._cache = cache_folder(cache)

    def check(self) -> None:
        """Reads the source, the frost photos and tries the cache folder."""
        _ = self.fingerprint
        check_writable(self._cache)

    @property
    def name(self) -> str:
        return "cifar10-jpeg" if self._originals.lossy else "cifar10-generated"

    @property
    def notes(self) -> tuple[Note, ...]:
        made = Note("data", "corrupted on this machine, not the released CIFAR-10-C: the noise is drawn anew")
        jpeg = "made from JPEG copies of CIFAR-10: a network trained on the originals loses about 10 points on them"
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
        labels = torch.from_numpy(self._originals.labels[self._index])
        path = self._cache / "domains" / self.fingerprint / f"{corruption}-{severity}.npy"
        cached = load_array(path)
        if cached is not None and cached.dtype == np.uint8 and cached.shape == (len(labels), 3, 32, 32):
            return torch.from_numpy(cached), labels
        images = torch.from_numpy(self._originals.images[self._index])
        index = torch.from_numpy(self._index)
        images = corrupt(images, corruption, severity, index, seed=self._seed, frost=self._frost)
        write_atomically(path, lambda file: np.save(file, images.numpy(), allow_pickle=False))
        return images, labels

    @cached_property
    def _originals(self) -> Originals:
        return read_originals(self._source, self._cache)

    @cached_property
    def _index(self) -> np.ndarray:
        return balanced_subset(self._originals.labels, self._wanted)


def check_numbers(what: str, num_images: int | None, seed: int) -> None:
    if num_images is not None and (isinstance(num_images, bool) or not isinstance(num_images, int) or num_images < 1):
        raise ValueError(f"{what}: expected num_images to be a whole number > 0 or null, got {num_images!r}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"{what}: expected a whole number >= 0 as seed, got {seed!r}")


def check_severity(severity: int) -> None:
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise ValueError(f"expected a severity of 1 to 5, got {severity!r}")

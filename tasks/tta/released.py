"""CIFAR-10-C and CIFAR-100-C as released: .npy files, as ``tasks.tta.data`` says and with four corruptions more."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from dembench.lookup import lookup
from dembench.records import check_regular
from dembench.tasks.base import Note
from dembench.tasks.common.cache import cache_folder, short_hash
from dembench.tasks.common.choice import check_numbers, check_severity, draw
from dembench.tasks.common.corruptions import CORRUPTIONS, SEVERITIES
from dembench.tasks.common.hashes import content_hashes, names_hash, path_hash
from dembench.tasks.common.originals import CIFAR10, CIFAR100, Kind, read_originals

EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")  # held out, for choosing settings


class CIFAR10C:
    """The released CIFAR-10-C: a folder with labels.npy and one <corruption>.npy for each of the 15 corruptions.

    The four corruptions of ``EXTRA``, kept for choosing settings, can be asked for where their files are there, too.

    Args:
        root: that folder, or the one that contains it as CIFAR-10-C.
        num_images: the first so many of each severity, as RobustBench does; None takes all.
        source: clean CIFAR-10 images, see ``tasks.common.originals``, for methods that need some first.
        cache: see ``tasks.common.cache``; for a ``source`` that is an archive.
        severity: of all images, where the files hold that one alone; None: they hold five, one after the other.
    Raises: ValueError for a wrong number; ``check``, ``domain``, ``num_images`` and ``fingerprint`` also for files
        that are something else, and FileNotFoundError where they are missing.
    Source: Hendrycks and Dietterich, ICLR 2019; zenodo.org/records/2535967.
    """

    name = "cifar10-c"
    kind: Kind = CIFAR10
    record = 2535967
    corruptions = CORRUPTIONS
    known = (*CORRUPTIONS, *EXTRA)
    severities: tuple[int, ...] = SEVERITIES
    notes: ClassVar[tuple[Note, ...]] = ()

    def __init__(
        self,
        root: str | Path,
        num_images: int | None = None,
        source: str | Path | None = None,
        cache: str | Path | None = None,
        severity: int | None = None,
    ) -> None:
        check_numbers(type(self).__name__, num_images, 0)
        if severity is not None:
            check_severity(severity)
            self.severities = (severity,)
        root = Path(root).expanduser()
        self.title = f"{self.kind.title}-C"
        self._root = root / self.title if (root / self.title).is_dir() else root
        self._wanted = num_images
        self._source = None if source is None else Path(source).expanduser()
        self._cache = cache_folder(cache)
        self._extra: list[str] = []  # that will be asked for

    @property
    def num_classes(self) -> int:
        return len(self.kind.classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.kind.classes

    def require(self, domains: Sequence[tuple[str, int | None]]) -> None:
        """Raises FileNotFoundError where one of these is not there, ValueError for a severity that is not."""
        other = [severity for _, severity in domains if severity not in self.severities]
        if other:
            raise ValueError(f"{self.title}: the files are of severity {self.severities[0]}, not {other[0]}")
        self._extra = sorted({corruption for corruption, _ in domains} & set(EXTRA))
        missing = [name for name in self._extra if not (self._root / f"{name}.npy").is_file()]
        if missing:
            raise FileNotFoundError(f"{self.title}: {self._root} lacks {', '.join(missing)} (.npy); {self._layout}")

    def check(self) -> None:
        """Opens every file and compares shapes, dtypes and labels."""
        _ = self._files

    @property
    def num_images(self) -> int:
        total = len(self._files["gaussian_noise"]) // len(self.severities)
        return total if self._wanted is None else self._wanted

    @cached_property
    def fingerprint(self) -> str:
        """Of the bytes of all files that may be asked for, and of ``source``."""
        names = ["labels", *self._files, *self._extra]
        hashes = content_hashes([self._root / f"{name}.npy" for name in names], self._cache)
        source = () if self._source is None else (path_hash(self._source, self._cache),)
        alone = () if len(self.severities) > 1 else (f"severity {self.severities[0]}",)
        return short_hash(self.name, self._wanted, names_hash(names, hashes), *source, *alone)

    def domain(self, corruption: str, severity: int) -> tuple[Tensor, Tensor]:
        """Images and labels of one corruption at one severity; ValueError for an unknown one."""
        lookup(corruption, self.known, "corruption")
        check_severity(severity)
        self.require([(corruption, severity)])
        images = self._open(corruption) if corruption in EXTRA else self._files[corruption]
        total = len(images) // len(self.severities)
        start = self.severities.index(severity) * total
        block = slice(start, start + self.num_images)
        labels = self._labels[block] if len(self._labels) == len(images) else self._labels[: self.num_images]
        return torch.from_numpy(images[block].transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels.astype(np.int64))

    def clean(self, num_images: int, seed: int) -> tuple[Tensor, Note]:
        """Of the clean test images of ``source``, uint8 (N, 3, 32, 32), as EATA's authors draw from the test set.

        Raises: ValueError where no source was given; FileNotFoundError where it is not there.
        """
        if self._source is None:
            raise ValueError(f"{self.title}: clean images are needed; give data.source=PATH: {self.kind.layout}")
        images = read_originals(self._source, self._cache, self.kind).images
        chosen = draw(len(images), num_images, seed)
        note = f"the method first saw {len(chosen)} clean test images, some of them in the stream's domains, too"
        return torch.from_numpy(images[chosen.numpy()]), Note("clean", note)

    @cached_property
    def _labels(self) -> np.ndarray:
        return self._open("labels")

    @cached_property
    def _files(self) -> dict[str, np.ndarray]:
        """The 15 memory-mapped arrays, checked."""
        if not self._root.is_dir():
            raise FileNotFoundError(f"{self.title}: no folder {self._root}; {self._layout}")
        missing = [name for name in ("labels", *self.corruptions) if not (self._root / f"{name}.npy").is_file()]
        if missing:
            raise FileNotFoundError(f"{self.title}: {self._root} lacks {', '.join(missing)} (.npy); {self._layout}")
        files = {name: self._open(name) for name in self.corruptions}
        rows, blocks = len(files[self.corruptions[0]]), len(self.severities)
        many = "5" if blocks > 1 else ""
        for name, images in files.items():
            if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3) or rows % blocks or not rows:
                got = f"{images.dtype} {images.shape}"
                raise ValueError(
                    f"{self.title}: expected uint8 ({many}N, 32, 32, 3) in {name}.npy, got {got}; {self._layout}"
                )
            if len(images) != rows:
                raise ValueError(f"{self.title}: {name}.npy has {len(images)} images, gaussian_noise.npy has {rows}")
        labels = self._labels
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) not in (rows, rows // blocks):
            got = f"{labels.dtype} {labels.shape}"
            raise ValueError(f"{self.title}: expected {rows // blocks} or {rows} integers in labels.npy, got {got}")
        if len(labels) == rows and (labels.reshape(blocks, -1) != labels[: rows // blocks]).any():
            raise ValueError(
                f"{self.title}: the five blocks of labels.npy differ, so these are not five severities of the same "
                "images; where the files hold one severity, say which: +data.severity=5"
            )
        if labels.min() < 0 or labels.max() >= self.num_classes:
            got = f"{labels.min()} to {labels.max()}"
            raise ValueError(f"{self.title}: expected labels 0 to {self.num_classes - 1}, got {got}")
        if self._wanted is not None and self._wanted > rows // blocks:
            raise ValueError(f"{self.title}: expected num_images of at most {rows // blocks}, got {self._wanted}")
        return files

    def _open(self, name: str) -> np.ndarray:
        path = self._root / f"{name}.npy"
        try:
            check_regular(path)
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise
        except Exception as error:  # whatever a header makes NumPy raise
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise ValueError(f"{self.title}: {path} is no complete .npy file ({reason}); {self._layout}") from error

    @property
    def _layout(self) -> str:
        return (
            f"dembench data fetch {self.kind.name}c, or unpack {self.title}.tar of zenodo.org/records/{self.record} "
            "and give the folder of labels.npy and <corruption>.npy (uint8, 50000 x 32 x 32 x 3, severity 1 first)"
        )


class CIFAR100C(CIFAR10C):
    """The released CIFAR-100-C, in the same layout; zenodo.org/records/3555552."""

    name = "cifar100-c"
    kind = CIFAR100
    record = 3555552

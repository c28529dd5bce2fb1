"""Made CIFAR images as somebody has them: class folders, archives, the released .npy files."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dembench.tasks.common.corruptions import CORRUPTIONS
from dembench.tasks.common.originals import CIFAR10_CLASSES

PER_CLASS = 4


def pixels(row: int) -> np.ndarray:
    """A noise image that is this row's own, (32, 32, 3)."""
    return np.random.default_rng(row).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def encoded(row: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(row)).save(file, kind)
    return file.getvalue()


def files(
    prefix: str = "test/", suffix: str = "png", classes: Sequence[str] = CIFAR10_CLASSES, per_class: int = PER_CLASS
) -> dict[str, bytes]:
    """Images of each class: path to bytes."""
    kind = {"png": "PNG", "jpg": "JPEG"}[suffix]
    return {
        f"{prefix}{name}/{k:04d}.{suffix}": encoded(row * per_class + k, kind)
        for row, name in enumerate(classes)
        for k in range(per_class)
    }


def as_folder(root: Path, content: Mapping[str, bytes]) -> Path:
    for name, blob in content.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(blob)
    return root


def as_archive(
    path: Path, content: Mapping[str, bytes], mode: str = "w:gz", more: Iterable[tarfile.TarInfo] = ()
) -> Path:
    with tarfile.open(path, mode) as archive:
        for name, blob in reversed(content.items()):  # the order in the archive must not matter
            member = tarfile.TarInfo(name)
            member.size = len(blob)
            archive.addfile(member, io.BytesIO(blob))
        for member in more:
            archive.addfile(member)
    return path


def expected(rows: Iterable[int]) -> Tensor:
    return torch.from_numpy(np.stack([pixels(row) for row in rows]).transpose(0, 3, 1, 2))


def released(root: Path, rows: int = 6, long_labels: bool = True, classes: int = 10) -> Path:
    """A CIFAR-10-C of ``rows`` images a severity: each image is noise of its file's and its row's own."""
    root.mkdir(parents=True)
    labels = np.arange(rows) % classes
    np.save(root / "labels.npy", np.tile(labels, 5) if long_labels else labels)
    for number, name in enumerate(CORRUPTIONS):
        images = np.stack([pixels(1000 * number + row) for row in range(5 * rows)])
        np.save(root / f"{name}.npy", images)
    return root

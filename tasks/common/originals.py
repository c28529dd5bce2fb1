"""CIFAR-10 or CIFAR-100 images as somebody has them: torchvision's folder, class folders, or a tar archive of those.

Nothing is extracted or written beside the source. Archives are decoded once; the result lies in the cache folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from dembench.tasks.common.cache import file_hash, load_array
from dembench.tasks.common.files import write_atomic

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""
CIFAR100_CLASSES = tuple(CIFAR100_NAMES.split())
LOSSY, LOSSLESS = (".jpg", ".jpeg"), (".png", ".bmp", ".ppm")
LARGEST_FILE = 1 << 20  # a 32x32 image has 3 kB; what is far larger is something else
Split = Literal["train", "test"]


@dataclass(frozen=True)
class Kind:
    """Which of the two datasets; ``folder`` and ``archive`` are those of its first publication."""

    name: str
    title: str
    classes: tuple[str, ...]
    folder: str
    archive: str

    @property
    def layout(self) -> str:
        return (
            f"expected torchvision's folder ({self.folder}, unpacked from {self.archive} of "
            "www.cs.toronto.edu/~kriz/cifar.html), or a folder or .tar.gz of test/<class>/<image> or <class>/<image>"
        )


CIFAR10 = Kind("cifar10", "CIFAR-10", CIFAR10_CLASSES, "cifar-10-batches-py", "cifar-10-python.tar.gz")
CIFAR100 = Kind("cifar100", "CIFAR-100", CIFAR100_CLASSES, "cifar-100-python", "cifar-100-python.tar.gz")


@dataclass(frozen=True)
class Originals:
    """Uint8 images (N, 3, 32, 32) and labels (N,) int64 in a fixed order, and whether they went through JPEG."""

    images: np.ndarray
    labels: np.ndarray
    lossy: bool
    fingerprint: str


def read_originals(source: Path, cache: Path, kind: Kind = CIFAR10, split: Split = "test") -> Originals:
    """The complete split of ``source``; images from files are sorted by class folder, then by file name.

    The fingerprint hashes the archive's bytes, the images themselves, or the names and bytes of the image files.
    Raises: FileNotFoundError where there is nothing, ValueError where there is something else; both tell the layout.
    """
    if source.is_file():
        return _from_archive(source, cache, kind, split)
    if not source.is_dir():
        raise FileNotFoundError(f"{kind.title} images: nothing at {source}; {kind.layout}")
    if source.name == kind.folder:
        return _from_torchvision(source.parent, kind, split)
    if (source / kind.folder).is_dir():
        return _from_torchvision(source, kind, split)
    return _from_folders(source, kind, split)


def _from_torchvision(root: Path, kind: Kind, split: Split) -> Originals:
    from torchvision import datasets

    try:
        dataset = datasets.CIFAR10 if kind is CIFAR10 else datasets.CIFAR100
        data = dataset(str(root), train=split == "train", download=False)
    except RuntimeError as error:
        raise ValueError(f"{kind.title} images: {root / kind.folder} lacks files or has damaged ones") from error
    images = np.ascontiguousarray(data.data.transpose(0, 3, 1, 2))
    labels = np.asarray(data.targets, dtype=np.int64)
    if labels.size == 0 or labels.min() < 0 or labels.max() >= len(kind.classes):
        raise ValueError(f"{root}: expected labels from 0 to {len(kind.classes) - 1}")
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    return Originals(images, labels, False, digest[:32])


def _from_folders(root: Path, kind: Kind, split: Split) -> Originals:
    base = root / split if split == "train" or (root / split).is_dir() else root
    if not base.is_dir():
        raise FileNotFoundError(f"{kind.title} images: no folder {base}; {kind.layout}")
    files = [
        (path.parent.name, path.name, path)
        for folder in sorted(base.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
        for path in sorted(folder.iterdir())
        if _is_image(PurePosixPath(path.name))
    ]
    digest = hashlib.sha256()

    def named() -> Iterator[tuple[str, str, bytes]]:
        for folder, name, path in files:
            data = path.read_bytes()
            digest.update(f"{folder}/{name}\0{len(data)}\0".encode())
            digest.update(data)
            yield folder, name, data

    images, labels, lossy = _decode(list(named()), str(base), kind, split)
    return Originals(images, labels, lossy, digest.hexdigest()[:32])


def _from_archive(path: Path, cache: Path, kind: Kind, split: Split) -> Originals:
    digest = file_hash(path, 32)
    folder = cache / "originals" / f"{digest}-1{'' if split == 'test' else split}"  # 1: the version of what lies there
    images, labels = (load_array(folder / f"{name}.npy") for name in ("images", "labels"))
    lossy = _read_lossy(folder / "done.json")
    if images is None or labels is None or lossy is None or len(images) != len(labels):
        images, labels, lossy = _decode(_members(path, kind, split), str(path), kind, split)
        for name, array in (("images", images), ("labels", labels)):
            write_atomic(folder / f"{name}.npy", lambda file, array=array: np.save(file, array, allow_pickle=False))
        write_atomic(folder / "done.json", lambda file: file.write(json.dumps({"lossy": lossy}).encode()))
    return Originals(images, labels, lossy, digest)


def _read_lossy(path: Path) -> bool | None:
    try:
        return bool(json.loads(path.read_text())["lossy"])
    except (OSError, ValueError, KeyError):
        return None


def _members(path: Path, kind: Kind, split: Split) -> list[tuple[str, str, bytes]]:
    """Class, file name and bytes of the images of the split's folder; for test, of all where there is no such folder.

    The archive is read as a stream. Links, devices and names that lead out of the archive are refused.
    """
    found: dict[PurePosixPath, list[tuple[str, str, bytes]]] = {}
    other = "train" if split == "test" else "test"
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts or "\\" in member.name:
                    raise ValueError(f"{path}: the member {member.name!r} leads out of the archive")
                if member.isdir():
                    continue
                if not member.isreg():
                    raise ValueError(f"{path}: the member {member.name!r} is no regular file")
                if name.parent.name == kind.folder:
                    raise ValueError(f"{path} is torchvision's archive: unpack it and give the folder")
                parent = name.parent.parent
                if len(name.parts) < 2 or not _is_image(name) or parent.name == other:
                    continue
                if member.size > LARGEST_FILE:
                    raise ValueError(f"{path}: the member {member.name!r} has {member.size} bytes, no 32x32 image")
                file = archive.extractfile(member)
                if file is not None:
                    found.setdefault(parent, []).append((name.parent.name, name.name, file.read()))
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{kind.title} images: {path} is no readable tar archive ({error}); {kind.layout}") from error
    own = [folder for folder in found if folder.name == split]
    chosen = own or (list(found) if split == "test" else [])
    if len(chosen) > 1:
        raise ValueError(f"{path} has class folders in several places: {', '.join(map(str, sorted(chosen)))}")
    return sorted(found[chosen[0]]) if chosen else []


def _decode(
    files: list[tuple[str, str, bytes]], where: str, kind: Kind, split: Split
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Images (N, 3, 32, 32), labels (N,) by the order of the class names, and whether any file is a JPEG."""
    found = {folder for folder, _, _ in files}
    if not files:
        raise ValueError(f"{kind.title} images: no {split} images in {where}; {kind.layout}")
    numbers = tuple(map(str, range(len(kind.classes))))
    classes = next((names for names in (kind.classes, numbers) if found == set(names)), None)
    if classes is None:
        expected, got = ", ".join(kind.classes[:10]), ", ".join(sorted(found)[:12])
        raise ValueError(f"{where}: expected the class folders {expected} (or 0 to {numbers[-1]}), got {got}")
    images = np.empty((len(files), 32, 32, 3), np.uint8)
    for row, (folder, name, data) in enumerate(files):
        try:
            with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "BMP", "PPM")) as image:
                if image.size != (32, 32):
                    raise ValueError(f"{where}: expected 32x32 pixels, got {image.size} in {folder}/{name}")
                images[row] = np.asarray(image.convert("RGB"))
        except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, OSError) as error:
            raise ValueError(f"{where}: {folder}/{name} cannot be read as an image: {error}") from error
    labels = np.array([classes.index(folder) for folder, _, _ in files], dtype=np.int64)
    lossy = any(PurePosixPath(name).suffix.lower() in LOSSY for _, name, _ in files)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels, lossy


def _is_image(name: PurePosixPath) -> bool:
    return not name.name.startswith(".") and name.suffix.lower() in LOSSY + LOSSLESS

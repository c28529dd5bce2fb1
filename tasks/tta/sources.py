"""The CIFAR-10 test images as somebody has them: torchvision's folder, class folders, or a tar archive of those.

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

import numpy as np
from PIL import Image, UnidentifiedImageError

from tasks.tta.cache import file_hash, load_array, write_atomically

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LOSSY, LOSSLESS = (".jpg", ".jpeg"), (".png", ".bmp", ".ppm")
LARGEST_FILE = 1 << 20  # a 32x32 image has 3 kB; what is far larger is something else
LAYOUT = (
    "expected torchvision's folder (cifar-10-batches-py, unpacked from cifar-10-python.tar.gz of "
    "www.cs.toronto.edu/~kriz/cifar.html), or a folder or .tar.gz of test/<class>/<image> or <class>/<image>"
)


@dataclass(frozen=True)
class Originals:
    """Uint8 images (N, 3, 32, 32) and labels (N,) int64 in a fixed order, and whether they went through JPEG."""

    images: np.ndarray
    labels: np.ndarray
    lossy: bool
    fingerprint: str


def read_originals(source: Path, cache: Path) -> Originals:
    """The complete test set of ``source``; images from files are sorted by class folder, then by file name.

    The fingerprint hashes the archive's bytes, the test batch's bytes, or the names and bytes of the image files.
    Raises: FileNotFoundError where there is nothing, ValueError where there is something else; both tell the layout.
    """
    if source.is_file():
        return _from_archive(source, cache)
    if not source.is_dir():
        raise FileNotFoundError(f"CIFAR-10 images: nothing at {source}; {LAYOUT}")
    if source.name == "cifar-10-batches-py":
        return _from_torchvision(source.parent)
    if (source / "cifar-10-batches-py").is_dir():
        return _from_torchvision(source)
    return _from_folders(source)


def _from_torchvision(root: Path) -> Originals:
    from torchvision.datasets import CIFAR10

    try:
        data = CIFAR10(str(root), train=False, download=False)
    except RuntimeError as error:
        raise ValueError(f"CIFAR-10 images: {root / 'cifar-10-batches-py'} lacks files or has damaged ones") from error
    images = np.ascontiguousarray(data.data.transpose(0, 3, 1, 2))
    labels = np.asarray(data.targets, dtype=np.int64)
    _check_labels(labels, str(root))
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    return Originals(images, labels, False, digest[:32])


def _from_folders(root: Path) -> Originals:
    base = root / "test" if (root / "test").is_dir() else root
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

    images, labels, lossy = _decode(list(named()), str(base))
    return Originals(images, labels, lossy, digest.hexdigest()[:32])


def _from_archive(path: Path, cache: Path) -> Originals:
    digest = file_hash(path, 32)
    folder = cache / "originals" / f"{digest}-1"  # 1: the version of what lies there
    images, labels = (load_array(folder / f"{name}.npy") for name in ("images", "labels"))
    lossy = _read_lossy(folder / "done.json")
    if images is None or labels is None or lossy is None or len(images) != len(labels):
        images, labels, lossy = _decode(_members(path), str(path))
        for name, array in (("images", images), ("labels", labels)):
            write_atomically(folder / f"{name}.npy", lambda file, array=array: np.save(file, array, allow_pickle=False))
        write_atomically(folder / "done.json", lambda file: file.write(json.dumps({"lossy": lossy}).encode()))
    return Originals(images, labels, lossy, digest)


def _read_lossy(path: Path) -> bool | None:
    try:
        return bool(json.loads(path.read_text())["lossy"])
    except (OSError, ValueError, KeyError):
        return None


def _members(path: Path) -> list[tuple[str, str, bytes]]:
    """Class, file name and bytes of the images of the test folder, or of all images where there is no test folder.

    The archive is read as a stream. Links, devices and names that lead out of the archive are refused.
    """
    found: dict[PurePosixPath, list[tuple[str, str, bytes]]] = {}
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
                if name.name.startswith(("data_batch", "test_batch")):
                    raise ValueError(f"{path} is torchvision's archive: unpack it and give the folder")
                parent = name.parent.parent
                if len(name.parts) < 2 or not _is_image(name) or parent.name == "train":
                    continue
                if member.size > LARGEST_FILE:
                    raise ValueError(f"{path}: the member {member.name!r} has {member.size} bytes, no 32x32 image")
                file = archive.extractfile(member)
                if file is not None:
                    found.setdefault(parent, []).append((name.parent.name, name.name, file.read()))
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"CIFAR-10 images: {path} is no readable tar archive ({error}); {LAYOUT}") from error
    tests = [folder for folder in found if folder.name == "test"]
    chosen = tests or list(found)
    if len(chosen) > 1:
        raise ValueError(f"{path} has class folders in several places: {', '.join(map(str, sorted(chosen)))}")
    return sorted(found[chosen[0]]) if chosen else []


def _decode(files: list[tuple[str, str, bytes]], where: str) -> tuple[np.ndarray, np.ndarray, bool]:
    """Images (N, 3, 32, 32), labels (N,) by the order of the class names, and whether any file is a JPEG."""
    classes = tuple(sorted({folder for folder, _, _ in files}))
    if not files:
        raise ValueError(f"CIFAR-10 images: no test images in {where}; {LAYOUT}")
    if classes not in (CIFAR10_CLASSES, tuple(map(str, range(10)))):
        got = ", ".join(classes[:12])
        raise ValueError(f"{where}: expected the class folders {', '.join(CIFAR10_CLASSES)} (or 0 to 9), got {got}")
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


def _check_labels(labels: np.ndarray, where: str) -> None:
    if labels.size == 0 or labels.min() < 0 or labels.max() > 9:
        raise ValueError(f"{where}: expected labels from 0 to 9")

"""CIFAR-10 or CIFAR-100 images as somebody has them: torchvision's folder, class folders, or a tar archive of those.

Nothing is extracted or written beside the source. Archives are decoded once; the result is kept in the cache folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from dembench.tasks.base import ConfigError, Note
from dembench.tasks.common.archives import member_sizes
from dembench.tasks.common.cache import check_writable, file_hash, load_array, load_json, save_array, save_json
from dembench.tasks.common.decoding import decode
from dembench.tasks.common.image_folders import Listing, arrange, contents, list_images, remark

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
LOSSY = (".jpg", ".jpeg")
LARGEST_FILE = 1 << 20  # a 32x32 image has 3 kB; what is far larger is something else
Split = Literal["train", "test"]
PARTS = {"train": ("train",), "test": ("test", "all")}  # of an image folder, the first that there is


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
    """Uint8 images (N, 3, 32, 32) and labels (N,) int64 in a fixed order, whether they went through JPEG, and notes on
    files that are in no split."""

    images: np.ndarray
    labels: np.ndarray
    lossy: bool
    fingerprint: str
    notes: tuple[Note, ...] = ()


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
    names, notes = _chosen(list_images(root, kind.title, kind.layout, wrapped=True), split)
    digest = hashlib.sha256()
    files = []
    for name, data in contents(root, kind.layout, names):
        digest.update(f"{names[name]}\0{len(data)}\0".encode() + data)
        files.append((names[name], data))
    images, labels, lossy = _decode(files, str(root), kind, split)
    return Originals(images, labels, lossy, digest.hexdigest()[:32], notes)


def _chosen(listing: Listing, split: Split) -> tuple[dict[str, str], tuple[Note, ...]]:
    """The images of a split: name in the source -> <class>/<image>, sorted; and what is in no split."""
    chosen = listing.choose(*PARTS[split])
    if chosen is None:
        return {}, ()
    names = [name for own in chosen.files.values() for name in own]
    others = sum(map(len, chosen.left_out.values())) - sum(map(len, listing.left_out.values()))
    notes = remark(listing.total - others, listing.left_out)
    return {f"{chosen.folder}/{name}".removeprefix("/"): name for name in names}, notes


def _from_archive(path: Path, cache: Path, kind: Kind, split: Split) -> Originals:
    digest = file_hash(path, 32)
    folder = cache / "originals" / f"{digest}-2{'' if split == 'test' else split}"  # 2: the version of its files
    images, labels = (load_array(folder / f"{name}.npy") for name in ("images", "labels"))
    about = _read_about(folder / "done.json")
    if images is None or labels is None or about is None or len(images) != len(labels):
        check_writable(cache)
        sizes = member_sizes(path, kind.layout)
        if any(PurePosixPath(name).parent.name == kind.folder for name in sizes):
            raise ConfigError(f"{path} is torchvision's archive: unpack it and give the folder")
        names, notes = _chosen(arrange(sizes, where=str(path), wrapped=True), split)
        for name in names:
            if sizes[name] > LARGEST_FILE:
                raise ConfigError(f"{path}: the member {name!r} has {sizes[name]} bytes, no 32x32 image")
        files = dict(contents(path, kind.layout, names))
        images, labels, lossy = _decode(sorted((names[name], files[name]) for name in names), str(path), kind, split)
        for name, array in (("images", images), ("labels", labels)):
            save_array(folder / f"{name}.npy", array)
        about = lossy, notes
        save_json(folder / "done.json", {"lossy": lossy, "notes": [(note.key, note.text) for note in notes]})
    return Originals(images, labels, about[0], digest, about[1])


def _read_about(path: Path) -> tuple[bool, tuple[Note, ...]] | None:
    about = load_json(path)
    return about and (about["lossy"], tuple(Note(key, text) for key, text in about["notes"]))


def _decode(
    files: Sequence[tuple[str, bytes]], where: str, kind: Kind, split: Split
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Images (N, 3, 32, 32), labels (N,) by the order of the class names, and whether any file is a JPEG."""
    folders = [name.partition("/")[0] for name, _ in files]
    if not files:
        raise ConfigError(f"{kind.title} images: no {split} images in {where}; {kind.layout}")
    numbers = tuple(map(str, range(len(kind.classes))))
    classes = next((names for names in (kind.classes, numbers) if set(folders) == set(names)), None)
    if classes is None:
        expected, got = ", ".join(kind.classes[:10]), ", ".join(sorted(set(folders))[:12])
        raise ConfigError(f"{where}: expected the class folders {expected} (or 0 to {numbers[-1]}), got {got}")
    images = np.empty((len(files), 32, 32, 3), np.uint8)
    for row, (name, data) in enumerate(files):
        image = decode(data, f"{where}: {name}")
        if image.size != (32, 32):
            raise ConfigError(f"{where}: expected 32x32 pixels, got {image.size} in {name}")
        images[row] = np.asarray(image)
    labels = np.array([classes.index(folder) for folder in folders], dtype=np.int64)
    lossy = any(PurePosixPath(name).suffix.lower() in LOSSY for name, _ in files)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels, lossy

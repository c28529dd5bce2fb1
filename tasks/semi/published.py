"""Published data sets in their own layouts, as ``tasks.semi.sources`` describes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from dembench.tasks.base import Note
from dembench.tasks.common.decoding import decode
from dembench.tasks.common.image_folders import read_lines
from dembench.tasks.semi.augment import Recipe
from dembench.tasks.semi.folders import Folders, read_folders, square
from dembench.tasks.semi.sources import ImageFolders, Images, Pool


class EuroSAT(ImageFolders):
    """EuroSAT RGB: folders of class folders (2750/<Class>/<Class>_<n>.jpg), no official split.

    As in USB, the first 80 % of each class by file name train (21,600) and the rest is the test (5,400), at 32x32.
    Raises, from all that reads: FileNotFoundError without images, ValueError for other classes.
    """

    classes = (
        *("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial"),
        *("Pasture", "PermanentCrop", "Residential", "River", "SeaLake"),
    )
    complete = 27_000

    def __init__(self, root: str | Path, size: int = 32, cache: str | Path | None = None) -> None:
        root = Path(root).expanduser()
        for inner in ("eurosat/2750", "2750"):
            root = root / inner if (root / inner).is_dir() else root
        half = (0.5,) * 3
        super().__init__(root, "eurosat", size, 0.8, Recipe(vflip=True), half, half, cache)

    @cached_property
    def _read(self) -> Folders:
        get = "unpack EuroSAT.zip of huggingface.co/datasets/torchgeo/eurosat; give the folder that has 2750/<Class>/"
        try:
            found = read_folders(self._root, self._size, self._cache)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"eurosat: no images at {self._root}; {get}") from error
        except ValueError as error:
            raise ValueError(f"eurosat: {error}; {get}") from error
        if found.class_names != self.classes:
            other = sorted(set(found.class_names) ^ set(self.classes))
            raise ValueError(f"eurosat: {self._root} has other classes than EuroSAT ({', '.join(other[:3])}); {get}")
        return found

    @property
    def notes(self) -> tuple[Note, ...]:
        text = "no official split: the first 80 % of each class by file name train, the rest is the test"
        images = sum(len(labels) for _, labels in self._read.parts.values())
        if images != self.complete:
            text += f"; {images} images are here, {self.complete} are all"
        return (Note("split", text), *super().notes)


class CIFAR(Images):
    """CIFAR-10 or CIFAR-100 in torchvision's layout; normalised as USB does (CIFAR-10 by ImageNet's mean and std).

    Raises: ValueError for another number of classes; the pools FileNotFoundError where the files are missing.
    """

    def __init__(self, root: str | Path, classes: Literal[10, 100] = 10) -> None:
        if classes not in (10, 100):
            raise ValueError(f"data: expected CIFAR with 10 or 100 classes, got {classes!r}")
        self._root, self._classes, self.name = Path(root).expanduser(), classes, f"cifar{classes}"
        if classes == 100:
            self.mean = tuple(v / 255 for v in (129.3, 124.1, 112.4))
            self.std = tuple(v / 255 for v in (68.2, 65.4, 70.4))

    def _open(self, train: bool):
        from torchvision.datasets import CIFAR10, CIFAR100

        kind, folder = (CIFAR10, "cifar-10-batches-py") if self._classes == 10 else (CIFAR100, "cifar-100-python")
        root = self._root.parent if self._root.name == folder else self._root
        try:
            return kind(str(root), train=train, download=False)
        except (RuntimeError, OSError) as error:
            archive = f"cifar-{self._classes}-python.tar.gz"
            text = (
                f"{self.name}: no complete {folder} in {root}; unpack {archive} of www.cs.toronto.edu/~kriz/cifar.html"
            )
            raise FileNotFoundError(text) from error

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self._open(False).classes)

    @cached_property
    def train(self) -> Pool:
        data = self._open(True)
        return Pool.of(data.data, np.asarray(data.targets))

    @cached_property
    def test(self) -> Pool:
        data = self._open(False)
        return Pool.of(data.data, np.asarray(data.targets))


class STL10(Images):
    """STL-10: 5,000 labelled and 100,000 unlabelled images for training, 8,000 for the test, 96x96."""

    name = "stl10"
    mean: ClassVar[Sequence[float]] = tuple(v / 255 for v in (112.4, 109.1, 98.6))
    std: ClassVar[Sequence[float]] = tuple(v / 255 for v in (68.4, 66.6, 68.5))
    recipe = Recipe(pad=12)

    def __init__(self, root: str | Path) -> None:
        self._root = Path(root).expanduser()

    def _open(self, split: str):
        from torchvision.datasets import STL10 as Torchvision

        root = self._root.parent if self._root.name == "stl10_binary" else self._root
        try:
            return Torchvision(str(root), split=split, download=False)
        except (RuntimeError, OSError) as error:
            get = "unpack stl10_binary.tar.gz of ai.stanford.edu/~acoates/stl10"
            raise FileNotFoundError(f"stl10: no complete stl10_binary in {root}; {get}") from error

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self._open("test").classes)

    @cached_property
    def train(self) -> Pool:
        data = self._open("train+unlabeled")
        return Pool.of(data.data, np.asarray(data.labels))

    @cached_property
    def test(self) -> Pool:
        data = self._open("test")
        return Pool.of(data.data, np.asarray(data.labels))


class MedMNIST(Images):
    """A dataset of MedMNIST as its .npz file (``tissuemnist.npz``): images of 28x28, resized to 32x32 as in USB.

    Its official validation set is the one that selects. Raises: FileNotFoundError and ValueError from the pools.
    """

    mean: ClassVar[Sequence[float]] = (0.5,) * 3
    std: ClassVar[Sequence[float]] = (0.5,) * 3
    recipe = Recipe(
        pad=1,
        vflip=True,
        operations=(
            *("brightness", "equalize", "identity", "rotate", "sharpness"),
            *("shear_x", "shear_y", "translate_x", "translate_y"),
        ),
    )

    def __init__(self, root: str | Path, name: str = "tissuemnist", classes: int = 8, size: int = 32) -> None:
        root = Path(root).expanduser()
        self._file = root / f"{name}.npz" if root.is_dir() else root
        self.name, self._size, self.class_names = name, size, tuple(map(str, range(classes)))

    def _pool(self, split: str) -> Pool:
        if not self._file.is_file():
            get = f"get {self.name}.npz of zenodo.org/records/10519652"
            raise FileNotFoundError(f"{self.name}: no file {self._file}; {get}")
        try:
            with np.load(self._file, allow_pickle=False) as arrays:
                images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"].reshape(-1)
        except Exception as error:  # of zipfile, zlib and NumPy
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise ValueError(f"{self._file} is no file of MedMNIST ({reason})") from error
        whole = images.ndim in (3, 4) and labels.dtype.kind in "ui" and len(images) == len(labels) > 0
        if not whole or images.dtype != np.uint8 or not 0 <= labels.min() <= labels.max() < len(self.class_names):
            raise ValueError(f"{self._file}: expected uint8 images of {len(self.class_names)} classes")
        return Pool.of(resize(images, self._size), labels)

    @cached_property
    def train(self) -> Pool:
        return self._pool("train")

    @cached_property
    def validation(self) -> Pool | None:
        return self._pool("val")

    @cached_property
    def test(self) -> Pool:
        return self._pool("test")


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Each of (N, H, W[, 3]) uint8 to a square, bilinear, by Pillow."""
    from PIL import Image

    if images.shape[1:3] == (size, size):
        return images
    small = [np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)) for image in images]
    return np.stack(small)


class SemiAves(Images):
    """Semi-Aves, 200 species of birds, after its split files; images are kept at 256x256.

    A weak view is a crop of 224; a strong one begins with a crop of 8 to 100 % of the area, resized to 224.
    As USB's code, though not its documentation: labelled are the 5,959 images of l_train_val, unlabelled the 26,640 of
    u_train_in, and the test has 8,000.
    """

    name = "semi_aves"
    class_names = tuple(map(str, range(200)))
    recipe = Recipe(size=224, pad=0, strong_scale=(0.08, 1.0))
    notes = (
        Note("semi_aves", "labelled are the 5,959 images of l_train_val and the test has 8,000, as in USB's code; "
             "its documentation and arXiv 2511.03256 speak of 3,959 and 4,000"),
        Note("semi_aves_views", "the test crops the middle of images squashed to 256x256; USB resizes their shorter "
             "side to 256 instead"),
    )  # fmt: skip

    def __init__(self, root: str | Path) -> None:
        root = Path(root).expanduser()
        self._root = root / "semi_aves" if (root / "semi_aves").is_dir() else root

    def _list(self, name: str) -> list[tuple[Path, int]]:
        file = self._root / f"{name}.txt"
        if not file.is_file():
            raise FileNotFoundError(
                f"semi_aves: no file {file}; get images and split files (github.com/cvl-umass/ssl-evaluation) and put "
                "l_train_val.txt, u_train_in.txt and test.txt beside trainval_images/, u_train_in/ and test/"
            )
        rows = [re.fullmatch(r"(\S.*?)\s+(-?\d{1,9})", line) or line for line in read_lines(file, self.name)]
        if odd := [row for row in rows if isinstance(row, str)]:
            raise ValueError(f"{file}: expected lines of a path and the number of a class, got {odd[0][:80]!r}")
        return [(self._root / row[1], int(row[2])) for row in rows]

    def _pool(self, *names: str) -> Pool:
        rows = [(path, -1 if name.startswith("u_") else c) for name in names for path, c in self._list(name)]
        if absent := [path for path, _ in rows if not path.is_file()]:
            raise FileNotFoundError(f"semi_aves: {len(absent)} images are missing, the first is {absent[0]}")
        images = np.empty((len(rows), 3, 256, 256), np.uint8)
        for i, (path, _) in enumerate(rows):
            images[i] = square(decode(path), 256)
        return Pool.of(images, np.array([c for _, c in rows]))

    @cached_property
    def train(self) -> Pool:
        return self._pool("l_train_val", "u_train_in")

    @cached_property
    def test(self) -> Pool:
        return self._pool("test")

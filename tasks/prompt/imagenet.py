"""ImageNet, ImageNet-A, -V2, -R and -Sketch, and any folder of class folders, as images with class names.

Classes are found by the names of their folders, never by their order: WordNet ids, or for ImageNet-V2 the numbers 0 to
999, which a plain listing would sort as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

import torch
from PIL import Image

from dembench.lookup import lookup
from dembench.tasks.base import Note
from dembench.tasks.common.cache import short_hash
from dembench.tasks.common.decoding import decode
from dembench.tasks.common.image_folders import JUDGED, TRAINED, fingerprint, list_part, read_lines, remark
from dembench.tasks.common.wnids import imagenet_wnids
from dembench.tasks.prompt.clip import require_open_clip
from dembench.tasks.prompt.data import ImageSet, few_of_each

TEMPLATE = "a photo of a {}."
LAYOUT = "expected a folder for each class with its images in it"


@dataclass(frozen=True)
class Member:
    """One set of the family: usual names of its folder, its images, and the timm list of its classes, if not all."""

    folders: tuple[str, ...]
    images: int
    subset: str | None = None
    numbered: bool = False  # folders 0 to 999


FAMILY = {
    "imagenet": Member(("imagenet/val", "imagenet/images/val", "ILSVRC2012/val"), 50_000),
    "imagenet_a": Member(("imagenet-a",), 7_500, "imagenet-a"),
    "imagenet_v2": Member(
        ("imagenetv2-matched-frequency-format-val", "imagenetv2-matched-frequency"), 10_000, None, True
    ),
    "imagenet_r": Member(("imagenet-r",), 30_000, "imagenet-r"),
    "imagenet_sketch": Member(("imagenet-sketch/sketch", "imagenet-sketch", "sketch"), 50_889),
}


class Folder:
    """The images in class folders, sorted by class and file name, see ``tasks.common.image_folders``.

    Args:
        classes: {folder: class name} in the order of the labels.
        what: a name for messages. num_images: evenly spread; None takes all.
        parts: which of train/, test/ and val/ is meant where the folder has these, the first that is there.
    Raises: FileNotFoundError where the folder or a class is missing; ValueError for folders of no class.
    """

    def __init__(
        self,
        root: Path,
        classes: Mapping[str, str],
        what: str,
        num_images: int | None = None,
        parts: Sequence[str] = JUDGED,
    ):
        found = list_part(root, what, LAYOUT, parts)
        unknown = [name for name in found.files if name not in classes]
        missing = [name for name in classes if name not in found.files]
        if unknown:
            some = ", ".join(unknown[:3])
            raise ValueError(f"{what}: {root} has {len(unknown)} folders that are none of its classes, such as {some}")
        if missing:
            some = ", ".join(missing[:3])
            raise FileNotFoundError(f"{what}: {root} lacks {len(missing)} of {len(classes)} classes, such as {some}")
        self.root, self.what, self.class_names = root / found.folder, what, tuple(classes.values())
        self.files, numbers = found.ordered(list(classes))
        self.listed = found.total, {why: [f"{what}/{name}" for name in own] for why, own in found.left_out.items()}
        self.total = len(self.files)
        if not self.total:
            raise FileNotFoundError(f"{what}: no images in {root}; {LAYOUT}")
        if num_images is not None and num_images > self.total:
            raise ValueError(f"{what}: expected num_images of at most {self.total}, got {num_images}")
        count = num_images or self.total
        self.numbers = torch.arange(count) * self.total // count
        self.labels = torch.from_numpy(numbers)[self.numbers]

    @cached_property
    def fingerprint(self) -> str:
        """Of names and bytes of the chosen images, and of the classes' names."""
        names = [self.files[k] for k in self.numbers]
        return short_hash(fingerprint(self.root, names), self.class_names)

    def image(self, k: int) -> Image.Image:
        """The ``k``-th chosen image, RGB."""
        return decode(self.root / self.files[self.numbers[k]])

    def images(self, shifted: bool) -> ImageSet:
        return ImageSet(
            self.what, self.class_names, self.labels, self.image, self.fingerprint, self.numbers, shifted=shifted
        )

    def few(self, count: int, seed: int) -> ImageSet:
        """``count`` images of each class, drawn by ``seed``."""
        chosen = few_of_each(self.labels, count, seed)
        key = short_hash(self.fingerprint, count, seed)
        return ImageSet(
            "shots",
            self.class_names,
            self.labels[chosen],
            lambda k: self.image(int(chosen[k])),
            key,
            chosen,
            shifted=False,
        )


class _Folders:
    """What data sets of folders share: they are listed once, when they are checked or used."""

    name: str
    template = TEMPLATE

    def __init__(self, train: str | Path | None, num_images: int | None):
        if num_images is not None and (
            isinstance(num_images, bool) or not isinstance(num_images, int) or num_images < 1
        ):
            raise ValueError(f"{self.name}: expected num_images to be a whole number > 0 or null, got {num_images!r}")
        self._train = None if train is None else Path(train).expanduser()
        self._num_images = num_images

    @property
    def templates(self) -> tuple[str, ...]:
        """OpenAI's 80 templates for ImageNet, as open_clip lists them."""
        return tuple(template("{}") for template in require_open_clip().OPENAI_IMAGENET_TEMPLATES)

    def check(self) -> None:
        """Lists all folders and compares their classes."""
        _ = self._folders

    @cached_property
    def _folders(self) -> list[Folder]:
        raise AttributeError("subclasses list their folders")

    @property
    def notes(self) -> tuple[Note, ...]:
        """On files that were left out."""
        left_out: dict[str, list[str]] = {}
        for folder in self._folders:
            for why, names in folder.listed[1].items():
                left_out.setdefault(why, []).extend(names)
        return remark(sum(folder.listed[0] for folder in self._folders), left_out)

    @cached_property
    def fingerprint(self) -> str:
        return short_hash([folder.fingerprint for folder in self._folders], self._num_images)

    def sets(self) -> list[ImageSet]:
        return [folder.images(shifted=number > 0) for number, folder in enumerate(self._folders)]

    def shots(self, count: int, seed: int) -> ImageSet:
        """``count`` images of each class of ``train``. Raises: FileNotFoundError where that was not given."""
        if self._train is None:
            raise FileNotFoundError(f"{self.name}: learning a context needs labelled images: give data.train=DIR")
        return Folder(self._train, self._train_classes(), f"{self.name} train", parts=TRAINED).few(count, seed)

    def _train_classes(self) -> dict[str, str]:
        raise AttributeError("subclasses name the classes of their training images")


class ImageNetFamily(_Folders):
    """Some or all of the five sets under one folder, the first of them being the one without shift.

    Args:
        root: the folder of the sets, under their usual names (see ``FAMILY``).
        sets: names of sets, in the order of the table.
        folders: {set: folder} for those in other folders.
        train: ImageNet's training images, for CoOp. num_images: of each set; None takes all.
    Raises: ValueError for an unknown set or a wrong number; ``check`` and what follows also FileNotFoundError for what
        is missing, and ValueError for folders of other classes.
    Source: classes and names of open_clip (IMAGENET_CLASSNAMES, as in the code of TPT), subsets of timm.
    """

    name = "imagenet"

    def __init__(
        self,
        root: str | Path,
        sets: Sequence[str] = tuple(FAMILY),
        folders: Mapping[str, str] | None = None,
        train: str | Path | None = None,
        num_images: int | None = None,
    ):
        super().__init__(train, num_images)
        for name in (*sets, *(folders or {})):
            lookup(name, FAMILY, "set of the ImageNet family")
        if not sets or len(set(sets)) < len(sets):
            raise ValueError(f"{self.name}: expected one or more sets, each once, got {', '.join(sets)}")
        self._root, self._sets, self._own = Path(root).expanduser(), tuple(sets), dict(folders or {})

    @cached_property
    def _folders(self) -> list[Folder]:
        return [Folder(self._place(name), classes_of(name), name, self._num_images) for name in self._sets]

    @property
    def notes(self) -> tuple[Note, ...]:
        """On sets that hold another number of images than the published ones, and on files that were left out."""
        other = (folder for folder in self._folders if folder.total != FAMILY[folder.what].images)
        texts = {folder.what: f"{folder.total} images, published are {FAMILY[folder.what].images}" for folder in other}
        return (*(Note(name, text) for name, text in texts.items()), *super().notes)

    def sets(self) -> list[ImageSet]:
        return [folder.images(shifted=folder.what != "imagenet") for folder in self._folders]

    def _place(self, name: str) -> Path:
        if name in self._own:
            return Path(self._own[name]).expanduser()
        places = [self._root / folder for folder in FAMILY[name].folders]
        return next((place for place in places if place.is_dir()), places[0])

    def _train_classes(self) -> dict[str, str]:
        return classes_of("imagenet")


def classes_of(name: str) -> dict[str, str]:
    """{folder: class name} of a set of the family, in the order of ImageNet's 1000 classes."""
    member = FAMILY[name]
    names = list(require_open_clip().IMAGENET_CLASSNAMES)
    wnids = imagenet_wnids(None)
    if member.numbered:
        return {str(number): class_name for number, class_name in enumerate(names)}
    chosen = range(len(names)) if member.subset is None else subset(member.subset)
    return {wnids[k]: names[k] for k in chosen}


def subset(name: str) -> list[int]:
    """Numbers among ImageNet's 1000 classes of those of "imagenet-a" or "imagenet-r", ascending, from timm's lists."""
    file = resources.files("timm.data").joinpath("_info", f"{name.replace('-', '_')}_indices.txt")
    return sorted(int(line) for line in file.read_text(encoding="utf-8").split())


class ImageFolder(_Folders):
    """Any folder of class folders, as the only set.

    Args:
        root: <root>/<class>/<image>.
        class_names: a text file with a line "<folder><tab or comma><class name>" for each class, in the order of the
            labels; None takes the folders' names, "_" read as a space.
        train, num_images: as in ``ImageNetFamily``.
        template: with one {}. name: for records.
    """

    def __init__(
        self,
        root: str | Path,
        class_names: str | Path | None = None,
        train: str | Path | None = None,
        num_images: int | None = None,
        template: str = TEMPLATE,
        name: str = "images",
    ):
        if name in ("mean", "ood"):
            raise ValueError(f"{name}: data cannot be named so, as a slice of the results is")
        self.name, self.template = name, template
        super().__init__(train, num_images)
        self._root = Path(root).expanduser()
        self._names = None if class_names is None else Path(class_names).expanduser()

    @cached_property
    def _classes(self) -> dict[str, str]:
        if self._names is None:
            return {name: name.replace("_", " ") for name in list_part(self._root, self.name, LAYOUT).files}
        classes: dict[str, str] = {}
        for line in read_lines(self._names, f"{self.name}: class names"):
            folder, mark, class_name = line.partition("\t" if "\t" in line else ",")
            if not mark or not class_name.strip() or folder in classes:
                raise ValueError(f"{self._names}: expected each folder once, as <folder>,<class name>, got {line!r}")
            classes[folder.strip()] = class_name.strip()
        return classes

    @cached_property
    def _folders(self) -> list[Folder]:
        return [Folder(self._root, self._classes, self.name, self._num_images)]

    def _train_classes(self) -> dict[str, str]:
        return self._classes

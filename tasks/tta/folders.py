"""Images as files in class folders: ImageNet-C, ImageNet-A, -R, -V2, -Sketch, and whatever else lies so.

As ``tasks.tta.data``, and besides: ``class_index``, the positions of this data's classes among those of a model that
knows more (None: the model's are these); ``use(preprocess)``, which says how images become inputs;
``require(domains)``, which says what will be asked for; ``size(corruption, severity)``. ``domain`` returns images as
``ImageFiles``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dembench.lookup import lookup
from dembench.tasks.base import Note
from dembench.tasks.common.choice import balanced_subset, check_numbers, check_severity, draw
from dembench.tasks.common.class_folders import IMAGENET, class_folders, image_files, imagenet_wnids, is_wnid
from dembench.tasks.common.corruptions import CORRUPTIONS, SEVERITIES
from dembench.tasks.tta.images import ImageFiles, Preprocess
from dembench.tasks.tta.released import EXTRA

PROBED = 50  # files of a domain whose sizes go into its fingerprint
FOUND_AT = {
    "imagenet-a": "people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar",
    "imagenet-r": "people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
    "imagenet-v2": "imagenetv2-matched-frequency.tar.gz of huggingface.co/datasets/vaishaal/ImageNetV2",
    "imagenet-sketch": "the archive that github.com/HaohanWang/ImageNet-Sketch names",
}

Labels = Literal["wnid", "index", "folder"]


class FolderData:
    """What data in class folders has in common; the subclasses say where a domain's folder is."""

    name: str
    layout: str
    severities: tuple[int, ...] = ()
    corruptions: tuple[str, ...]
    known: tuple[str, ...]
    preprocess: Preprocess | None = None  # of the domains
    whole: Preprocess | None = None  # of clean photographs

    def __init__(
        self,
        root: str | Path,
        num_images: int | None = None,
        *,
        labels: Labels = "wnid",
        classes: str | Path | None = None,
        source: str | Path | None = None,
    ) -> None:
        check_numbers(type(self).__name__, num_images, 0)
        self._root = Path(root).expanduser()
        self._wanted, self._labels = num_images, labels
        self._classes = None if classes is None else Path(classes).expanduser()
        self._source = None if source is None else Path(source).expanduser()
        self._needed: tuple[tuple[str, int | None], ...] = ()
        self._listed: dict[Path, tuple[list[str], np.ndarray]] = {}

    def folder(self, corruption: str, severity: int | None) -> Path:
        """Where the class folders of a domain are."""
        raise FileNotFoundError(f"{self.name}: no domain {corruption}")

    def use(self, preprocess: Preprocess | None) -> None:
        """Says how images become inputs. Raises: ValueError where the model does not know."""
        if preprocess is None:
            raise ValueError(f"{self.name}: this model has no transform for photographs; use torchvision or timm")
        self.preprocess = self.whole = preprocess

    @property
    def notes(self) -> tuple[Note, ...]:
        found = []
        if self.class_index is not None:
            text = f"of the model's 1000 classes, the {self.num_classes} of {self.name} are kept"
            found.append(Note("classes", text))
        if self.preprocess is not None:
            found.append(Note("input", f"images are resized and cropped for the model: {self.preprocess}"))
        return tuple(found)

    def require(self, domains: Sequence[tuple[str, int | None]]) -> None:
        """Raises FileNotFoundError where one of these is not there."""
        self._needed = tuple(domains)
        for domain in domains:
            class_folders(self.folder(*domain), self.name, self.layout)

    def check(self) -> None:
        """Lists the classes of the first domain and compares them with what they should be."""
        _ = self._names, self.class_index

    @property
    def _first(self) -> tuple[str, int | None]:
        """The first domain that will be asked for; where that was not said, the first that is there."""
        if self._needed:
            return self._needed[0]
        every = [(name, severity) for name in self.known for severity in self.severities[::-1] or (None,)]
        for domain in every:
            with suppress(FileNotFoundError):
                if self.folder(*domain).is_dir():
                    return domain
        return every[0]

    @cached_property
    def _names(self) -> list[str]:
        """The class folders of the first domain, in the order of the classes; all domains have the same."""
        found = class_folders(self.folder(*self._first), self.name, self.layout)
        if self._labels == "index":  # as numbers: as text, 10 would come before 2
            if not all(name.isdigit() for name in found):
                raise ValueError(f"{self.name}: expected folders named 0 to 999, got {', '.join(found[:5])}")
            found.sort(key=int)
        return found

    @cached_property
    def class_index(self) -> tuple[int, ...] | None:
        if self._labels == "folder":
            return None
        if self._labels == "index":
            index = tuple(map(int, self._names))
            if max(index) >= IMAGENET:
                raise ValueError(f"{self.name}: expected class folders 0 to 999, got {max(index)}")
        else:
            wrong = [name for name in self._names if not is_wnid(name)]
            if wrong:
                raise ValueError(f"{self.name}: expected wnids such as n01440764, got {', '.join(wrong[:5])}")
            if len(self._names) == IMAGENET:
                return None
            places = {wnid: k for k, wnid in enumerate(imagenet_wnids(self._classes))}
            strange = [name for name in self._names if name not in places]
            if strange:
                raise ValueError(f"{self.name}: no classes of ImageNet-1k: {', '.join(strange[:5])}")
            index = tuple(places[name] for name in self._names)
        return None if index == tuple(range(IMAGENET)) else index

    @property
    def num_classes(self) -> int:
        return len(self._names)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self._names)

    @property
    def num_images(self) -> int:
        return self.size(*self._first)

    def size(self, corruption: str, severity: int | None) -> int:
        return len(self._domain(corruption, severity)[0])

    def domain(self, corruption: str, severity: int | None) -> tuple[ImageFiles, Tensor]:
        """Image files and labels (N,) of one domain."""
        names, labels = self._domain(corruption, severity)
        if self.preprocess is None:
            raise ValueError(f"{self.name}: say first how images become inputs, with use()")
        return ImageFiles.below(self.folder(corruption, severity), names, self.preprocess), torch.from_numpy(labels)

    def _domain(self, corruption: str, severity: int | None) -> tuple[list[str], np.ndarray]:
        root = self.folder(corruption, severity)
        if root not in self._listed:
            found = class_folders(root, self.name, self.layout)
            if set(found) != set(self._names):
                odd = ", ".join(sorted(set(found) ^ set(self._names))[:5])
                raise ValueError(f"{self.name}: {root} has other class folders than the first domain: {odd}")
            names, labels = self._choose(*image_files(root, self._names))
            if not names:
                raise FileNotFoundError(f"{self.name}: no images in {root}; {self.layout}")
            known = next(iter(self._listed.values()), None)
            same = known is not None and known[0] == names  # 75 domains of 50,000 names: one list serves all
            self._listed[root] = known if known is not None and same else (names, labels)
        return self._listed[root]

    def _choose(self, names: list[str], labels: np.ndarray) -> tuple[list[str], np.ndarray]:
        if self._wanted is None:
            return names, labels
        chosen = balanced_subset(labels, self._wanted)
        return [names[k] for k in chosen], labels[chosen]

    @cached_property
    def fingerprint(self) -> str:
        """Hashes the names of all files that will be asked for and the sizes of some: they are too many to read."""
        domains = self._needed or (self._first,)
        digest = hashlib.sha256(repr((self.name, self._wanted, self.class_index)).encode())
        for corruption, severity in domains:
            names, _ = self._domain(corruption, severity)
            root = self.folder(corruption, severity)
            sizes = [(root / name).stat().st_size for name in names[:: max(1, len(names) // PROBED)]]
            digest.update(f"{corruption}/{severity}{sizes}".encode() + "\0".join(names).encode())
        return digest.hexdigest()[:16]

    def clean(self, num_images: int, seed: int) -> tuple[Tensor, Note]:
        """Clean images uint8 (N, 3, crop, crop), drawn from ``source``, of the classes of this data; and a note.

        Raises: ValueError where no source was given; FileNotFoundError where it is not there.
        """
        if self._source is None:
            raise ValueError(f"{self.name}: clean images are needed; give data.source=DIR (val/<wnid>/<image>)")
        base = self._source / "val" if (self._source / "val").is_dir() else self._source
        class_folders(base, f"{self.name}: clean images", "expected ImageNet's val/<wnid>/<image>")
        folders = [name for name in self._names if (base / name).is_dir()]
        names, _ = image_files(base, folders)
        if not names or self.whole is None:
            raise FileNotFoundError(f"{self.name}: no images of its classes in {base}")
        chosen = draw(len(names), num_images, seed)
        note = f"the method first saw {len(chosen)} clean images of {self._source.name}, of this data's classes"
        return ImageFiles.below(base, names, self.whole)[chosen].tensor(), Note("clean", note)


class ImageNetC(FolderData):
    """ImageNet-C as released: <corruption>/<severity>/<wnid>/<image>, images of 224 pixels, saved as JPEG.

    Args:
        root: the folder that has the corruptions' folders, or the folders noise, blur, weather, digital that have them.
        num_images: a class-balanced subset of each domain; None takes all 50,000.
        subset: a text file of <wnid>/<image> lines, such as RobustBench's list of 5,000; None takes all.
        classes: see ``imagenet_wnids``; needed where not all 1000 classes are there and timm is not.
        source: ImageNet's clean images, val/<wnid>/<image>, for methods that look at some first.
    Raises: as ``CIFAR10C``.
    Source: Hendrycks and Dietterich, ICLR 2019; zenodo.org/records/2235448.
    """

    name = "imagenet-c"
    corruptions = CORRUPTIONS
    known = (*CORRUPTIONS, *EXTRA)
    severities = SEVERITIES
    layout = (
        "unpack noise.tar, blur.tar, weather.tar and digital.tar (and extra.tar) of zenodo.org/records/2235448 into "
        "one folder and give it: <corruption>/<severity>/<wnid>/<image>.JPEG"
    )

    def __init__(
        self,
        root: str | Path,
        num_images: int | None = None,
        *,
        subset: str | Path | None = None,
        classes: str | Path | None = None,
        source: str | Path | None = None,
    ) -> None:
        super().__init__(root, num_images, labels="wnid", classes=classes, source=source)
        self._subset = None if subset is None else Path(subset).expanduser()

    def use(self, preprocess: Preprocess | None) -> None:
        """The images are cropped already: they are resized only for models of another input size; a note says it."""
        super().use(preprocess)
        if preprocess is not None:
            self.preprocess = Preprocess(preprocess.crop, preprocess.crop, preprocess.interpolation)

    def folder(self, corruption: str, severity: int | None) -> Path:
        lookup(corruption, self.known, "corruption")
        check_severity(severity)
        for place in ("", "noise", "blur", "weather", "digital", "extra"):
            if (self._root / place / corruption).is_dir():
                return self._root / place / corruption / str(severity)
        raise FileNotFoundError(f"{self.name}: no folder {self._root / corruption}; {self.layout}")

    def _choose(self, names: list[str], labels: np.ndarray) -> tuple[list[str], np.ndarray]:
        if self._subset is not None:
            rows = [k for k, name in enumerate(names) if PurePosixPath(name).with_suffix("") in self._in_subset]
            if len(rows) != len(self._in_subset):
                text = f"{self._subset} lists {len(self._in_subset)} images, {len(rows)} of them are there"
                raise ValueError(f"{self.name}: {text}")
            names, labels = [names[k] for k in rows], labels[rows]
        return super()._choose(names, labels)

    @cached_property
    def _in_subset(self) -> frozenset[PurePosixPath]:
        """<wnid>/<image> without suffix."""
        if self._subset is None or not self._subset.is_file():
            raise FileNotFoundError(f"{self.name}: no file {self._subset}; expected <wnid>/<image> lines")
        lines = [PurePosixPath(line.strip()) for line in self._subset.read_text(encoding="utf-8").split("\n") if line]
        return frozenset(PurePosixPath(line.parent.name, line.stem) for line in lines)


class ImageFolders(FolderData):
    """Images in class folders: one domain, <class>/<image>, or several, <domain>/<class>/<image>.

    Args:
        root: the folder of the classes, or of the domains.
        domains: names of the domains' folders in the order of the stream; None: ``root`` is the one domain.
        name: what the results call it, and the domain where there is but one.
        labels: "wnid": folders are named by WordNet ids, and of a classifier of ImageNet's 1000 classes those present
            are kept; "index": likewise, folders named 0 to 999; "folder": the classes are the folders, sorted.
        num_images: a class-balanced subset of each domain; None takes all.
        classes: see ``imagenet_wnids``.
        source: clean images, as for ``ImageNetC``.
    Raises: as ``ImageNetC``.
    """

    def __init__(
        self,
        root: str | Path,
        domains: Sequence[str] | None = None,
        *,
        name: str = "image-folder",
        labels: Labels = "folder",
        num_images: int | None = None,
        classes: str | Path | None = None,
        source: str | Path | None = None,
    ) -> None:
        super().__init__(root, num_images, labels=labels, classes=classes, source=source)
        if domains is not None and (isinstance(domains, str | Mapping) or not list(domains)):
            raise ValueError(f"ImageFolders: expected a list of domains or null, got {domains!r}")
        self.name = name
        self._single = domains is None
        self.corruptions = self.known = (name,) if domains is None else tuple(map(str, domains))
        if len(set(self.corruptions)) < len(self.corruptions):
            raise ValueError(f"ImageFolders: expected each domain once, got {', '.join(self.corruptions)}")
        form = "<class>/<image>" if self._single else "<domain>/<class>/<image>"
        self.layout = f"expected {form} in it"
        if name in FOUND_AT:
            self.layout += f"; unpack it from {FOUND_AT[name]}"

    def folder(self, corruption: str, severity: int | None) -> Path:
        lookup(corruption, self.known, "domain")
        return self._root if self._single else self._root / corruption

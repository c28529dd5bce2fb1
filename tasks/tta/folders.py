"""Images as files in class folders: ImageNet-C, ImageNet-A, -R, -V2, -Sketch, and any others.

As ``tasks.tta.data``, and besides: ``class_index``, the positions of this data's classes among those of a model that
knows more (None: the model's are these); ``use(preprocess)``, which says how images become inputs;
``require(domains)``, which says what will be asked for; ``size(corruption, severity)``. ``domain`` returns images as
``ImageFiles``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dembench.lookup import lookup
from dembench.tasks.base import Note
from dembench.tasks.common.choice import balanced_subset, check_numbers, check_severity, draw
from dembench.tasks.common.corruptions import CORRUPTIONS, SEVERITIES
from dembench.tasks.common.image_folders import Chosen, fingerprint, list_part, read_lines, remark
from dembench.tasks.common.images import ImageFiles, Preprocess
from dembench.tasks.common.wnids import IMAGENET, imagenet_wnids, is_wnid
from dembench.tasks.tta.released import EXTRA

FOUND_AT = {
    "imagenet-a": "people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar",
    "imagenet-r": "people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
    "imagenet-v2": "imagenetv2-matched-frequency.tar.gz of huggingface.co/datasets/vaishaal/ImageNetV2",
    "imagenet-sketch": "the archive that github.com/HaohanWang/ImageNet-Sketch names",
}

CLEAN = ("validation", "test", "all")
Labels = Literal["wnid", "index", "folder"]


@dataclass(frozen=True)
class Listed:
    """The images of a domain: names relative to ``root``, labels (N,) int64; how many files there are, and which of
    them are left out, by the reason."""

    root: Path
    names: list[str]
    labels: np.ndarray
    total: int
    left_out: dict[str, list[str]]


def _slice(corruption: str, severity: int | None) -> str:
    return corruption if severity is None else f"{corruption}/{severity}"


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
        self._listed: dict[Path, Listed] = {}

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
        listed = {domain: self._domain(*domain) for domain in self._domains}
        sizes = {_slice(*domain): len(own.names) for domain, own in listed.items()}
        if len(set(sizes.values())) > 1:
            text = ", ".join(f"{name} {size}" for name, size in sizes.items())
            found.append(Note("sizes", f"domains of different sizes, which count alike in the mean; images: {text}"))
        left_out: dict[str, list[str]] = {}
        for domain, own in listed.items():
            for why, names in own.left_out.items():
                left_out.setdefault(why, []).extend(f"{_slice(*domain)}/{name}" for name in names)
        return (*found, *remark(sum(own.total for own in listed.values()), left_out))

    def require(self, domains: Sequence[tuple[str, int | None]]) -> None:
        """Raises FileNotFoundError where one of these is not there."""
        self._needed = tuple(dict.fromkeys(domains))
        for domain in self._needed:
            if not (folder := self.folder(*domain)).is_dir():
                raise FileNotFoundError(f"{self.name}: no folder {folder}; {self.layout}")

    def check(self) -> None:
        """Lists all domains that will be asked for and compares their classes."""
        _ = self.class_index
        for domain in self._domains:
            self._domain(*domain)

    @property
    def _domains(self) -> tuple[tuple[str, int | None], ...]:
        return self._needed or (self._first,)

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
        found = list(list_part(self.folder(*self._first), self.name, self.layout).files)
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
        return len(self._domain(corruption, severity).names)

    def domain(self, corruption: str, severity: int | None) -> tuple[ImageFiles, Tensor]:
        """Image files and labels (N,) of one domain."""
        own = self._domain(corruption, severity)
        if self.preprocess is None:
            raise ValueError(f"{self.name}: say first how images become inputs, with use()")
        return ImageFiles.below(own.root, own.names, self.preprocess), torch.from_numpy(own.labels)

    def _domain(self, corruption: str, severity: int | None) -> Listed:
        root = self.folder(corruption, severity)
        if root not in self._listed:
            found = list_part(root, self.name, self.layout)
            if odd := sorted(found.files.keys() ^ set(self._names)):
                raise ValueError(
                    f"{self.name}: {root} has other class folders than the first domain: {', '.join(odd[:5])}"
                )
            names, labels = found.ordered(self._names)
            if not names:
                raise FileNotFoundError(f"{self.name}: no images in {root}; {self.layout}")
            try:
                names, labels = self._choose(names, labels)
            except ValueError as error:
                raise ValueError(f"{self.name}: {root}: {error}") from error
            known = next(iter(self._listed.values()), None)
            if known is not None and known.names == names:  # 75 domains of 50,000 names: one list serves all
                names, labels = known.names, known.labels
            self._listed[root] = Listed(root / found.folder, names, labels, found.total, found.left_out)
        return self._listed[root]

    def _choose(self, names: list[str], labels: np.ndarray) -> tuple[list[str], np.ndarray]:
        if self._wanted is None:
            return names, labels
        chosen = balanced_subset(labels, self._wanted)
        return [names[k] for k in chosen], labels[chosen]

    @cached_property
    def fingerprint(self) -> str:
        """Of names and bytes of all images that will be asked for, and of all clean ones."""
        digest = hashlib.sha256(repr((self.name, self._wanted, self.class_index)).encode())
        for corruption, severity in self._domains:
            own = self._domain(corruption, severity)
            digest.update(f"{corruption}/{severity}{fingerprint(own.root, own.names)}".encode())
        if self._source is not None and self._source.is_dir():
            base, names = self._clean
            digest.update(f"clean{fingerprint(base, names)}".encode())
        return digest.hexdigest()[:16]

    @cached_property
    def _clean(self) -> tuple[Path, list[str]]:
        """The folder of clean images, and the names of those of this data's classes."""
        what = f"{self.name}: clean images"
        found: Chosen = list_part(self._source, what, "expected ImageNet's val/<wnid>/<image>", CLEAN)
        return self._source / found.folder, found.ordered([name for name in self._names if name in found.files])[0]

    def clean(self, num_images: int, seed: int) -> tuple[Tensor, Note]:
        """Clean images uint8 (N, 3, crop, crop), drawn from ``source``, of the classes of this data; and a note.

        Raises: ValueError where no source was given; FileNotFoundError where it is not there.
        """
        if self._source is None:
            raise ValueError(f"{self.name}: clean images are needed; give data.source=DIR (val/<wnid>/<image>)")
        base, names = self._clean
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
        source: ImageNet's clean images, val/<wnid>/<image>, for methods that need some first.
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
                raise ValueError(text)
            names, labels = [names[k] for k in rows], labels[rows]
        return super()._choose(names, labels)

    @cached_property
    def _in_subset(self) -> frozenset[PurePosixPath]:
        """<wnid>/<image> without suffix."""
        lines = map(PurePosixPath, read_lines(self._subset, f"{self.name}: <wnid>/<image> lines"))
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
        if "mean" in self.corruptions:
            raise ValueError("ImageFolders: a domain cannot be named 'mean', as a slice of the results is")
        form = "<class>/<image>" if self._single else "<domain>/<class>/<image>"
        self.layout = f"expected {form} in it"
        if name in FOUND_AT:
            self.layout += f"; unpack it from {FOUND_AT[name]}"

    def folder(self, corruption: str, severity: int | None) -> Path:
        lookup(corruption, self.known, "domain")
        return self._root if self._single else self._root / corruption

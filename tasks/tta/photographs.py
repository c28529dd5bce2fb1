"""Photographs in class folders or one tar archive, as they are and under the corruptions of ImageNet-C, made here.

As ``tasks.tta.folders``; besides, ``place(device)`` says where images are wanted, so that a GPU corrupts its own.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from dembench.lookup import lookup
from dembench.tasks.base import Note
from dembench.tasks.common.cache import (
    cache_folder,
    check_writable,
    load_array,
    save_array,
    short_hash,
)
from dembench.tasks.common.choice import balanced_subset, check_numbers, check_severity, draw
from dembench.tasks.common.corruptions import CORRUPTIONS, GENERATOR_VERSION, SEVERITIES, corrupt
from dembench.tasks.common.corruptions.ice import load_photos, photos_folder
from dembench.tasks.common.corruptions.recipes import IMAGECORRUPTIONS, IMAGENET, RECIPES
from dembench.tasks.common.decoding import decode, workers
from dembench.tasks.common.files import plain_lock
from dembench.tasks.common.hashes import path_hash
from dembench.tasks.common.image_folders import JUDGED, Chosen, Listing, contents, list_images, remark
from dembench.tasks.common.images import Preprocess
from dembench.tasks.tta.folders import FolderData, Labels

GPU_BYTES = 6 << 30  # of corrupted images that a process keeps in GPU memory, for its next run
FROST_NOTE = Note(
    "frost",
    "frost is a made ice texture, not the photos of ImageNet-C: its numbers and means that contain it are not those of "
    "the published frost; the photos come with pip install --no-deps imagecorruptions==1.1.2",
)


@dataclass(frozen=True)
class Images:
    """Those that are used: names relative to the root, labels (N,) int64, and (N,) int64 their places among all."""

    names: list[str]
    labels: np.ndarray
    places: np.ndarray


class Photographs(FolderData):
    """One domain of images that are not corrupted, decoded once for each size of input.

    Args:
        root: a folder of <class>/<image> (or val/<class>/<image>, or test/), or a tar archive of one.
        name: what the results call it.
        labels: see ``ImageFolders``.
        num_images: a class-balanced subset; None takes all.
        whole: the images are resized as they are, without the crop that the model's weights were evaluated with.
        classes: see ``imagenet_wnids``; needed where not all 1000 classes are there and timm is not.
        cache: folder of decoded images; None is $DEMBENCH_CACHE or the user's cache folder.
    Raises: ValueError for a wrong number; every other member also for a root that is something else, and
        FileNotFoundError where it is missing.
    """

    layout = "expected <class>/<image>, or val/<class>/<image>, in a folder or a tar archive"

    def __init__(
        self,
        root: str | Path,
        name: str,
        *,
        labels: Labels = "wnid",
        num_images: int | None = None,
        whole: bool = False,
        classes: str | Path | None = None,
        cache: str | Path | None = None,
    ) -> None:
        super().__init__(root, num_images, labels=labels, classes=classes)
        self.name, self._uncut = name, whole
        self.corruptions = self.known = (name,)
        self._cache = cache_folder(cache)

    def use(self, preprocess: Preprocess | None) -> None:
        super().use(preprocess)
        if preprocess is not None and self._uncut:
            self.preprocess = Preprocess(preprocess.crop, preprocess.crop, preprocess.interpolation)

    def require(self, domains: Sequence[tuple[str, int | None]]) -> None:
        """Raises FileNotFoundError where the images are not there."""
        if not self._root.exists():
            raise FileNotFoundError(f"{self.name}: nothing at {self._root}; {self.layout}")

    def check(self) -> None:
        _ = self.class_index, self._images
        check_writable(self._cache)

    @property
    def notes(self) -> tuple[Note, ...]:
        index = self.class_index
        classes = f"of the model's 1000 classes, the {self.num_classes} of {self.name} are kept"
        return (
            *([] if index is None else [Note("classes", classes)]),
            Note("input", f"images are resized and cropped for the model: {self.preprocess}"),
            *remark(self._part.total, self._part.left_out),
        )

    @property
    def num_images(self) -> int:
        return len(self._images.names)

    def size(self, corruption: str, severity: int | None) -> int:
        return self.num_images

    def labels(self, corruption: str, severity: int | None) -> Tensor:
        return torch.from_numpy(self._images.labels.copy())

    def domain(self, corruption: str, severity: int | None) -> tuple[Tensor, Tensor]:
        """Images uint8 (N, 3, S, S), mapped from the cache, and labels (N,)."""
        lookup(corruption, self.known, "domain")
        return self._decoded, self.labels(corruption, severity)

    def clean(self, num_images: int, seed: int) -> tuple[Tensor, Note]:
        """Of the images before corruption; EATA's authors, too, draw from what is tested."""
        chosen = draw(self.num_images, num_images, seed)
        note = f"the method first saw {len(chosen)} clean images, some of them in the stream's domains, too"
        return self._decoded[chosen], Note("clean", note)

    @cached_property
    def fingerprint(self) -> str:
        return short_hash(path_hash(self._root), self._wanted, self.class_index, str(self.preprocess))

    @property
    def _names(self) -> list[str]:
        return list(self._part.files)

    @cached_property
    def _part(self) -> Chosen:
        about = self._root.stat()
        listing = _listed(self._root, about.st_mtime_ns if self._root.is_file() else None, self.name, self.layout)
        part = listing.choose(*JUDGED)
        if part is None or not any(part.files.values()):
            raise FileNotFoundError(f"{self.name}: no images in class folders in {self._root}; {self.layout}")
        return part

    @cached_property
    def _images(self) -> Images:
        names, labels = self._part.ordered(self._names)
        places = balanced_subset(labels, self._wanted)
        return Images([str(PurePosixPath(self._part.folder, names[k])) for k in places], labels[places], places)

    @cached_property
    def _decoded(self) -> Tensor:
        """uint8 (N, 3, S, S) of the preprocessed images, a private map of the cached file."""
        if self.preprocess is None:
            raise ValueError(f"{self.name}: say first how images become inputs, with use()")
        shape = (self.num_images, 3, self.preprocess.crop, self.preprocess.crop)
        key = short_hash(path_hash(self._root), self._wanted, str(self.preprocess))
        return _stored(self._cache / "photographs" / f"{key}.npy", shape, self._decode)

    def _decode(self) -> Tensor:
        preprocess = self.preprocess
        assert preprocess is not None
        places = {name: k for k, name in enumerate(self._images.names)}
        result = np.empty((len(places), preprocess.crop, preprocess.crop, 3), np.uint8)

        def one(name: str, content: bytes) -> None:
            where = f"{self._root}: {name}"
            result[places[name]] = preprocess(decode(content, where), where)

        with ThreadPoolExecutor(workers()) as pool:
            for future in [pool.submit(one, *file) for file in contents(self._root, self.layout, places)]:
                future.result()
        return torch.from_numpy(result).permute(0, 3, 1, 2).contiguous()


class GeneratedImageNetC(Photographs):
    """ImageNet-C made here from clean images, at the size of the model's input.

    On a CPU generated domains are cached on disk, where all processes map them; a GPU makes them anew in each process
    and keeps up to ``GPU_BYTES`` of them.

    Args:
        seed: of the corruptions. An image's noise belongs to its place among all images, also in a subset.
        frost: folder of the original's frost photos; None takes those of the installed package imagecorruptions or in
            $DEMBENCH_DATA/data/frost; where there are none, and for "made", a made texture, of which a note tells.
        recipe: the constants, "imagenet" as in the original script, or "imagecorruptions" as in that package.
        root, name, labels, num_images, whole, classes, cache: see ``Photographs``.
    Raises: as ``Photographs``.
    """

    severities = SEVERITIES

    def __init__(
        self,
        root: str | Path,
        name: str,
        *,
        labels: Labels = "wnid",
        num_images: int | None = None,
        whole: bool = False,
        seed: int = 0,
        frost: str | Path | None = None,
        recipe: str = IMAGENET.name,
        classes: str | Path | None = None,
        cache: str | Path | None = None,
    ) -> None:
        super().__init__(root, name, labels=labels, num_images=num_images, whole=whole, classes=classes, cache=cache)
        check_numbers(type(self).__name__, None, seed)
        self.corruptions = self.known = CORRUPTIONS
        self._seed = seed
        self._recipe = RECIPES[lookup(recipe, [IMAGENET.name, IMAGECORRUPTIONS.name], "recipe")]
        self._frost = photos_folder(frost, Path(os.environ.get("DEMBENCH_DATA", "data")) / "data" / "frost")
        self._device = torch.device("cpu")

    def place(self, device: torch.device) -> None:
        """Says where images are wanted."""
        self._device = device

    @property
    def notes(self) -> tuple[Note, ...]:
        made = "corrupted on this machine from other images, not the released ImageNet-C: no JPEG afterwards, own noise"
        return (*super().notes, Note("data", made), *([FROST_NOTE] if self._frost is None else []))

    @cached_property
    def fingerprint(self) -> str:
        frost = "made" if self._frost is None else short_hash(*(p.numpy().tobytes() for p in self._photos))
        return short_hash(super().fingerprint, GENERATOR_VERSION, self._recipe.name, self._seed, frost)

    @property
    def _photos(self) -> tuple[Tensor, ...]:
        assert self._frost is not None
        assert self.preprocess is not None
        return load_photos(self._frost, self._recipe, self.preprocess.crop)

    def domain(self, corruption: str, severity: int | None) -> tuple[Tensor, Tensor]:
        """Images uint8 (N, 3, S, S) and labels (N,) of one corruption at one severity; ValueError for an unknown one.

        The images are on the device that ``place`` named.
        """
        lookup(corruption, self.corruptions, "corruption")
        check_severity(severity)

        def make() -> Tensor:
            index = torch.from_numpy(self._images.places)
            images = self._decoded.to(self._device)
            return corrupt(images, corruption, severity, index, seed=self._seed, frost=self._frost, recipe=self._recipe)

        name = f"{corruption}-{severity}"
        if self._device.type != "cpu":
            return _kept((self.fingerprint, name, str(self._device)), make), self.labels(corruption, severity)
        path = self._cache / "domains" / self.fingerprint / f"{name}.npy"
        return _stored(path, tuple(self._decoded.shape), make), self.labels(corruption, severity)


@lru_cache(maxsize=8)
def _listed(root: Path, changed: int | None, name: str, layout: str) -> Listing:
    """Names in a folder or an archive; ``changed`` is an archive's time, so that another one is listed anew."""
    return list_images(root, name, layout, wrapped=root.is_file())


def _stored(path: Path, shape: tuple[int, ...], make: Callable[[], Tensor]) -> Tensor:
    """The uint8 array of a cached file, mapped so that what is written to it stays private; made where there is none.

    Where several processes want it at once, one makes it and the others wait.
    """
    found = _mapped(path, shape)
    if found is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with plain_lock(path.with_suffix(".lock")):
            found = _mapped(path, shape)
            if found is None:
                made = make().numpy()
                save_array(path, made)
                found = made
    return torch.from_numpy(found)


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    array = load_array(path, shared=True)
    return array if array is not None and array.dtype == np.uint8 and array.shape == shape else None


_ON_GPU: OrderedDict[tuple[str, ...], Tensor] = OrderedDict()


def _kept(key: tuple[str, ...], make: Callable[[], Tensor]) -> Tensor:
    """What this process made before, and keeps while it has room; the longest unused goes first."""
    if key not in _ON_GPU:
        made = make()
        while _ON_GPU and made.nbytes + sum(other.nbytes for other in _ON_GPU.values()) > GPU_BYTES:
            _ON_GPU.popitem(last=False)
        _ON_GPU[key] = made
    _ON_GPU.move_to_end(key)
    return _ON_GPU[key]

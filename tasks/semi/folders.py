"""Images in class folders or a tar archive of them, as uint8 arrays; nothing is extracted."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dembench.tasks.base import ConfigError, Note
from dembench.tasks.common.cache import check_writable, file_hash, load_array, load_json, save_array, save_json
from dembench.tasks.common.decoding import is_deep, load, to_rgb
from dembench.tasks.common.image_folders import contents, list_images, remark

LAYOUT = "expected train/<class>/<image> and test/<class>/<image>, or <class>/<image>, in a folder or a .tar(.gz)"
VERSION = 2  # of the cached files


@dataclass(frozen=True)
class Folders:
    """Images (N, 3, H, W) uint8 and labels (N,) by part ("train", "test", "validation", or "all" where the class
    folders are alone), sorted by class, then by folder and file name; what the numbers depend on; and notes."""

    parts: dict[str, tuple[np.ndarray, np.ndarray]]
    class_names: tuple[str, ...]
    fingerprint: str
    notes: tuple[Note, ...] = ()


def read_folders(source: Path, size: int | None, cache: Path) -> Folders:
    """All images of a folder or archive.

    Args:
        size: images of another size are resized to this square (bilinear); None takes images of one size as they are.
        cache: where decoded archives are kept.
    Raises: FileNotFoundError where there is nothing, ConfigError where there is something else; both tell the layout.
    """
    if source.is_dir():
        return _decode(source, size)
    if not source.is_file():
        raise FileNotFoundError(f"no images at {source}; {LAYOUT}")
    folder = cache / "folders" / f"{file_hash(source, 32)}-{size}-{VERSION}"
    cached = _read_cache(folder)
    if cached is None:
        check_writable(cache)
        cached = _decode(source, size)
        _write_cache(folder, cached)
    return cached


def _decode(source: Path, size: int | None) -> Folders:
    listing = list_images(source, "images", LAYOUT, wrapped=True)
    places = {  # name in the source -> part, class, name in the part
        f"{listing.folders[part]}/{name}".removeprefix("/"): (part, c, name)
        for part, files in listing.parts.items()
        for c, names in files.items()
        for name in names
    }
    found, hashes = {}, {}
    for name, data in contents(source, LAYOUT, places):
        image = load(data, where := f"{source}: {name}")
        found[name] = square(to_rgb(image, where), size)
        deep = "16" if is_deep(image) else ""  # until version 2 they were all white
        hashes[name] = f"{places[name][0]}/{places[name][2]}\0{hashlib.sha256(data).hexdigest()}{deep}"
    classes = tuple(sorted({c for _, c, _ in places.values()}))
    if len(classes) < 2:
        raise ConfigError(f"{source}: found images of {len(classes)} classes; {LAYOUT}")
    parts = {}
    for part, files in listing.parts.items():
        rows = [(c, name) for c, own in files.items() for name in own]
        images = [found.pop(f"{listing.folders[part]}/{name}".removeprefix("/")) for _, name in rows]
        if len(shapes := {image.shape for image in images}) > 1:
            raise ConfigError(f"{source}: images of {len(shapes)} different sizes; give data.images.size=32, say")
        if rows:
            parts[part] = np.stack(images), np.array([classes.index(c) for c, _ in rows], dtype=np.int64)
    fingerprint = hashlib.sha256("\n".join(sorted(hashes.values())).encode()).hexdigest()[:32]
    return Folders(parts, classes, fingerprint, remark(listing.total, listing.left_out))


def square(image: Image.Image, size: int | None) -> np.ndarray:
    """An RGB image as uint8 (3, H, W), resized to a square of ``size`` where that is given and it is another."""
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image).transpose(2, 0, 1)


def _read_cache(folder: Path) -> Folders | None:
    about = load_json(folder / "done.json")
    if about is None:
        return None
    parts = {}
    for part in about["parts"]:
        images, labels = (load_array(folder / f"{part}-{kind}.npy") for kind in ("images", "labels"))
        if images is None or labels is None or len(images) != len(labels):
            return None
        parts[part] = images, labels
    return Folders(parts, tuple(about["classes"]), about["fingerprint"], tuple(Note(*note) for note in about["notes"]))


def _write_cache(folder: Path, found: Folders) -> None:
    for part, arrays in found.parts.items():
        for kind, array in zip(("images", "labels"), arrays, strict=True):
            name = folder / f"{part}-{kind}.npy"
            save_array(name, array)
    about = {"parts": list(found.parts), "classes": found.class_names, "fingerprint": found.fingerprint}
    about["notes"] = [(note.key, note.text) for note in found.notes]
    save_json(folder / "done.json", about)

"""Images in class folders or a tar archive of them, as uint8 arrays; nothing is extracted."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, UnidentifiedImageError

from dembench.tasks.common.archives import members
from dembench.tasks.common.cache import file_hash, load_array
from dembench.tasks.common.decoding import SUFFIXES
from dembench.tasks.common.files import write_atomic

PARTS = {"train": "train", "test": "test", "val": "validation", "valid": "validation", "validation": "validation"}
LAYOUT = "expected train/<class>/<image> and test/<class>/<image>, or <class>/<image>, in a folder or a .tar(.gz)"
VERSION = 1  # of what lies in the cache


@dataclass(frozen=True)
class Folders:
    """Images (N, 3, H, W) uint8 and labels (N,) by part ("train", "test", "validation", or "all" where the class
    folders stand alone), sorted by class folder, then by file name; and what the numbers depend on."""

    parts: dict[str, tuple[np.ndarray, np.ndarray]]
    class_names: tuple[str, ...]
    fingerprint: str


def read_folders(source: Path, size: int | None, cache: Path) -> Folders:
    """All images of a folder or archive.

    Args:
        size: images of another size are resized to this square (bilinear); None takes images of one size as they are.
        cache: where decoded archives are kept.
    Raises: FileNotFoundError where there is nothing, ValueError where there is something else; both tell the layout.
    """
    if source.is_dir():
        return _decode(_from_folder(source), size, str(source))
    if not source.is_file():
        raise FileNotFoundError(f"no images at {source}; {LAYOUT}")
    folder = cache / "folders" / f"{file_hash(source, 32)}-{size}-{VERSION}"
    cached = _read_cache(folder)
    if cached is None:
        cached = _decode(members(source, _is_image, LAYOUT), size, str(source))
        _write_cache(folder, cached)
    return cached


def _from_folder(root: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    for path in sorted(root.rglob("*")):
        name = PurePosixPath(path.relative_to(root).as_posix())
        if _is_image(name) and path.is_file():
            yield name, path.read_bytes()


def _is_image(name: PurePosixPath) -> bool:
    hidden = any(part.startswith(".") for part in name.parts)
    return not hidden and name.suffix.lower() in SUFFIXES and len(name.parts) >= 2


def _decode(files: Iterable[tuple[PurePosixPath, bytes]], size: int | None, where: str) -> Folders:
    found: dict[str, list[tuple[str, str, np.ndarray]]] = {}
    hashes = []
    for name, data in files:
        parent = name.parent.parent
        part = PARTS.get(parent.name, "all")
        found.setdefault(part, []).append((name.parent.name, name.name, decode(data, size, f"{where}: {name}")))
        hashes.append(f"{part}/{name.parent.name}/{name.name}\0{hashlib.sha256(data).hexdigest()}")
    if "train" in found:
        found.pop("all", None)  # loose pictures beside the parts
    classes = tuple(sorted({folder for rows in found.values() for folder, _, _ in rows}))
    if not found or len(classes) < 2:
        raise ValueError(f"{where}: found images of {len(classes)} classes; {LAYOUT}")
    parts = {}
    for part, rows in found.items():
        rows.sort(key=lambda row: row[:2])
        sizes = {image.shape for _, _, image in rows}
        if len(sizes) > 1:
            raise ValueError(f"{where}: images of {len(sizes)} different sizes; give data.images.size=32, say")
        labels = np.array([classes.index(folder) for folder, _, _ in rows], dtype=np.int64)
        parts[part] = np.stack([image for _, _, image in rows]), labels
    return Folders(parts, classes, hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()[:32])


def decode(data: bytes, size: int | None, where: str) -> np.ndarray:
    """One image file as uint8 (3, H, W), resized to a square of ``size`` where that is given and it is another."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            picture = image.convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, OSError) as error:
        raise ValueError(f"{where} cannot be read as an image: {error}") from error
    if size is not None and picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(picture).transpose(2, 0, 1)


def _read_cache(folder: Path) -> Folders | None:
    try:
        about = json.loads((folder / "done.json").read_text())
    except (OSError, ValueError):
        return None
    parts = {}
    for part in about["parts"]:
        images, labels = (load_array(folder / f"{part}-{kind}.npy") for kind in ("images", "labels"))
        if images is None or labels is None or len(images) != len(labels):
            return None
        parts[part] = images, labels
    return Folders(parts, tuple(about["classes"]), about["fingerprint"])


def _write_cache(folder: Path, found: Folders) -> None:
    for part, arrays in found.parts.items():
        for kind, array in zip(("images", "labels"), arrays, strict=True):
            name = folder / f"{part}-{kind}.npy"
            write_atomic(name, lambda file, array=array: np.save(file, array, allow_pickle=False))
    about = {"parts": list(found.parts), "classes": found.class_names, "fingerprint": found.fingerprint}
    write_atomic(folder / "done.json", lambda file: file.write(json.dumps(about).encode()))

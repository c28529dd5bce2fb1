"""Images in class folders or a tar archive of them: which files count, of which class, and what identifies them.

One rule for every task. The class of an image is the folder under the root (or under train/, test/, val/); pictures in
folders inside it are the class's, as in torchvision's ImageFolder. Links to folders are followed, split folders are
known whatever the case of their letters, hidden files and ``__MACOSX`` do not count. What is left out is said.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dembench.records import read_text
from dembench.tasks.base import ConfigError, Note
from dembench.tasks.common.archives import member_sizes, members
from dembench.tasks.common.decoding import SUFFIXES
from dembench.tasks.common.hashes import content_hashes, names_hash
from dembench.tasks.common.tree import is_hidden, walk

SPLITS = {"train": "train", "test": "test", "val": "validation", "valid": "validation", "validation": "validation"}
JUDGED = ("test", "validation", "all")  # which part is tested, of those that there are
TRAINED = ("train", "all")
Files = dict[str, list[str]]  # class -> names of its images, "<class>/<image>"


@dataclass(frozen=True)
class Chosen:
    """One part: images by class, sorted by folder and name, relative to ``folder``; what else there is is left out."""

    folder: str
    files: Files
    total: int
    left_out: dict[str, list[str]]

    def ordered(self, classes: Sequence[str]) -> tuple[list[str], np.ndarray]:
        """Names in the order of ``classes``, and the position of each one's class, int64."""
        counts = [len(self.files[name]) for name in classes]
        return [name for c in classes for name in self.files[c]], np.repeat(np.arange(len(classes)), counts)


@dataclass(frozen=True)
class Listing:
    """The images of a source by part ("train", "test", "validation", or "all" where there are class folders alone)."""

    parts: dict[str, Files]
    folders: dict[str, str]  # of the parts, relative to the source
    total: int  # files of any kind
    left_out: dict[str, list[str]]  # why -> names

    def choose(self, *parts: str) -> Chosen | None:
        """The first of ``parts`` that there is."""
        part = next((part for part in parts if part in self.parts), None)
        if part is None:
            return None
        unused = {}
        for other, folder in self.folders.items():
            names = [name for own in self.parts[other].values() for name in own] if other != part else []
            if names:
                unused[f"in {folder or 'other class folders'}"] = [_joined(folder, name) for name in names]
        return Chosen(self.folders[part], self.parts[part], self.total, self.left_out | unused)


def list_images(source: Path, what: str, layout: str, *, wrapped: bool = False) -> Listing:
    """Lists a folder, or a tar archive.

    Args:
        what, layout: for messages: what is read, and the layout it should have.
        wrapped: the class folders may be deeper, in folders that hold nothing else, as in archives.
    Raises: FileNotFoundError where nothing is there; ConfigError for splits in several places or inside a class, and
        what archives and links raise.
    """
    if source.is_file():
        return arrange(member_sizes(source, layout), where=str(source), wrapped=wrapped)
    if not source.is_dir():
        raise FileNotFoundError(f"{what}: no folder {source}; {layout}")
    found = walk(source)
    listing = arrange(found.files, found.folders, where=str(source), wrapped=wrapped)
    if not found.others:
        return listing
    odd = {"that are no regular files": found.others}
    return Listing(listing.parts, listing.folders, listing.total + len(found.others), listing.left_out | odd)


def list_part(root: Path, what: str, layout: str, parts: Sequence[str] = JUDGED) -> Chosen:
    """The first part of a folder that there is, with at least one class folder; raises FileNotFoundError without."""
    if not root.is_dir():
        raise FileNotFoundError(f"{what}: no folder {root}; {layout}")
    listing = list_images(root, what, layout)
    chosen = listing.choose(*parts)
    if chosen is None:
        there = f" (it has {', '.join(sorted(filter(None, listing.folders.values())))})" if listing.parts else ""
        raise FileNotFoundError(f"{what}: no class folders in {root}{there}; {layout}")
    return chosen


def arrange(names: Iterable[str], folders: Iterable[str] = (), *, where: str, wrapped: bool) -> Listing:
    """Sorts names of files, and of folders that may be empty classes, into parts and classes; see ``list_images``."""
    names = list(names)
    images, left_out = _images(names)
    splits = _splits(images, where, wrapped)
    outside: tuple[str, ...] = next(iter(splits))[:-1] if splits else _wrapping(images) if wrapped else ()
    beside = None if "train" in splits.values() else "all"  # beside train/ other folders are no classes
    found: dict[str, Files] = {part: {} for part in splits.values()}
    for image in images:
        name, depth = "/".join(image), len(outside)
        part = beside
        if image[: depth + 1] in splits:
            part, depth = splits[image[: depth + 1]], depth + 1
        rest = image[depth:]
        if part is None or image[: len(outside)] != outside:
            left_out.setdefault("beside the split folders", []).append(name)
        elif len(rest) < 2:
            left_out.setdefault("outside of class folders", []).append(name)
        elif any(inner.casefold() in SPLITS for inner in rest[1:-1]):
            raise ConfigError(f"{where}: {name}: a split inside a class; expected <split>/<class>/<image>")
        else:
            found.setdefault(part, {}).setdefault(rest[0], []).append("/".join(rest))
    classes = found.get("all", {})
    if classes and all(name.casefold() in SPLITS for name in classes):
        shown = ", ".join("/".join((*outside, name)) for name in sorted(classes))
        raise ConfigError(f"{where}: pictures in {shown} themselves; expected <split>/<class>/<image>")
    places = {part: folder for folder, part in splits.items()}
    if "all" in found or not splits:
        places["all"] = outside
    for folder in (tuple(name.split("/")) for name in folders):  # classes, although nothing may be in them
        for part, place in places.items():
            if folder[:-1] == place and not is_hidden(folder) and folder not in splits:
                found.setdefault(part, {}).setdefault(folder[-1], [])
    parts = {
        part: {c: sorted(own, key=lambda name: name.rpartition("/")) for c, own in sorted(classes.items())}
        for part, classes in found.items()
    }
    return Listing(parts, {part: "/".join(places[part]) for part in parts}, len(names), left_out)


def _images(names: Iterable[str]) -> tuple[list[tuple[str, ...]], dict[str, list[str]]]:
    """The names of images, split at slashes; and the others."""
    images, left_out = [], {}
    for name in names:
        parts = tuple(name.split("/"))
        if is_hidden(parts):
            left_out.setdefault("hidden or in __MACOSX", []).append(name)
        elif not name.lower().endswith(SUFFIXES):
            left_out.setdefault("of other types", []).append(name)
        else:
            images.append(parts)
    return images, left_out


def _splits(images: Iterable[tuple[str, ...]], where: str, wrapped: bool) -> dict[tuple[str, ...], str]:
    """Folder -> part of the split folders, which are those that have class folders; the outermost count."""
    found: dict[tuple[str, ...], str] = {}
    for image in images:
        for depth, name in enumerate(image[:-2] if wrapped else image[: min(1, len(image) - 2)], 1):
            if (part := SPLITS.get(name.casefold())) is not None:
                found[image[:depth]] = part
                break
    shown = ", ".join(sorted("/".join(folder) for folder in found))
    if len({folder[:-1] for folder in found}) > 1:
        raise ConfigError(f"{where}: split folders in several places: {shown}")
    if len(set(found.values())) < len(found):
        raise ConfigError(f"{where}: several folders for one split: {shown}")
    return found


def _wrapping(images: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The folders around the class folders that hold nothing else."""
    depth = 0
    while images and all(len(image) - depth > 2 and image[depth] == images[0][depth] for image in images):
        depth += 1
    return images[0][:depth] if images else ()


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def file_names(source: Path, layout: str) -> list[str]:
    """Names of all regular files of a folder or an archive, relative; raises what archives and links raise."""
    return list(member_sizes(source, layout)) if source.is_file() else walk(source).files


def contents(source: Path, layout: str, wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of some files of a folder or an archive; of a name that an archive has twice the last counts."""
    if source.is_file():
        yield from members(source, layout, wanted)
    else:
        for name in wanted:
            yield name, (source / name).read_bytes()


def fingerprint(root: Path, names: Sequence[str], cache: str | Path | None = None) -> str:
    """The sha256, hexadecimal, of names and bytes of files in ``root``."""
    return names_hash(names, content_hashes([f"{root}/{name}" for name in names], cache))


def remark(total: int, left_out: Mapping[str, Sequence[str]]) -> tuple[Note, ...]:
    """A note on the files that were left out, and why; none where all are used."""
    count = sum(map(len, left_out.values()))
    if not count:
        return ()
    reasons = []
    for why, names in left_out.items():
        more = ", ..." if len(names) > 2 else ""
        reasons.append(f"{len(names)} {why} ({', '.join(sorted(names)[:2])}{more})")
    return (Note("files", f"{total - count} of {total} files used; left out: {'; '.join(reasons)}"),)


def read_lines(path: Path, what: str) -> list[str]:
    """The lines of a UTF-8 text file that are not empty, stripped. Raises: FileNotFoundError; ConfigError."""
    if not path.is_file():
        raise FileNotFoundError(f"{what}: no file {path}")
    try:
        return list(filter(None, map(str.strip, read_text(path).splitlines())))
    except ValueError as error:
        raise ConfigError(f"{what}: {error}") from None

"""Images in class folders: names, order and the 1000 classes of ImageNet, for all tasks that read such folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".tif", ".tiff", ".webp")
IMAGENET = 1000


def class_folders(root: Path, what: str, layout: str) -> list[str]:
    """Names of the folders in ``root``, sorted; FileNotFoundError where there is none."""
    if not root.is_dir():
        raise FileNotFoundError(f"{what}: no folder {root}; {layout}")
    found = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    if not found:
        raise FileNotFoundError(f"{what}: no class folders in {root}; {layout}")
    return found


def image_files(root: Path, folders: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Names <folder>/<image> in ``root``, by folder and then by name, and the number of each one's folder, int64."""
    names, counts = [], []
    for folder in folders:
        own = sorted(entry.name for entry in os.scandir(root / folder) if entry.name.lower().endswith(SUFFIXES))
        names += [f"{folder}/{name}" for name in own if not name.startswith(".")]
        counts.append(len(names))
    return names, np.repeat(np.arange(len(folders)), np.diff([0, *counts]))


def imagenet_wnids(classes: Path | None) -> tuple[str, ...]:
    """The 1000 WordNet ids of ImageNet in the order of a classifier's outputs, which is sorted.

    Args:
        classes: a text file that begins each line with one, or a folder that has a folder for each; None asks timm.
    Raises: ValueError where they are not 1000; ModuleNotFoundError where there is no timm to ask.
    """
    if classes is None:
        try:
            from timm.data import ImageNetInfo
        except ModuleNotFoundError as error:
            text = "the order of ImageNet's classes: give data.classes=PATH (a text file with the 1000 wnids, or"
            raise ModuleNotFoundError(f"{text} ImageNet's val folder), or pip install 'dembench[timm]'") from error
        found = ImageNetInfo().label_names()
    elif classes.is_dir():
        found = [entry.name for entry in classes.iterdir() if entry.is_dir()]
    elif classes.is_file():
        found = [line.split()[0] for line in classes.read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        raise FileNotFoundError(f"the order of ImageNet's classes: nothing at {classes}")
    found = sorted(found)
    if len(set(found)) != IMAGENET or not all(is_wnid(name) for name in found):
        raise ValueError(f"{classes or 'timm'}: expected 1000 wnids such as n01440764, got {len(set(found))} names")
    return tuple(found)


def is_wnid(name: str) -> bool:
    """Whether it looks like a WordNet id: n and eight digits."""
    return len(name) == 9 and name[0] == "n" and name[1:].isdigit()

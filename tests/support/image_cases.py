"""Folders of images that once went wrong, made small."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog", "hen")
SIDE = 12


def picture(value: int) -> Image.Image:
    """Noise of its own, RGB."""
    return Image.fromarray(np.random.default_rng(value).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))


def classes(root: Path, suffix: str = "png", first: int = 0, names: Sequence[str] = CLASSES, each: int = 8) -> Path:
    """``each`` images a class, told apart by ``first``."""
    for c, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for k in range(each):
            picture(1000 * first + 100 * c + k).save(root / name / f"{first}{k:02d}.{suffix}")
    return root


def make_cases(root: Path) -> Path:
    """All of them, as folders in ``root``."""
    classes(root / "plain")
    classes(root / "capital" / "Train")
    classes(root / "capital" / "Test", first=1)
    classes(root / "links" / "real")
    for name in CLASSES:
        (root / "links" / "flat").mkdir(exist_ok=True)
        os.symlink(Path("..", "real", name), root / "links" / "flat" / name)
    for c, name in enumerate(CLASSES):
        (root / "deep16" / name).mkdir(parents=True)
        for k in range(8):
            Image.fromarray(np.full((SIDE, SIDE), 5000 + 20000 * c + 10 * k, np.uint16)).save(
                root / "deep16" / name / f"{k}.png"
            )
    classes(root / "macosx")
    (root / "macosx" / "__MACOSX" / "cat").mkdir(parents=True)
    for name in ("Thumbs.db", "cat/Thumbs.db", "cat/.DS_Store", "cat/._000.png"):
        (root / "macosx" / name).write_bytes(b"x")
    classes(root / "nested")
    classes(root / "nested" / "cat", first=5, names=("more",))
    classes(root / "truncated", "jpg")
    cut = root / "truncated" / "dog" / "005.jpg"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 6 // 10])
    classes(root / "bmp", "bmp")
    for c, name in enumerate(CLASSES):
        (root / "bmp_other" / name).mkdir(parents=True)
        for k in range(8):
            picture(90000 + 100 * c + k).save(root / "bmp_other" / name / f"0{k:02d}.bmp")
    for number, name in enumerate(("a", "b", "mean")):
        classes(root / "domains" / name, first=number)
    classes(root / "domains" / "less", each=3)
    classes(root / "domains" / "other", names=("cat", "cow", "dog"))
    classes(root / "domains" / "empty", each=0)
    return root

"""The 1000 classes of ImageNet by their WordNet ids."""

from __future__ import annotations

from pathlib import Path

from dembench.tasks.common.image_folders import read_lines

IMAGENET = 1000


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
        found = [entry.name for entry in classes.iterdir() if entry.is_dir() and is_wnid(entry.name)]
    else:
        found = [line.split()[0] for line in read_lines(classes, "the order of ImageNet's classes")]
    found = sorted(found)
    if len(set(found)) != IMAGENET or not all(is_wnid(name) for name in found):
        raise ValueError(f"{classes or 'timm'}: expected 1000 wnids such as n01440764, got {len(set(found))} names")
    return tuple(found)


def is_wnid(name: str) -> bool:
    """Whether it looks like a WordNet id: n and eight digits."""
    return len(name) == 9 and name[0] == "n" and name[1:].isdigit()

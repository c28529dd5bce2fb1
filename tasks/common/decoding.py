"""Image files as pictures: the formats that are meant, sizes within limits, 16 bits scaled to 8."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import numpy as np
from PIL import Image

from dembench.tasks.base import ConfigError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".tif", ".tiff", ".webp")
FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP")  # Pillow's names; no format that starts another program
LARGEST = 1 << 26  # pixels, before decoding and after a resize: 200 MB as RGB
LONGEST = 256  # times the shorter side: a side of 224 after a resize leaves 13 million pixels


def load(file: str | Path | bytes, where: str | None = None, *, pixels: bool = True) -> Image.Image:
    """An image in its own mode, decoded; without ``pixels`` its header alone.

    Args:
        file: its path or its bytes.
        where: what messages call it; None takes the path.
    Raises: ConfigError, naming ``where``, for another format, a damaged file, and more than ``LARGEST`` pixels or a
        side ``LONGEST`` times the other, which are refused before anything is decoded.
    """
    where = str(file) if where is None else where
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS) as image:
            check_size(*image.size, where)
            if pixels:
                image.load()
            return image
    except ConfigError:
        raise
    except Exception as error:  # Pillow raises a dozen kinds for damaged files
        reason = re.sub(r" <_io\.\w+ object at \w+>", "", " ".join(str(error).split())) or type(error).__name__
        raise ConfigError(f"{where} cannot be read as an image: {reason}") from error


def check_size(width: int, height: int, where: str) -> None:
    """Raises ConfigError for an image that is too large or too long."""
    if width * height > LARGEST:
        raise ConfigError(f"{where}: {width} x {height} pixels, more than the {LARGEST:,} that are read")
    if max(width, height) > LONGEST * min(width, height):
        raise ConfigError(f"{where}: {width} x {height} pixels, one side more than {LONGEST} times the other")


def is_deep(image: Image.Image) -> bool:
    """Whether its grey values have 16 bits."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def to_rgb(image: Image.Image, where: str) -> Image.Image:
    """As 8-bit RGB; of 16 bits the upper 8 are kept, as Pillow does with 16-bit colours.

    Raises: ConfigError, naming ``where``, for 32-bit integers and floats, whose range nothing tells.
    """
    if is_deep(image):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode[0] in "IF":
        raise ConfigError(f"{where}: expected 8 or 16 bits a channel, got an image of mode {image.mode}")
    return image.convert("RGB")


def decode(file: str | Path | bytes, where: str | None = None) -> Image.Image:
    """An image file as 8-bit RGB; raises what ``load`` and ``to_rgb`` raise."""
    return to_rgb(load(file, where), str(file) if where is None else where)


def workers() -> int:
    """Threads for reading and decoding: as many as this process has processors, 16 at most."""
    return max(1, min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))

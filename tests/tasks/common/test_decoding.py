"""Pictures: formats that are meant, limits before anything is decoded, 16 bits, damage in one line."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from dembench.tasks.base import ConfigError
from dembench.tasks.common import decoding
from dembench.tasks.common.decoding import FORMATS, SUFFIXES, decode, load

RGB = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int) -> bytes:
    """An empty grey PNG of a size, a few bytes long."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF", "WEBP"])
def test_lossless_formats_give_the_pixels_back(tmp_path: Path, kind: str) -> None:
    data = encoded(Image.fromarray(RGB), kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert (np.asarray(decode(data, "x")) == RGB).all()
    (tmp_path / "file").write_bytes(data)
    assert (np.asarray(decode(tmp_path / "file")) == RGB).all()


def test_every_suffix_has_a_format() -> None:
    known = Image.registered_extensions()
    assert {known[suffix] for suffix in SUFFIXES} == set(FORMATS)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_of_16_bits_the_upper_8_are_kept(kind: str) -> None:
    deep = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    ppm = b"P5 16 16 65535\n" + deep.astype(">u2").tobytes()  # which older Pillow reads and does not write
    data = ppm if kind == "PPM" else encoded(Image.fromarray(deep), kind)
    found = np.asarray(decode(data, "x"))
    assert (found == (deep // 257)[..., None]).all()


def test_values_of_unknown_range_are_refused() -> None:
    for array in (np.zeros((4, 4), np.int32), np.zeros((4, 4), np.float32)):
        with pytest.raises(ConfigError, match="^x: expected 8 or 16 bits a channel, got an image of mode [IF]$"):
            decode(encoded(Image.fromarray(array), "TIFF"), "x")


def test_no_program_is_started_for_postscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with Image.open(path) as image:
        assert image.format == "EPS"  # Pillow would take it
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **options: started.append(args))
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **options: started.append(args))
    with pytest.raises(ConfigError, match=r"picture\.png cannot be read as an image: cannot identify"):
        decode(path)
    assert not started


@pytest.mark.parametrize("size", [(1, 2000), (2000, 1), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_sizes_are_checked_before_anything_is_decoded(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    data = png(*size)
    assert len(data) < 100
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ConfigError, match=r"^x(: \d+ x \d+ pixels|.*decompression bomb)[^\n]*$"):
        load(data, "x")


def test_a_resized_picture_stays_small() -> None:
    """In a process of its own: 1 x 2000 pixels took 823 MB where the shorter side became 256."""
    code = f"""
import resource
from dembench.tasks.common.images import Preprocess
from dembench.tasks.common.decoding import decode
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for size, data in (256, {png(1, 2000)!r}), (4096, {encoded(Image.new("L", (1, 200)), "PNG")!r}):
    try:
        Preprocess(size, 9)(decode(data, "x"), "x")
    except ValueError as error:
        print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second, megabytes = done.stdout.splitlines()
    assert first == "x: 1 x 2000 pixels, one side more than 256 times the other"
    assert second == "x: 4096 x 819200 pixels, more than the 67,108,864 that are read"
    assert int(megabytes) < 50


@pytest.mark.filterwarnings("ignore")  # of Pillow, on damaged tags
def test_damage_of_every_kind_is_one_line_that_names_the_file() -> None:
    """2,000 damaged files: bytes flipped, cut, emptied. Each is read, or refused by name."""
    draw = np.random.default_rng(0)
    grey = Image.fromarray(np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8))
    whole = [encoded(Image.fromarray(RGB), kind) for kind in FORMATS] + [encoded(grey, "PNG"), encoded(grey, "TIFF")]
    messages = []
    for number in range(2000):
        data = bytearray(whole[number % len(whole)])
        if number % 3:
            for place in draw.integers(0, len(data), 1 + number % 5):
                data[place] = draw.integers(0, 256)
        else:
            del data[int(draw.integers(0, len(data))) :]
        try:
            assert decode(bytes(data), "folder/x.png").mode == "RGB"
        except ConfigError as error:
            messages.append(str(error))
    assert len(messages) > 500
    assert all(message.startswith("folder/x.png") and "\n" not in message for message in messages)


def test_avif_and_gif_are_not_meant(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(RGB), "GIF"))
    (tmp_path / "b.jpg").write_bytes(b"\x00\x00\x00\x1cftypavif" + bytes(40))
    for name in ("a.png", "b.jpg"):
        with pytest.raises(ConfigError, match=f"{name} cannot be read as an image: cannot identify"):
            decode(tmp_path / name)


def test_limits_are_inclusive() -> None:
    decoding.check_size(8192, 8192, "x")
    decoding.check_size(256, 1, "x")
    for size in ((8193, 8192), (257, 1), (0, 5)):
        with pytest.raises(ConfigError, match="^x: "):
            decoding.check_size(*size, "x")

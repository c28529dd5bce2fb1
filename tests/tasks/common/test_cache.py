"""What is kept in the cache folder is as it was saved, or it is made again."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dembench.tasks.common import cache

ARRAY = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
STATE = {"net": {"weight": torch.arange(6.0).view(2, 3)}, "done": 7, "history": [{"loss": 0.5}]}
ABOUT = {"names": ["a", "é"], "lossy": True, "notes": [["key", "text"]]}
KINDS: dict[str, tuple[Callable, Callable, Any]] = {
    "npy": (cache.save_array, cache.load_array, ARRAY),
    "pt": (cache.save_state, cache.load_state, STATE),
    "json": (cache.save_json, cache.load_json, ABOUT),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_saved_comes_back(tmp_path: Path, kind: str) -> None:
    save, load, value = KINDS[kind]
    path = tmp_path / "new" / f"x.{kind}"
    assert load(path) is None
    save(path, value)
    found = load(path)
    if kind == "pt":
        assert torch.equal(found["net"].pop("weight"), STATE["net"]["weight"])
        assert found == {"net": {}, "done": 7, "history": [{"loss": 0.5}]}
    else:
        assert np.array_equal(found, value) if kind == "npy" else found == value


def test_a_mapped_array_is_shared_and_what_is_written_to_it_stays_private(tmp_path: Path) -> None:
    cache.save_array(tmp_path / "x.npy", ARRAY)
    found = cache.load_array(tmp_path / "x.npy", shared=True)
    assert isinstance(found, np.memmap)
    found[:] = 0
    assert np.array_equal(cache.load_array(tmp_path / "x.npy"), ARRAY)
    assert np.array_equal(np.load(tmp_path / "x.npy"), ARRAY)  # by NumPy alone


@pytest.mark.parametrize("kind", KINDS)
def test_no_damage_is_taken_for_what_was_saved(tmp_path: Path, kind: str) -> None:
    """Every bit of a small file, and cuts, additions and other files; none is accepted, and none raises."""
    save, load, value = KINDS[kind]
    path = tmp_path / "x"
    save(path, value)
    whole = path.read_bytes()
    draws = random.Random(0)
    bits = range(8 * len(whole)) if len(whole) < 300 else draws.sample(range(8 * len(whole)), 300)
    damaged = [whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :] for bit in bits]
    damaged += [whole[:size] for size in (0, 1, 31, 32, 33, len(whole) // 2, len(whole) - 32, len(whole) - 1)]
    damaged += [whole + b"\0", whole * 2, bytes(32), bytes(64), b"\x93NUMPY" + whole, whole[32:]]
    for content in damaged:
        path.write_bytes(content)
        assert load(path) is None
    path.write_bytes(whole)
    assert load(path) is not None


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    load = KINDS[kind][1]
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    start = time.monotonic()
    assert [load(tmp_path / name) for name in ("pipe", "zero", "", "none")] == [None] * 4
    assert time.monotonic() - start < 2

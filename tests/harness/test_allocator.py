"""What the process keeps of freed memory, counted in the page faults of the next block of the same size."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from dembench.harness.allocator import keep_freed_memory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc, whose allocator is asked")
BYTES, PAGE = 64 << 20, 4096
FAULTS = f"""
import ctypes, resource, sys
from dembench.harness.allocator import keep_freed_memory
print(keep_freed_memory() if len(sys.argv) > 1 else "as it was")
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc({BYTES})
    ctypes.memset(block, 1, {BYTES})
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*words: str, **variables: str) -> tuple[str, int]:
    """What ``keep_freed_memory`` answered, and the faults of the second block of 64 MiB."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, *words], env=clean | variables, capture_output=True, text=True, check=True
    )
    answer, number = done.stdout.splitlines()
    return answer, int(number)


def test_a_block_of_the_same_size_costs_no_page_faults() -> None:
    answer, number = faults("keep")
    assert answer == "True"
    assert number < BYTES / PAGE / 10


def test_the_users_own_setting_is_kept() -> None:
    assert faults("keep", MALLOC_ARENA_MAX="1")[0] == "False"


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_freed_memory.cache_clear()
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_TUNABLES"))]:
        monkeypatch.delenv(name)
    assert keep_freed_memory() is False
    keep_freed_memory.cache_clear()

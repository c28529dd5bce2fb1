"""Memory that the C library keeps for the next tensor instead of giving it back to the system."""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_LARGEST = 1 << 30  # bytes; a larger block is given back at once


@lru_cache
def keep_freed_memory() -> bool:
    """Lets this process keep what it frees, up to blocks of a GiB; True where the C library heeds it (glibc).

    By default glibc maps every block above some size anew and gives it back when it is freed. A training step on a CPU
    frees and takes the same large blocks again and again, and each time the system has to fill them with zeros, page by
    page: more than half the time of a step of EfficientNet-Lite0 at 64 x 224 x 224, measured in a virtual machine.
    Takes up to a fifth more memory. Nothing is changed where one of glibc's own variables (MALLOC_...) is set.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, 2 * _LARGEST - 1))

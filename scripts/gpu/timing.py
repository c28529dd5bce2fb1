"""Times on a device by its own clock, and what a step costs the host: time, waits, peak memory."""

from __future__ import annotations

import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

WARM_UP = 3
_WAIT = "called a synchronizing CUDA operation"


def median_ms(calls: list[Callable[[], object]], device: str, seconds: float) -> float:
    """The median time of a call in ms, of CUDA events or of the clock on a CPU.

    Args:
        calls: equal work on different inputs, made by turns, so that an input is not in the cache from its last turn.
        seconds: of measuring; at least 5 and at most 200 calls are timed.
    """
    for i in range(WARM_UP):
        calls[i % len(calls)]()
    start = time.perf_counter()
    calls[0]()
    _synchronize(device)
    one = max(time.perf_counter() - start, 1e-6)
    count = max(5, min(200, int(seconds / one)))
    if device == "cpu":
        times = []
        for i in range(count):
            start = time.perf_counter()
            calls[i % len(calls)]()
            times.append((time.perf_counter() - start) * 1e3)
        return statistics.median(times)
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count)]
    for i, (first, last) in enumerate(events):
        first.record()
        calls[i % len(calls)]()
        last.record()
    torch.cuda.synchronize()
    return statistics.median(first.elapsed_time(last) for first, last in events)


def step_figures(call: Callable[[], object], device: str, work: float, seconds: float) -> dict[str, Any]:
    """What one step costs, after warm-up.

    Args:
        work: images or steps that a call does.
        seconds: of measuring; at least one call is timed, after at least one that is not.
    Returns: ms (by the clock, until the device is done), host ms (until the call returns), per second (of work); on
        CUDA also waits (of the host in one call), where (the places of most of them) and peak MiB (of all tensors).
    """
    start = time.perf_counter()
    call()
    _synchronize(device)
    figures: dict[str, Any] = {}
    if device == "cuda":
        for _ in range(WARM_UP - 1 if time.perf_counter() - start < 1 else 0):
            call()
        torch.cuda.reset_peak_memory_stats()
        waits = places_of_waits(call)
        figures["waits"] = sum(waits.values())
        figures["where"] = ", ".join(f"{place} ({n})" for place, n in waits.most_common(4))
        figures["peak MiB"] = torch.cuda.max_memory_allocated() / 2**20
    whole, host = [], []
    end = time.perf_counter() + seconds
    while not whole or (time.perf_counter() < end and len(whole) < 50):
        _synchronize(device)
        start = time.perf_counter()
        call()
        host.append((time.perf_counter() - start) * 1e3)
        _synchronize(device)
        whole.append((time.perf_counter() - start) * 1e3)
    ms = statistics.median(whole)
    return {"ms": ms, "host ms": statistics.median(host), "per second": work / ms * 1e3, **figures}


def places_of_waits(call: Callable[[], object]) -> Counter[str]:
    """How often a call makes the host wait for the device, by file and line, as PyTorch's sync debug mode tells."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = (warning for warning in caught if _WAIT in str(warning.message))
    return Counter(f"{Path(w.filename).parent.name}/{Path(w.filename).name}:{w.lineno}" for w in found)


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()

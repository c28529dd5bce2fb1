"""What the benches share: the best time of calls made by turns, the peak memory of a call, and sizes in words."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def best_times(calls: dict[str, Callable[[], object]], device: str, seconds: float) -> dict[str, float]:
    """The best time of each call in seconds, by turns so that a busy machine slows all of them alike.

    Args:
        calls: by name; each is made once before the clock runs.
        device: "cuda" waits for the device before and after each call.
        seconds: of measuring for each call; each is timed twice at least.
    """
    for call in calls.values():
        call()
    best = {name: time_of(call, device) for name, call in calls.items()}
    end = time.perf_counter() + seconds * len(calls)
    while True:
        for name, call in calls.items():
            best[name] = min(best[name], time_of(call, device))
        if time.perf_counter() >= end:
            return best


def time_of(call: Callable[[], object], device: str) -> float:
    """Seconds of one call."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_bytes(call: Callable[[], object], device: str) -> int:
    """Most bytes of tensors that one call held at once, beyond those that were there before."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return max(0, torch.cuda.max_memory_allocated() - before)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    held = most = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def size_text(count: float) -> str:
    """Bytes in words."""
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def time_text(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 1e-2:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"

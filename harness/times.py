"""How long runs will take, and how much of a GPU's memory, by what others took."""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dembench.harness import runs

LOOKED_AT = 300  # past runs in a folder, the newest
LEVELS = (  # what a past run must share, from close to far
    ("task", "method", "loss", "model", "data", "protocol"),
    ("task", "method", "model", "data", "protocol"),
    ("task", "method", "data"),
    ("task", "method"),
    ("task",),
)


class Times:
    """Seconds that runs took, by their names; a run that is asked for gets the mean of those most like it."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[Any, ...], list[float]] = {}
        self._gpu_bytes: dict[tuple[Any, ...], int] = {}
        self.runs = 0

    def add(self, config: Mapping[str, Any], seconds: float) -> None:
        self.runs += 1
        for level in LEVELS:
            self._seconds.setdefault(_key(config, level), []).append(seconds)

    def add_result(self, result: Mapping[str, Any]) -> None:
        """A finished run, from its result.json."""
        config, cost = result["config"], result["cost"]
        self.add(config, cost["wall_seconds"])
        for level in LEVELS[:-2]:  # a method alone says little: data and model decide
            key = _key(config, level)
            self._gpu_bytes[key] = max(self._gpu_bytes.get(key, 0), int(cost.get("peak_gpu_bytes") or 0))

    def expected(self, config: Mapping[str, Any]) -> float | None:
        """Seconds for a run of this configuration; None where no run of its task is known."""
        for level in LEVELS:
            if (found := self._seconds.get(_key(config, level))) is not None:
                return statistics.fmean(found)
        return None

    def gpu_bytes(self, config: Mapping[str, Any]) -> int | None:
        """The most that runs like this one held on a GPU; None where no run with its method and data is known."""
        for level in LEVELS[:-2]:
            if found := self._gpu_bytes.get(_key(config, level)):
                return found
        return None


def _key(config: Mapping[str, Any], level: Sequence[str]) -> tuple[Any, ...]:
    return (level, *(config["choices"].get(name) for name in level))


def past_results(folders: Iterable[Path], known: Iterable[str] = ()) -> Iterable[dict[str, Any]]:
    """The newest results in folders of runs, but for ids that are ``known``; what cannot be read is left out."""
    known = set(known)
    for folder in folders:
        paths = (path for path in folder.glob("*/result.json") if path.parent.name not in known)
        for path in heapq.nlargest(LOOKED_AT, paths, key=lambda path: path.stat().st_mtime):
            try:
                result = runs.read_result(path.parent)
            except ValueError:
                continue
            if result is not None:
                yield result

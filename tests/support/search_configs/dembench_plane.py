"""A task whose error is a known function of a loss's (tau, alpha), and a process that searches another one slowly."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dembench.harness.search.trials import Outcome, Search, Settings
from dembench.tasks.base import Event, Flag, Row
from dembench.tasks.common.parts import DataPart

BEST = (1.3, 0.4)


def bowl(pair: tuple[float, float]) -> float:
    """Least, 0, at BEST."""
    return (pair[0] - BEST[0]) ** 2 + (pair[1] - BEST[1]) ** 2


class Data:
    name, fingerprint = "plane-data", "plane"

    def __init__(self, root: str | None = None) -> None:
        pass


class Method:
    def __init__(self, loss: Any, lr: float = 0.1) -> None:
        self.loss = loss
        self.forward_passes, self.backward_passes, self.updated = 3, 2, 10


class Task:
    """Error 0.2 + bowl / 10; with alpha beyond 1.8 a collapse with error 0, below 0.1 an error that is no number."""

    splits = True

    def __init__(self, data: Data, seed: int, device: str, precision: str, part: DataPart | None = None) -> None:
        self.data, self.seed, self.part = data, seed, part

    def __len__(self) -> int:
        return 0

    def run(self, make_method: Any) -> Iterator[Event]:
        if log := os.environ.get("DEMBENCH_PLANE_LOG"):
            with open(log, "a") as file:
                file.write(f"{self.seed}\n")
        loss = make_method().loss
        tau, alpha = getattr(loss, "tau", 1.0), getattr(loss, "alpha", 1.0)
        value = 0.2 + bowl((tau, alpha)) / 10 + self.seed / 1000
        if alpha > 1.8:
            value = 0.0
            yield Flag("collapse", "fog/5", "one class takes all")
        if alpha < 0.1:
            value = math.nan
        yield Row("mean", "error", value, "fraction", 100 if self.part is None else self.part.size(100))


def outcome(pair: tuple[float, float]) -> Outcome:
    return Outcome(-bowl(pair), "ok", {"value": bowl(pair)})


def main(folder: str, log: str, trials: int, seconds: float) -> None:
    """Searches, ``seconds`` a trial, and writes a line when a trial starts."""

    def evaluate(pair: tuple[float, float]) -> Outcome:
        with open(log, "a") as file:
            file.write(f"{os.getpid()} {pair[0]} {pair[1]}\n")
        time.sleep(seconds)
        return outcome(pair)

    Search(Path(folder), Settings(trials=trials)).run(evaluate)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))

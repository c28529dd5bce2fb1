"""A task whose error and criteria are known functions of the rate, each best at a rate of its own."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

from dembench.tasks.base import Event, Flag, Row
from dembench.tasks.common.parts import DataPart

BEST = {"EM": 1e-3, "AdaDEM": 1e-2}  # by the loss's class
INFORMATION, CONSISTENCY = 1e-4, 1e-1


def error(loss: str, lr: float, seed: int) -> float:
    """0.2 at the best rate, 0.02 more a decade away; a little more with the seed, otherwise for each loss."""
    return 0.2 + 0.02 * abs(math.log10(lr / BEST[loss])) + 0.001 * seed * (1 if loss == "EM" else 1.5)


class Data:
    name, fingerprint = "rates-data", "rates"

    def __init__(self, root: str | None = None) -> None:
        pass


class Method:
    def __init__(self, loss: Any, lr: float = 0.1, steps: int = 1) -> None:
        self.loss, self.lr, self.steps = loss, lr, steps
        self.forward_passes, self.backward_passes, self.updated = 3, 2, 10


class Task:
    """Beyond a rate of 0.05 a collapse, beyond 0.5 a NaN."""

    splits = True

    def __init__(self, data: Data, seed: int, device: str, precision: str, part: DataPart | None = None) -> None:
        self.data, self.seed, self.part = data, seed, part

    def __len__(self) -> int:
        return 0

    def run(self, make_method: Any) -> Iterator[Event]:
        method = make_method()
        loss = type(method.loss).__name__
        if log := os.environ.get("DEMBENCH_RATES_LOG"):
            with open(log, "a") as file:
                file.write(f"{loss} {method.lr:g} {self.seed} {'all' if self.part is None else self.part.use}\n")
        if os.environ.get("DEMBENCH_RATES_STOP") == f"{method.lr:g}":
            raise KeyboardInterrupt
        n = 100 if self.part is None else self.part.size(100)
        value = error(loss, method.lr, self.seed)
        if method.lr > 0.05:
            value = 0.0
            yield Flag("collapse", "all", "one class takes all")
        yield Row("mean", "error", math.nan if method.lr > 0.5 else value, "fraction", n)
        if self.part is not None and self.part.criteria:
            for name, best in (("information", INFORMATION), ("consistency", CONSISTENCY)):
                yield Row("mean", name, -abs(math.log10(method.lr / best)), "nats", n)

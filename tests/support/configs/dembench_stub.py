"""A task of a few lines with a known answer, for tests of what surrounds tasks."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from dembench.tasks.base import Event, Flag, Histogram, Note, Point, Row


class Loss(torch.nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        if scale <= 0:
            raise ValueError(f"Loss: expected scale > 0, got {scale}")
        self.scale = scale


class Data:
    def __init__(self, root: str) -> None:
        self.root = Path(root)
        self.name = "stub-data"

    def check(self) -> None:
        if not self.root.is_file():
            raise FileNotFoundError(f"no data at {self.root}; write a file there")

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.root.read_bytes()).hexdigest()[:12] if self.root.is_file() else ""


class Model:
    def __init__(self, weights: str | None = None) -> None:
        self.weights_id = f"stub:{Path(weights).read_text()}" if weights else "none"


class Protocol:
    def __init__(self, batches: int = 3, mode: str = "ok") -> None:
        self.batches = batches
        self.mode = mode


class Method:
    def __init__(self, model: Any, loss: Any, speed: Literal["slow", "fast"] = "fast", lr: float = 0.1) -> None:
        if lr > 1:
            raise ValueError(f"Method: expected lr <= 1, got {lr}")
        self.forward_passes = self.backward_passes = self.updated = 0
        self.last_loss = None
        self.lr = lr

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.forward_passes += 1
        self.backward_passes += 1
        self.updated += len(x)
        return x * self.lr

    def reset(self) -> None:
        pass


class Task:
    """Two slices; error 1/4 in each. ``mode`` of the protocol: ok, collapse, notfinite, crash,
    crash-on-2, die, die-once, sleep, hang (a minute without a word)."""

    def __init__(self, data: Data, model: Model, protocol: Protocol, seed: int, device: str, precision: str) -> None:
        self.data, self.model, self.protocol, self.seed, self.device = data, model, protocol, seed, device

    def __len__(self) -> int:
        return 2 * self.protocol.batches

    def check_method(self, make_method: Any) -> None:
        make_method(model=self.model)

    def _first(self) -> bool:
        """Whether no run with these data has asked yet."""
        try:
            self.data.root.with_suffix(f".{self.seed}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def run(self, make_method: Any) -> Iterator[Event]:
        if log := os.environ.get("DEMBENCH_STUB_LOG"):
            with open(log, "a") as file:
                file.write(f"{self.seed}\n")
        if surroundings := os.environ.get("DEMBENCH_STUB_SURROUNDINGS"):
            names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
            found = {"seed": self.seed, "pid": os.getpid(), "threads": torch.get_num_threads()}
            with open(surroundings, "a") as file:
                file.write(json.dumps(found | {name: os.environ.get(name) for name in names}) + "\n")
        method = make_method(model=self.model)
        if self.protocol.mode == "hang":
            time.sleep(60)
        yield Note("stub", "invented numbers")
        mode = self.protocol.mode
        step = 0
        for slice in ("fog/5", "snow/5"):
            for _ in range(self.protocol.batches):
                method(torch.rand(4))
                if mode == "crash" or (mode == "crash-on-2" and self.seed == 2):
                    raise RuntimeError("the stub broke [red]on[/] purpose")
                if step == 1 and (mode == "die" or (mode == "die-once" and self._first())):
                    os._exit(9)
                if mode == "sleep":
                    time.sleep(0.2)
                entropy = float("nan") if mode == "notfinite" else float(torch.rand(()))
                yield Point(step, slice, 4, 3, entropy, None if mode == "ok" else 0.5, 4)
                step += 1
            if mode == "collapse":
                yield Flag("collapse", slice, "one class takes all")
            yield Histogram(slice, (4, 0), (2, 2))
            yield Row(
                slice,
                "error",
                float("nan") if mode == "notfinite" else 0.25,
                "fraction",
                4 * self.protocol.batches,
            )
        yield Row("mean", "error", 0.25, "fraction", 8 * self.protocol.batches)

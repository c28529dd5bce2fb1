"""From what the command line says to an engine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dembench.harness.compose import ConfigError
from dembench.harness.engines.inline import Inline
from dembench.harness.engines.job import Engine
from dembench.harness.engines.processes import Processes
from dembench.harness.sweeps import Planned
from dembench.harness.times import Times
from dembench.lookup import lookup

ENGINES = ("inline", "processes", "ray")
MOST_WORKERS = 8  # that are started unasked, on CPUs and on each GPU
GIB = 2**30
ASSUMED_BYTES = 16 * GIB  # of a GPU's memory, for a run unlike all past ones
BESIDE_BYTES = GIB  # what a process needs on a GPU beside its tensors
SLACK = 1.3  # that the allocator holds beside the tensors


@dataclass(frozen=True)
class Settings:
    """What carries out a sweep.

    Args:
        engine: one of ENGINES; None is "processes", or "inline" for no workers.
        workers: of "processes", in all; None fills the CPUs, up to 8, and the GPUs where runs use them.
        gpus: of "processes", such as "0,2", among those that are visible; None takes all where runs use them.
        cpus_per_run: None takes the threads of a run.
        gpus_per_run: 0.5 puts two runs on one GPU. None goes by memory: what past runs like these took at most, 16 GiB
            where there are none; with "ray" it is 1 where runs use a GPU, else 0.
        address: of "ray".
    Raises: ConfigError for values that do not fit.
    """

    engine: str | None = None
    workers: int | None = None
    gpus: str | None = None
    cpus_per_run: float | None = None
    gpus_per_run: float | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 0:
            raise ConfigError(f"--workers: expected at least 0, got {self.workers}")
        if self.engine is not None:
            try:
                lookup(self.engine, ENGINES, "engine")
            except ValueError as error:
                raise ConfigError(f"--engine: {error}") from None
        for name, least in (("cpus_per_run", 0), ("gpus_per_run", 0)):
            value = getattr(self, name)
            if value is not None and not value > least:
                raise ConfigError(f"--{name.replace('_', '-')}: expected more than {least}, got {value:g}")
        for option, engines in (
            ("workers", ("inline", "processes")),
            ("gpus", ("processes",)),
            ("cpus_per_run", ("processes", "ray")),
            ("gpus_per_run", ("processes", "ray")),
            ("address", ("ray",)),
        ):
            if getattr(self, option) is not None and self.name not in engines:
                raise ConfigError(f"--{option.replace('_', '-')} is not for the engine {self.name}")
        if self.workers and self.name == "inline":
            raise ConfigError(f"--workers {self.workers} is not for the engine inline")
        if self.workers == 0 and self.name == "processes":
            raise ConfigError("--workers: expected at least 1 for the engine processes, got 0")

    @property
    def name(self) -> str:
        """The engine by its name."""
        return self.engine or ("inline" if self.workers == 0 else "processes")


def choose(settings: Settings, planned: Sequence[Planned], times: Times | None = None) -> Engine:
    """The engine for the runs of a plan that are missing; ``times`` of past runs tell how much of a GPU they take.

    Raises: ConfigError where the machine or the cluster has no room for a run, or Ray is not installed.
    """
    missing = [run.config for run in planned if not run.done]
    threads = max((config["threads"] for config in missing), default=1)
    on_gpu = any(config["device"] == "cuda" for config in missing)
    if settings.name == "inline":
        return Inline()
    if settings.name == "ray":
        try:
            from dembench.harness.engines.ray import Ray
        except ImportError as error:
            raise ConfigError(str(error)) from None
        each_run = settings.gpus_per_run or (1.0 if on_gpu else 0.0)
        return Ray(settings.address or "auto", settings.cpus_per_run or threads, each_run)
    if not on_gpu and (settings.gpus or settings.gpus_per_run):
        option = "--gpus" if settings.gpus else "--gpus-per-run"
        raise ConfigError(f"{option}: none of the runs uses a GPU (device=cuda)")
    room = max(1, int(cpus() // (settings.cpus_per_run or threads)))
    gpus: list[str] = []
    on_cpu = sum(config["device"] != "cuda" for config in missing)
    if on_gpu:
        names = choose_gpus(settings.gpus)
        share = settings.gpus_per_run
        if share is not None and share > 1:
            raise ConfigError(f"--gpus-per-run: a run uses one GPU or a part of it, got {share:g}")
        each = int(1 / share + 1e-9) if share else min(_by_memory(missing, names, times or Times()), room, MOST_WORKERS)
        wanted = settings.workers or len(names) * each
        if on_cpu and settings.workers:  # what the GPUs have no room for is left to the CPUs
            wanted = min(wanted, len(names) * each)
        gpus = [names[i % len(names)] for i in range(min(wanted, len(missing) - on_cpu))] if names else []
    rest = settings.workers - len(gpus) if settings.workers else min(max(1, room - len(gpus)), MOST_WORKERS)
    return Processes(min(rest, on_cpu if gpus else max(1, len(missing))), gpus, threads)


def _by_memory(missing: Sequence[Mapping[str, Any]], gpus: Sequence[str], times: Times) -> int:
    """Runs that fit on one GPU at a time, at least 1: by the largest that past runs let expect."""
    needs = [times.gpu_bytes(config) or ASSUMED_BYTES for config in missing if config["device"] == "cuda"]
    visible = visible_gpus()
    least = min((gpu_memory(visible.index(name)) for name in gpus), default=0)
    return max(1, int(least // (SLACK * max(needs) + BESIDE_BYTES)))


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_gpus(asked: str | None) -> list[str]:
    """GPUs as CUDA_VISIBLE_DEVICES names them: those that are visible, or some of them by their place among these.

    Raises: ConfigError for a place that there is not.
    """
    visible = visible_gpus()
    if asked is None:
        return visible
    chosen = []
    for word in asked.split(","):
        if not word.strip().isdigit() or int(word) >= len(visible):
            raise ConfigError(f"--gpus: no GPU {word.strip()!r}; {len(visible)} are visible, counted from 0")
        chosen.append(visible[int(word)])
    return chosen


def gpu_memory(place: int) -> int:
    """Bytes of the GPU that PyTorch counts at ``place``."""
    import torch

    return int(torch.cuda.get_device_properties(place).total_memory)


def visible_gpus() -> list[str]:
    """Names of the GPUs that PyTorch sees, as CUDA_VISIBLE_DEVICES takes them."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(number) for number in range(count)] if named is None else named.split(",")[:count]

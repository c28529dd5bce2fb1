"""From what the command line says to an engine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from dembench.harness.compose import ConfigError
from dembench.harness.engines.job import Engine
from dembench.harness.sweeps import Planned
from dembench.lookup import lookup

ENGINES = ("inline", "processes", "ray")
MOST_WORKERS = 8  # that are started unasked


@dataclass(frozen=True)
class Settings:
    """What carries out a sweep.

    Args:
        engine: one of ENGINES; None is "processes", or "inline" for no workers.
        workers: of "processes"; None fills the CPUs, up to 8, or the GPUs where runs use them.
        gpus: of "processes", such as "0,2", among those that are visible; None takes all where runs use them.
        cpus_per_run: None takes the threads of a run.
        gpus_per_run: None takes 1 where runs use a GPU, else 0; 0.5 puts two runs on one GPU.
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


def choose(settings: Settings, planned: Sequence[Planned]) -> Engine:
    """The engine for the runs of a plan that are missing.

    Raises: ConfigError where the machine or the cluster has no room for a run, or Ray is not installed.
    """
    missing = [run.config for run in planned if not run.done]
    threads = max((config["threads"] for config in missing), default=1)
    on_gpu = any(config["device"] == "cuda" for config in missing)
    if settings.name == "inline":
        from dembench.harness.engines.inline import Inline

        return Inline()
    if settings.name == "ray":
        try:
            from dembench.harness.engines.ray import Ray
        except ImportError as error:
            raise ConfigError(str(error)) from None
        gpus = settings.gpus_per_run or (1.0 if on_gpu else 0.0)
        return Ray(settings.address or "auto", settings.cpus_per_run or threads, gpus)
    from dembench.harness.engines.processes import Processes

    if not on_gpu and (settings.gpus or settings.gpus_per_run):
        option = "--gpus" if settings.gpus else "--gpus-per-run"
        raise ConfigError(f"{option}: none of the runs uses a GPU (device=cuda)")
    names = choose_gpus(settings.gpus) if on_gpu else None
    workers = settings.workers or _workers(settings, threads, names)
    return Processes(min(workers, max(1, len(missing))), names, threads)


def _workers(settings: Settings, threads: int, gpus: Sequence[str] | None) -> int:
    room = int(cpus() // (settings.cpus_per_run or threads))
    if gpus is not None:
        share = settings.gpus_per_run or 1.0
        if share > 1:
            raise ConfigError(f"--gpus-per-run: a run uses one GPU or a part of it, got {share:g}")
        return len(gpus) * int(1 / share + 1e-9)
    return min(max(1, room), MOST_WORKERS)


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


def visible_gpus() -> list[str]:
    """Names of the GPUs that PyTorch sees, as CUDA_VISIBLE_DEVICES takes them."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(number) for number in range(count)] if named is None else named.split(",")[:count]

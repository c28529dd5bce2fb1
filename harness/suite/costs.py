"""What runs cost: CPU seconds and floating point operations, from figures that were measured.

The figures stand in ``configs/suite/paper.yaml`` under ``costs``, each with its ``basis``. A run is so many samples,
each so many passes through its network (a forward pass is one, a backward pass two); reinforcement learning counts
environment steps, segmentation training steps. What has no figure costs None, never a guess.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from dembench.harness.compose import Words, compose

GPU_FLOPS = 1e14  # a second: what "GPU hours at 100 TFLOP/s" are counted with


@dataclass(frozen=True)
class Cost:
    """CPU seconds on one thread, floating point operations in 1e9, and what the figures rest on; None is unknown."""

    cpu_seconds: float | None = None
    gflop: float | None = None
    basis: frozenset[str] = frozenset()

    def __add__(self, other: Cost) -> Cost:
        return Cost(_sum(self.cpu_seconds, other.cpu_seconds), _sum(self.gflop, other.gflop), self.basis | other.basis)

    @property
    def gpu_hours(self) -> float | None:
        """At 100 TFLOP/s."""
        return None if self.gflop is None else self.gflop * 1e9 / GPU_FLOPS / 3600


NOTHING = Cost(0.0, 0.0)


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


class Costs:
    """Costs of runs by their words.

    Args:
        figures: the mapping ``costs`` of configs/suite/paper.yaml.
        past: finished runs (their result.json); a run like one of these is counted as long as it took.
        config_dir: own configurations.
    """

    def __init__(
        self, figures: Mapping[str, Any], past: Iterable[Mapping[str, Any]] = (), config_dir: Path | None = None
    ) -> None:
        self.figures, self.config_dir = figures, config_dir
        self._known: dict[str, Cost] = {}
        self._past: dict[str, list[float]] = {}
        for result in past:
            self._past.setdefault(_like(result["config"]), []).append(result["cost"]["wall_seconds"])

    def of(self, many: Iterable[Words]) -> Cost:
        """The sum over runs."""
        total = NOTHING
        for words in many:
            total += self.one(words)
        return total

    def one(self, words: Words) -> Cost:
        """Of one run; runs that differ in seed or loss only cost the same."""
        key = json.dumps({k: v for k, v in words.items() if _counts(k)}, sort_keys=True)
        if key not in self._known:
            self._known[key] = self._count(words)
        return self._known[key]

    def _count(self, words: Words) -> Cost:
        kept = {k: v for k, v in words.items() if _counts(k) and k.lstrip("+").split(".")[0] != "method"}
        cfg = compose(kept, self.config_dir, complete=False)  # Hydra takes a tenth of a second for each set of names
        cfg.choices.method = words.get("method", cfg.choices.method)
        cfg.method = {"steps": words.get("method.steps")}
        if (seconds := self._past.get(_like(cfg))) is not None:
            return Cost(sum(seconds) / len(seconds), None, frozenset({"finished runs of this kind"}))
        figures = self.figures.get(cfg.choices.task)
        return Cost() if figures is None else COUNTS[figures["count"]](cfg, figures)


def _like(config: Mapping[str, Any]) -> str:
    """What runs must share to take about as long: names, and sizes that are not in the names."""
    kept = {group: config["choices"].get(group) for group in ("task", "method", "model", "data", "protocol")}
    sizes = [_get(config, key) for key in SIZES]
    return json.dumps([kept, sizes], sort_keys=True, default=str)


SIZES = (
    *("data.num_images", "data.steps", "data.rho", "protocol.batch_size", "protocol.iterations"),
    *("protocol.corruptions", "protocol.rho", "model.arch", "part"),
)


def _get(node: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(node, Mapping | DictConfig) or part not in node:
            return None
        node = node._get_node(part) if isinstance(node, DictConfig) else node[part]
    value = getattr(node, "_value", lambda: node)()
    return list(node) if isinstance(node, list) else None if value == "???" else value


def _counts(key: str) -> bool:
    return key != "seed" and key.lstrip("+").split(".")[0] not in ("loss", "out", "logger")


def _model(cfg: DictConfig, figures: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The figures of a network: by its name, its architecture and the data, from close to far."""
    name, arch, data = cfg.choices.model, _get(cfg, "model.arch"), cfg.choices.data
    names = [f"{name}:{arch}@{data}", f"{name}@{data}", f"{name}:{arch}", str(name)]
    return next((figures["models"][name] for name in names if name in figures["models"]), None)


def _images(cfg: DictConfig, figures: Mapping[str, Any]) -> Cost:
    """Images of a stream, once each."""
    model, passes = _model(cfg, figures), figures["passes"].get(cfg.choices.method)
    size = figures["sizes"].get(cfg.choices.data)
    if model is None or passes is None or size is None:
        return Cost()
    images, sets = _get(cfg, "data.num_images") or size["images"], size["sets"]
    if (chosen := _get(cfg, "protocol.corruptions")) is not None:
        sets = len(chosen)
    count = images * sets * _share(cfg)
    return _cost(model, count, passes, count / (_get(cfg, "protocol.batch_size") or 1))


def _iterations(cfg: DictConfig, figures: Mapping[str, Any]) -> Cost:
    """Training images, each a forward and a backward pass; the unlabelled ones once for each of their views."""
    model, views = _model(cfg, figures), figures["views"].get(cfg.choices.method)
    if model is None or views is None:
        return Cost()
    images = cfg.protocol.batch_size * (1 + views * cfg.protocol.unlabelled_ratio)
    return _cost(model, cfg.protocol.iterations * images, 3, cfg.protocol.iterations)


def _episodes(cfg: DictConfig, figures: Mapping[str, Any]) -> Cost:
    """Test images, each with its views, a text pass forward and backward for each step, and caches of past images."""
    model, size = _model(cfg, figures), figures["sizes"].get(cfg.choices.data)
    if model is None or size is None:
        return Cost()
    images = (_get(cfg, "data.num_images") or size["images"]) * size["sets"] * _share(cfg)
    steps = (_get(cfg, "method.steps") or 1) if cfg.choices.method in figures["tuned"] else 0
    seconds, gflop = model.get("cpu_seconds"), model.get("gflop")
    per_step, gflop_step = model.get("cpu_seconds_step"), model.get("gflop_step")
    kept = figures["caches"].get(cfg.choices.method, 0.0)
    return Cost(
        None if seconds is None or per_step is None else images * (seconds + steps * per_step + kept),
        None if gflop is None or gflop_step is None else images * (gflop + steps * gflop_step),
        frozenset({model["basis"]}),
    )


def _steps(cfg: DictConfig, figures: Mapping[str, Any]) -> Cost:
    """Environment steps, and the evaluation."""
    rate = figures["steps_per_second"].get(cfg.choices.method)
    if rate is None:
        return Cost()
    return Cost(cfg.data.steps / rate + figures["evaluation_seconds"], None, frozenset({figures["basis"]}))


def _updates(cfg: DictConfig, figures: Mapping[str, Any]) -> Cost:
    """Training steps of a segmentation network, and the rest of a run."""
    model = _model(cfg, figures)
    found = None if model is None else model.get(f"{cfg.choices.method}", model.get("all"))
    if model is None or found is None:
        return Cost()
    return Cost(cfg.protocol.iterations * found + model.get("once", 0.0), None, frozenset({model["basis"]}))


COUNTS = {"images": _images, "iterations": _iterations, "episodes": _episodes, "steps": _steps, "updates": _updates}


def _share(cfg: DictConfig) -> float:
    """How much of the data a run is judged on."""
    part, share = _get(cfg, "part"), _get(cfg, "search_share") or 0.0
    return {"search": share, "rest": 1 - share}.get(str(part), 1.0)


def _cost(model: Mapping[str, Any], images: float, passes: float, batches: float) -> Cost:
    """Of ``images`` with so many passes each; a small network pays for each image and each batch as well."""
    seconds, gflop = model.get("cpu_seconds"), model.get("gflop")
    if seconds is not None:
        per_image = passes * seconds + model.get("cpu_seconds_image", 0.0)
        seconds = images * per_image + batches * passes * model.get("batch_seconds", 0.0)
    return Cost(seconds, None if gflop is None else images * passes * gflop, frozenset({model["basis"]}))

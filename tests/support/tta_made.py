"""Methods of corruption TTA on a small network, ready to walk through batches, and all that they hold."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from small_models import image_batches
from torch import Tensor, nn
from tta_models import FeatureNet
from tta_pairs import LOSSES, method_class

FAST: dict[str, Any] = {"lr": 1e-2, "optimizer": "momentum"}
LEARNERS: dict[str, dict[str, Any]] = {
    "Tent": {},
    "ETA": {"margin": 0.4, "d": 0.9},
    "EATA": {"margin": 0.4, "d": 0.9, "fisher_alpha": 2.0},
    "SAR": {"freeze": "none"},
    "DeYO": {"freeze": "none", "plpd": 0.1},
    "TIPI": {"start": "random", "lr": 0.1, "eps": 0.02},
    "TTC": {"accumulate": 48},  # three batches an update
}
WITHOUT_GRADIENT: dict[str, dict[str, Any]] = {
    "Source": {},
    "Norm": {},
    "Norm mixed": {"statistics": "mixed"},
    "Norm ema": {"statistics": "ema"},
    "T3A": {"keep": 3},
}


def make(name: str, loss: str = "em", *, net: nn.Module | None = None, **options: Any) -> Any:
    """The method on a FeatureNet of fixed weights; its random numbers are fixed too."""
    torch.manual_seed(0)
    settings = LEARNERS.get(name, WITHOUT_GRADIENT.get(name, {}))
    if name in LEARNERS:
        settings = {**FAST, **settings}
    method = method_class(name.split()[0])(net or FeatureNet(), LOSSES[loss](), **{**settings, **options})
    if getattr(method, "source_images", 0):
        method.see_source(torch.cat(image_batches(4, seed=9)))
    return method


def everything(method: Any) -> tuple[dict[str, Tensor], dict[Any, Any]]:
    """Parameters, buffers and the optimizer's state, copied."""
    model = {key: value.clone() for key, value in method.model.state_dict().items()}
    learner = getattr(method, "learner", None)
    return model, {} if learner is None else deepcopy(learner.optimizer.state_dict()["state"])


def same(one: Any, other: Any) -> bool:
    """Equal bit for bit, through dictionaries and tuples."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other

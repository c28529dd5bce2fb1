"""Each method of corruption TTA beside its textbook loop, built alike and walked through the same batches."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import published_losses as published
import torch
from small_models import CLASSES
from torch import Tensor, nn
from tta_models import FeatureNet, Watched

from dembench import core
from dembench.scripts.bench import textbook_forward, textbook_tta

LN_C = math.log(CLASSES)
LOSSES: dict[str, Callable[[], Any]] = {"em": core.EM, "dem": lambda: core.DEM(1.2, 0.9), "adadem": core.AdaDEM}
MODULES = {"ETA": "eta", "EATA": "eata", "SAR": "sar", "DeYO": "deyo", "TIPI": "tipi", "TTC": "ttc", "T3A": "t3a"}


class PublishedAdaDEM:
    """AdaDEM by its published formula; the table is carried from call to call."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.table = torch.full((CLASSES, CLASSES), 1 / CLASSES, dtype=torch.float64)

    def __call__(self, z: Tensor) -> Tensor:
        self.table = published.step(self.table, z, 0.1)
        return published.adadem(z, self.table)


def published_loss(name: str) -> Callable[[Tensor], Tensor]:
    if name == "adadem":
        return PublishedAdaDEM()
    return textbook_tta.entropy if name == "em" else lambda z: published.dem(z, 1.2, 0.9)


def method_class(name: str) -> type:
    return getattr(importlib.import_module(f"dembench.tasks.tta.methods.{MODULES.get(name, name.lower())}"), name)


def drifting_batches(count: int = 12, *, size: int = 16, last: int = 5) -> list[Tensor]:
    """Batches in float64, the last of them small."""
    from small_models import image_batches

    batches = image_batches(count, size, dtype=torch.float64)
    batches[-1] = batches[-1][:last]
    return batches


class Pair:
    """One of our methods and its textbook loop on equal copies of one network.

    ``ours`` sees its network through ``watched``, which shows the images it drew; textbook loops take those where the
    method is random. ``beside`` names the loop where it has another name.
    """

    def __init__(
        self,
        name: str,
        loss: str = "em",
        *,
        norm: str = "batch",
        options: dict[str, Any] | None = None,
        textbook: dict[str, Any] | None = None,
        beside: str | None = None,
    ) -> None:
        net = FeatureNet(norm).double().eval()
        self.watched, self.net = Watched(deepcopy(net)), net
        self.ours = method_class(name)(self.watched, LOSSES[loss](), **(options or {}))
        build = getattr(self, f"_{name.lower()}", None)
        extra = build(dict(textbook or {})) if build else dict(textbook or {})
        if name == "T3A":
            self.textbook: Any = textbook_forward.T3A(net.features, net.linear, **extra)
        elif hasattr(textbook_forward, beside or name):
            self.textbook = getattr(textbook_forward, beside or name)(net, **extra)
        else:
            self.textbook = getattr(textbook_tta, name)(net, published_loss(loss), **extra)
        self.start = self.weights()[1]

    def _deyo(self, extra: dict[str, Any]) -> dict[str, Any]:
        return {"destroy": self._destroyed, **extra}

    def _destroyed(self, chosen: Tensor) -> Tensor:
        """What ours showed its network of the chosen images: them alone, or without BatchNorm the whole batch."""
        whole, destroyed = self.watched.seen
        if len(destroyed) == len(chosen):
            return destroyed
        rows = [next(i for i, image in enumerate(whole) if torch.equal(image, one)) for one in chosen]
        return destroyed[rows]

    def _tipi(self, extra: dict[str, Any]) -> dict[str, Any]:
        return {"start": lambda x: self.watched.seen[1] - x, **extra}

    def _ttc(self, extra: dict[str, Any]) -> dict[str, Any]:
        return {"features": self.net.both, **extra}

    def step(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of ours and of the textbook's."""
        self.watched.seen = []
        return self.ours(x), self.textbook(x)

    def weights(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        nets: tuple[nn.Module, nn.Module] = (self.watched.net, self.net)
        ours, theirs = ({name: p.detach().clone() for name, p in net.named_parameters()} for net in nets)
        return ours, theirs

    def moved(self) -> float:
        """How far the textbook's weights have come."""
        now = self.weights()[1]
        return max((now[name] - self.start[name]).abs().max().item() for name in now)

"""What the methods share: the batch, the slot for a loss, and passes through a network.

A method is a function from a batch's views, the network and the method's own state to loss terms by name, whose sum is
minimised. It declares the views it needs and draws random numbers from torch's global generator, which the trainer
seeds before each step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from dembench.core import functional
from dembench.lookup import lookup
from dembench.tasks.common.training import mean_over_ranks

Terms = dict[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """One step's data, on the device and normalised.

    Args:
        images, labels: labelled samples in their weak view, (B, 3, H, W) float and (B,) int64.
        views: unlabelled samples by name of view, (M, 3, H, W) each, the same samples in the same order.
        progress: share of the training that is done, from 0 to 1.
        rows: numbers of the unlabelled samples among all of them, (M,) int64, on the device; None without any.
        step: iterations that were done before.
    """

    images: Tensor
    labels: Tensor
    views: Mapping[str, Tensor] = field(default_factory=dict)
    progress: float = 0.0
    rows: Tensor | None = None
    step: int = 0


class Slot(nn.Module):
    """Where a loss on unlabelled logits enters a method: ``weight * rise * mean(loss(logits))`` as ``entropy_term``.

    Args:
        loss: logits (M, C) to a loss per sample (M,); None leaves the term out.
        weight: 0 leaves the term out as well.
        view: whose logits it takes.
        ramp: share of the training over which the weight rises linearly from 0; 0 is no ramp.
    Raises: ValueError for a negative weight or a ramp outside 0..1.
    """

    def __init__(self, loss: Any, weight: float, view: str, ramp: float):
        super().__init__()
        if weight < 0 or not 0 <= ramp <= 1:
            raise ValueError(f"expected loss_weight >= 0 and loss_ramp from 0 to 1, got {weight} and {ramp}")
        self.loss, self.weight, self.view, self.ramp = loss, weight, view, ramp

    @property
    def active(self) -> bool:
        return self.loss is not None and self.weight > 0

    def wants(self, view: str) -> bool:
        return self.active and self.view == view

    def terms(self, logits: Mapping[str, Tensor], progress: float) -> Terms:
        """The term, if there is one, from the logits of each view."""
        if not self.active:
            return {}
        return {"entropy_term": self.weight * rise(progress, self.ramp) * self.loss(logits[self.view]).mean()}


class SemiMethod(nn.Module, ABC):
    """Base of all methods.

    Args:
        num_classes: C, for methods that keep something per class; the task gives it.
        loss, loss_weight, loss_view, loss_ramp: the slot.
    Raises: ValueError for a view that the method has no logits of.
    """

    name: ClassVar[str]
    views: ClassVar[tuple[str, ...]] = ()  # of the unlabelled samples, besides the slot's
    slot_views: ClassVar[tuple[str, ...]] = ("weak",)
    replaces_entropy: ClassVar[bool] = False  # the slot's term is the method's own entropy, not an addition

    def __init__(
        self,
        loss: Any = None,
        *,
        num_classes: int = 0,
        loss_weight: float = 0.1,
        loss_view: str = "weak",
        loss_ramp: float = 0.0,
    ) -> None:
        super().__init__()
        lookup(loss_view, self.slot_views, f"loss_view of {self.name}")
        self.num_classes = num_classes
        self.slot = Slot(loss, loss_weight, loss_view, loss_ramp)
        self.forward_passes = self.backward_passes = self.updated = 0
        self.seen: dict[str, Tensor] = {}  # what the latest batch showed, for the learning curve

    def check_range(self, low: float, high: float, **values: float) -> None:
        """Raises ValueError for the first of the named settings outside ``low`` to ``high``."""
        for name, value in values.items():
            if not low <= value <= high:
                upper = "" if high == math.inf else f" and at most {high:g}"
                raise ValueError(f"{self.name}: expected {name} of at least {low:g}{upper}, got {value}")

    def check_classes(self, num_classes: int) -> None:
        """Raises ValueError where there is nothing to tell apart."""
        if num_classes < 2:
            raise ValueError(f"{self.name}: expected num_classes >= 2, got {num_classes}")

    def prepare(self, num_unlabelled: int, counts: Tensor) -> None:
        """Called once before the training: unlabelled samples, and labelled ones of each class, (C,) int64."""

    def equip(self, model: nn.Module) -> nn.Module:
        """The network with what the method adds to it, before the training; here nothing."""
        return model

    @property
    def needed_views(self) -> tuple[str, ...]:
        """Views of the unlabelled samples that ``terms`` reads, in a fixed order."""
        made_here = ("mixed",)  # by the method, from other views
        slot = {self.slot.view} - {*made_here} if self.slot.active else set()
        return tuple(sorted({*self.views, *slot}))

    @abstractmethod
    def terms(self, model: nn.Module, batch: Batch) -> Terms:
        """Loss terms by name, scalars with a graph."""

    def watch(self, weak_logits: Tensor, **others: Tensor) -> None:
        """Keeps the entropy of the predictions on the weak view, and other scalars, for the learning curve."""
        self.seen = {"entropy": functional.em(weak_logits.detach().float()).mean(), **others}


def supervised_term(logits: Tensor, labels: Tensor) -> Terms:
    """Mean cross entropy of the labelled samples, nats."""
    return {"supervised": F.cross_entropy(logits, labels)}


def rise(progress: float, ramp: float) -> float:
    """From 0 to 1 while progress goes from 0 to ``ramp``; 1 from then on."""
    return 1.0 if ramp <= 0 else min(progress / ramp, 1.0)


def couples_samples(model: nn.Module) -> bool:
    """Whether a sample's output depends on the others of its pass, as BatchNorm makes it in training."""
    return any(isinstance(module, _BatchNorm) and module.training for module in model.modules())


def passes(model: nn.Module, views: Mapping[str, Tensor], frozen: Sequence[str] = ()) -> dict[str, Tensor]:
    """Logits (N, C), float32, of each view; those of ``frozen`` views without gradient.

    With BatchNorm all views go through in one pass, as published, because they share its statistics. Without it, rows
    do not touch each other: the frozen ones go through apart and without a graph, which changes nothing but the cost.
    """
    if couples_samples(model) or not frozen:
        logits = _one_pass(model, views)
        return {name: value.detach() if name in frozen else value for name, value in logits.items()}
    logits = _one_pass(model, {name: x for name, x in views.items() if name not in frozen})
    with torch.no_grad():
        apart = _one_pass(model, {name: x for name, x in views.items() if name in frozen})
    return {name: (apart if name in frozen else logits)[name] for name in views}


def _one_pass(model: nn.Module, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parts = list(views.values())
    together = parts[0] if len(parts) == 1 else torch.cat(parts)
    logits = model(together).float().split([len(x) for x in parts])
    return dict(zip(views, logits, strict=True))


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """BatchNorm normalises by the batch, its running statistics stay, even where the batch holds a NaN."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    for module in norms:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in norms:
            module.track_running_stats = True


def align(p: Tensor, marginal: Tensor, target: Tensor | float, momentum: float) -> Tensor:
    """Predictions (M, C) times ``target`` over their moving mean ``marginal`` (C,), scaled to sum 1.

    The batch (of all ranks) moves the mean first, in place; zeros are a mean that has seen no batch.
    """
    now = mean_over_ranks(p.mean(0))
    marginal.copy_(torch.where(marginal.any(), marginal.lerp(now, 1 - momentum), now))
    p = p * (target + 1e-6) / (marginal + 1e-6)
    return p / p.sum(1, keepdim=True)


def masked_cross_entropy(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Cross entropy to classes (N,) or distributions (N, C), zero where the mask is; the mean is over all N samples."""
    return (F.cross_entropy(logits, targets, reduction="none") * mask).mean()

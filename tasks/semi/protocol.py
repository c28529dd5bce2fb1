"""How long, in which batches and with which optimiser: the part of a run that all methods share."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from dembench.tasks.common import training


@dataclass(frozen=True)
class Protocol(training.Protocol):
    """A training schedule. Nothing in it depends on method, loss or class balance.

    Args:
        iterations: optimiser steps.
        batch_size: labelled samples a step, over all devices.
        unlabelled_ratio: unlabelled samples for each labelled one.
        optimizer: "sgd" with momentum 0.9 and Nesterov, or "adamw".
        lr: at its highest.
        weight_decay: not on tensors of one dimension, nor on class token and position embedding.
        layer_decay: factor on the rate for each block of a transformer below the head; 1 is none.
        schedule: "cosine" is lr * cos(7 pi t / 16), "constant" is none.
        warmup: iterations over which the rate rises linearly first.
        warmup_from: where it starts: the rate of iteration t is (t + warmup_from) / warmup of the highest. USB has 0,
            so that its first iteration changes nothing.
        ema: decay of the averaged weights, which are evaluated; 0 evaluates the weights themselves.
        eval_every: iterations between evaluations; the last iteration is always evaluated.
        eval_batch_size: images a batch.
        checkpoint_every: iterations between checkpoints; 0 is at each evaluation.
        devices: GPUs (or CPU processes) over which each batch is divided.
    Raises: ValueError for numbers out of range and batches that do not divide.
    """

    iterations: int
    batch_size: int = 64
    unlabelled_ratio: int = 7
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.03
    weight_decay: float = 5e-4
    layer_decay: float = 1.0
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: int = 0
    warmup_from: int = 1
    ema: float = 0.999
    eval_every: int = 5120
    eval_batch_size: int = 1000
    checkpoint_every: int = 0
    devices: int = 1

    def __post_init__(self) -> None:
        self.check_at_least(
            {
                1: ("iterations", "batch_size", "unlabelled_ratio", "eval_every", "eval_batch_size", "devices"),
                0: ("warmup", "warmup_from", "checkpoint_every", "weight_decay"),
            }
        )
        if self.lr <= 0 or not 0 < self.layer_decay <= 1 or not 0 <= self.ema < 1:
            got = f"{self.lr}, {self.layer_decay}, {self.ema}"
            raise ValueError(f"protocol: expected lr > 0, layer_decay in (0, 1] and ema in [0, 1), got {got}")
        self.check_division()

    def rate(self, step: int) -> float:
        """Factor on the learning rate in iteration ``step``, from 0."""
        if step < self.warmup:
            return min((step + self.warmup_from) / self.warmup, 1.0)
        if self.schedule == "constant":
            return 1.0
        return math.cos(7 * math.pi * (step - self.warmup) / (16 * max(self.iterations - self.warmup, 1)))

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser; each group has its own highest rate as ``base_lr``."""
        groups = parameter_groups(model, self.lr, self.weight_decay, self.layer_decay)
        if self.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=self.lr)
        return torch.optim.SGD(groups, lr=self.lr, momentum=0.9, nesterov=True)

    def set_rate(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * self.rate(step)


def parameter_groups(model: nn.Module, lr: float, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters by depth and by whether they decay.

    Raises: ValueError for a layer decay on a model without ``blocks``.
    """
    depth = len(getattr(model, "blocks", ()))
    if layer_decay < 1 and not depth:
        raise ValueError(f"layer_decay={layer_decay}: {type(model).__name__} has no blocks; use layer_decay=1.0")
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in trainable(model):
        layer = layer_of(name, depth) if layer_decay < 1 else depth + 1
        decays = parameter.ndim > 1 and name not in ("cls_token", "pos_embed")
        base = lr * layer_decay ** (depth + 1 - layer)
        fresh = {"params": [], "weight_decay": weight_decay if decays else 0.0, "base_lr": base, "lr": base}
        groups.setdefault((layer, decays), fresh)["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def layer_of(name: str, depth: int) -> int:
    """0 for the stem, i + 1 for block i, ``depth`` for the final norm, ``depth + 1`` for the head."""
    first, *rest = name.split(".")
    if first in ("cls_token", "pos_embed", "patch_embed"):
        return 0
    if first == "blocks":
        return int(rest[0]) + 1
    return depth if first in ("norm", "fc_norm") else depth + 1


def trainable(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)

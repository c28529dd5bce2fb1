"""Checks of a method of the task tta."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dembench.core import EM
from dembench.tasks.tta.adapted import Adapted

from .finding import CLASSES, Checks, Skipped, Wrong, compare, images, on_gpu

BATCH = 8  # images


def check_method(make: Callable[..., Any]) -> Checks:
    """Of a method of the task tta, ``make(model=..., loss=...)``, on a network of a few hundred parameters."""

    def fresh(dtype: torch.dtype = torch.float32) -> Adapted:
        source = torch.cat(batches).to(dtype)
        return Adapted(_small_net().to(dtype), lambda model: make(model=model, loss=EM()), source=source)

    batches = [images(BATCH, seed=k) for k in range(3)]

    def shape() -> None:
        method = fresh()
        logits = method(batches[0])
        if tuple(logits.shape) != (BATCH, CLASSES) or not logits.is_floating_point():
            got = f"{tuple(logits.shape)} {logits.dtype}"
            raise Wrong(f"expected logits ({BATCH}, {CLASSES}) for {BATCH} images, got {got}")
        if logits.requires_grad:
            raise Wrong("the logits come with a graph, which keeps the batch in memory")
        if method.method.forward_passes < 1:
            raise Wrong("forward_passes is 0: predict by self.forward(x), which counts")

    def one() -> None:
        method = fresh()
        for x in (batches[0], batches[0][:1], batches[0][:3]):
            if not bool((logits := method(x)).isfinite().all()) or len(logits) != len(x):
                raise Wrong(f"a batch of {len(x)} gives logits {tuple(logits.shape)} that are not finite")

    def moves() -> None:
        method = fresh()
        before = {name: value.detach().clone() for name, value in method.model.named_parameters()}
        for x in batches:
            method(x)
        moved = {name for name, value in method.model.named_parameters() if not torch.equal(value, before[name])}
        if undeclared := sorted(moved - method.method.adapted.keys()):
            raise Wrong(f"parameters move that are not in self.adapted: {', '.join(undeclared[:3])}")

    def gradient() -> None:
        x = batches[0][:1].double()  # of one: some take a step for each image
        method = fresh(torch.float64)
        learner = getattr(method.method, "learner", None)
        if learner is None:
            raise Skipped("it has no learner, so nothing is learned by gradient descent")
        if method.method.stops_gradient:
            raise Skipped("the method says that parts of what it lowers are constants (stops_gradient)")
        name, parameter = next(iter(method.method.adapted.items()))
        start, slopes, update = parameter.detach().clone(), list[Tensor](), learner.update

        def watched(**how: Any) -> None:
            slopes.append(parameter.grad.clone() if parameter.grad is not None else torch.zeros_like(parameter))
            update(**how)

        learner.update = watched
        method(x)
        if not slopes:
            raise Skipped("the first batch is not learned from")

        def lowered(p: Tensor) -> float:
            other = fresh(torch.float64)
            other.method.adapted[name].data.copy_(p)
            other(x)
            return float(other.method.last_loss if other.method.last_loss is not None else math.nan)

        hint = "; a method that holds parts of what it lowers constant says so: stops_gradient = True"
        compare(slopes[0], lowered, start, hint)

    def repeatable() -> None:
        seen = []
        for _ in range(2):
            method = fresh()
            seen.append([method(x) for x in batches])
        if not all(map(torch.equal, *seen)):
            raise Wrong("two objects predict differently under one seed: draw from self.generator")

    def reset() -> None:
        method = fresh()
        first = [method(x) for x in batches]
        method.reset()
        if not all(map(torch.equal, first, [method(x) for x in batches])):
            raise Wrong("after reset() the same batches are predicted otherwise: something is not put back")

    def peek() -> None:
        one, two = fresh(), fresh()
        for x in batches:
            one.peek(x)
            if not torch.equal(one(x), two(x)):
                raise Wrong("peek(x) changes what is predicted afterwards")

    def device() -> None:
        def moved(where: torch.device) -> None:
            net, loss = _small_net().to(where), EM().to(where)
            source = torch.cat(batches).to(where)
            Adapted(net, lambda model: make(model=model, loss=loss), source=source)(batches[0].to(where))

        on_gpu(moved)

    yield "shape: images (N, 3, H, W) to logits (N, C), counted, without a graph", shape
    yield "batch of one, and batches of other sizes", one
    yield "only parameters in self.adapted move", moves
    yield "gradient: of last_loss, by finite differences in float64", gradient
    yield "determinism: two objects, the same predictions", repeatable
    yield "reset: back to the first prediction, to the bit", reset
    yield "peek: moves nothing", peek
    yield "device: runs where the network is", device


def _small_net() -> nn.Module:
    """Convolution, BatchNorm and a linear layer, of weights that do not depend on torch's generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)).eval()

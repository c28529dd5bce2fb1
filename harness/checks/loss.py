"""Checks of a loss."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from .finding import CLASSES, Checks, Skipped, Wrong, compare, no_loose_tensors, on_gpu, slope_of


def check_loss(make: Callable[[], Any]) -> Checks:
    """Of a loss, made anew for each: logits (N, C) to a loss per sample (N,)."""

    def fresh() -> Any:
        loss = make()
        if not callable(loss):
            raise Wrong(f"expected a function of logits, got {type(loss).__name__}")
        return loss

    def shape() -> None:
        for n, dtype in ((7, torch.float32), (4, torch.float64)):
            _expect_rows(fresh()(_logits(n, dtype)), n, dtype)

    def one() -> None:
        loss = fresh()
        _expect_rows(loss(_logits(1)), 1, torch.float32)
        loss(_logits(7))
        _expect_rows(loss(_logits(1)), 1, torch.float32)  # after a larger batch, too

    def gradient() -> None:
        loss = fresh()
        if isinstance(loss, nn.Module):
            loss = loss.double()
        loss(_logits(7, torch.float64))  # what it keeps is there, and is then held
        loss = _still(loss)
        logits = _logits(4, torch.float64).requires_grad_()
        if getattr(loss, "stops_gradient", False):
            _same_in_single(loss, logits)
            raise Skipped("the loss says that parts of it are constants (stops_gradient); as in float32")
        found = slope_of(lambda z: deepcopy(loss)(z).sum(), logits)
        hint = "; a loss that holds parts of itself constant says so: stops_gradient = True"
        compare(found, lambda z: float(deepcopy(loss)(z).sum()), logits, hint)

    def finite() -> None:
        for scale in (1e4, 1e-4):
            logits = (scale * _logits(6)).requires_grad_()
            value = fresh()(logits)
            (slope,) = torch.autograd.grad(value.sum(), logits, allow_unused=True)
            if not bool(value.isfinite().all()):
                raise Wrong(f"logits of size {scale:g} give {value.detach().tolist()}")
            if slope is None or not bool(slope.isfinite().all()):
                raise Wrong(f"logits of size {scale:g} give a gradient that is not finite")

    def repeatable() -> None:
        seen = []
        for seed in range(2):
            loss = fresh()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)  # what it draws is another number each time
                seen.append([loss(_logits(6, seed=k)) for k in range(3)])
        if not all(map(torch.equal, *seen)):
            raise Wrong("two objects give different values for the same batches: random numbers, or shared state")

    def reset() -> None:
        loss, batches = fresh(), [_logits(6, seed=k) for k in range(3)]
        first = loss(batches[0])
        for x in batches[1:]:
            loss(x)
        if hasattr(loss, "reset"):
            loss.reset()
        if not torch.equal(loss(batches[0]), first):
            raise Wrong("it remembers batches and has no reset() that forgets them" if not hasattr(loss, "reset")
                        else "after reset() the first batch has another value")  # fmt: skip

    def device() -> None:
        loss = fresh()
        loss(_logits(6))
        if isinstance(loss, nn.Module):
            no_loose_tensors(loss)
        on_gpu(lambda where: (loss.to(where) if isinstance(loss, nn.Module) else loss)(_logits(6).to(where)))

    yield "shape: logits (N, C) to a loss per sample (N,), of the logits' type", shape
    yield "batch of one", one
    yield "gradient: finite differences in float64", gradient
    yield "finite for logits of 1e4 and 1e-4", finite
    yield "determinism: two objects, the same values", repeatable
    yield "reset: forgets the batches", reset
    yield "device: all tensors move along", device


def _logits(n: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1)
    return 3 * torch.randn(n, CLASSES, generator=generator, dtype=dtype)


def _expect_rows(value: Any, n: int, dtype: torch.dtype) -> None:
    if not isinstance(value, Tensor) or tuple(value.shape) != (n,):
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise Wrong(f"expected ({n},) for logits ({n}, {CLASSES}), got {got}; leave the mean to the method")
    if value.dtype != dtype:
        raise Wrong(f"expected {dtype}, the logits' type, got {value.dtype}")


def _still(loss: Any) -> Any:
    return loss.eval() if isinstance(loss, nn.Module) else loss


def _same_in_single(loss: Any, logits: Tensor) -> None:
    """The gradient in float32 is that in float64."""
    double = slope_of(lambda z: deepcopy(loss)(z).sum(), logits)
    single = deepcopy(loss).float() if isinstance(loss, nn.Module) else loss
    found = slope_of(lambda z: single(z).sum(), logits.detach().float().requires_grad_())
    if not torch.allclose(found.double(), double, rtol=1e-3, atol=1e-4):
        raise Wrong("in float32 it has another gradient than in float64")

"""Keeps torch's compiler out of processes that compile nothing: importing it takes two seconds.

torch's optimizers import it when they are made (some methods are marked as not to be traced) and at each step (which
ends a traced graph). Until something else has imported it nothing can be traced, so both are left out till then.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch

NAME = "torch._dynamo"


def on_demand() -> None:
    """Calling it again does nothing. What another version of torch does otherwise stays as it is."""
    for method in vars(torch.optim.Optimizer).values():
        plain = getattr(method, "__wrapped__", None)
        if plain is not None and method.__module__ == torch.optim.Optimizer.__module__:
            vars(plain).setdefault("__dynamo_disable", _unmarked(plain))
    for kind in vars(torch.optim).values():
        step = vars(kind).get("step") if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) else None
        if getattr(getattr(step, "__code__", None), "co_name", "") == "_use_grad" and hasattr(step, "__wrapped__"):
            kind.step = _untraced(step)


def _unmarked(function: Callable[..., Any]) -> Callable[..., Any]:
    """As torch marks it, once the compiler is there."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if NAME not in sys.modules:
            return function(*args, **kwargs)
        vars(function).pop("__dynamo_disable", None)  # where torch looks, and now leaves its own mark
        return torch._compile._disable_dynamo(function)(*args, **kwargs)

    return call


def _untraced(step: Any) -> Callable[..., Any]:
    """The wrapper of ``Optimizer.step`` that switches gradients off, without the ends of traced graphs around it."""

    @functools.wraps(step.__wrapped__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if NAME in sys.modules:
            return step(self, *args, **kwargs)
        before = torch.is_grad_enabled()
        try:
            torch.set_grad_enabled(self.defaults["differentiable"])
            return step.__wrapped__(self, *args, **kwargs)
        finally:
            torch.set_grad_enabled(before)

    return call

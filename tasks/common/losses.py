"""The first value of a loss is checked, once: it must be one number a sample, or a pixel, in floating point."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from dembench.tasks.base import ConfigError


def checked(loss: Any, classes: int = 5) -> Any:
    """A loss that checks the first value that it gives, for every task the same; None stays None.

    Args:
        loss: logits (N, C, *) to a loss per position (N, *). A module is given back itself, with a hook that leaves
            with its first call; so each copy of it, in other processes too, is checked once.
        classes: of made-up logits that are tried at once.
    Raises: ConfigError, now or at the first call, where the value has another shape or is not of a floating dtype.
    """
    if loss is None:
        return None
    module = loss if isinstance(loss, nn.Module) else Function(loss)
    module.register_forward_hook(_first)
    _try(module, classes)
    return module


def _try(loss: nn.Module, classes: int) -> None:
    """Tries a copy on made-up logits, so that a wrong loss is refused before any work."""
    logits = torch.linspace(-1, 1, 3 * classes).view(3, classes)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            copy.deepcopy(loss)(logits)
    except ConfigError:
        raise
    except Exception:  # a loss may refuse these logits; it is then checked where it is used
        return


class Function(nn.Module):
    """A function in the place of a loss."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.function(*args, **kwargs)


def _first(module: nn.Module, args: tuple[Any, ...], value: Any) -> None:
    for key in [key for key, hook in module._forward_hooks.items() if hook is _first]:
        del module._forward_hooks[key]
    logits = args[0]
    wanted = (*logits.shape[:1], *logits.shape[2:])
    if not isinstance(value, Tensor) or tuple(value.shape) != wanted or not value.is_floating_point():
        got = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise ConfigError(
            f"loss: expected a floating value a sample, {wanted} for logits {tuple(logits.shape)}, got {got}; leave "
            "the mean to the method (reduction: none)"
        )

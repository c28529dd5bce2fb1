"""The first value of a loss is looked at, once: it must be one number a sample, or a pixel, in floating point."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dembench.tasks.base import ConfigError


def checked(loss: Any) -> Any:
    """A loss that checks the first value that it gives, for every task the same; None stays None.

    Args:
        loss: logits (N, C, *) to a loss per position (N, *). A module is given back itself, with a hook that leaves
            with its first call; so each copy of it, in other processes too, is checked once.
    Raises: ConfigError at the first call where the value has another shape or is not of a floating dtype.
    """
    if loss is None:
        return None
    module = loss if isinstance(loss, nn.Module) else Function(loss)
    module.register_forward_hook(_first)
    return module


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

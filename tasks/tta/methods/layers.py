"""Looking into a classifier: its last layer and what goes into that."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def classifier(model: nn.Module) -> nn.Linear:
    """The last Linear layer, whose inputs are the features; ValueError where there is none."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no Linear layer, so features and class templates are undefined")
    return layers[-1]


class Inputs:
    """Keeps what a layer was given last, (N, D) in ``last``."""

    def __init__(self, layer: nn.Module):
        self._last: Tensor | None = None
        layer.register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._last = args[0]

    @property
    def last(self) -> Tensor:
        """Raises ValueError where the layer was not used or saw something else than one vector per sample."""
        if self._last is None or self._last.dim() != 2:
            shape = None if self._last is None else tuple(self._last.shape)
            raise ValueError(f"the model's last Linear layer is not its classifier: its input was {shape}, not (N, D)")
        return self._last

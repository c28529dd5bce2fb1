"""Looking into a classifier: what goes into its last layer, and what its GroupNorms must not be given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.torch_version import TorchVersion


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


def guard_group_norms(model: nn.Module) -> None:
    """Lets the affine parameters of GroupNorms be learned on a CPU behind layers that do not learn.

    Before PyTorch 2.15 the backward pass of a GroupNorm on a CPU ends the process where its input is in channels-last
    format and needs no gradient (seen in 2.6 and 2.11): that input is copied to the plain format.
    """
    if TorchVersion(torch.__version__) < "2.15":
        for module in model.modules():
            if isinstance(module, nn.GroupNorm):
                module.register_forward_pre_hook(_plain)


def _plain(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    return None if args[0].requires_grad or args[0].device.type != "cpu" else (args[0].contiguous(), *args[1:])

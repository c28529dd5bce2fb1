"""A loss for many images at once, each with its own state."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from dembench.tasks.common.devices import placed


class Episodes:
    """Gives every image of a block its own copy of the loss, as new, so that no image sees another's state.

    A loss without state (no ``reset`` and no buffers) is called once for all, unless it ``needs_batch``, the views of
    one image. ``online`` keeps one copy for good, and takes one image at a time.
    """

    def __init__(self, loss: Any, online: bool = False):
        self.loss, self.online = loss, online
        self.stateful = hasattr(loss, "reset") or (isinstance(loss, nn.Module) and any(True for _ in loss.buffers()))
        self.stateful |= getattr(loss, "needs_batch", False)
        self._own: list[Any] = [deepcopy(loss)] if online else []

    def start(self, images: int) -> None:
        """Begins a block of so many images."""
        if self.stateful and not self.online:
            self._own = [deepcopy(self.loss) for _ in range(images)]

    def __call__(self, rows: Tensor) -> Tensor:
        """Mean loss (B,) of the rows (B, K, C) of each image."""
        if not self.stateful:
            return self.loss(rows.flatten(0, 1)).view(rows.shape[:2]).mean(1)
        if len(self._own) != len(rows):
            raise ValueError(f"expected the rows of {len(self._own)} images, got those of {len(rows)}")
        return torch.stack([loss(own).mean() for loss, own in zip(self._own, rows, strict=True)])


def depends_on_offset(loss: Any, classes: int) -> bool:
    """Whether a constant added to all logits has an influence on the loss, as in DEM with alpha other than 1.

    Log-probabilities have no free constant, so that part of the loss cannot act there.
    """
    gradient = _gradient(loss, classes)
    return abs(float(gradient.sum())) > 1e-6 * float(gradient.abs().sum())


def silent_alone(loss: Any) -> bool:
    """Whether a loss over a batch has no gradient for a single row, as information maximisation."""
    return getattr(loss, "needs_batch", False) and float(_gradient(loss, 5).abs().max()) < 1e-9


@torch.enable_grad()
def _gradient(loss: Any, classes: int) -> Tensor:
    """That of one row (1, C) of different logits."""
    logits = torch.linspace(-1, 1, classes, dtype=torch.float64)[None].requires_grad_()
    return torch.autograd.grad(placed(deepcopy(loss), "cpu")(logits).sum(), logits)[0]

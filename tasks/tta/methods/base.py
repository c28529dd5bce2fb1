"""What every method of corruption TTA carries: the model, and counts of what it cost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class TTAMethod:
    """A model that predicts each batch once. Subclasses say how in ``predict``, and what ``reset`` puts back.

    ``loss`` is taken by every method, so that a grid over methods and losses needs no exceptions; a method without an
    entropy term leaves it alone.
    """

    def __init__(self, model: nn.Module, loss: Any = None):
        self.model, self.loss = model, loss
        self.forward_passes = self.backward_passes = self.updated = 0
        self.last_loss: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (N, C) of a batch (N, 3, H, W) in [0, 1]."""
        return self.predict(x).detach()

    def predict(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.forward(x)

    def forward(self, x: Tensor) -> Tensor:
        """One counted pass through the model."""
        self.forward_passes += 1
        return self.model(x)

    def reset(self) -> None:
        """Nothing of this method changes."""

"""Source: the model as it was trained."""

from typing import Any

from torch import nn

from dembench.tasks.tta.methods.base import Preset, TTAMethod


class Source(TTAMethod):
    """Predicts in ``eval()`` with the statistics of the training data; nothing adapts."""

    uses_loss = False

    def __init__(self, model: nn.Module, loss: Any = None, *, preset: Preset = "official"):
        super().__init__(model.eval().requires_grad_(False), loss, preset=preset)

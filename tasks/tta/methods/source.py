"""Source: the model as it was trained."""

from typing import Any

from torch import nn

from tasks.tta.methods.base import TTAMethod


class Source(TTAMethod):
    """Predicts in ``eval()`` with the statistics of the training data; nothing adapts."""

    def __init__(self, model: nn.Module, loss: Any = None):
        super().__init__(model.eval().requires_grad_(False), loss)

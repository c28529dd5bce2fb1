"""NORM (Schneider et al. 2020; Nado et al. 2020): BatchNorm statistics of the current batch.

The code that Tent published beside its own also sets every BatchNorm's eps to 1e-5; here the checkpoint's eps stays,
which for models trained with PyTorch's default is the same.
"""

from typing import Any

from torch import nn

from core.adapt import use_batch_statistics
from tasks.tta.methods.base import TTAMethod


class Norm(TTAMethod):
    """Predicts in ``eval()`` but normalises by each batch's own statistics; no gradient."""

    def __init__(self, model: nn.Module, loss: Any = None):
        super().__init__(use_batch_statistics(model).eval().requires_grad_(False), loss)

"""Marginal of the selected views: TPT's selection and marginal, without any tuning."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from dembench.tasks.prompt.methods.base import Context, Shots, check_share, confident, pick
from dembench.tasks.prompt.methods.zero_shot import ZeroShot
from dembench.tasks.prompt.text import Prompts


class Marginal(ZeroShot):
    """Predicts log of the mean softmax over the views of least entropy.

    Args:
        selected: share of the views that count.
    """

    def __init__(
        self,
        prompts: Prompts,
        loss: Any = None,
        *,
        selected: float = 0.1,
        context: Context | None = None,
        shots: Shots | None = None,
    ):
        check_share("marginal", selected)
        super().__init__(prompts, loss, context=context, shots=shots)
        self.selected = selected

    def predict(self, views: Tensor) -> Tensor:
        logits = self.logits(views, self.text)
        return log_marginal(pick(logits, confident(logits, self.selected)))


def log_marginal(logits: Tensor) -> Tensor:
    """Log of the mean over K of softmax of (B, K, C), as (B, C)."""
    return logits.log_softmax(2).logsumexp(1) - math.log(logits.shape[1])

"""UDA (Xie et al. 2020): the prediction on a weak view, as it is, is the target of the strong view where it is sure.

As USB's code (semilearn 0.3.2): cross entropy in the place of the Kullback-Leibler divergence, targets
as they are, since its option T changes nothing there. ``temperature`` sharpens them as the paper does.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dembench.lookup import lookup
from dembench.tasks.semi.methods.base import Batch, Terms
from dembench.tasks.semi.methods.consistency import Consistency

SCHEDULES = ("none", "linear", "log", "exp")


class UDA(Consistency):
    """Cross entropy of the strong view to the weak view's distribution where its largest entry reaches ``threshold``.

    Args:
        threshold: of the largest probability on the weak view.
        temperature: of the targets; 1 leaves them as they are. The paper has 0.4.
        annealing: of the training signal: labelled samples count while their largest probability is at most a bound
            that rises from 1/C to 1 by this schedule; "none" counts all.
    Raises: ValueError for a threshold outside 0..1, a temperature <= 0 or another schedule.
    """

    name = "uda"

    def __init__(
        self,
        loss: Any = None,
        *,
        threshold: float = 0.8,
        temperature: float = 1.0,
        annealing: Literal["none", "linear", "log", "exp"] = "none",
        **settings: Any,
    ) -> None:
        super().__init__(loss, **settings)
        lookup(annealing, SCHEDULES, "uda annealing")
        if not temperature > 0:
            raise ValueError(f"uda: expected temperature > 0, got {temperature}")
        self.check_range(0, 1, threshold=threshold)
        self.threshold, self.temperature, self.annealing = threshold, temperature, annealing

    def targets(self, weak: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        mask = (weak.softmax(1).amax(1) >= self.threshold).float()
        return (weak / self.temperature).softmax(1), mask

    def supervised(self, logits: Tensor, batch: Batch) -> Terms:
        return {"supervised": self.annealed(logits, batch.labels, batch.progress)}

    def annealed(self, logits: Tensor, labels: Tensor, progress: float) -> Tensor:
        """Mean cross entropy, of samples that are surer than the schedule's bound zero."""
        losses = F.cross_entropy(logits, labels, reduction="none")
        if self.annealing == "none":
            return losses.mean()
        risen = {
            "linear": progress,
            "log": 1 - math.exp(-5 * progress),
            "exp": math.exp(5 * (progress - 1)),
        }[self.annealing]
        bound = risen * (1 - 1 / logits.shape[1]) + 1 / logits.shape[1]
        return torch.where(logits.detach().softmax(1).amax(1) <= bound, losses, 0).mean()

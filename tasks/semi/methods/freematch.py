"""FreeMatch (Wang et al. 2023): FixMatch with a threshold per class that follows the model, and a fairness term.

The fairness term is as in the authors' code: minus a cross entropy, at most 0, so minimising it drives the mean
prediction on confident samples away from the running one where both are scaled by their histograms. With batches much
smaller than the number of classes most of its entries are the constant log(1e-12): its value then says little.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dembench.tasks.common.training import mean_over_ranks
from dembench.tasks.semi.methods.base import Batch, Terms
from dembench.tasks.semi.methods.consistency import Consistency


class FreeMatch(Consistency):
    """State: ``confidence`` (scalar), ``marginal`` (C,) and ``histogram`` (C,), running means that start at 1/C.

    Each batch moves them first; a sample of pseudo label c then counts where its confidence reaches
    ``confidence * marginal[c] / max(marginal)``.

    Args:
        momentum: share that the running means keep.
        fairness_weight: of the fairness term.
    Raises: ValueError for fewer than two classes, a momentum outside 0..1 or a negative weight.
    """

    name = "freematch"

    def __init__(
        self,
        loss: Any = None,
        *,
        num_classes: int = 0,
        momentum: float = 0.999,
        fairness_weight: float = 0.001,
        **settings: Any,
    ) -> None:
        super().__init__(loss, num_classes=num_classes, **settings)
        self.check_classes(num_classes)
        self.check_range(0, 1, momentum=momentum)
        self.check_range(0, math.inf, fairness_weight=fairness_weight)
        self.momentum, self.fairness_weight = momentum, fairness_weight
        self.register_buffer("confidence", torch.tensor(1 / num_classes))
        self.register_buffer("marginal", torch.full((num_classes,), 1 / num_classes))
        self.register_buffer("histogram", torch.full((num_classes,), 1 / num_classes))

    def targets(self, weak: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        p = weak.softmax(1)
        confidence, target = p.max(1)
        self._follow(p, confidence, target)
        threshold = self.confidence * self.marginal / self.marginal.max()
        return target, (confidence >= threshold[target]).float()

    def watch(self, weak_logits: Tensor, **others: Tensor) -> None:
        super().watch(weak_logits, **others, threshold=self.confidence.clone())

    def more(self, logits: dict[str, Tensor], weight: Tensor) -> Terms:
        return {"fairness": self.fairness_weight * self.fairness(logits["strong"], weight)}

    def _follow(self, p: Tensor, confidence: Tensor, target: Tensor) -> None:
        """Moves the running means by the batch (of all ranks)."""
        counts = F.one_hot(target, p.shape[1]).float().mean(0)
        for running, now in (
            (self.confidence, confidence.mean()),
            (self.marginal, p.mean(0)),
            (self.histogram, counts),
        ):
            running.lerp_(mean_over_ranks(now), 1 - self.momentum)

    def fairness(self, strong: Tensor, mask: Tensor) -> Tensor:
        """sum_c SumNorm(marginal / histogram)_c log(SumNorm(mean p / counts)_c + 1e-12) over the masked samples.

        1/0 counts as 0; 0 where no sample is masked in.
        """
        p = strong.softmax(1)
        kept = mask.sum().clamp(min=1)
        mean = (p * mask[:, None]).sum(0) / kept
        counts = (F.one_hot(strong.argmax(1), p.shape[1]) * mask[:, None]).sum(0) / kept
        now = sum_norm(mean * _reciprocal(counts))
        running = sum_norm(self.marginal * _reciprocal(self.histogram))
        return (running * (now + 1e-12).log()).sum() * (mask.sum() > 0)


def sum_norm(x: Tensor) -> Tensor:
    """x over its sum, and 0 where that is 0."""
    return x * _reciprocal(x.sum())


def _reciprocal(x: Tensor) -> Tensor:
    return torch.where(x == 0, 0.0, 1 / torch.where(x == 0, 1.0, x))

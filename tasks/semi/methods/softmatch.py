"""SoftMatch (Chen et al. 2023): FixMatch with a weight that falls with the distance below the mean confidence.

As USB's code (semilearn 0.3.2), with uniform alignment.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dembench.tasks.common.training import mean_over_ranks
from dembench.tasks.semi.methods.base import Batch, SemiMethod, Terms, masked_cross_entropy, passes, supervised_term


class SoftMatch(SemiMethod):
    """State: ``mean`` and ``var`` of the confidence, moving means that start at 1/C and 1; ``marginal`` (C,).

    The confidence is that of predictions divided by their moving mean; the targets are the plain predictions' argmax.

    Args:
        momentum: share that the moving means keep.
        n_sigma: the weight is exp(-(n_sigma * d)^2 / (2 var)) for a confidence d below the mean, else 1.
        align: whether predictions are aligned to the uniform distribution before.
        unlabelled_weight: of the term.
    Raises: ValueError for fewer than two classes, a momentum outside 0..1 or a negative weight.
    """

    name = "softmatch"
    views: ClassVar[tuple[str, ...]] = ("strong", "weak")
    slot_views: ClassVar[tuple[str, ...]] = ("weak", "strong")

    def __init__(
        self,
        loss: Any = None,
        *,
        num_classes: int = 0,
        momentum: float = 0.999,
        n_sigma: float = 2.0,
        align: bool = True,
        unlabelled_weight: float = 1.0,
        **slot: Any,
    ) -> None:
        super().__init__(loss, num_classes=num_classes, **slot)
        if num_classes < 2:
            raise ValueError(f"softmatch: expected num_classes >= 2, got {num_classes}")
        self.check_range(0, 1, momentum=momentum)
        self.check_range(0, math.inf, unlabelled_weight=unlabelled_weight, n_sigma=n_sigma)
        self.momentum, self.n_sigma, self.align = momentum, n_sigma, align
        self.unlabelled_weight = unlabelled_weight
        self.register_buffer("mean", torch.tensor(1 / num_classes))
        self.register_buffer("var", torch.tensor(1.0))
        self.register_buffer("marginal", torch.zeros(num_classes))  # zeros: no batch was seen

    def terms(self, model: nn.Module, batch: Batch) -> Terms:
        views = {"labelled": batch.images, "weak": batch.views["weak"], "strong": batch.views["strong"]}
        logits = passes(model, views, frozen=() if self.slot.wants("weak") else ("weak",))
        p = logits["weak"].detach().softmax(1)
        weight = self.weights(self.aligned(p) if self.align else p)
        self.watch(logits["weak"], mask=weight.mean())
        return {
            **supervised_term(logits["labelled"], batch.labels),
            "consistency": self.unlabelled_weight * masked_cross_entropy(logits["strong"], p.argmax(1), weight),
            **self.slot.terms(logits, batch.progress),
        }

    def aligned(self, p: Tensor) -> Tensor:
        """Predictions (M, C) over their moving mean, which the batch moves first."""
        now = mean_over_ranks(p.mean(0))
        self.marginal.copy_(torch.where(self.marginal.any(), self.marginal.lerp(now, 1 - self.momentum), now))
        p = p * (1 / p.shape[1] + 1e-6) / (self.marginal + 1e-6)
        return p / p.sum(1, keepdim=True)

    def weights(self, p: Tensor) -> Tensor:
        """(M,), after the batch has moved mean and variance."""
        confidence = p.amax(1)
        self.mean.lerp_(mean_over_ranks(confidence.mean()), 1 - self.momentum)
        self.var.lerp_(mean_over_ranks(confidence.var()), 1 - self.momentum)
        below = (confidence - self.mean).clamp(max=0)
        return (-below.square() * self.n_sigma**2 / (2 * self.var)).exp()

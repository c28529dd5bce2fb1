"""SoftMatch (Chen et al. 2023): FixMatch with a weight that falls with the distance below the mean confidence.

As USB's code (semilearn 0.3.2), with uniform alignment.
"""

import math
from typing import Any

import torch
from torch import Tensor

from dembench.tasks.common.training import mean_over_ranks
from dembench.tasks.semi.methods.base import Batch, align
from dembench.tasks.semi.methods.consistency import Consistency


class SoftMatch(Consistency):
    """State: ``mean`` and ``var`` of the confidence, moving means that start at 1/C and 1; ``marginal`` (C,).

    The confidence is that of predictions divided by their moving mean; the targets are the plain predictions' argmax.

    Args:
        momentum: share that the moving means keep.
        n_sigma: the weight is exp(-(n_sigma * d)^2 / (2 var)) for a confidence d below the mean, else 1.
        align: whether predictions are aligned to the uniform distribution before.
    Raises: ValueError for fewer than two classes, a momentum outside 0..1 or a negative weight.
    """

    name = "softmatch"

    def __init__(
        self,
        loss: Any = None,
        *,
        num_classes: int = 0,
        momentum: float = 0.999,
        n_sigma: float = 2.0,
        align: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(loss, num_classes=num_classes, **settings)
        self.check_classes(num_classes)
        self.check_range(0, 1, momentum=momentum)
        self.check_range(0, math.inf, n_sigma=n_sigma)
        self.momentum, self.n_sigma, self.align = momentum, n_sigma, align
        self.register_buffer("mean", torch.tensor(1 / num_classes))
        self.register_buffer("var", torch.tensor(1.0))
        self.register_buffer("marginal", torch.zeros(num_classes))  # zeros: no batch was seen

    def targets(self, weak: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        p = weak.softmax(1)
        aligned = align(p, self.marginal, 1 / p.shape[1], self.momentum) if self.align else p
        return p.argmax(1), self.weights(aligned)

    def weights(self, p: Tensor) -> Tensor:
        """(M,), after the batch has moved mean and variance."""
        confidence = p.amax(1)
        self.mean.lerp_(mean_over_ranks(confidence.mean()), 1 - self.momentum)
        self.var.lerp_(mean_over_ranks(confidence.var()), 1 - self.momentum)
        below = (confidence - self.mean).clamp(max=0)
        return (-below.square() * self.n_sigma**2 / (2 * self.var)).exp()

"""ROID (Marsden et al. 2024): certain, diverse samples, a consistent prediction of a copy, weights near the source's.

As the authors' code (mariodoebler/test-time-adaptation 8b2ed63). Theirs divides by the configured batch size, which in
a smaller last batch is a smaller step; here by the batch's own. Where all samples of a batch are alike, theirs
divides by zero; here all weights are 1.
"""

from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dembench.core.adapt import Loss
from dembench.tasks.tta.methods.base import Common, EntropyMethod, Optimizer
from dembench.tasks.tta.methods.views import drawing_from, follow, jittered


class ROID(EntropyMethod):
    """Lowers weight * (loss(x) + symmetric cross entropy of a copy and x) over the diverse half, then mixes weights.

    ``loss`` replaces the soft likelihood ratio, which is ``loss=slr``; weights and selection stay on plain predictions.
    The logits returned are those from before the step, times a smoothed prior. The selection's size is needed on the
    host, once a batch.

    Args:
        temperature: of the weights exp(diversity * certainty / temperature).
        source_momentum: share of the adapted weights in the mixture with the source's after each step.
        probs_momentum: of the moving mean prediction that diversity is measured against.
        consistency: whether the copy takes part.
        prior: whether the logits are multiplied by the smoothed prior.
        optimizer, lr: the authors have Adam, 1e-3 for CIFAR; Nesterov, 2.5e-4 for ImageNet with ResNet-50.
    The other arguments and errors are those of ``EntropyMethod``.
    """

    needs_images = stops_gradient = True

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        temperature: float = 1 / 3,
        source_momentum: float = 0.99,
        probs_momentum: float = 0.9,
        consistency: bool = True,
        prior: bool = True,
        optimizer: Optimizer = "adam",
        lr: float = 1e-3,
        **common: Unpack[Common],
    ):
        self.temperature, self.source_momentum, self.probs_momentum = temperature, source_momentum, probs_momentum
        self.consistency, self.prior = consistency, prior
        common.setdefault("preset", "mariodoebler")
        super().__init__(model, loss, optimizer=optimizer, lr=lr, **common)

    def adapt(self, x: Tensor) -> Tensor:
        seen = self.see(x)
        p = seen.logits.detach().softmax(1)
        mean = p.new_full((p.shape[1],), 1 / p.shape[1]) if self.mean is None else self.mean
        diversity = scaled(1 - F.cosine_similarity(mean[None], p))
        chosen = diversity >= diversity.mean()
        if seen.keep is not None:
            chosen = chosen & seen.keep
        weight = (diversity * scaled(-seen.entropy) / self.temperature).exp()
        self.mean = self.probs_momentum * mean + (1 - self.probs_momentum) * p.mean(0)
        number = chosen.sum()
        objective = self.objective(seen, chosen, weight) * number / len(x)
        if self.consistency:
            with drawing_from(self.generator):
                copies = self.forward(jittered(x[chosen], padding="reflect", blur=False))
            both = symmetric_cross_entropy(copies, seen.logits[chosen])
            objective = objective + (both * weight[chosen]).sum() / len(x)
        self.descend(objective, number)
        self.mix()
        return self.corrected(seen.logits.detach())

    @torch.no_grad()
    def mix(self) -> None:
        """What adapts goes a step back towards the source model."""
        follow(self.learner.values, self.learner.start, self.source_momentum)

    @torch.no_grad()
    def peek(self, x: Tensor) -> Tensor:
        return self.corrected(super().peek(x))

    def corrected(self, logits: Tensor) -> Tensor:
        """Logits times the batch's mean prediction, smoothed: what is rare in the batch shrinks towards zero."""
        if not self.prior:
            return logits
        prior = logits.softmax(1).mean(0)
        smooth = max(1 / logits.shape[0], 1 / logits.shape[1]) / prior.max()
        return logits * (prior + smooth) / (1 + smooth * logits.shape[1])

    def _restart(self) -> None:
        super()._restart()
        self.mean: Tensor | None = None


def scaled(values: Tensor) -> Tensor:
    """From 0 to 1; zeros where all are equal."""
    low, high = values.aminmax()
    return torch.where(high > low, (values - low) / (high - low), 0)


def symmetric_cross_entropy(logits: Tensor, other: Tensor) -> Tensor:
    """Mean of both cross entropies (N,), with gradients to both."""
    log_p, log_q = logits.log_softmax(1), other.log_softmax(1)
    return -(log_q.exp() * log_p + log_p.exp() * log_q).sum(1) / 2

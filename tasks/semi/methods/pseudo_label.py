"""Pseudo-Label (Lee 2013) as in USB: confident predictions on the weak view are its own targets."""

import math
from typing import Any, ClassVar

from torch import nn

from dembench.tasks.semi.methods.base import (
    Batch,
    SemiMethod,
    Terms,
    frozen_statistics,
    masked_cross_entropy,
    passes,
    rise,
    supervised_term,
)


class PseudoLabel(SemiMethod):
    """Cross entropy to the argmax where the largest probability reaches ``threshold``; the mean is over all samples.

    Unlabelled samples go through the network apart and leave BatchNorm's running statistics alone.

    Args:
        threshold: of the largest probability.
        unlabelled_weight: of the term, reached linearly over ``ramp`` of the training.
    Raises: ValueError for a threshold or ramp outside 0..1 or a negative weight.
    """

    name = "pseudo_label"
    views: ClassVar[tuple[str, ...]] = ("weak",)

    def __init__(
        self,
        loss: Any = None,
        *,
        threshold: float = 0.95,
        unlabelled_weight: float = 1.0,
        ramp: float = 0.4,
        **slot: Any,
    ) -> None:
        super().__init__(loss, **slot)
        self.check_range(0, 1, threshold=threshold, ramp=ramp)
        self.check_range(0, math.inf, unlabelled_weight=unlabelled_weight)
        self.threshold, self.unlabelled_weight, self.ramp = threshold, unlabelled_weight, ramp

    def terms(self, model: nn.Module, batch: Batch) -> Terms:
        labelled = model(batch.images).float()
        with frozen_statistics(model):
            logits = passes(model, {"weak": batch.views["weak"]})
        confidence, target = logits["weak"].detach().softmax(1).max(1)
        mask = (confidence >= self.threshold).float()
        self.watch(logits["weak"], mask=mask.mean())
        pseudo = masked_cross_entropy(logits["weak"], target, mask)
        return {
            **supervised_term(labelled, batch.labels),
            "pseudo_label": self.unlabelled_weight * rise(batch.progress, self.ramp) * pseudo,
            **self.slot.terms(logits, batch.progress),
        }

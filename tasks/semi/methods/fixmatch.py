"""FixMatch (Sohn et al. 2020): confident predictions on the weak view are targets for the strong view."""

import math
from typing import Any, ClassVar

from torch import nn

from dembench.tasks.semi.methods.base import Batch, SemiMethod, Terms, masked_cross_entropy, passes, supervised_term


class FixMatch(SemiMethod):
    """Cross entropy of the strong view to the weak view's argmax where that reaches ``threshold``.

    The mean is over all unlabelled samples, confident or not; no ramp.

    Args:
        threshold: of the largest probability on the weak view.
        unlabelled_weight: of the term.
    Raises: ValueError for a threshold outside 0..1 or a negative weight.
    """

    name = "fixmatch"
    views: ClassVar[tuple[str, ...]] = ("strong", "weak")
    slot_views: ClassVar[tuple[str, ...]] = ("weak", "strong")

    def __init__(
        self, loss: Any = None, *, threshold: float = 0.95, unlabelled_weight: float = 1.0, **slot: Any
    ) -> None:
        super().__init__(loss, **slot)
        self.check_range(0, 1, threshold=threshold)
        self.check_range(0, math.inf, unlabelled_weight=unlabelled_weight)
        self.threshold, self.unlabelled_weight = threshold, unlabelled_weight

    def terms(self, model: nn.Module, batch: Batch) -> Terms:
        views = {"labelled": batch.images, "weak": batch.views["weak"], "strong": batch.views["strong"]}
        logits = passes(model, views, frozen=() if self.slot.wants("weak") else ("weak",))
        confidence, target = logits["weak"].detach().softmax(1).max(1)
        mask = (confidence >= self.threshold).float()
        self.watch(logits["weak"], mask=mask.mean())
        return {
            **supervised_term(logits["labelled"], batch.labels),
            "consistency": self.unlabelled_weight * masked_cross_entropy(logits["strong"], target, mask),
            **self.slot.terms(logits, batch.progress),
        }

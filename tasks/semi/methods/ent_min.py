"""Entropy minimisation (Grandvalet and Bengio 2004) as arXiv 2511.03256 runs it: no threshold, no ramp, weight 0.3."""

from typing import Any, ClassVar

from torch import nn

from dembench.tasks.semi.methods.base import Batch, SemiMethod, Terms, passes, supervised_term


class EntMin(SemiMethod):
    """Cross entropy on labelled plus 0.3 times the mean entropy on unlabelled samples, or of ``loss`` in its place.

    Labelled and unlabelled samples go through the network together. Without a loss it is ``Supervised``.
    """

    name = "ent_min"
    slot_views: ClassVar[tuple[str, ...]] = ("weak", "strong")
    replaces_entropy = True

    def __init__(self, loss: Any = None, *, loss_weight: float = 0.3, **slot: Any) -> None:
        super().__init__(loss, loss_weight=loss_weight, **slot)

    def terms(self, model: nn.Module, batch: Batch) -> Terms:
        if not self.slot.active:
            return supervised_term(model(batch.images).float(), batch.labels)
        view = self.slot.view
        logits = passes(model, {"labelled": batch.images, view: batch.views[view]})
        self.watch(logits[view])
        return supervised_term(logits["labelled"], batch.labels) | self.slot.terms(logits, batch.progress)

"""What FixMatch and its kin share: the prediction on the weak view is the target of the strong view."""

import math
from abc import abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from dembench.tasks.semi.methods.base import Batch, SemiMethod, Terms, masked_cross_entropy, passes, supervised_term


class Consistency(SemiMethod):
    """Cross entropy of the strong view to targets from the weak view, weighted sample by sample.

    The mean is over all unlabelled samples, whatever their weight.

    Args:
        unlabelled_weight: of the term.
        strong_views: strong views of each sample, over which the term is the mean.
    Raises: ValueError for a negative weight or no strong view.
    """

    slot_views: ClassVar[tuple[str, ...]] = ("weak", "strong")

    def __init__(self, loss: Any = None, *, unlabelled_weight: float = 1.0, strong_views: int = 1, **slot: Any) -> None:
        super().__init__(loss, **slot)
        self.check_range(0, math.inf, unlabelled_weight=unlabelled_weight)
        self.check_range(1, math.inf, strong_views=strong_views)
        self.unlabelled_weight = unlabelled_weight
        self.strong = strong_names(strong_views)
        self.views = (*self.strong, "weak")  # type: ignore[misc]

    @abstractmethod
    def targets(self, weak: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Classes (M,) or distributions (M, C) and weights (M,) from the weak view's logits (M, C), no gradient."""

    def terms(self, model: nn.Module, batch: Batch) -> Terms:
        return self.objective(self.logits(model, batch), batch)

    def objective(self, logits: dict[str, Tensor], batch: Batch) -> Terms:
        target, weight = self.targets(logits["weak"].detach(), batch)
        self.watch(logits["weak"], mask=weight.mean())
        return {
            **self.supervised(logits["labelled"], batch),
            "consistency": self.unlabelled_weight * self.consistency(logits, target, weight),
            **self.more(logits, weight),
            **self.slot.terms(logits, batch.progress),
        }

    def logits(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Of the "labelled" samples and of each view; those of the weak one with a graph where the slot wants it."""
        views = {"labelled": batch.images, "weak": batch.views["weak"]} | {s: batch.views[s] for s in self.strong}
        return passes(model, views, frozen=() if self.slot.wants("weak") else ("weak",))

    def consistency(self, logits: dict[str, Tensor], target: Tensor, weight: Tensor) -> Tensor:
        """Weighted cross entropy, the mean over samples and strong views."""
        parts = [masked_cross_entropy(logits[name], target, weight) for name in self.strong]
        return sum(parts[1:], parts[0]) / len(parts)

    def supervised(self, logits: Tensor, batch: Batch) -> Terms:
        return supervised_term(logits, batch.labels)

    def more(self, logits: dict[str, Tensor], weight: Tensor) -> Terms:
        """Further terms of a method, by name."""
        return {}


def strong_names(count: int) -> tuple[str, ...]:
    """Of so many strong views: "strong", "strong2", "strong3", ..."""
    return ("strong", *(f"strong{number}" for number in range(2, count + 1)))

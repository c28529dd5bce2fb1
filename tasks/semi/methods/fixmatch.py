"""FixMatch (Sohn et al. 2020): confident predictions on the weak view are targets for the strong view."""

from typing import Any

from torch import Tensor

from dembench.tasks.semi.methods.base import Batch
from dembench.tasks.semi.methods.consistency import Consistency


class FixMatch(Consistency):
    """The target is the weak view's argmax; a sample counts where that reaches ``threshold``; no ramp.

    Args:
        threshold: of the largest probability on the weak view.
    Raises: ValueError for a threshold outside 0..1.
    """

    name = "fixmatch"

    def __init__(self, loss: Any = None, *, threshold: float = 0.95, **settings: Any) -> None:
        super().__init__(loss, **settings)
        self.check_range(0, 1, threshold=threshold)
        self.threshold = threshold

    def targets(self, weak: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        confidence, target = weak.softmax(1).max(1)
        return target, (confidence >= self.threshold).float()

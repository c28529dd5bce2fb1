"""FlexMatch (Zhang et al. 2021): FixMatch whose thresholds follow how many samples of each class are learned.

As USB's code (semilearn 0.3.2), with warm-up of thresholds. In several processes each keeps its own counts, as there.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dembench.tasks.semi.methods.base import Batch, SemiMethod, Terms, masked_cross_entropy, passes, supervised_term


class FlexMatch(SemiMethod):
    """State: ``learned`` (N,), the pseudo label that each sample had when it last reached ``threshold``, or -1.

    A sample of pseudo label c counts where its confidence reaches threshold * a / (2 - a), a being ``status`` (C,):
    c's share of ``learned`` over the largest share, that of -1 included.

    Args:
        threshold: of the largest probability on the weak view.
        unlabelled_weight: of the term.
    Raises: ValueError for fewer than two classes, a threshold outside 0..1 or a negative weight.
    """

    name = "flexmatch"
    views: ClassVar[tuple[str, ...]] = ("strong", "weak")
    slot_views: ClassVar[tuple[str, ...]] = ("weak", "strong")
    learned: Tensor
    status: Tensor

    def __init__(
        self,
        loss: Any = None,
        *,
        num_classes: int = 0,
        threshold: float = 0.95,
        unlabelled_weight: float = 1.0,
        **slot: Any,
    ) -> None:
        super().__init__(loss, num_classes=num_classes, **slot)
        if num_classes < 2:
            raise ValueError(f"flexmatch: expected num_classes >= 2, got {num_classes}")
        self.check_range(0, 1, threshold=threshold)
        self.check_range(0, math.inf, unlabelled_weight=unlabelled_weight)
        self.threshold, self.unlabelled_weight = threshold, unlabelled_weight
        self.register_buffer("status", torch.zeros(num_classes))
        self.prepare(0)

    def prepare(self, num_unlabelled: int) -> None:
        self.register_buffer("learned", torch.full((num_unlabelled,), -1))

    def terms(self, model: nn.Module, batch: Batch) -> Terms:
        views = {"labelled": batch.images, "weak": batch.views["weak"], "strong": batch.views["strong"]}
        logits = passes(model, views, frozen=() if self.slot.wants("weak") else ("weak",))
        confidence, target = logits["weak"].detach().softmax(1).max(1)
        status = self.status[target]
        mask = (confidence >= self.threshold * status / (2 - status)).float()
        self.follow(batch.rows, target, confidence >= self.threshold)
        self.watch(logits["weak"], mask=mask.mean())
        return {
            **supervised_term(logits["labelled"], batch.labels),
            "consistency": self.unlabelled_weight * masked_cross_entropy(logits["strong"], target, mask),
            **self.slot.terms(logits, batch.progress),
        }

    def follow(self, rows: Tensor | None, target: Tensor, sure: Tensor) -> None:
        """Notes the pseudo labels of what is sure, and counts anew; while all samples are alike, nothing changes."""
        if rows is None:
            raise ValueError("flexmatch: needs the numbers of the unlabelled samples (Batch.rows)")
        self.learned[rows] = torch.where(sure, target, self.learned[rows])
        counts = self.status.new_zeros(len(self.status) + 1)
        counts.index_add_(0, self.learned + 1, counts.new_ones(()).expand(len(self.learned)))
        most = counts.max()
        self.status.copy_(torch.where(most < len(self.learned), counts[1:] / most, self.status))

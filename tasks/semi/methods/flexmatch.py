"""FlexMatch (Zhang et al. 2021): FixMatch whose thresholds follow how many samples of each class are learned.

As USB's code (semilearn 0.3.2), with warm-up of thresholds. In several processes each keeps its own counts, as there.
"""

from typing import Any

import torch
from torch import Tensor

from dembench.tasks.semi.methods.base import Batch
from dembench.tasks.semi.methods.fixmatch import FixMatch


class FlexMatch(FixMatch):
    """State: ``learned`` (N,), the pseudo label that each sample had when it last reached ``threshold``, or -1.

    A sample of pseudo label c counts where its confidence reaches threshold * a / (2 - a), a being ``status`` (C,):
    c's share of ``learned`` over the largest share, that of -1 included.

    Raises: ValueError for fewer than two classes, and what ``FixMatch`` raises.
    """

    name = "flexmatch"
    learned: Tensor
    status: Tensor

    def __init__(self, loss: Any = None, *, num_classes: int = 0, **settings: Any) -> None:
        super().__init__(loss, num_classes=num_classes, **settings)
        self.check_classes(num_classes)
        self.register_buffer("status", torch.zeros(num_classes))
        self.prepare(0, self.status)

    def prepare(self, num_unlabelled: int, counts: Tensor) -> None:
        self.register_buffer("learned", torch.full((num_unlabelled,), -1))

    def targets(self, weak: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        confidence, target = weak.softmax(1).max(1)
        status = self.status[target]
        mask = (confidence >= self.threshold * status / (2 - status)).float()
        self.follow(batch.rows, target, confidence >= self.threshold)
        return target, mask

    def follow(self, rows: Tensor | None, target: Tensor, sure: Tensor) -> None:
        """Notes the pseudo labels of what is sure, and counts anew; while all samples are alike, nothing changes."""
        if rows is None:
            raise ValueError("flexmatch: needs the numbers of the unlabelled samples (Batch.rows)")
        self.learned[rows] = torch.where(sure, target, self.learned[rows])
        counts = self.status.new_zeros(len(self.status) + 1)
        counts.index_add_(0, self.learned + 1, counts.new_ones(()).expand(len(self.learned)))
        most = counts.max()
        self.status.copy_(torch.where(most < len(self.learned), counts[1:] / most, self.status))

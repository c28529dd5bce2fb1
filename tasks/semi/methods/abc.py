"""ABC (Lee et al. 2021): FixMatch, and a second head that is judged, trained on samples drawn as if classes were equal.

As the authors' code: a sample of a large class is often left out, labelled ones by their class sizes, unlabelled ones
by their pseudo labels and more and more; the targets of the second head are its own predictions on the weak view.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from dembench.tasks.common.heads import add_head
from dembench.tasks.semi.methods.base import Batch, Terms, masked_cross_entropy
from dembench.tasks.semi.methods.fixmatch import FixMatch


class ABC(FixMatch):
    """State: ``rarity`` (C,), the size of the smallest class over each one's, of the labelled samples.

    The second head's term is the cross entropy of labelled samples, each kept with its class's rarity, plus that of the
    strong views, summed over them, to what the second head says of the weak view where that reaches ``threshold``,
    each kept with probability 1 - progress * (1 - rarity). The loss is added to the first head.

    Args:
        balanced_weight: of the second head's term.
        hard: its targets are classes, as in USB, in place of distributions.
    Raises: ValueError for fewer than two classes or a negative weight, and what ``FixMatch`` raises.
    """

    name = "abc"
    rarity: Tensor

    def __init__(
        self,
        loss: Any = None,
        *,
        num_classes: int = 0,
        balanced_weight: float = 1.0,
        hard: bool = False,
        strong_views: int = 2,
        **settings: Any,
    ) -> None:
        super().__init__(loss, num_classes=num_classes, strong_views=strong_views, **settings)
        self.check_classes(num_classes)
        self.check_range(0, math.inf, balanced_weight=balanced_weight)
        self.balanced_weight, self.hard = balanced_weight, hard
        self.register_buffer("rarity", torch.ones(num_classes))

    def prepare(self, num_unlabelled: int, counts: Tensor) -> None:
        sizes = counts.clamp(min=1)
        self.rarity.copy_(sizes.min() / sizes)

    def equip(self, model: nn.Module) -> nn.Module:
        return add_head(model, self.num_classes, self.num_classes, judges_second=True)

    def terms(self, model: nn.Module, batch: Batch) -> Terms:
        both = {name: z.split(self.num_classes, 1) for name, z in self.logits(model, batch).items()}
        first, second = ({name: heads[i] for name, heads in both.items()} for i in (0, 1))
        return self.objective(first, batch) | {"balanced": self.balanced_weight * self.balanced(second, batch)}

    def balanced(self, logits: dict[str, Tensor], batch: Batch) -> Tensor:
        drawn = torch.bernoulli(self.rarity[batch.labels])
        p = logits["weak"].detach().softmax(1)
        confidence, label = p.max(1)
        kept = torch.bernoulli(1 - batch.progress * (1 - self.rarity[label])) * (confidence >= self.threshold)
        unlabelled = self.consistency(logits, label if self.hard else p, kept)
        return masked_cross_entropy(logits["labelled"], batch.labels, drawn) + len(self.strong) * unlabelled

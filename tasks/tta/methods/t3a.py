"""T3A (Iwasawa and Matsuo 2021): a classifier of class templates that confident test samples join; no gradient.

As the authors' code (T3A ff8cde5), whose loop over classes is a sort here. Where all supports are to be kept, theirs
drops the least confident one of every class at each batch; here keep=-1 keeps them.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dembench.core.functional import em
from dembench.tasks.common.heads import classifier
from dembench.tasks.tta.methods.base import Preset, TTAMethod
from dembench.tasks.tta.methods.layers import Inputs


class T3A(TTAMethod):
    """Scores features against the mean direction of each class's supports, of which the batch itself is part.

    A class starts with the rows of the classifier's weights that are classified as it; then samples join by pseudo
    label, and of each class those with the smallest entropies stay. The scores (N, C) are no calibrated logits. Unless
    all supports are kept, the host waits for their number, once a batch.

    Args:
        keep: supports a class, or -1 for all; the paper chooses among 1, 5, 20, 50, 100 and -1.
    Raises: ValueError for another keep, or a model without a Linear layer at its end.
    """

    presets = ("official",)
    in_model = False
    supports: Tensor
    labels: Tensor
    entropies: Tensor

    uses_loss = False

    def __init__(self, model: nn.Module, loss: Any = None, *, keep: int = 100, preset: Preset = "official"):
        if keep != -1 and keep < 1:
            raise ValueError(f"t3a: expected keep >= 1, or -1 for all, got {keep}")
        super().__init__(model.eval().requires_grad_(False), loss, preset=preset)
        self.keep, self.head = keep, classifier(model)
        self.features = Inputs(self.head)
        self.reset()

    def predict(self, x: Tensor) -> Tensor:
        super().predict(x)
        features = self.features.last.to(self.head.weight.dtype)
        self.add(features)
        return self.score(features)

    @torch.no_grad()
    def peek(self, x: Tensor) -> Tensor:
        self.forward(x)
        return self.score(self.features.last.to(self.head.weight.dtype))

    def score(self, features: Tensor) -> Tensor:
        """(N, C): features times the mean direction of each class's supports."""
        templates = torch.zeros_like(self.head.weight).index_add_(0, self.labels, self.supports)
        return features @ F.normalize(templates, dim=1).T

    @torch.no_grad()
    def add(self, features: Tensor) -> None:
        """Supports with the pseudo labels and entropies that the classifier gives them; then the worst go."""
        logits = F.linear(features, self.head.weight, self.head.bias)
        self.supports = torch.cat([self.supports, F.normalize(features, dim=1)])
        self.labels = torch.cat([self.labels, logits.argmax(1)])
        self.entropies = torch.cat([self.entropies, em(logits)])
        if self.keep == -1:
            return
        order = self.entropies.argsort(stable=True)
        order = order[self.labels[order].argsort(stable=True)]  # by class, then by entropy
        labels = self.labels[order]
        first = torch.searchsorted(labels, labels)  # where each one's class begins
        stays = order[torch.arange(len(order), device=order.device) - first < self.keep].sort().values
        self.supports, self.labels, self.entropies = (
            part[stays] for part in (self.supports, self.labels, self.entropies)
        )

    def reset(self) -> None:
        weight = self.head.weight
        self.supports = weight.new_zeros(0, weight.shape[1])
        self.labels = torch.zeros(0, dtype=torch.long, device=weight.device)
        self.entropies = weight.new_zeros(0)
        self.add(weight.detach())

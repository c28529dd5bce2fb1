"""Everything that per-class reports need, from one matrix of counts kept on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from dembench.tasks.common.devices import count


class Confusion:
    """Counts (C, C) of true class by predicted class.

    Precision, recall and F1 are 0 where they would be 0/0, as scikit-learn's with ``zero_division=0``.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, predicted: Tensor, labels: Tensor) -> None:
        """Adds a batch of class numbers, (N,) each."""
        pairs = labels * self.num_classes + predicted
        self.counts += count(pairs, self.num_classes**2).view_as(self.counts)

    @property
    def label_counts(self) -> Tensor:
        return self.counts.sum(1)

    @property
    def predicted_counts(self) -> Tensor:
        return self.counts.sum(0)

    def per_class(self) -> dict[str, Tensor]:
        """ "precision", "recall" and "f1" of each class, float64 (C,)."""
        right = self.counts.diagonal().double()
        predicted, labels = self.predicted_counts.double(), self.label_counts.double()
        return {
            "precision": _ratio(right, predicted),
            "recall": _ratio(right, labels),
            "f1": _ratio(2 * right, predicted + labels),
        }

    def accuracy(self) -> float:
        """Share of correct predictions, which on a balanced set is the macro recall."""
        return float(self.counts.diagonal().sum().double() / self.counts.sum().clamp(min=1))

    def macro(self) -> dict[str, float]:
        """Means over the classes with labels; macro F1 is the mean of the F1s, not the F1 of the means."""
        shown = self.label_counts > 0
        return {name: float(values[shown].mean()) for name, values in self.per_class().items()}

    def geometric_mean(self) -> float:
        """Of the recalls: 0 as soon as one class is never found."""
        return float(self.per_class()["recall"].log().mean().exp())

    def thirds(self, training_counts: Tensor) -> dict[str, float]:
        """Mean recall of the classes with most, medium and fewest training samples: "head", "medium", "tail".

        Classes are sorted by ``training_counts`` (C,), ties by their number; a remainder goes to the middle, which two
        classes do not have.
        """
        order = torch.argsort(training_counts, descending=True, stable=True).to(self.counts.device)
        recall, third = self.per_class()["recall"][order], max(self.num_classes // 3, 1)
        parts = (recall[:third], recall[third : self.num_classes - third], recall[self.num_classes - third :])
        named = zip(("head", "medium", "tail"), parts, strict=True)
        return {name: float(part.mean()) for name, part in named if len(part)}

    def bias(self) -> dict[str, float]:
        """How far the shares of predictions are from the shares of labels: how much easy classes take.

        "kl" is KL(predicted || label) in nats, infinite where a class is predicted that has no label; "tv" the total
        variation, from 0 to 1.
        """
        q = self.predicted_counts.double() / self.counts.sum().clamp(min=1)
        p = self.label_counts.double() / self.counts.sum().clamp(min=1)
        kl = torch.special.xlogy(q, q) - torch.special.xlogy(q, p)
        return {"kl": float(kl.sum()), "tv": float((q - p).abs().sum() / 2)}


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, a / b.clamp(min=1), 0.0)

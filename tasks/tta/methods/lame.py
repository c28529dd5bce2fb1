"""LAME (Boudiaf et al. 2022): the batch's predictions are corrected so that neighbours agree; the model stays as it is.

As the authors' code (fiveai/LAME) and mariodoebler/test-time-adaptation 8b2ed63.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dembench.lookup import lookup
from dembench.tasks.common.heads import classifier
from dembench.tasks.tta.methods.base import Preset, TTAMethod
from dembench.tasks.tta.methods.layers import Inputs

AFFINITIES = ("rbf", "knn", "linear")


class LAME(TTAMethod):
    """Minimises sum_i KL(y_i || p_i) - sum_ij w_ij y_i y_j over the assignments y by its fixed point.

    w is an affinity of the normalised features. The scores (N, C) are logits of y. At most 100 iterations, which end
    where the energy changes by less than 1e-8 of itself; the host waits for it in each.

    Args:
        affinity: "rbf", a Gaussian whose width is the mean distance to the ``neighbours``-th nearest image, itself
            counted; "knn", 1 for the ``neighbours`` nearest others; "linear", the inner product.
        neighbours: of "rbf" and "knn".
        symmetric: averages the affinity with its transpose.
    Raises: ValueError for another affinity, neighbours < 1, or a model without a Linear layer at its end.
    """

    uses_loss = False

    def __init__(
        self,
        model: nn.Module,
        loss: Any = None,
        *,
        affinity: Literal["rbf", "knn", "linear"] = "rbf",
        neighbours: int = 5,
        symmetric: bool = False,
        preset: Preset = "official",
    ):
        lookup(affinity, AFFINITIES, "lame affinity")
        if neighbours < 1:
            raise ValueError(f"lame: expected neighbours >= 1, got {neighbours}")
        super().__init__(model.eval().requires_grad_(False), loss, preset=preset)
        self.affinity, self.neighbours, self.symmetric = affinity, neighbours, symmetric
        self.features = Inputs(classifier(model))

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        log_p = (self.forward(x).softmax(1) + 1e-10).log()
        w = self.affinities(F.normalize(self.features.last.to(log_p.dtype), dim=1))
        return assigned(log_p, (w + w.T) / 2 if self.symmetric else w)

    peek = predict

    def affinities(self, features: Tensor) -> Tensor:
        """w (N, N) of unit vectors (N, D)."""
        if self.affinity == "linear":
            return features @ features.T
        distance = torch.linalg.vector_norm(features[None] - features[:, None], dim=2)
        if self.affinity == "knn":
            nearest = distance.topk(min(self.neighbours + 1, len(distance)), largest=False).indices[:, 1:]
            return torch.zeros_like(distance).scatter_(1, nearest, 1.0)
        width = distance.topk(min(self.neighbours, len(distance)), largest=False).values[:, -1].mean()
        scale = (2 * width.square()).clamp(min=torch.finfo(width.dtype).tiny)  # zero where all images are one
        return (-distance.square() / scale).exp()


def assigned(log_p: Tensor, w: Tensor, steps: int = 100) -> Tensor:
    """Logits (N, C) of the assignments y = softmax(log p + w y), iterated from y = p."""
    y, last = log_p.softmax(1), float("inf")
    for step in range(steps):
        pull = w @ y
        logits = log_p + pull
        y = logits.softmax(1)
        energy = float((y * (y.clamp(1e-20).log() - log_p - pull)).sum())
        if step > 1 and abs(energy - last) <= 1e-8 * abs(last):
            break
        last = energy
    return logits

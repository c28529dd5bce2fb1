"""The methods of corruption TTA that take no gradient, written out as their papers have them; see ``textbook_tta``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dembench.scripts.bench.textbook_tta import entropy


class Source:
    def __init__(self, model: nn.Module):
        self.model = model.eval()

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        return self.model(x)


class Norm:
    """BatchNorm statistics of the batch."""

    def __init__(self, model: nn.Module):
        self.model = model.eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train()

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        return self.model(x)


class NormEMA(Norm):
    """One pass in training mode moves the running statistics by a tenth, a second in ``eval()`` predicts with them."""

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        self.model.train()
        self.model(x)
        self.model.eval()
        return self.model(x)


class NormAlpha:
    """Each BatchNorm2d normalises by (1 - alpha) source + alpha batch statistics (Schneider et al. 2020)."""

    def __init__(self, model: nn.Module, alpha: float = 0.1, unbiased: bool = False):
        self.model, self.alpha, self.unbiased = model.eval(), alpha, unbiased
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.forward = self.mixed(module)

    def mixed(self, norm: nn.BatchNorm2d) -> Callable[[Tensor], Tensor]:
        def forward(y: Tensor) -> Tensor:
            mean = (1 - self.alpha) * norm.running_mean + self.alpha * y.mean((0, 2, 3))
            spread = y.var((0, 2, 3), correction=1 if self.unbiased else 0)
            variance = (1 - self.alpha) * norm.running_var + self.alpha * spread
            y = (y - mean[:, None, None]) / (variance[:, None, None] + norm.eps).sqrt()
            return y * norm.weight[:, None, None] + norm.bias[:, None, None]

        return forward

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        return self.model(x)


class T3A:
    """Iwasawa and Matsuo 2021: centroids of the most confident features of each pseudo class stand for its weights.

    Args:
        features: images to features (N, D).
        classifier: the last linear layer.
        kept: supports kept of each class, those of least entropy; None keeps all.
    """

    def __init__(self, features: Callable[[Tensor], Tensor], classifier: nn.Linear, kept: int | None = 100):
        self.features, self.classifier, self.kept = features, classifier, kept
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        self.supports, self.classes, self.entropies = [], [], []
        self.remember(self.classifier.weight.detach().clone())

    def remember(self, z: Tensor) -> None:
        scores = self.classifier(z)
        for row, label, value in zip(z, scores.argmax(1).tolist(), entropy(scores).tolist(), strict=True):
            self.supports.append(row)
            self.classes.append(label)
            self.entropies.append(value)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        z = self.features(x)
        self.remember(z)
        self.forget()
        centroids = torch.zeros_like(self.classifier.weight)
        for row, label in zip(self.supports, self.classes, strict=True):
            centroids[label] += row / row.norm()
        logits = torch.zeros(len(z), len(centroids), dtype=z.dtype, device=z.device)
        for label, centroid in enumerate(centroids):
            if centroid.norm() > 0:
                logits[:, label] = z @ (centroid / centroid.norm())
        return logits

    def forget(self) -> None:
        if self.kept is None:
            return
        stay = []
        for label in sorted(set(self.classes)):
            mine = [i for i, other in enumerate(self.classes) if other == label]
            stay += sorted(mine, key=lambda i: self.entropies[i])[: self.kept]
        self.supports = [self.supports[i] for i in stay]
        self.classes = [self.classes[i] for i in stay]
        self.entropies = [self.entropies[i] for i in stay]

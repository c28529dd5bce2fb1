"""TDA, training-free dynamic adapter (Karmanov et al. 2024): two caches of past images correct CLIP's predictions.

As in the authors' code (kdiAAA/TDA, e697fb0). An image is the mean feature and the mean logits of its confident views.
The positive cache keeps the most certain images of each predicted class, with the class as value; the negative cache
those of middling certainty, with the classes that they may be as value. Every image goes into the caches first, and is
then predicted by

    logits + alpha exp(-beta (1 - f F^T)) L  -  the same over the negative cache,

F the kept features and L their values. The entropies choose images and are plain ones; no loss is used. Theirs has the
logit scale 100, that of OpenAI's CLIPs; here it is the model's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dembench.core.functional import em
from dembench.tasks.base import Note
from dembench.tasks.prompt.methods.base import Shots, check_share, confident, pick
from dembench.tasks.prompt.methods.ensemble import Ensemble, read_templates
from dembench.tasks.prompt.methods.marginal import log_marginal
from dembench.tasks.prompt.text import Prompts


class Cache:
    """The images of least entropy of each class: features, values and entropies, which are infinite where none is yet.

    Args:
        classes, capacity: C, and images of each. like: a feature (E,), for width, dtype and device.
    """

    def __init__(self, classes: int, capacity: int, like: Tensor):
        self.capacity = capacity
        self.keys = like.new_zeros(classes * capacity, len(like))
        self.values = like.new_zeros(classes * capacity, classes)
        self.entropy = like.new_full((classes * capacity,), math.inf)

    def add(self, label: Tensor, key: Tensor, value: Tensor, entropy: Tensor) -> None:
        """In place of the least certain of class ``label`` (1,), if less certain it is: key (1, E), value (1, C) and
        entropy (1,). The host waits for no GPU."""
        worst, place = self.entropy.view(-1, self.capacity).index_select(0, label).max(1)
        row, better = label * self.capacity + place, entropy < worst
        for kept, new in ((self.keys, key), (self.values, value), (self.entropy, entropy)):
            old = kept.index_select(0, row)
            kept.index_copy_(0, row, torch.where(better.view(-1, *[1] * (old.dim() - 1)), new.to(old), old))

    def logits(self, feature: Tensor, beta: float) -> Tensor:
        """exp(-beta (1 - f F^T)) L, (1, C), of a feature (1, E)."""
        affinity = torch.exp(-beta * (1 - feature @ self.keys.T))
        return (affinity * (self.entropy < math.inf)) @ self.values


class TDA(Ensemble):
    """Predicts images in the order of a stream; what it keeps of them outlives them.

    Args:
        positive_alpha, positive_beta, positive_capacity: weight, sharpness, and images of each class of this cache.
        negative_alpha, negative_beta, negative_capacity: the same.
        uncertain: bounds of the entropy, in nats over log2(C), between which an image goes into the negative cache. One
            of equal probabilities has 0.69.
        unlikely: bounds of the probability between which a class belongs to a negative value.
        selected: share of the views that count.
        templates: as in ``Ensemble``; the authors' for ImageNet are "simple".
    Raises: ValueError for bounds, a share or a capacity that make no sense.
    """

    stream = True
    remembers = ("positive", "negative")

    def __init__(
        self,
        prompts: Prompts,
        loss: Any = None,
        *,
        positive_alpha: float = 2.0,
        positive_beta: float = 5.0,
        positive_capacity: int = 3,
        negative_alpha: float = 0.117,
        negative_beta: float = 1.0,
        negative_capacity: int = 2,
        uncertain: Sequence[float] = (0.2, 0.5),
        unlikely: Sequence[float] = (0.03, 1.0),
        selected: float = 0.1,
        templates: str | Sequence[str] | None = None,
        shots: Shots | None = None,
    ):
        check_share("tda", selected)
        self.check(1, uncertain, unlikely, templates)
        if min(positive_capacity, negative_capacity) < 1:
            raise ValueError(f"tda: expected capacities >= 1, got {positive_capacity} and {negative_capacity}")
        super().__init__(prompts, loss, templates=templates)
        self.positive_alpha, self.positive_beta = positive_alpha, positive_beta
        self.negative_alpha, self.negative_beta = negative_alpha, negative_beta
        self.uncertain, self.unlikely, self.selected = uncertain, unlikely, selected
        self.positive = Cache(prompts.num_classes, positive_capacity, self.text[0])
        self.negative = Cache(prompts.num_classes, negative_capacity, self.text[0])
        self.notes.append(Note("stream", "images come in an order that the seed draws; what was kept of them stays"))

    @staticmethod
    def check(
        views: int,
        uncertain: Sequence[float] = (0, 1),
        unlikely: Sequence[float] = (0, 1),
        templates: str | Sequence[str] | None = None,
        **_: Any,
    ) -> None:
        """Raises ValueError, before anything is run, for bounds or templates that make no sense."""
        for name, bounds in (("uncertain", uncertain), ("unlikely", unlikely)):
            if len(bounds) != 2 or not 0 <= bounds[0] < bounds[1] <= 1:
                raise ValueError(f"tda: expected {name} to be two bounds in [0, 1], low and high, got {list(bounds)}")
        read_templates(templates)

    def predict(self, views: Tensor) -> Tensor:
        logits = self.logits(views, self.text)
        chosen = confident(logits, self.selected)
        logits, features = pick(logits, chosen), pick(views, chosen).mean(1)
        images = zip(logits.mean(1).split(1), log_marginal(logits).split(1), features.split(1), strict=True)
        return torch.cat([self.adapt(*image) for image in images])

    def adapt(self, logits: Tensor, log_p: Tensor, feature: Tensor) -> Tensor:
        """Logits (1, C) of the next image from its own, its log-probabilities (1, C) and its feature (1, E)."""
        label, entropy, p = logits.argmax(1), em(log_p), log_p.exp()
        self.positive.add(label, feature, F.one_hot(label, logits.shape[1]), entropy)
        negative = _between(p, self.unlikely)
        unsure = _between(entropy / math.log2(logits.shape[1]), self.uncertain)
        self.negative.add(label, feature, negative, torch.where(unsure, entropy, math.inf))
        corrected = logits + self.positive_alpha * self.positive.logits(feature, self.positive_beta)
        return corrected - self.negative_alpha * self.negative.logits(feature, self.negative_beta)


def _between(x: Tensor, bounds: Sequence[float]) -> Tensor:
    return (x > bounds[0]) & (x < bounds[1])

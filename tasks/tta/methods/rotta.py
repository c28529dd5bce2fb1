"""RoTTA (Yuan et al. 2023): a balanced memory of recent, certain images, for streams in which labels come in runs.

As the authors' code (BIT-DA/RoTTA) in the form of mariodoebler/test-time-adaptation 8b2ed63. Theirs adds 1e-6 inside
the logarithm of the entropies that score images; here they are exact.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dembench.core.adapt import ALL_NORMS, batch_norms, norm_affine
from dembench.core.functional import em
from dembench.tasks.tta.methods.base import Optimizer, Preset
from dembench.tasks.tta.methods.teacher import MeanTeacher, cross_entropy
from dembench.tasks.tta.methods.views import drawing_from, jittered


class RoTTA(MeanTeacher):
    """Predicts by the teacher; after every ``every`` images the student learns from the memory, young images most.

    Pseudo labels and entropies of a batch go to the host, where the memory is kept.

    Args:
        capacity: images in the memory.
        every: images between two steps.
        alpha: weight of the batch in the moving BatchNorm statistics, which student and teacher have of their own.
        momentum: of the teacher.
        age_weight, entropy_weight: of the score by which images leave the memory.
        optimizer, lr: the collection has Adam, 1e-3.
    Raises: ValueError for a capacity or every < 1, or BatchNorms without running statistics.
    """

    presets = ("mariodoebler",)

    def __init__(
        self,
        model: nn.Module,
        loss: Any = None,
        *,
        capacity: int = 64,
        every: int = 64,
        alpha: float = 0.05,
        momentum: float = 0.999,
        age_weight: float = 1.0,
        entropy_weight: float = 1.0,
        optimizer: Optimizer = "adam",
        lr: float = 1e-3,
        preset: Preset = "mariodoebler",
    ):
        if capacity < 1 or every < 1:
            raise ValueError(f"rotta: expected capacity, every >= 1, got {capacity}, {every}")
        if any(layer.running_mean is None for layer in batch_norms(model)):
            raise ValueError("rotta: needs a model whose BatchNorms have running statistics")
        self.capacity, self.every, self.weights = capacity, every, (age_weight, entropy_weight)
        for layer in batch_norms(model):
            layer.__class__ = robust(type(layer))
            layer.momentum = alpha
        learned = norm_affine(model.eval(), ALL_NORMS)
        super().__init__(model, loss, learned, optimizer=optimizer, lr=lr, momentum=momentum, preset=preset)
        self._restart()

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        self.model.eval()
        self.teacher.eval()
        logits = self.taught(x)
        if self.memory is None:
            self.memory = Memory(self.capacity, logits.shape[1], *self.weights)
        told = torch.stack([logits.argmax(1).to(logits.dtype), em(logits)]).tolist()
        for image, label, entropy in zip(x, *told, strict=True):
            self.memory.add(Item(image.clone(), int(label), entropy))
            self._seen += 1
            if self._seen % self.every == 0:
                self.study()
        return logits

    @torch.enable_grad()
    def study(self) -> None:
        """A step on the memory: the student sees it augmented, the teacher as it is."""
        assert self.memory is not None
        items = self.memory.items
        if not items:
            return
        self.model.train()
        self.teacher.train()
        images = torch.stack([item.image for item in items])
        ages = torch.tensor([item.age / self.capacity for item in items]).to(images)
        with drawing_from(self.generator):
            copies = jittered(images)
        taught = self.taught(images)
        losses = cross_entropy(self.forward(copies), taught) * torch.sigmoid(-ages)
        self.learn(losses.mean(), len(items))

    @torch.no_grad()
    def peek(self, x: Tensor) -> Tensor:
        self.teacher.eval()
        return self.taught(x)

    def reset(self) -> None:
        super().reset()
        self._restart()

    def _restart(self) -> None:
        self.memory: Memory | None = None
        self._seen = 0

    def extra_state(self) -> dict[str, Any]:
        if self.memory is None:
            return {}
        items = [[item.image.clone(), item.label, item.entropy, item.age] for item in self.memory.items]
        return {"classes": len(self.memory.classes), "items": items}

    def put_extra_state(self, state: Mapping[str, Any]) -> None:
        self.memory = Memory(self.capacity, state["classes"], *self.weights) if state else None
        for image, label, entropy, age in state.get("items", ()):
            self.memory.classes[label].append(Item(image.clone(), label, entropy, age))


@dataclass
class Item:
    """An image (3, H, W) in the memory, its pseudo label and entropy, and how many images came after it."""

    image: Tensor
    label: int
    entropy: float
    age: int = 0


class Memory:
    """At most ``capacity`` images, of each class at most its share; the oldest and least certain leave.

    Source: Yuan et al. 2023, algorithm 1 (category-balanced sampling with timeliness and uncertainty).
    """

    def __init__(self, capacity: int, classes: int, age_weight: float, entropy_weight: float) -> None:
        self.capacity, self.share, self.scale = capacity, capacity / classes, math.log(classes)
        self.age_weight, self.entropy_weight = age_weight, entropy_weight
        self.classes: list[list[Item]] = [[] for _ in range(classes)]

    @property
    def items(self) -> list[Item]:
        """All, class by class."""
        return [item for own in self.classes for item in own]

    def score(self, item: Item) -> float:
        age = 1 / (1 + math.exp(-item.age / self.capacity))
        return self.age_weight * age + self.entropy_weight * item.entropy / self.scale

    def add(self, new: Item) -> None:
        own = self.classes[new.label]
        if len(own) >= self.share:
            room = self._leave([own], new)
        elif len(self.items) < self.capacity:
            room = True
        else:
            most = max(map(len, self.classes))
            room = self._leave([other for other in self.classes if len(other) == most], new)
        if room:
            own.append(new)
        for item in self.items:
            item.age += 1

    def _leave(self, classes: list[list[Item]], new: Item) -> bool:
        """Takes the last of those with the highest score out, where that is above the new image's."""
        scores = [(self.score(item), k, i) for k, own in enumerate(classes) for i, item in enumerate(own)]
        if not scores:
            return True
        worst = max(scores)
        if worst[0] <= self.score(new):
            return False
        del classes[worst[1]][worst[2]]
        return True


def robust(kind: type[nn.Module]) -> type[nn.Module]:
    """A BatchNorm class that in ``train()`` normalises by its moved statistics, with gradients through the batch's."""
    return type(f"Robust{kind.__name__}", (_Robust, kind), {})


class _Robust(nn.modules.batchnorm._BatchNorm):
    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        if self.training:
            own_var, own_mean = torch.var_mean(x, [axis for axis in range(x.dim()) if axis != 1], correction=0)
            mean, var = (old + self.momentum * (new - old) for old, new in ((mean, own_mean), (var, own_var)))
            self.running_mean.copy_(mean.detach())
            self.running_var.copy_(var.detach())
        shape = (1, -1, *[1] * (x.dim() - 2))
        weight, bias = self.weight.view(shape), self.bias.view(shape)
        return (x - mean.view(shape)) / (var + self.eps).sqrt().view(shape) * weight + bias

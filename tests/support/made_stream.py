"""A made stream of corruption TTA: data, models whose answers are known, and a spy in place of the method."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from small_models import CLASSES, SmallNet
from torch import Tensor, nn

from dembench.tasks.base import Note
from dembench.tasks.common.corruptions import CORRUPTIONS


class MadeData:
    """Noise images; at the top left red is the label, green the image's number, blue 1 where ``marked``."""

    name = "made"
    num_classes = CLASSES

    def __init__(
        self,
        labels: Sequence[int] | Tensor,
        corruptions: Sequence[str] = ("fog", "snow", "contrast"),
        marked: Sequence[str] = (),
        notes: Sequence[Note] = (),
    ) -> None:
        self.labels = torch.as_tensor(labels)
        self.num_images, self.corruptions, self.marked, self.notes = len(self.labels), corruptions, marked, notes
        self.asked: list[tuple[str, int]] = []

    def domain(self, corruption: str, severity: int) -> tuple[Tensor, Tensor]:
        self.asked.append((corruption, severity))
        generator = torch.Generator().manual_seed(CORRUPTIONS.index(corruption))
        images = torch.randint(0, 256, (self.num_images, 3, 12, 12), generator=generator, dtype=torch.uint8)
        images[:, 0, 0, 0] = torch.arange(self.num_images) % CLASSES  # not from the labels: those may be wrong
        images[:, 1, 0, 0] = torch.arange(self.num_images)
        images[:, 2, 0, 0] = corruption in self.marked
        return images, self.labels


class Reader(nn.Module):
    """Knows the label: reads it from the image, with ``confidence`` as its logit."""

    def __init__(self, confidence: float = 9.0) -> None:
        super().__init__()
        self.confidence = confidence

    def forward(self, x: Tensor) -> Tensor:
        return self.confidence * nn.functional.one_hot((x[:, 0, 0, 0] * 255).round().long(), CLASSES).float()


class Constant(nn.Module):
    """Says class 1 of everything."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([0.0, 2.0, 0.0, 0.0, 0.0]).expand(len(x), CLASSES)


class NaNWhereMarked(SmallNet):
    """Logits and gradients that are NaN for marked images."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.where(x[:, 2:, 0, 0] > 0, torch.nan, 1.0)


class Spy:
    """Writes down what a task does with its method."""

    forward_passes = backward_passes = updated = 0
    last_loss = None

    def __init__(self, **given: nn.Module) -> None:
        self.given = given
        self.log: list[str] = []
        self.batches: list[Tensor] = []

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        assert not kwargs
        (x,) = args
        self.log.append("batch")
        self.batches.append(x)
        return self.given["model"](x)

    def reset(self) -> None:
        self.log.append("reset")

    def numbers(self) -> list[int]:
        """Of the images in the order in which they came."""
        return [round(float(x[1, 0, 0]) * 255) for batch in self.batches for x in batch]

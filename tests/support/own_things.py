"""Networks, losses and methods of a user's own, sound and broken, that tests name by their dotted names."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dembench.core import EM
from dembench.tasks.tta.methods.base import TTAMethod
from dembench.tasks.tta.methods.tent import Tent

_numbers = count()


class Net(nn.Module):
    """Images of 12 pixels to three classes; random, unless a file is loaded."""

    preprocess = {"resize": 14, "crop": 12, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]}

    def __init__(self, num_classes: int = 3, width: int = 4) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, width, 3, 2), nn.BatchNorm2d(width)
        self.linear = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(self.conv(x)).relu().mean((2, 3)))


class Fixed(Net):
    """Brings its own weights."""

    def __init__(self) -> None:
        super().__init__()
        for value in self.parameters():
            nn.init.constant_(value, 0.1)


class Loose(Net):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.ones(3)  # no buffer


class NoisyNet(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.1 * torch.randn(len(x), 3)


class Mixing(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


class Mean(EM):
    def forward(self, logits: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(logits, mask).mean()


class Single(EM):
    def forward(self, logits: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(logits, mask).float()


class HalfGradient(EM):
    def forward(self, logits: Tensor, mask: Tensor | None = None) -> Tensor:
        p = logits.softmax(1).detach()
        return -(p * logits.log_softmax(1)).sum(1)


class Overflows(EM):
    def forward(self, logits: Tensor, mask: Tensor | None = None) -> Tensor:
        p = logits.exp() / logits.exp().sum(1, keepdim=True)
        return -(p * p.log()).sum(1)


class NoisyLoss(EM):
    def forward(self, logits: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(logits, mask) * (1 + 0.1 * torch.rand(()).to(logits.dtype))


class Remembers(nn.Module):
    """Weighs by how many batches it has seen, and never forgets; the count is a plain tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.count = torch.zeros(())

    def forward(self, logits: Tensor) -> Tensor:
        if self.training:
            self.count = self.count + 1
        return self.count.to(logits.dtype) * torch.special.entr(logits.softmax(1)).sum(1)


class Pair(EM):
    """Needs two samples: the standard deviation of one is not defined."""

    def forward(self, logits: Tensor, mask: Tensor | None = None) -> Tensor:
        if len(logits) < 2:
            raise ValueError("expected two samples")
        return super().forward(logits, mask)


class Drifts(TTAMethod):
    """Moves a parameter that it does not name, and does not put it back."""

    def predict(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            next(self.model.parameters()).add_(0.01)
            return self.forward(x)

    def peek(self, x: Tensor) -> Tensor:
        return self.predict(x)


class Uncounted(TTAMethod):
    def predict(self, x: Tensor) -> Tensor:
        return self.model(x)


class NoisyMethod(Tent):
    def see(self, x: Tensor) -> Any:
        return super().see(x + 0.01 * torch.randn(x.shape, dtype=x.dtype))


class Doubled(Tent):
    """Its gradient is not that of what it reports."""

    def backward(self, objective: Tensor) -> None:
        super().backward(objective)
        self.last_loss = 2 * objective.detach()


class Data:
    """Two domains of 12 pixels; ``fault`` names what is wrong with them."""

    name, num_classes, class_names = "made", 3, ("a", "b", "c")
    corruptions = known = ("one", "two")
    severities = ()
    num_images, notes = 9, ()

    def __init__(self, fault: str = "") -> None:
        self.fault, self.fingerprint = fault, "made"
        if fault == "names":
            self.class_names = ("a", "b")
        if fault == "fingerprint":
            self.fingerprint = str(next(_numbers))

    def domain(self, corruption: str, severity: int | None = None) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (9, 3, 12, 12), generator=generator)
        if self.fault == "random":
            images = torch.randint(0, 256, (9, 3, 12, 12))
        images = images / 255 if self.fault == "floats" else images.to(torch.uint8)
        return images, torch.arange(9) % (4 if self.fault == "labels" else 3)


def save(net: nn.Module, path: Path) -> Path:
    torch.save(net.state_dict(), path)
    return path

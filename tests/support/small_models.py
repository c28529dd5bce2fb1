"""Networks of a few hundred parameters whose normalisation layers have weights and statistics of their own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

CLASSES = 5


class SmallNet(nn.Module):
    """Two convolutions, each with the normalisation that ``norm(channels)`` makes, and a linear layer."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d, *, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.conv1 = nn.Conv2d(3, 6, 3, stride=2)
        self.norm1 = norm(6)
        self.conv2 = nn.Conv2d(6, 8, 3, stride=2)
        self.norm2 = norm(8)
        self.linear = nn.Linear(8, CLASSES)
        for name, value in self.state_dict().items():
            if value.is_floating_point():
                drawn = torch.randn(value.shape, generator=generator)
                positive = name.endswith(("running_var", "norm1.weight", "norm2.weight"))
                value.copy_(0.5 + drawn.abs() if positive else 0.4 * drawn)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(x)).relu()
        y = self.norm2(self.conv2(y)).relu()
        return 4 * self.linear(y.mean((2, 3)))


class Mixed(nn.Module):
    """A BatchNorm2d beside a BatchNorm1d, a GroupNorm and a LayerNorm, ReLUs between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3, stride=2)
        self.batch2d = nn.BatchNorm2d(6)
        self.group = nn.GroupNorm(2, 6)
        self.batch1d = nn.BatchNorm1d(6)
        self.layer = nn.LayerNorm(6)
        self.linear = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.group(self.batch2d(self.conv(x)).relu()).relu().mean((2, 3))
        return 4 * self.linear(self.layer(self.batch1d(y).relu()))


def image_batches(count: int, size: int = 16, *, dtype: torch.dtype = torch.float32, seed: int = 1) -> list[Tensor]:
    """Batches (size, 3, 12, 12) in [0, 1] whose brightness, contrast and colour drift from one to the next."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for number in range(count):
        x = torch.rand(size, 3, 12, 12, generator=generator) * (0.3 + 0.05 * (number % 7))
        x = x + 0.4 * torch.rand(size, 3, 1, 1, generator=generator)
        batches.append(x.clamp(0, 1).to(dtype))
    return batches


class Plain(nn.Module):
    """Without BatchNorm: the samples of a batch do not touch each other."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(768, 16), nn.Tanh(), nn.Linear(16, num_classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

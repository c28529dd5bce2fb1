"""A network of a few hundred parameters whose features can be had, in the forms that the textbook loops need."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from small_models import CLASSES, SmallNet
from torch import Tensor, nn


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, y: Tensor) -> Tensor:
        return self.norm(y.movedim(1, -1)).movedim(-1, 1)


NORMS: dict[str, tuple[Callable[[int], nn.Module], int, float]] = {  # layer, seed, and scale of the logits
    "batch": (nn.BatchNorm2d, 7, 4.0),  # of these weights all five classes are predicted
    "group": (partial(nn.GroupNorm, 2), 5, 12.0),
    "layer": (ChannelNorm, 14, 12.0),
}


class FeatureNet(SmallNet):
    """SmallNet whose logits are what its linear layer gives, weighed so that they are sure of some images only."""

    def __init__(self, norm: str = "batch") -> None:
        make, seed, scale = NORMS[norm]
        super().__init__(make, seed=seed)
        with torch.no_grad():
            self.linear.weight *= scale
            self.linear.bias *= scale / 4

    def features(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(x)).relu()
        return self.norm2(self.conv2(y)).relu().mean((2, 3))

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(x)
        return self.linear(features), features

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x))


class Watched(nn.Module):
    """A network that keeps the images it was shown since ``seen`` was last emptied."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return self.net(x)


__all__ = ["CLASSES", "ChannelNorm", "FeatureNet", "Watched"]

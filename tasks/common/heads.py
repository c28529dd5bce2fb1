"""The last layer of a classifier, and a second one beside it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def classifier(model: nn.Module) -> nn.Linear:
    """The last Linear layer, whose inputs are the features; ValueError where there is none."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no Linear layer, so features and class templates are undefined")
    return layers[-1]


class TwoHeads(nn.Module):
    """A last layer with a second linear layer on the same features.

    In training both outputs come side by side, (N, C + K); in evaluation one of them. The first layer's parameters keep
    their names, the new ones are ``second.weight`` and ``second.bias``.

    Args:
        first: the layer as it was.
        outputs: K.
        judges_second: evaluation gives the second head's output.
    """

    def __init__(self, first: nn.Linear, outputs: int, judges_second: bool = False) -> None:
        super().__init__()
        self.weight, self.bias = first.weight, first.bias
        self.second = nn.Linear(first.in_features, outputs)
        self.judges_second = judges_second

    def forward(self, features: Tensor) -> Tensor:
        if self.judges_second and not self.training:
            return self.second(features)
        own = F.linear(features, self.weight, self.bias)
        return torch.cat([own, self.second(features)], -1) if self.training else own


def add_head(model: nn.Module, num_classes: int, outputs: int, judges_second: bool = False) -> nn.Module:
    """The model, its classifier replaced by ``TwoHeads``, whose new layer is drawn by torch's global generator.

    Raises: ValueError where the last Linear layer has not ``num_classes`` outputs.
    """
    last = classifier(model)
    if last.out_features != num_classes:
        raise ValueError(
            f"{type(model).__name__}: the last Linear layer has {last.out_features} outputs, not one for each of "
            f"{num_classes} classes, so there is no place for a second head"
        )
    both = TwoHeads(last, outputs, judges_second).train(last.training)
    parent, _, name = next(name for name, module in model.named_modules() if module is last).rpartition(".")
    if not name:
        return both
    setattr(model.get_submodule(parent), name, both)
    return model

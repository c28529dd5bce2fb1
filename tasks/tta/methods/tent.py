"""Tent (Wang et al. 2021): entropy minimisation on the affine parameters of normalisation layers.

As the authors' code (tent e9e926a): the model is in ``train()``, BatchNorm uses batch statistics, and the logits
returned are those before the update. Theirs adapts BatchNorm2d only; a model without any adapts its LayerNorm and
GroupNorm parameters instead.
"""

from typing import Unpack

from torch import Tensor, nn

from dembench.core.adapt import Loss
from dembench.tasks.tta.methods.base import Common, EntropyMethod, Optimizer


class Tent(EntropyMethod):
    """Lowers each batch's mean loss; ``loss`` replaces Tent's entropy.

    Args:
        optimizer: "adam", "momentum", "nesterov" or "sgd" (the paper: Adam for CIFAR, momentum for ImageNet).
        lr: learning rate.
    The other arguments and errors are those of ``EntropyMethod``.
    """

    def __init__(
        self, model: nn.Module, loss: Loss, *, optimizer: Optimizer = "adam", lr: float = 1e-3, **common: Unpack[Common]
    ):
        super().__init__(model, loss, optimizer=optimizer, lr=lr, **common)

    def adapt(self, x: Tensor) -> Tensor:
        seen = self.see(x)
        self.learn(seen, seen.keep)
        return seen.logits

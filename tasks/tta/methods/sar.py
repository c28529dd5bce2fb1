"""SAR (Niu et al. 2023): sharpness-aware, reliable entropy minimisation that starts again when it collapses.

As the authors' code (SAR 20f6e24) but for four faults of it: the threshold of the recovery is the one that is given, a
recovery starts the moving average again, every reset clears the momentum, and a batch without a reliable sample changes
nothing. The loss replaces both entropies that are lowered; gates, moving average and recovery stay on plain entropies.
"""

import math
from typing import Unpack

import torch
from torch import Tensor, nn

from dembench.core.adapt import Loss, ascended
from dembench.tasks.tta.methods.base import Common, EntropyMethod, Optimizer
from dembench.tasks.tta.methods.freeze import Freeze


class SAR(EntropyMethod):
    """Steps along the gradient at theta + rho g / ||g||, g being the gradient at theta, both over samples with H < E0.

    Args:
        margin: E0 as a multiple of ln C.
        reset_below: e_m; where the moving average of the second mean entropy falls below it, all starts afresh.
        rho: length of the ascent.
        freeze: normalisation layers at the top that do not adapt, see ``frozen_layers``.
        optimizer, lr: the paper has momentum, 2.5e-4 for ResNet-50 and 1e-3 for ViT-B, batches of 64.
    The other arguments and errors are those of ``EntropyMethod``.
    Attributes: ``ema`` is the moving average, None or NaN before its first value; ``resets`` counts recoveries; both on
    the device.
    """

    ema: Tensor | None
    stops_gradient = True
    norms = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        margin: float = 0.4,
        reset_below: float = 0.2,
        rho: float = 0.05,
        freeze: Freeze = "depth",
        optimizer: Optimizer = "momentum",
        lr: float = 2.5e-4,
        **common: Unpack[Common],
    ):
        self.margin, self.reset_below, self.rho = margin, reset_below, rho
        self.resets: int | Tensor = 0
        super().__init__(model, loss, freeze=freeze, optimizer=optimizer, lr=lr, **common)

    def adapt(self, x: Tensor) -> Tensor:
        first = self.see(x)
        e0 = self.margin * math.log(first.logits.shape[1])
        reliable = first.entropy < e0
        if first.keep is not None:
            reliable = reliable & first.keep
        objective = self.objective(first, reliable)
        gradients = torch.autograd.grad(objective, self.learner.values, materialize_grads=True)
        self.backward_passes += 1
        with ascended(self.learner.values, gradients, self.rho):
            second = self.see(x)
            still = reliable & (second.entropy < e0)
            self.backward(self.objective(second, still))
        number = still.sum()
        self.finish(number)
        self.recover(torch.where(still, second.entropy, 0).sum() / number)  # NaN if there is none
        return first.logits

    def recover(self, entropy: Tensor) -> None:
        """Follows the mean entropy and starts afresh, on the device, where it has become too small."""
        ema = torch.full_like(entropy, torch.nan) if self.ema is None else self.ema
        moved = torch.where(ema.isnan(), entropy, 0.9 * ema + 0.1 * entropy)
        ema = torch.where(entropy.isnan(), ema, moved)
        collapsed = ema < self.reset_below
        self.learner.reset_where(collapsed)
        self.ema = torch.where(collapsed, torch.nan, ema)
        self.resets = self.resets + collapsed

    def _restart(self) -> None:
        super()._restart()
        self.ema = None

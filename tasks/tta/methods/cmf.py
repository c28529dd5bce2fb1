"""CMF (Lee and Chang 2024): ROID whose weights follow a Kalman filter between the source and the adapted model.

As mariodoebler/test-time-adaptation 8b2ed63 has it, type "lp". Theirs keeps the filter's variance over a reset; here a
reset clears it.
"""

from typing import Unpack

import torch
from torch import nn

from dembench.core.adapt import Loss
from dembench.tasks.tta.methods.base import Common, Optimizer
from dembench.tasks.tta.methods.roid import ROID
from dembench.tasks.tta.methods.views import follow

PARAMETERS = 38400  # that adapt where ``q`` is the given one


class CMF(ROID):
    """ROID, with a hidden model in the place of the source model.

    The hidden model h drifts to the source by ``alpha``, then takes the adapted one in by the filter's gain; what
    adapts goes back to h by ``gamma``.

    Args:
        alpha: how much of the hidden model a prediction step keeps.
        gamma: share of the adapted weights in the last mixture.
        q: noise of the prediction step, for 38,400 parameters that adapt; it grows with their number.
        temperature, probs_momentum, consistency, prior, optimizer, lr: as in ``ROID``.
    The other arguments and errors are those of ``EntropyMethod``.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        alpha: float = 0.99,
        gamma: float = 0.99,
        q: float = 0.005,
        temperature: float = 1 / 3,
        probs_momentum: float = 0.9,
        consistency: bool = True,
        prior: bool = True,
        optimizer: Optimizer = "adam",
        lr: float = 1e-3,
        **common: Unpack[Common],
    ):
        self.alpha, self.gamma = alpha, gamma
        options = {"probs_momentum": probs_momentum, "consistency": consistency, "prior": prior}
        super().__init__(model, loss, temperature=temperature, optimizer=optimizer, lr=lr, **options, **common)
        self.q = q * sum(value.numel() for value in self.learner.values) / PARAMETERS

    @torch.no_grad()
    def mix(self) -> None:
        values = self.learner.values
        if self.hidden is None:
            self.hidden = [start.clone() for start in self.learner.start]
        follow(self.hidden, self.learner.start, self.alpha)
        noise, self.variance = 1 - self.q, self.alpha**2 * self.variance + self.q
        beta = max(noise / (self.variance + noise), 0.89)
        beta = beta if beta < 0.9999 else 1.0
        self.variance *= beta
        follow(self.hidden, values, beta)
        follow(values, self.hidden, self.gamma)

    def _restart(self) -> None:
        super()._restart()
        self.hidden: list[torch.Tensor] | None = None
        self.variance = 0.0

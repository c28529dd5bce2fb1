"""RDumb (Press et al. 2023): ETA that starts afresh after every so many steps.

As mariodoebler/test-time-adaptation 8b2ed63 has it, with the paper's settings: EATA without anti-forgetting, 1,000
steps. Theirs keeps ETA's moving average over a reset; here a reset clears all state.
"""

from typing import Unpack

from torch import Tensor, nn

from dembench.core.adapt import Loss
from dembench.tasks.tta.methods.base import Common, Optimizer
from dembench.tasks.tta.methods.eta import ETA


class RDumb(ETA):
    """ETA, back to the source model each time ``every`` steps are done.

    Args:
        every: steps between two resets.
        margin, d, optimizer, lr: as in ``ETA``.
    The other arguments and errors are those of ``EntropyMethod``. ValueError for every < 1.
    Attributes: ``resets`` counts these resets.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        every: int = 1000,
        margin: float = 0.4,
        d: float | None = None,
        optimizer: Optimizer = "momentum",
        lr: float = 2.5e-4,
        **common: Unpack[Common],
    ):
        if every < 1:
            raise ValueError(f"rdumb: expected every >= 1, got {every}")
        self.every, self.resets = every, 0
        super().__init__(model, loss, margin=margin, d=d, optimizer=optimizer, lr=lr, **common)

    def predict(self, x: Tensor) -> Tensor:
        if self._steps >= self.every:
            self.reset()
            self.resets += 1
        self._steps += self.steps
        return super().predict(x)

    def _restart(self) -> None:
        super()._restart()
        self._steps = 0

"""ETA (Niu et al. 2022, EATA without anti-forgetting): entropy minimisation on reliable, non-redundant samples.

As the authors' code (EATA f739b36). The loss replaces the entropy that is lowered; both gates, the weights and the
moving average stay on the plain entropy and prediction. Theirs keeps the moving average over a reset; here reset clears
it.
"""

import math
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dembench.core.adapt import Loss
from dembench.tasks.tta.methods.base import Common, EntropyMethod, Optimizer


class ETA(EntropyMethod):
    """Lowers the loss of samples with H < E0 and |cos(p, m)| < d, each weighted by exp(E0 - H).

    Args:
        margin: E0 as a multiple of ln C.
        d: how like the mean prediction m a sample may be; None is 0.4 up to 10 classes, 0.1 up to 100, 0.05 above.
        optimizer, lr: the paper has momentum, 2.5e-4 for ImageNet, batches of 64.
    The other arguments and errors are those of ``EntropyMethod``.
    Attributes: ``moving_average`` is m (C,), zeros until a batch has a reliable sample, None before the first batch.
    """

    moving_average: Tensor | None
    stops_gradient = True

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        margin: float = 0.4,
        d: float | None = None,
        optimizer: Optimizer = "momentum",
        lr: float = 2.5e-4,
        **common: Unpack[Common],
    ):
        self.margin, self.d = margin, d
        super().__init__(model, loss, optimizer=optimizer, lr=lr, **common)

    def adapt(self, x: Tensor) -> Tensor:
        seen = self.see(x)
        classes = seen.logits.shape[1]
        e0 = self.margin * math.log(classes)
        d = default_d(classes) if self.d is None else self.d
        p = seen.logits.detach().softmax(1)
        m = p.new_zeros(classes) if self.moving_average is None else self.moving_average  # zeros are unlike every p
        selected = (seen.entropy < e0) & (F.cosine_similarity(m, p).abs() < d)
        if seen.keep is not None:
            selected = selected & seen.keep
        self.moving_average = moved(m, p, selected)
        self.learn(seen, selected, weight=(e0 - seen.entropy).exp())
        return seen.logits

    def _restart(self) -> None:
        super()._restart()
        self.moving_average = None


def moved(m: Tensor, p: Tensor, selected: Tensor) -> Tensor:
    """0.9 m + 0.1 mean p of the selected; where m is zero, the mean itself; m if none is selected."""
    number = selected.sum()
    mean = (p * selected.unsqueeze(1)).sum(0) / number.clamp(min=1)
    return torch.where(number > 0, torch.where(m.any(), 0.9 * m + 0.1 * mean, mean), m)


def default_d(classes: int) -> float:
    """What is in use for CIFAR-10, CIFAR-100 and ImageNet, by the number of classes."""
    return 0.4 if classes <= 10 else 0.1 if classes <= 100 else 0.05

"""RPL (Rusak et al. 2022): self-training on robust pseudo labels, the generalised cross entropy with one's own label.

As mariodoebler/test-time-adaptation 8b2ed63: Tent with that loss in the place of the entropy.
"""

from typing import Any, Unpack

from torch import nn

from dembench.core.family import GCE
from dembench.tasks.tta.methods.base import Common, Optimizer
from dembench.tasks.tta.methods.tent import Tent


class RPL(Tent):
    """Lowers mean (1 - p_max^q) / q; ``loss`` is not used.

    Args:
        q: 0 < q <= 1; towards 0 the cross entropy, 1 the mean absolute error. The paper has 0.8.
        optimizer, lr: the collection has Adam, 1e-3 for CIFAR; Nesterov, 5e-4 for ImageNet with ResNet-50.
    The other arguments and errors are those of ``EntropyMethod``; ValueError for another q.
    """

    uses_loss = False

    def __init__(
        self,
        model: nn.Module,
        loss: Any = None,
        *,
        q: float = 0.8,
        optimizer: Optimizer = "adam",
        lr: float = 1e-3,
        **common: Unpack[Common],
    ):
        super().__init__(model, GCE(q), optimizer=optimizer, lr=lr, **common)

"""TTC, test-time clustering (Lin et al., Improving Entropy-Based Test-Time Adaptation from a Clustering View).

After the paper's algorithm 1; the authors' code is not public. Where text and algorithm differ, the algorithm holds:
the mean entropy is that of the averaged logits, and the loss is the mean over the selected samples (eq. 13 divides by
N). Gradients of Q batches are summed, not averaged. The weights of the similarity constraint are constants.
"""

from typing import Unpack

from torch import nn

from dembench.core.adapt import Loss
from dembench.tasks.tta.methods.base import Common, Optimizer
from dembench.tasks.tta.methods.clustering import Clustering
from dembench.tasks.tta.methods.tent import Tent


class TTC(Tent):
    """Tent with all parts of ``Clustering``; any other method takes them by its option ``clustering``.

    Args:
        optimizer, lr: the paper has Adam, 1e-3 for CIFAR, and momentum, 2.5e-4 for ImageNet, batches of 100.
        augment, robust, similarity, select, accumulate: the parts, see ``Clustering``.
    The other arguments and errors are those of ``EntropyMethod``; the returned logits are the averaged ones.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        optimizer: Optimizer = "adam",
        lr: float = 1e-3,
        augment: str = "hflip",
        robust: bool = True,
        similarity: float | None = 1.0,
        select: bool = True,
        accumulate: int | None = 200,
        **common: Unpack[Common],
    ):
        if common.get("clustering") is not None:
            raise ValueError("ttc: its parts are arguments of its own; leave out clustering")
        common["clustering"] = Clustering(augment, robust, similarity, select, accumulate)
        super().__init__(model, loss, optimizer=optimizer, lr=lr, **common)

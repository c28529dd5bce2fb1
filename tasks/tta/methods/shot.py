"""SHOT-IM (Liang et al. 2020), online: information maximisation on everything but the classifier.

The online form is that of T3A's code (ff8cde5): the model in ``eval()`` with the source's BatchNorm statistics, one
step a batch, the logits from before it, Adam. As there, 1e-5 is added inside the logarithm of the mean prediction.
Theirs cannot be reset.
"""

from typing import Unpack

from torch import Tensor, nn

from dembench.core.adapt import Loss
from dembench.tasks.common.heads import classifier
from dembench.tasks.tta.methods.base import Common, EntropyMethod, Optimizer


class SHOT(EntropyMethod):
    """Lowers the mean loss minus the entropy of the mean prediction; ``loss`` replaces the entropy of each sample.

    Args:
        diversity: weight of the entropy of the mean prediction.
        optimizer, lr: T3A's code has Adam, at a tenth, once or ten times the training's rate (5e-5 for ResNets).
    The other arguments and errors are those of ``EntropyMethod``. ValueError for a model without a Linear layer.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        diversity: float = 1.0,
        optimizer: Optimizer = "adam",
        lr: float = 5e-5,
        **common: Unpack[Common],
    ):
        self.diversity = diversity
        super().__init__(model, loss, optimizer=optimizer, lr=lr, **common)

    def prepare(self) -> None:
        self.model.eval()

    def choose(self) -> dict[str, nn.Parameter]:
        head = {id(parameter) for parameter in classifier(self.model).parameters()}
        return {name: p for name, p in self.model.named_parameters() if id(p) not in head}

    def adapt(self, x: Tensor) -> Tensor:
        seen = self.see(x)
        mean = seen.logits.softmax(1).mean(0)
        self.descend(self.objective(seen, seen.keep) + self.diversity * (mean * (mean + 1e-5).log()).sum(), len(x))
        return seen.logits

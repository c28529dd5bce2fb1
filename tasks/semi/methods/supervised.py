"""Labelled samples only: the lower end that every other method has to beat."""

from typing import Any, ClassVar

from torch import nn

from dembench.tasks.semi.methods.base import Batch, SemiMethod, Terms, supervised_term


class Supervised(SemiMethod):
    """Cross entropy. ``loss`` is taken, so that a grid needs no exceptions, and is not used."""

    name = "supervised"
    uses_loss = False
    views: ClassVar[tuple[str, ...]] = ()

    def __init__(self, loss: Any = None, *, num_classes: int = 0) -> None:
        super().__init__(None, num_classes=num_classes)

    def terms(self, model: nn.Module, batch: Batch) -> Terms:
        return supervised_term(model(batch.images).float(), batch.labels)

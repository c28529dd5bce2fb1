"""Training on the labelled source images alone, and the same with target images moving BatchNorm's statistics."""

from __future__ import annotations

from typing import Any

import torch

from dembench.tasks.segmentation.methods.base import Data, UDAMethod, Values


class SourceOnly(UDAMethod):
    """Cross entropy on source images.

    Args:
        loss: not used.
        target_statistics: each step also passes target images through the network, without a loss. They move
            BatchNorm's running statistics as in the methods that have a loss on them, which tells the effects apart.
    """

    name = "source_only"
    uses_loss = False

    def __init__(self, loss: Any = None, *, target_statistics: bool = False, **settings: Any):
        super().__init__(**settings)
        self.target_statistics = target_statistics

    def gradients(self, data: Data) -> Values:
        source, _ = self.source_term(data["source"])
        values = {"source": self.backward(source)}
        if self.target_statistics:
            with torch.no_grad():
                self.target_logits(data["target"])
        return values

"""Zero-shot CLIP (Radford et al. 2021): the plain view against one prompt a class. With CoOp's context, CoOp."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dembench.tasks.prompt.methods.base import Context, PromptMethod, Shots
from dembench.tasks.prompt.text import Prompts


class ZeroShot(PromptMethod):
    """Nothing adapts. Arguments as in ``PromptMethod``."""

    uses_loss = False

    def __init__(
        self, prompts: Prompts, loss: Any = None, *, context: Context | None = None, shots: Shots | None = None
    ):
        super().__init__(prompts, loss, context=context, shots=shots)
        with torch.no_grad():
            self.text = self.encode(self.context)

    def predict(self, views: Tensor) -> Tensor:
        return self.logits(views[:, :1], self.text)[:, 0]

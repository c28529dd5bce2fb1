"""Prompt ensemble (Radford et al. 2021): a class is the mean of its unit features under many templates, unit again."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from dembench.tasks.prompt.methods.base import Shots
from dembench.tasks.prompt.methods.zero_shot import ZeroShot
from dembench.tasks.prompt.text import Prompts


class Ensemble(ZeroShot):
    """The plain view against the data's own templates (ImageNet: OpenAI's 80); nothing adapts."""

    def __init__(self, prompts: Prompts, loss: Any = None, *, shots: Shots | None = None):
        super().__init__(prompts, loss)
        with torch.no_grad():
            parts = [prompts.with_template(template) for template in prompts.templates]
            self.text = F.normalize(sum(part(part.words()) for part in parts) / len(parts), dim=-1)
        self.forward_passes = len(parts)

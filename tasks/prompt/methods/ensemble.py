"""Prompt ensemble (Radford et al. 2021): a class is the mean of its unit features under many templates, unit again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from dembench.lookup import lookup
from dembench.tasks.prompt.clip import require_open_clip
from dembench.tasks.prompt.methods.base import Shots
from dembench.tasks.prompt.methods.zero_shot import ZeroShot
from dembench.tasks.prompt.text import Prompts


class Ensemble(ZeroShot):
    """The plain view against many templates; nothing adapts.

    Args:
        templates: with one {} each; None takes the data's own (ImageNet: OpenAI's 80), "simple" OpenAI's seven that are
            nearly as good on ImageNet.
    """

    def __init__(
        self,
        prompts: Prompts,
        loss: Any = None,
        *,
        templates: str | Sequence[str] | None = None,
        shots: Shots | None = None,
    ):
        super().__init__(prompts, loss)
        with torch.no_grad():
            parts = [prompts.with_template(template) for template in read_templates(templates) or prompts.templates]
            self.text = F.normalize(sum(part(part.words()) for part in parts) / len(parts), dim=-1)
        self.forward_passes = len(parts)


def read_templates(given: str | Sequence[str] | None) -> list[str]:
    """The templates that are meant; none for None. Raises: ValueError for another word, or one without one {}."""
    if isinstance(given, str):
        lookup(given, ("simple",), "templates")
        return [template("{}") for template in require_open_clip().SIMPLE_IMAGENET_TEMPLATES]
    if wrong := [template for template in given or () if template.count("{}") != 1]:
        raise ValueError(f"templates: expected one {{}} in each, such as 'a photo of a {{}}.', got {wrong[0]!r}")
    return list(given or ())

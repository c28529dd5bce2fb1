"""What every method of prompt tuning carries: the classes as prompts, their features, and counts of what it cost."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy, deepcopy
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from dembench.core.functional import em
from dembench.tasks.base import Artifact, Note
from dembench.tasks.common.devices import placed
from dembench.tasks.prompt.text import Prompts

Shots = Callable[[int], tuple[Prompts, Tensor, Tensor]]  # k of each class: prompts, features (N, V, E), labels (N,)


class Context(Protocol):
    """Makes a context (n, D) from labelled shots, such as ``tasks.prompt.coop.CoOp``."""

    def __call__(self, shots: Shots) -> Tensor: ...


class PromptMethod:
    """Predicts images from the features of their views. Subclasses say how in ``predict``.

    Args:
        prompts: the classes.
        loss: taken by every method, so that a grid over methods and losses needs no exceptions; moves to the device.
        context: None for the template's words, else what makes one from ``shots``.
        shots: gives labelled training images; only a context uses them.

    Attributes:
        stream: whether what it learns from an image stays for the next, so that their order matters; the task then
            draws it by the seed, for a set may be sorted by class.
        remembers: names of the attributes with what outlives an image.
    """

    stream = False
    remembers: tuple[str, ...] = ()

    def __init__(
        self, prompts: Prompts, loss: Any = None, *, context: Context | None = None, shots: Shots | None = None
    ):
        self.prompts, self.loss = prompts, placed(loss, prompts.clip.device)
        self.notes: list[Note] = []  # what a reader of the numbers must know
        self.artifacts: list[Artifact] = []
        self.forward_passes = self.backward_passes = self.updated = 0  # passes of one context through the text tower
        self.last_loss: Tensor | None = None
        self.context = prompts.words()
        if context is not None:
            if shots is None:
                raise ValueError("a learned context needs shots, and there are none")
            self.context = context(shots).to(self.context)
            self.artifacts += getattr(context, "artifacts", [])

    @torch.no_grad()
    def __call__(self, views: Tensor) -> Tensor:
        """Logits (B, C) of B images from unit features (B, V, E) of their views, the plain one first."""
        return self.predict(views)

    def twin(self) -> Self:
        """One that predicts as this one would next, without any effect on it."""
        other = copy(self)
        for name in self.remembers:
            setattr(other, name, deepcopy(getattr(self, name)))
        return other

    def predict(self, views: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not say how it predicts")

    def encode(self, context: Tensor) -> Tensor:
        """Counted text features of a context (n, D) or of B contexts (B, n, D)."""
        self.forward_passes += len(context) if context.dim() == 3 else 1
        return self.prompts(context)

    def logits(self, views: Tensor, text: Tensor) -> Tensor:
        """(B, K, C) of features (B, K, E) against classes (C, E) or, for each image its own, (B, C, E)."""
        return self.prompts.clip.scale * (views @ text.mT)


def confident(logits: Tensor, share: float) -> Tensor:
    """Numbers (B, K) of the K = int(share V), at least one, views of least entropy of logits (B, V, C), least first."""
    with torch.no_grad():
        entropy = em(logits.flatten(0, 1)).view(logits.shape[:2])
    return entropy.argsort(dim=1, stable=True)[:, : max(1, int(share * logits.shape[1]))]


def pick(views: Tensor, chosen: Tensor) -> Tensor:
    """Rows ``chosen`` (B, K) of (B, V, X), as (B, K, X)."""
    return views.gather(1, chosen[..., None].expand(-1, -1, views.shape[2]))


def check_share(method: str, share: float) -> None:
    """Raises ValueError for a share of views outside (0, 1]."""
    if not 0 < share <= 1:
        raise ValueError(f"{method}: expected selected in (0, 1], the share of views that count, got {share}")

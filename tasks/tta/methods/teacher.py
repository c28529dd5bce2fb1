"""A student and its teacher, the moving average of it: what CoTTA and RoTTA share."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from dembench.core.adapt import Learner, require_grad_only
from dembench.tasks.tta.methods.base import Note, Optimizer, Preset, TTAMethod
from dembench.tasks.tta.methods.views import follow


class MeanTeacher(TTAMethod):
    """``model`` is the student, which learns from ``teacher``; the teacher predicts. No entropy is lowered.

    Args:
        model: made ready by the subclass; changed in place.
        learned: the student's parameters that learn, by name.
        momentum: of the teacher's moving average.
    """

    in_model = False
    uses_loss = False
    needs_images = stops_gradient = True

    def __init__(
        self,
        model: nn.Module,
        loss: Any,
        learned: dict[str, nn.Parameter],
        *,
        optimizer: Optimizer,
        lr: float,
        momentum: float,
        preset: Preset,
    ):
        super().__init__(model, loss, preset=preset)
        self.adapted, self.momentum = learned, momentum
        require_grad_only(model, learned.values())
        self.learner = Learner(learned, self.loss, optimizer=optimizer, lr=lr, buffers=model.buffers())
        self.teacher = deepcopy(model).requires_grad_(False)
        names = dict(self.teacher.named_parameters())
        self.followers = [names[name].data for name in learned]
        self._teachers = [tensor.data for tensor in (*self.teacher.parameters(), *self.teacher.buffers())]
        self._teachers_start = [tensor.clone() for tensor in self._teachers]

    @property
    def notes(self) -> tuple[Note, ...]:
        size, whole = (sum(p.numel() for p in part) for part in (self.adapted.values(), self.model.parameters()))
        return (Note("adapts", f"{size:,} of {whole:,} parameters of a student; its moving average predicts"),)

    def taught(self, x: Tensor) -> Tensor:
        """Logits of the teacher, one counted pass."""
        self.forward_passes += 1
        return self.teacher(x)

    def learn(self, objective: Tensor, number: int) -> None:
        """A step of the student that lowers a scalar over so many samples; then the teacher follows."""
        self.learner.step(objective)
        self.backward_passes += 1
        self.last_loss = objective.detach()
        self.updated = self.updated + number
        follow(self.followers, [value.detach() for value in self.learner.values], self.momentum)

    @torch.no_grad()
    def peek(self, x: Tensor) -> Tensor:
        return self.taught(x)

    @torch.no_grad()
    def reset(self) -> None:
        self.learner.reset()
        torch._foreach_copy_(self._teachers, self._teachers_start)
        self._generator = None


def cross_entropy(logits: Tensor, other: Tensor) -> Tensor:
    """-sum softmax(other) log softmax(logits), per sample (N,)."""
    return -(other.softmax(1) * logits.log_softmax(1)).sum(1)

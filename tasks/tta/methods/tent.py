"""Tent (Wang et al. 2021): entropy minimisation on the affine parameters of normalisation layers.

As the authors' code (tent e9e926a): the model is in ``train()``, BatchNorm uses batch statistics, and the logits
returned are those before the update. Theirs adapts BatchNorm2d only; a model without any adapts its LayerNorm and
GroupNorm parameters instead.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from core.adapt import Learner, Loss, norm_affine, require_grad_only, use_batch_statistics
from tasks.tta.methods.base import TTAMethod


class Tent(TTAMethod):
    """Takes ``steps`` gradient steps on each batch's mean loss; ``loss`` stands where Tent has the entropy.

    Args:
        model: maps (N, 3, H, W) in [0, 1] to logits (N, C); changed in place.
        loss: logits (N, C) to a loss per sample (N,).
        optimizer: "adam", "momentum" or "sgd" (the paper: Adam for CIFAR, momentum for ImageNet).
        lr: learning rate.
        steps: updates on each batch; the logits returned are those before the last one.
        episodic: start afresh before each batch.
    Raises: ValueError for an unknown optimizer, lr <= 0, steps < 1, or a model without normalisation layers.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        optimizer: Literal["adam", "momentum", "sgd"] = "adam",
        lr: float = 1e-3,
        steps: int = 1,
        episodic: bool = False,
    ):
        if steps < 1:
            raise ValueError(f"tent: expected steps >= 1, got {steps}")
        super().__init__(use_batch_statistics(model).train(), loss)
        parameters = norm_affine(model)
        require_grad_only(model, parameters.values())
        self.learner = Learner(parameters, loss, optimizer=optimizer, lr=lr)
        self.steps, self.episodic = steps, episodic

    @torch.enable_grad()
    def predict(self, x: Tensor) -> Tensor:
        if self.episodic:
            self.reset()
        for _ in range(self.steps):
            logits = self.forward(x)
            objective = self.loss(logits).mean()
            self.learner.step(objective)
            self.backward_passes += 1
        self.updated += len(x)  # samples, each once however many steps
        self.last_loss = objective.detach()
        return logits

    def reset(self) -> None:
        self.learner.reset()

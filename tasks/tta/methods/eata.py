"""EATA (Niu et al. 2022): ETA, held near the source model where the Fisher information is large.

As the authors' code (EATA f739b36): the Fisher information is the squared gradient of each batch's mean loss, so that
it and the fitting fisher_alpha depend on fisher_batch; ``fisher="sample"`` squares the gradient of each sample's loss.
The gradient of the penalty is added to that of the objective directly, without autograd.
"""

from typing import Literal, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dembench.core.adapt import Loss
from dembench.lookup import lookup
from dembench.tasks.base import Note
from dembench.tasks.common.devices import in_order
from dembench.tasks.tta.methods.base import Common, Optimizer
from dembench.tasks.tta.methods.eta import ETA


class EATA(ETA):
    """ETA plus fisher_alpha * sum F (theta - theta_0)^2, theta_0 being the source model.

    Args:
        margin, d, optimizer, lr: as in ``ETA``.
        fisher_alpha: weight of the penalty; None is 1 up to 100 classes, 2000 above; 0 is ETA.
        fisher: "batch" as the authors' code, or "sample", which takes one backward pass for each image.
        source_images: clean images for the Fisher information.
        fisher_batch: how many of them go through the model at a time.
    The other arguments and errors are those of ``EntropyMethod``. ``see_source`` has to come before the first batch,
    else that raises ValueError.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        margin: float = 0.4,
        d: float | None = None,
        fisher_alpha: float | None = None,
        fisher: Literal["batch", "sample"] = "batch",
        source_images: int = 2000,
        fisher_batch: int = 64,
        optimizer: Optimizer = "momentum",
        lr: float = 2.5e-4,
        **common: Unpack[Common],
    ):
        lookup(fisher, ("batch", "sample"), "eata fisher")
        if source_images < 1 or fisher_batch < 1:
            raise ValueError(f"eata: expected source_images, fisher_batch >= 1, got {source_images}, {fisher_batch}")
        self.fisher_alpha, self.fisher, self.fisher_batch = fisher_alpha, fisher, fisher_batch
        super().__init__(model, loss, margin=margin, d=d, optimizer=optimizer, lr=lr, **common)
        self.source_images = 0 if fisher_alpha == 0 else source_images
        self.fishers: list[Tensor] = []
        self._pull: list[Tensor] = []  # 2 fisher_alpha F
        self._seen_source = 0

    @torch.enable_grad()
    def see_source(self, images: Tensor) -> None:
        """Fisher information of the parameters that adapt, from clean images (N, 3, H, W), uint8 or in [0, 1].

        The mean over batches of the squared gradient of the cross entropy against the model's own predictions.
        """
        values = self.learner.values
        total = [torch.zeros_like(value) for value in values]
        batches = images.split(self.fisher_batch)
        per_sample = self.fisher == "sample"
        for batch in batches:
            x = (batch.float() / 255 if batch.dtype == torch.uint8 else batch).to(values[0].device)
            logits = self.forward(in_order(x))
            losses = F.cross_entropy(logits, logits.argmax(1), reduction="none")
            for objective in losses if per_sample else [losses.mean()]:
                gradients = torch.autograd.grad(objective, values, retain_graph=per_sample, materialize_grads=True)
                self.backward_passes += 1
                torch._foreach_addcmul_(total, gradients, gradients)
        self.fishers = list(torch._foreach_div(total, len(images) if per_sample else len(batches)))
        classes = logits.shape[1]
        alpha = self.fisher_alpha if self.fisher_alpha is not None else default_fisher_alpha(classes)
        self._pull = list(torch._foreach_mul(self.fishers, 2 * alpha))
        self._seen_source = len(images)

    @property
    def notes(self) -> tuple[Note, ...]:
        if not self.source_images:
            return super().notes
        text = f"Fisher information from {self._seen_source} clean images, {self.fisher} gradients"
        return (*super().notes, Note("fisher", f"{text}, batches of {self.fisher_batch}"))

    def predict(self, x: Tensor) -> Tensor:
        if self.source_images and not self._pull:
            raise ValueError("eata: needs clean images for its Fisher information (see_source), or fisher_alpha=0")
        return super().predict(x)

    @torch.no_grad()
    def adjust_gradients(self, empty: Tensor | None) -> None:
        """2 fisher_alpha F (theta - theta_0), for the batches that select a sample."""
        if empty is None or not self._pull:
            return
        pull = torch._foreach_sub(self.learner.values, self.learner.start)
        torch._foreach_mul_(pull, self._pull)
        torch._foreach_mul_(pull, (~empty).to(pull[0].dtype))
        torch._foreach_add_([value.grad for value in self.learner.values if value.grad is not None], pull)


def default_fisher_alpha(classes: int) -> float:
    """What is in use for CIFAR and ImageNet, by the number of classes."""
    return 1.0 if classes <= 100 else 2000.0

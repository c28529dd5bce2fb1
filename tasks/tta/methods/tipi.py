"""TIPI (Nguyen et al. 2023): predictions that do not change under small shifts of the input; an entropy term may join.

As the authors' code (TIPI 91c9f0b), in full precision. Theirs holds each BatchNorm twice and uses the running
statistics of the one only: here the passes that go to the other do not track any. The loss replaces H in
entropy_weight * H and nothing else: with entropy_weight 0 all losses are one. Theirs cannot be reset.

Its start at zero is kept as an option: the divergence of a prediction from itself has no gradient but rounding noise,
whose sign then is the whole step, so that the result depends on the machine. A random start, the authors' choice for
ImageNet, has a gradient, and is the default.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn

from dembench.core.adapt import Loss, batch_norms
from dembench.lookup import lookup
from dembench.tasks.base import Note
from dembench.tasks.common.digits_nets import Normalized
from dembench.tasks.tta.methods.base import Common, EntropyMethod, Optimizer

LARGE = 64  # images in a batch, above which its own statistics can predict


class TIPI(EntropyMethod):
    """Lowers KL(p(x + delta) || p(x)) + entropy_weight * loss for the delta of one signed gradient step, then predicts.

    The one method here that returns logits from after the update.

    Args:
        start: where the search for delta begins, "random" (uniform) or "zero"; None is zero up to 100 classes, random
            above.
        entropy_weight: of the loss; None is 0 up to 10 classes, 5 up to 100, else 1.
        eps: largest delta, in what the network gets behind its normalisation.
        predict: "running" predicts with the running statistics that the batches move, "batch" with those of the batch
            where it has more than 64 images.
        optimizer, lr, lr_batch: a batch of N is learned from at the rate lr * N / lr_batch. The paper has Adam, 1e-3
            for 200 on CIFAR; momentum, 2.5e-4 for 64 on ImageNet.
    The other arguments and errors are those of ``EntropyMethod``.
    """

    presets = ("official", "random_start")
    stops_gradient = True
    norms = (nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d, nn.LayerNorm)

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        start: Literal["random", "zero"] | None = "random",
        entropy_weight: float | None = 1.0,
        eps: float = 2 / 255,
        predict: Literal["running", "batch"] = "running",
        optimizer: Optimizer = "adam",
        lr: float = 1e-3,
        lr_batch: int = 200,
        **common: Unpack[Common],
    ):
        if start is not None:
            lookup(start, ("random", "zero"), "tipi start")
        lookup(predict, ("running", "batch"), "tipi predict")
        if lr_batch < 1 or not eps > 0:
            raise ValueError(f"tipi: expected lr_batch >= 1 and eps > 0, got {lr_batch} and {eps}")
        self.begin, self.entropy_weight, self.statistics = start, entropy_weight, predict
        self.rate = lr / lr_batch
        scale: Any = next((module.std for module in model.modules() if isinstance(module, Normalized)), 1.0)
        self.limit: Any = eps * scale  # in [0, 1]; a number, or one a channel
        super().__init__(model, loss, optimizer=optimizer, lr=lr, **common)

    def prepare(self) -> None:
        if any(layer.running_mean is None for layer in batch_norms(self.model)):
            raise ValueError("tipi: needs a model whose BatchNorms have running statistics")
        self.model.train()

    def touched(self) -> list[Tensor]:
        return [buffer for layer in batch_norms(self.model) for buffer in layer.buffers()]

    def adapt(self, x: Tensor) -> Tensor:
        self.model.train()
        x = x.detach()
        delta = torch.zeros_like(x).requires_grad_(self.begin != "random")
        seen = self.see(x + delta)
        logits, classes = seen.logits, seen.logits.shape[1]
        weight = default_entropy_weight(classes) if self.entropy_weight is None else self.entropy_weight
        begin = self.begin or ("zero" if classes <= 100 else "random")
        with untracked(self.model):
            adversary = logits
            if begin == "random":
                drawn = torch.rand(x.shape, generator=self.generator, device=x.device, dtype=x.dtype)
                delta = ((2 * drawn - 1) * self.limit).requires_grad_()
                adversary = self.forward(x + delta)
            divergence = kl(adversary, logits.detach()).mean()
            (slope,) = torch.autograd.grad(divergence, delta, retain_graph=begin == "zero")
            self.backward_passes += 1
            step = delta.detach() + self.limit * slope.sign()
            delta = step.clamp(-self.limit, self.limit)
            objective = kl(self.forward(x + delta), logits.detach()).mean()
        if weight:
            objective = objective + weight * self.objective(seen, seen.keep)
        for group in self.learner.optimizer.param_groups:
            group["lr"] = self.rate * len(x)
        self.descend(objective, len(x))
        self.model.train(self.statistics == "batch" and len(x) > LARGE)
        with torch.no_grad():
            return self.see(x).logits

    def peek(self, x: Tensor) -> Tensor:
        self.model.train(self.statistics == "batch" and len(x) > LARGE)
        with untracked(self.model):
            return super().peek(x)

    @property
    def notes(self) -> tuple[Note, ...]:
        start = self.begin or "zero up to 100 classes, random above"
        chosen = self.entropy_weight
        weight = "0 up to 10 classes, 5 up to 100, 1 above" if chosen is None else f"{chosen:g}"
        text = f"start: {start}; weight of the loss: {weight} (with 0 the loss is not used)"
        return (*super().notes, Note("tipi", f"{text}; predictions are from after the update"))


def kl(logits: Tensor, other: Tensor) -> Tensor:
    """KL(softmax(logits) || softmax(other)) per sample."""
    log_p = logits.log_softmax(1)
    return (log_p.exp() * (log_p - other.log_softmax(1))).sum(1)


@contextmanager
def untracked(model: nn.Module) -> Iterator[None]:
    """Inside, BatchNorms in ``train()`` leave their running statistics alone."""
    layers = batch_norms(model)
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


def default_entropy_weight(classes: int) -> float:
    """The authors' for CIFAR-10, CIFAR-100 and ImageNet, by the number of classes."""
    return 0.0 if classes <= 10 else 5.0 if classes <= 100 else 1.0

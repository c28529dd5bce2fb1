"""VAT with entropy minimisation (Miyato et al. 2018).

Two faults of common implementations are not followed: the direction is searched with xi = 1e-2 (with 1e-6 it is noise
in float32; give xi=1e-6 for parity), in float32 and by gradients to the input alone; and dropout and drop-path draw the
same noise in every pass, so that only the perturbation differs.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dembench.tasks.semi.methods.base import Batch, SemiMethod, Terms, frozen_statistics, rise, supervised_term


class VAT(SemiMethod):
    """Cross entropy, KL between predictions on an image and on its worst neighbour, and 0.06 times the entropy.

    Unlabelled samples go through the network apart and leave BatchNorm's running statistics alone.

    Args:
        eps: length of the perturbation per image, in normalised pixels.
        xi: length of the probe that finds the direction.
        power_iterations: of the search for it.
        unlabelled_weight: of the KL term, reached linearly over ``ramp`` of the training.
    """

    name = "vat"
    views: ClassVar[tuple[str, ...]] = ("weak",)
    replaces_entropy = True

    def __init__(
        self,
        loss: Any = None,
        *,
        eps: float = 6.0,
        xi: float = 1e-2,
        power_iterations: int = 1,
        unlabelled_weight: float = 1.0,
        ramp: float = 0.4,
        loss_weight: float = 0.06,
        **slot: Any,
    ) -> None:
        super().__init__(loss, loss_weight=loss_weight, **slot)
        if eps <= 0 or xi <= 0 or power_iterations < 1:
            raise ValueError(
                f"vat: expected eps, xi > 0 and power_iterations >= 1, got {eps}, {xi}, {power_iterations}"
            )
        self.check_range(0, 1, ramp=ramp)
        self.check_range(0, math.inf, unlabelled_weight=unlabelled_weight)
        self.eps, self.xi, self.power_iterations = eps, xi, power_iterations
        self.unlabelled_weight, self.ramp = unlabelled_weight, ramp

    def terms(self, model: nn.Module, batch: Batch) -> Terms:
        labelled = model(batch.images).float()
        x = batch.views["weak"]
        seed = int(torch.randint(2**31, ()))
        with frozen_statistics(model):
            with same_noise(seed, x):
                clean = model(x).float()
            p = clean.detach().softmax(1)
            shift = self.eps * self.direction(model, x, p, seed)
            with same_noise(seed, x):
                moved = model(x + shift).float()
        self.watch(clean)
        return {
            **supervised_term(labelled, batch.labels),
            "adversarial": self.unlabelled_weight * rise(batch.progress, self.ramp) * kl(p, moved),
            **self.slot.terms({"weak": clean}, batch.progress),
        }

    def direction(self, model: nn.Module, x: Tensor, p: Tensor, seed: int) -> Tensor:
        """Unit vectors (N, 3, H, W) along which the KL from the prediction ``p`` on ``x`` grows fastest, by power
        iteration; in float32.

        Under autocast the prediction is made anew in float32: beside one of half precision, what the probe changes
        would drown in rounding.
        """
        half = torch.is_autocast_enabled(x.device.type)
        with torch.autocast(x.device.type, enabled=False):
            d = unit(torch.randn_like(x, dtype=torch.float32))
            if half:
                with torch.no_grad(), same_noise(seed, x):
                    p = model(x.float()).float().softmax(1)
            for _ in range(self.power_iterations):
                probe = (self.xi * d).requires_grad_()
                with same_noise(seed, x):
                    divergence = kl(p, model(x.float() + probe).float())
                d = unit(torch.autograd.grad(divergence, probe)[0])
        return d


def kl(p: Tensor, logits: Tensor) -> Tensor:
    """Mean KL(p || softmax(logits)), nats."""
    return F.kl_div(logits.log_softmax(1), p, reduction="batchmean")


def unit(d: Tensor) -> Tensor:
    """Each sample at length 1 over all its pixels, however small it was; zero stays zero."""
    flat = d.flatten(1)
    largest = flat.abs().amax(1, keepdim=True)
    flat = flat / torch.where(largest > 0, largest, 1)  # the squares of small numbers would underflow
    return F.normalize(flat, dim=1, eps=1e-30).view_as(d)


@contextmanager
def same_noise(seed: int, like: Tensor) -> Iterator[None]:
    """Torch's generators, on the CPU and on the device of ``like``, start from ``seed`` and are put back afterwards."""
    with torch.random.fork_rng(devices=[like.device] if like.is_cuda else []):
        torch.manual_seed(seed)
        yield

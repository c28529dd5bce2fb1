"""DeYO (Lee et al. 2024): entropy minimisation on samples whose prediction depends on the shape of the object.

As the authors' code (DeYO 3d7d289), which is given the labels only for its log and is not given them here. The loss
replaces the entropy that is lowered; gates and weights stay on the plain entropy. The occluding square has the place
and size that the authors' has at 224 pixels, in proportion.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, Unpack

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dembench.core.adapt import Loss
from dembench.lookup import lookup
from dembench.tasks.tta.methods.base import Common, EntropyMethod, Optimizer
from dembench.tasks.tta.methods.freeze import Freeze


class DeYO(EntropyMethod):
    """Lowers the loss of samples with H < tau and PLPD > plpd, weighted by exp(E0 - H) + exp(PLPD).

    PLPD, the pseudo-label probability difference, is p_k(x) - p_k(x'), k = argmax p(x), with x' the image destroyed.
    The images that pass the first gate are destroyed and go through the model as a batch of their own, whose BatchNorm
    statistics are part of the method; the host waits for their number, once a batch.

    Args:
        margin: tau as a multiple of ln C; None leaves out the first gate.
        weight_margin: E0 as a multiple of ln C.
        plpd: threshold of the second gate; the authors' scripts have 0.3 for ResNet-50 with BatchNorm, 0.2 for
            GroupNorm and ViT, 0.5 for spurious correlations; mariodoebler has 0.2.
        destroy: "patch" permutes patches x patches tiles for each image, "pixel" permutes all pixels, for the whole
            batch alike, "occ" covers the central square with the image's mean.
        weigh_entropy, weigh_plpd: whether a term of the weight is in; with neither, the weight is 1.
        freeze: normalisation layers at the top that do not adapt, see ``frozen_layers``.
        optimizer, lr: the paper has momentum, 2.5e-4 for ResNet-50 and 1e-3 for ViT-B, batches of 64.
    The other arguments and errors are those of ``EntropyMethod``.
    """

    norms = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
    needs_images = True
    stops_gradient = True

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        margin: float | None = 0.5,
        weight_margin: float = 0.4,
        plpd: float = 0.3,
        destroy: Literal["patch", "pixel", "occ"] = "patch",
        patches: int = 4,
        weigh_entropy: bool = True,
        weigh_plpd: bool = True,
        freeze: Freeze = "depth",
        optimizer: Optimizer = "momentum",
        lr: float = 2.5e-4,
        **common: Unpack[Common],
    ):
        lookup(destroy, DESTROYERS, "deyo destroy")
        if patches < 1:
            raise ValueError(f"deyo: expected patches >= 1, got {patches}")
        self.margin, self.weight_margin, self.plpd = margin, weight_margin, plpd
        self.weigh_entropy, self.weigh_plpd = weigh_entropy, weigh_plpd
        self.destroy = partial(patch, tiles=patches) if destroy == "patch" else DESTROYERS[destroy]
        super().__init__(model, loss, freeze=freeze, optimizer=optimizer, lr=lr, **common)

    def adapt(self, x: Tensor) -> Tensor:
        seen = self.see(x)
        scale = math.log(seen.logits.shape[1])
        sure = torch.isfinite(seen.entropy) if self.margin is None else seen.entropy < self.margin * scale
        if seen.keep is not None:
            sure = sure & seen.keep
        plpd = self.difference(x, seen.logits.detach().softmax(1), sure)
        selected = sure & (plpd > self.plpd)
        by_entropy = (self.weight_margin * scale - seen.entropy).exp() if self.weigh_entropy else 0
        by_plpd = plpd.exp() if self.weigh_plpd else 0
        weighs = self.weigh_entropy or self.weigh_plpd
        self.learn(seen, selected, weight=by_entropy + by_plpd if weighs else None)
        return seen.logits

    @torch.no_grad()
    def difference(self, x: Tensor, p: Tensor, sure: Tensor) -> Tensor:
        """PLPD (N,); 0 for samples that are not shown again."""
        plpd = p.new_zeros(len(p))
        again = sure.nonzero()[:, 0]
        if len(again):
            other = self.forward(self.destroy(x[again], self.generator)).softmax(1)
            plpd[again] = (p[again] - other).gather(1, p[again].argmax(1, keepdim=True))[:, 0]
        return plpd


def patch(x: Tensor, generator: Generator, tiles: int = 4) -> Tensor:
    """Tiles of each image in an order of its own; a size that tiles do not divide is resized to one and back."""
    size = list(x.shape[2:])
    fit = [side // tiles * tiles for side in size]
    if fit != size:
        x = F.interpolate(x, fit, mode="bilinear", antialias=True)
    n, c, height, width = x.shape
    grid = x.view(n, c, tiles, height // tiles, tiles, width // tiles).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    order = torch.rand(n, tiles**2, generator=generator, device=x.device).argsort(1)
    grid = grid[torch.arange(n, device=x.device)[:, None], order].unflatten(1, (tiles, tiles))
    x = grid.permute(0, 3, 1, 4, 2, 5).reshape(n, c, height, width)
    return x if fit == size else F.interpolate(x, size, mode="bilinear", antialias=True)


def pixel(x: Tensor, generator: Generator) -> Tensor:
    """The pixels in another order, one for the whole batch."""
    order = torch.randperm(x.shape[2] * x.shape[3], generator=generator, device=x.device)
    return x.flatten(2)[:, :, order].unflatten(2, x.shape[2:])


def occ(x: Tensor, generator: Generator) -> Tensor:
    """The central square of half the side in the mean colour of the image."""
    (top, left), (height, width) = (tuple(side // part for side in x.shape[2:]) for part in (4, 2))
    covered = x.clone()
    covered[:, :, top : top + height, left : left + width] = x.mean((2, 3), keepdim=True)
    return covered


DESTROYERS: dict[str, Callable[[Tensor, Generator], Tensor]] = {"patch": patch, "pixel": pixel, "occ": occ}

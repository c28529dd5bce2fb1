"""FDA: source images take the target's style by its low frequencies (Yang and Soatto, FDA, CVPR 2020, eq. 3-7).

A step, on a pair of a source and a target image:

1. The amplitudes of the source's lowest frequencies become those of the target; its phases stay (``swap``).
2. Cross entropy on this image with the source's labels.
3. Plus ``weight`` times the penalty rho(H) of the target's entropy, which presses uncertain pixels more (``Robust``).

The paper's rounds of pseudo labels from three networks, which come after this training, are left out.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from mmengine.structures import PixelData
from torch import Tensor, nn

from dembench.core import functional
from dembench.tasks.common.devices import send
from dembench.tasks.segmentation.methods.base import Data, Values
from dembench.tasks.segmentation.methods.min_ent import MinEnt

EPSILON = 1e-8  # beside the squared entropy, as in the authors' code; the paper's text has 0.001 squared


class FDA(MinEnt):
    """Cross entropy on source images in the target's style, plus a penalised loss on target pixels.

    Args:
        loss: logits (N, C, H, W) to a loss per pixel; ``EM`` is the published one, None leaves out the target's pass.
        beta: half the side of the swapped window of frequencies, as a share of the image's shorter side; 0 swaps none.
        eta: exponent of the penalty, see ``Robust``; 0.5 is nearly no penalty.
        weight, aux_weight, resolution, ramp: see ``EntropyTerm``.
    Raises: ValueError for beta < 0 or >= 0.5 and eta <= 0; in a step, for a beta that is less than one frequency.
    """

    name = "fda"
    repeated_in = ("FDA", "fda")

    def __init__(
        self,
        loss: Any = None,
        *,
        beta: float = 0.09,
        eta: float = 2.0,
        weight: float = 0.005,
        aux_weight: float = 0.0,
        resolution: Literal["full", "logit"] = "logit",
        ramp: float = 0.0,
        **settings: Any,
    ):
        if not 0 <= beta < 0.5 or eta <= 0:
            raise ValueError(f"fda: expected beta from 0 to below 0.5 and eta > 0, got {beta} and {eta}")
        robust = None if loss is None else Robust(loss, eta)
        super().__init__(
            robust, weight=weight, aux_weight=aux_weight, unit="nats", resolution=resolution, ramp=ramp, **settings
        )
        self.beta = beta

    def gradients(self, data: Data) -> Values:
        return super().gradients({**data, "source": self.in_style(data["source"], data["target"])})

    def in_style(self, source: Data, target: Data) -> dict[str, Any]:
        """The source's batch with each image in the style of the target's image in the same place.

        Of two sizes the common part is used, cut out at random, as the authors cut their source images.
        """
        weight = next(self.network.parameters())
        images, styles = send((tuple(source["inputs"]), tuple(target["inputs"])), weight.device)
        found: dict[str, Any] = {"inputs": [], "data_samples": []}
        for image, style, sample in zip(images, styles, source["data_samples"], strict=True):
            size = [min(sides) for sides in zip(image.shape[1:], style.shape[1:], strict=True)]
            here, there = cut(image, size), cut(style, size)
            swapped = swap(image[here].to(weight.dtype), style[there].to(weight.dtype), self.beta)
            part = sample.new()
            part.gt_sem_seg = PixelData(data=sample.gt_sem_seg.data[here])
            found["inputs"].append(swapped)
            found["data_samples"].append(part)
        return found


class Robust(nn.Module):
    """The penalty rho(x) = (x^2 + 1e-8)^eta of the entropy x = H / log C of each pixel, with a loss in the place of H.

    Its value is the published penalty's. Its gradient is rho'(x) times the loss's, divided by log C; with ``EM`` it is
    the published penalty's, too. The loss sets the direction, the entropy how much a pixel counts. So a loss may have
    any value and sign: rho is even, and would turn a negative one around.

    Args:
        loss: logits (N, C, ...) and a mask to a loss (N, ...) in nats.
        eta: the more above 0.5, the less pixels count that are nearly certain.
    Source: FDA, eq. 6; the division and 1e-8 are the authors' code's.
    """

    def __init__(self, loss: Any, eta: float):
        super().__init__()
        self.loss, self.eta = loss, eta

    def forward(self, logits: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, C, ...) to (N, ...), 0 where the mask is False."""
        unit = math.log(logits.shape[1])
        x = functional.em(logits.detach(), mask=mask) / unit
        square = x**2 + EPSILON
        slope = 2 * self.eta * x * square ** (self.eta - 1)
        loss = (self.loss(logits) if mask is None else self.loss(logits, mask)) / unit
        value = square**self.eta + slope * (loss - loss.detach())
        return value if mask is None else value.masked_fill(~mask, 0)


def swap(source: Tensor, target: Tensor, beta: float) -> Tensor:
    """The source image with the amplitudes of the target's lowest frequencies, and phases of its own.

    Args:
        source, target: (..., H, W) float, of one size, any unit; before their means are taken off.
        beta: amplitudes change at frequencies from -b up to b - 1 along both axes, b = floor(beta min(H, W)).
    Returns: the shape of ``source``; values may leave the range of an image, and are not rounded.
    Raises: ValueError where beta > 0 and b is 0.
    Source: FDA, eq. 3; the window is that of ``FDA_source_to_target``, which reads half of the spectrum.
    """
    h, w = source.shape[-2:]
    b = int(beta * min(h, w))
    if b == 0:
        if beta > 0:
            raise ValueError(f"fda: beta {beta} of {min(h, w)} pixels is less than one frequency; nothing would change")
        return source
    own, other = torch.fft.rfft2(source), torch.fft.rfft2(target)
    amplitude = own.abs()
    for rows in (slice(0, b), slice(h - b, h)):
        amplitude[..., rows, :b] = other[..., rows, :b].abs()
    return torch.fft.irfft2(torch.polar(amplitude, own.angle()), s=(h, w))


def cut(image: Tensor, size: list[int]) -> tuple[slice, ...]:
    """Index of a part (H, W) of an image (..., H', W') at a place drawn from torch's generator."""
    starts = [int(torch.randint(max(have - take, 1), ())) for have, take in zip(image.shape[1:], size, strict=True)]
    return (..., *(slice(start, start + take) for start, take in zip(starts, size, strict=True)))

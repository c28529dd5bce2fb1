"""The random augmentation of a whole batch that CoTTA, RoTTA, ROID and CMF share, and how a batch is drawn one.

It is that of CoTTA's code, after KATANA (Cohen et al. 2021): one draw for all images of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Generator, Tensor
from torchvision.transforms import functional as F
from torchvision.transforms import v2

COLOURS = (
    (F.adjust_brightness, 0.6, 1.4),
    (F.adjust_contrast, 0.7, 1.3),
    (F.adjust_saturation, 0.5, 1.5),
    (F.adjust_hue, -0.06, 0.06),
    (lambda x, gamma: F.adjust_gamma(x.clamp(1e-8, 1), gamma), 0.7, 1.3),
)


def jittered(x: Tensor, *, padding: str = "edge", blur: bool = True) -> Tensor:
    """A batch (N, 3, H, W) in [0, 1] with other colours, moved, turned, scaled and perhaps mirrored.

    Args:
        padding: how the images go on beyond their border, "edge" or "reflect".
        blur: also blurs, and adds Gaussian noise of standard deviation 0.005.
    Drawn from torch's global generator of the CPU.
    """
    height, width = x.shape[2:]
    x = x.clamp(0, 1)
    for number in torch.randperm(len(COLOURS)).tolist():
        change, low, high = COLOURS[number]
        x = change(x, torch.tensor(1.0).uniform_(low, high).item())
    geometric = [
        v2.Pad([width // 2, height // 2], padding_mode=padding),
        v2.RandomAffine(
            [-15, 15], translate=(1 / 16, 1 / 16), scale=(0.9, 1.1), interpolation=F.InterpolationMode.BILINEAR
        ),
        *([v2.GaussianBlur(5, sigma=(0.001, 0.5))] if blur else []),
        v2.CenterCrop([height, width]),
        v2.RandomHorizontalFlip(),
    ]
    for transform in geometric:
        x = transform(x)
    if blur:
        x = x + 0.005 * torch.randn(x.shape).to(x)
    return x.clamp(0, 1)


@contextmanager
def drawing_from(generator: Generator) -> Iterator[None]:
    """Inside, torch's global generator of the CPU draws what follows from a generator, which moves by one number."""
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        yield


@torch.no_grad()
def follow(own: Sequence[Tensor], other: Sequence[Tensor], momentum: float) -> None:
    """own = momentum * own + (1 - momentum) * other, in place."""
    torch._foreach_mul_(list(own), momentum)
    torch._foreach_add_(list(own), list(other), alpha=1 - momentum)

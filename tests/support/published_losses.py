"""The published formulas as they stand, in float64 and autograd, with a Python loop over the classes present."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ABLATIONS = [
    {},
    {"norm": False},
    {"mec": False},
    {"norm": False, "mec": False},
    {"norm_of": "em"},
    {"norm_type": 2},
    {"norm_type": math.inf},
    {"norm_of": "em", "mec": False},
    {"alpha": 0.5},
    {"alpha": 0.0},
    {"momentum": 1.0},
    {"momentum": 0.01},
]


def samples(z: Tensor) -> Tensor:
    """(N, C, ...) as (M, C)."""
    return z.movedim(1, -1).reshape(-1, z.shape[1])


def entropy(z: Tensor) -> Tensor:
    z = samples(z)
    p = z.softmax(1)
    return -(p * z.log_softmax(1)).sum(1)


def dem(z: Tensor, tau: float, alpha: float) -> Tensor:
    z = samples(z)
    return -((z / tau).softmax(1) * z).sum(1) + alpha * z.logsumexp(1)


def step(table: Tensor, z: Tensor, momentum: float, mask: Tensor | None = None) -> Tensor:
    """The calibrator after one batch."""
    z = samples(z.detach())
    p, k = z.softmax(1), z.argmax(1)
    counts = torch.ones(len(z), dtype=torch.bool) if mask is None else mask.reshape(-1)
    table = table.clone()
    for label in k[counts].unique():
        table[label] = (1 - momentum) * table[label] + momentum * p[counts & (k == label)].mean(0)
    return table


def adadem(
    z: Tensor,
    table: Tensor,
    *,
    norm: bool = True,
    norm_type: float = 1,
    norm_of: str = "cadf",
    mec: bool = True,
    alpha: float = 1.0,
) -> Tensor:
    z = samples(z)
    p, log_p = z.softmax(1), z.log_softmax(1)
    if norm_of == "cadf":
        (reward,) = torch.autograd.grad((p * z).sum(), z, retain_graph=True)
    else:
        (reward,) = torch.autograd.grad((p * log_p).sum(), z, retain_graph=True)
    delta = torch.linalg.vector_norm(reward, norm_type, dim=1).detach()
    if norm_of == "em":
        delta = delta.clamp(min=1e-4)
    if not norm:
        delta = torch.ones_like(delta)
    calibrator = alpha * table[z.argmax(1)] if mec else p.detach()
    return -((p - calibrator) * z).sum(1) / delta


def gradient(loss: Tensor, z: Tensor, weights: Tensor) -> Tensor:
    return torch.autograd.grad((loss * weights).sum(), z)[0]


def worst(got: Tensor, expected: Tensor) -> float:
    """Largest deviation relative to the largest magnitude expected, or to 0.01 where all of it cancels to nearly 0."""
    if got.numel() == 0:
        return 0.0
    deviation = (got.double() - expected.double()).abs().max().item()
    assert math.isfinite(deviation)
    return deviation / max(expected.abs().max().item(), 0.01)

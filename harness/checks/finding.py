"""Findings, and what several checks share: small batches, gradients against finite differences, devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dembench.harness.errors import one_line

CLASSES = 5
STEP = 1e-6  # of the finite differences
PLACES = 20  # of a tensor, evenly spread, at which they are taken
CLOSE = 1e-5  # largest share of the gradient's size by which they may differ


@dataclass(frozen=True)
class Finding:
    """What was looked at, and what is wrong with it; ``problem`` is empty where nothing is. One that was not looked at
    says why in ``skipped``."""

    what: str
    problem: str = ""
    skipped: str = ""


class Wrong(Exception):
    """A check that failed; the message says with what."""


class Skipped(Exception):
    """A check that cannot be made here, or need not be."""


Checks = Iterator[tuple[str, Callable[[], None]]]


def findings(checks: Checks) -> Iterator[Finding]:
    """Makes checks one after the other; what raises has failed."""
    for what, check in checks:
        try:
            check()
        except Skipped as error:
            yield Finding(what, skipped=str(error))
        except Wrong as error:
            yield Finding(what, str(error))
        except Exception as error:
            yield Finding(what, f"it raised {type(error).__name__}: {one_line(error)}")
        else:
            yield Finding(what)


def images(n: int, size: int = 12, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.rand(n, 3, size, size, generator=generator)


def slope_of(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    (slope,) = torch.autograd.grad(function(x), x, allow_unused=True)
    if slope is None:
        raise Wrong("the value does not depend on it: no gradient arrives")
    return slope


@torch.no_grad()
def compare(found: Tensor, function: Callable[[Tensor], float], x: Tensor, hint: str, close: float = CLOSE) -> None:
    """A gradient against central differences of the function."""
    flat = x.detach().flatten()
    places = range(0, len(flat), -(-len(flat) // PLACES))
    differences = flat.new_empty(len(places))
    for number, place in enumerate(places):
        ends = []
        for step in (STEP, -STEP):
            moved = flat.clone()
            moved[place] += step
            ends.append(function(moved.view(x.shape)))
        differences[number] = (ends[0] - ends[1]) / (2 * STEP)
    off = float((found.flatten()[list(places)] - differences).abs().max())
    size = float(differences.abs().max())
    if not math.isfinite(off) or off > close * max(size, 1e-3):
        raise Wrong(f"off by {off:.2g} of a slope of {size:.2g} by finite differences{hint}")


def no_loose_tensors(module: nn.Module) -> None:
    """No attribute is a plain tensor: ``.to()`` and the state dict pass those by."""
    for name, part in module.named_modules():
        for key, value in vars(part).items():
            if isinstance(value, Tensor):
                place = f"{name}.{key}" if name else key
                raise Wrong(f"{place} is a plain tensor, which .to(device) leaves behind; register it as a buffer")


def on_gpu(use: Callable[[torch.device], Any]) -> None:
    """Tries it on a CUDA device; Skipped where there is none."""
    if not torch.cuda.is_available():
        raise Skipped("no CUDA device here to try it on")
    use(torch.device("cuda"))

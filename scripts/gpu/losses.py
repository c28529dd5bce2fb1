"""The losses of core on a device, eager, by Triton and compiled, beside the textbook entropy and a copy."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from dembench.core import DEM, EM, AdaDEM, _kernels
from dembench.scripts.gpu.rows import Rows
from dembench.scripts.gpu.timing import median_ms

SHAPES = [(65536, 1000), (8, 19, 512, 1024), (4096, 1000), (64, 10)]
TINY = [(8, 10), (2, 3, 4, 4)]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CACHE = 64 * 2**20  # bytes, more than the L2 of an H100 or H200
INPUTS = 32  # at most, by turns; fewer where they fill three caches
Loss = Callable[[Tensor], Tensor]
Form = Callable[[Loss], Loss]


def textbook(z: Tensor) -> Tensor:
    """The entropy as most write it."""
    return -(z.softmax(1) * z.log_softmax(1)).sum(1)


def textbook_exp(z: Tensor) -> Tensor:
    """The other usual way: one softmax only."""
    log_p = z.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


TEXTBOOKS: dict[str, Loss] = {"textbook": textbook, "textbook, exp": textbook_exp}


def losses(classes: int, device: str) -> dict[str, Loss]:
    """Those of core by name."""
    return {
        "EM": EM(),
        "DEM": DEM(1.2, 0.8),
        "AdaDEM": AdaDEM(classes).to(device),
    }


def run(rows: Rows, device: str, tiny: bool) -> None:
    """Forward and backward of the sum over positions; every figure is the median of many calls.

    Columns: ms; x textbook (the faster of the two, eager); of copy: the time of a plain copy of the logits over that of
    the loss, which is the share of copy bandwidth reached if the logits are read once and their gradient written once.
    """
    shapes, seconds = (TINY, 0.02) if tiny else (SHAPES, 0.3)
    base: dict[tuple[str, tuple[int, ...]], tuple[float, float]] = {}
    for dtype in DTYPES:
        for shape in shapes:
            with patch.object(_kernels, "TRITON", ()):
                base[dtype, shape] = _eager(rows, shape, dtype, device, seconds)
    forms: dict[str, Form] = {
        "compiled": partial(torch.compile, dynamic=False, backend="eager" if tiny else "inductor")
    }
    if device == "cuda":
        forms = {"Triton": lambda loss: loss, **forms}
    for form, make in forms.items():
        for shape in shapes[:1] if tiny else shapes:
            for dtype in DTYPES:
                for name in ("AdaDEM", "DEM", "EM", *(["textbook, exp"] if form == "compiled" else [])):
                    found = _form(form, make, name, shape, dtype, device, seconds, base[dtype, shape])
                    rows.add(_title(dtype), shape=str(shape), loss=f"{name}, {form}", **found)


def _eager(rows: Rows, shape: tuple[int, ...], dtype: str, device: str, seconds: float) -> tuple[float, float]:
    """Returns: ms of the faster textbook and of a copy."""
    inputs = _inputs(shape, DTYPES[dtype], device)
    pairs = [(torch.empty_like(z, requires_grad=False), z.detach()) for z in inputs]
    copy = median_ms([lambda to=to, z=z: to.copy_(z) for to, z in pairs], device, seconds)
    size = 2 * inputs[0].numel() * inputs[0].element_size()
    rows.add(_title(dtype), shape=str(shape), loss="copy", ms=copy, **{"GB/s": size / copy / 1e6})

    def timed(loss: Loss) -> float:
        return median_ms([_step(loss, z) for z in inputs], device, seconds)

    textbooks = {name: timed(loss) for name, loss in TEXTBOOKS.items()}
    best = min(textbooks.values())
    for name, ms in textbooks.items():
        rows.add(_title(dtype), shape=str(shape), loss=name, **_figures(ms, best, copy, size))
    for name, loss in losses(shape[1], device).items():
        rows.add(_title(dtype), shape=str(shape), loss=name, **_figures(timed(loss), best, copy, size))
    return best, copy


def _form(
    form: str,
    make: Form,
    name: str,
    shape: tuple[int, ...],
    dtype: str,
    device: str,
    seconds: float,
    base: tuple[float, float],
) -> dict[str, Any]:
    """Figures of a loss in another form; an error is one of them, so that the others go on."""
    torch._dynamo.reset()
    counters.clear()
    inputs = _inputs(shape, DTYPES[dtype], device)
    loss = make({**TEXTBOOKS, **losses(shape[1], device)}[name])
    try:
        with patch.object(_kernels, "TRITON", ("cuda",) if form == "Triton" else ()):
            if form == "Triton" and _kernels.fused(inputs[0].detach()) is None:
                return {"error": "its kernels do not take these logits"}
            start = time.perf_counter()
            _step(loss, inputs[0])()
            first = time.perf_counter() - start
            ms = median_ms([_step(loss, z) for z in inputs], device, seconds)
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    size = 2 * inputs[0].numel() * inputs[0].element_size()
    breaks = {"graph breaks": sum(counters["graph_break"].values())} if form == "compiled" else {}
    return {**_figures(ms, *base, size), "first call s": first, **breaks}


def _title(dtype: str) -> str:
    return f"losses, forward + backward, {dtype} (least bytes: logits read once, gradient written once)"


def _figures(ms: float, textbook_ms: float, copy_ms: float, size: int) -> dict[str, float]:
    return {"ms": ms, "GB/s": size / ms / 1e6, "x textbook": ms / textbook_ms, "of copy": copy_ms / ms}


def _step(loss: Loss, z: Tensor) -> Callable[[], None]:
    def call() -> None:
        z.grad = None
        loss(z).sum().backward()

    return call


def _inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> list[Tensor]:
    """Logits of spread 3, so many that going through them passes three times the size of the cache."""
    generator = torch.Generator(device).manual_seed(0)
    first = torch.empty(shape, dtype=dtype, device=device)
    count = min(INPUTS, 1 + 3 * CACHE // (first.numel() * first.element_size())) if device == "cuda" else 2
    return [
        torch.randn(shape, dtype=dtype, device=device, generator=generator).mul_(3).requires_grad_()
        for _ in range(max(2, count))
    ]

"""The losses of core, forward and backward, next to the textbook entropy: ``dembench bench loss``."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dembench.core import DEM, EM, AdaDEM
from dembench.core.functional import uniform_table
from dembench.scripts.bench.timing import best_times, peak_bytes, size_text, time_text

HELP = "the losses of core, forward and backward"
MANY_THREADS = True  # takes --threads 1,2,4
SHAPES = [(64, 10), (64, 1000), (4096, 1000), (8, 19, 128, 256), (2, 19, 512, 1024)]
THREAD_SHAPES = [(64, 10), (64, 1000), (4096, 1000), (2, 19, 512, 1024)]
Loss = Callable[[Tensor], Tensor]


def textbook_entropy(z: Tensor) -> Tensor:
    """The entropy as everybody writes it, differentiated by autograd."""
    return -(z.softmax(1) * z.log_softmax(1)).sum(1)


def textbook_by_exp(z: Tensor) -> Tensor:
    """The other usual way, with one softmax less."""
    log_p = z.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


class LiteralAdaDEM:
    """AdaDEM as the paper states it: autograd for the value, a loop over the classes present for the table."""

    def __init__(self, classes: int, like: Tensor):
        self.table = uniform_table(classes, device=like.device, dtype=like.dtype)

    def __call__(self, z: Tensor) -> Tensor:
        z = z.movedim(1, -1).reshape(-1, z.shape[1])
        p, k = z.softmax(1), z.argmax(1)
        with torch.no_grad():
            for label in k.unique():
                self.table[label] = 0.9 * self.table[label] + 0.1 * p[k == label].mean(0)
        reward = (p * (z - (p * z).sum(1, keepdim=True) + 1)).detach()
        return -((p - self.table[k]) * z).sum(1) / reward.abs().sum(1)


@dataclass(frozen=True)
class Measurement:
    """Forward and backward of one loss at one shape."""

    device: str
    shape: tuple[int, ...]
    loss: str
    seconds: float  # the best of many
    ratio: float  # to the textbook entropy, the faster of two ways of writing it, same run
    bytes: int  # the least that must be moved: the logits read once, their gradient written once
    copies: float  # the time, in times of a plain copy of that many bytes
    peak_bytes: int  # beyond the logits and their gradient


def measure(shape: tuple[int, ...], device: str, seconds: float, literal: bool = True) -> list[Measurement]:
    """Times all losses by turns, so that a busy machine slows all of them alike.

    Args:
        shape: of float32 logits, classes on axis 1.
        device: "cpu" or "cuda".
        seconds: of measuring for each loss.
        literal: also the literal transcription, which is slow, after the others.
    """
    z = (3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(device).requires_grad_()
    losses: dict[str, Loss] = {
        "textbook entropy": textbook_entropy,
        "EM": EM(),
        "DEM(1.2, 0.8)": DEM(1.2, 0.8),
        "AdaDEM": AdaDEM(shape[1]).to(device),
    }
    if literal:
        losses["AdaDEM, literal"] = LiteralAdaDEM(shape[1], z.detach())
    calls = {name: _forward_backward(loss, z) for name, loss in losses.items()}
    source, target = torch.rand_like(z, requires_grad=False), torch.empty_like(z, requires_grad=False)
    turns = {name: call for name, call in calls.items() if name != "AdaDEM, literal"}
    turns["copy"] = lambda: target.copy_(source)
    best = _with_faster_textbook(best_times(_with_both_textbooks(turns, z), device, seconds))
    if literal:  # apart from the others, whose caches it would empty
        best |= best_times({"AdaDEM, literal": calls["AdaDEM, literal"]}, device, seconds)
    return [
        Measurement(
            device,
            shape,
            name,
            best[name],
            best[name] / best["textbook entropy"],
            2 * z.numel() * z.element_size(),
            best[name] / best["copy"],
            _peak(calls[name], z, device),
        )
        for name in losses
    ]


def _forward_backward(loss: Loss, z: Tensor) -> Callable[[], object]:
    def call() -> None:
        z.grad = None
        loss(z).sum().backward()

    return call


def _with_both_textbooks(calls: dict[str, Callable[[], object]], z: Tensor) -> dict[str, Callable[[], object]]:
    return calls | {"textbook, by exp": _forward_backward(textbook_by_exp, z)}


def _with_faster_textbook(best: dict[str, float]) -> dict[str, float]:
    return best | {"textbook entropy": min(best["textbook entropy"], best.pop("textbook, by exp"))}


def _peak(call: Callable[[], object], z: Tensor, device: str) -> int:
    """Most bytes that were allocated at once during a call, less those of the gradient."""
    z.grad = None
    return max(0, peak_bytes(call, device) - z.numel() * z.element_size())


def show(results: list[Measurement], console: Console) -> None:
    """One table a device and shape."""
    for key in dict.fromkeys((m.device, m.shape) for m in results):
        least = next(m.bytes for m in results if (m.device, m.shape) == key)
        title = f"{key[1]} float32 on {key[0]}, forward + backward; at least {size_text(least)} to move"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        for column in ("loss", "time", "x textbook", "x copy", "extra peak"):
            table.add_column(column, justify="left" if column == "loss" else "right", no_wrap=True)
        for m in results:
            if (m.device, m.shape) == key:
                table.add_row(
                    m.loss, time_text(m.seconds), f"{m.ratio:.2f}", f"{m.copies:.1f}", size_text(m.peak_bytes)
                )
        console.print(table)


def over_threads(shape: tuple[int, ...], numbers: Sequence[int], seconds: float) -> list[dict[str, Any]]:
    """Times the losses on the CPU with each number of threads, all by turns.

    Args:
        shape: of float32 logits, classes on axis 1.
        numbers: of threads, each at least 1.
        seconds: of measuring for each loss and number.
    Returns: a row {"shape", "threads", "loss", "seconds", "ratio"} for each loss and number; the ratio is to the
        textbook entropy with as many threads, the faster of the two ways of writing it.
    """
    z = (3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).requires_grad_()
    losses: dict[str, Loss] = {
        "textbook entropy": textbook_entropy,
        "EM": EM(),
        "DEM(1.2, 0.8)": DEM(1.2, 0.8),
        "AdaDEM": AdaDEM(shape[1]),
    }
    rows = []
    for number in numbers:
        torch.set_num_threads(number)
        calls = {name: _forward_backward(loss, z) for name, loss in losses.items()}
        best = _with_faster_textbook(best_times(_with_both_textbooks(calls, z), "cpu", seconds))
        rows += [
            {"shape": shape, "threads": number, "loss": name, "seconds": time, "ratio": time / best["textbook entropy"]}
            for name, time in best.items()
        ]
    return rows


def show_threads(rows: list[dict[str, Any]], console: Console) -> None:
    """A table for each number of threads: the textbook's time at each shape, the losses' in times of it."""
    for number in dict.fromkeys(row["threads"] for row in rows):
        here = [row for row in rows if row["threads"] == number]
        title = f"float32 on cpu, forward + backward, {number} thread{'s' * (number > 1)}; losses in x textbook"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        losses = list(dict.fromkeys(row["loss"] for row in here))
        for column in ("logits", *losses):
            table.add_column(column, justify="left" if column == "logits" else "right", no_wrap=True)
        for shape in dict.fromkeys(row["shape"] for row in here):
            textbook, *others = [row for row in here if row["shape"] == shape]
            table.add_row(str(shape), time_text(textbook["seconds"]), *(f"{row['ratio']:.2f}" for row in others))
        console.print(table)
    console.print(
        "The textbook entropy is the faster of the two usual ways of writing it, with as many threads, same run."
    )


def add_arguments(parser: ArgumentParser) -> None:
    """None of its own."""


def run(options: Namespace, console: Console) -> dict[str, Any]:
    if len(options.threads) > 1:
        rows = [row for shape in THREAD_SHAPES for row in over_threads(shape, options.threads, options.seconds)]
        show_threads(rows, console)
        return {"results": rows}
    results: list[Measurement] = []
    for device in options.devices:
        for shape in SHAPES:
            found = measure(shape, device, options.seconds)
            show(found, console)
            results += found
    console.print(
        "x textbook: time against the textbook entropy, the faster of two ways of writing it, same run.\n"
        "x copy: against a plain copy of the least bytes.\n"
        "extra peak: memory held at most beside the logits and their gradient."
    )
    return {"results": [asdict(m) for m in results]}

"""Speed, as ratios inside one run: ``dembench bench loss``."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from core import DEM, EM, AdaDEM
from core.functional import uniform_table
from scripts.cli import Parser

SHAPES = [(64, 10), (64, 1000), (4096, 1000), (8, 19, 128, 256), (2, 19, 512, 1024)]
Loss = Callable[[Tensor], Tensor]


def textbook_entropy(z: Tensor) -> Tensor:
    """The entropy as everybody writes it, differentiated by autograd."""
    return -(z.softmax(1) * z.log_softmax(1)).sum(1)


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
    ratio: float  # to the textbook entropy, same run
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
    best = _best(turns, device, seconds)
    if literal:  # apart from the others, whose caches it would empty
        best |= _best({"AdaDEM, literal": calls["AdaDEM, literal"]}, device, seconds)
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


def _best(calls: dict[str, Callable[[], object]], device: str, seconds: float) -> dict[str, float]:
    """The best time of each call, made by turns for ``seconds`` each, and twice at least."""
    for call in calls.values():
        call()
    best = {name: _time(call, device) for name, call in calls.items()}
    end = time.perf_counter() + seconds * len(calls)
    while time.perf_counter() < end:
        for name, call in calls.items():
            best[name] = min(best[name], _time(call, device))
    return best


def _forward_backward(loss: Loss, z: Tensor) -> Callable[[], object]:
    def call() -> None:
        z.grad = None
        loss(z).sum().backward()

    return call


def _time(call: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _peak(call: Callable[[], object], z: Tensor, device: str) -> int:
    """Most bytes that were allocated at once during a call, less those of the gradient."""
    z.grad = None
    gradient = z.numel() * z.element_size()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return max(0, torch.cuda.max_memory_allocated() - before - gradient)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    held = most = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return max(0, most - gradient)


def show(results: list[Measurement], console: Console) -> None:
    """One table a device and shape."""
    for key in dict.fromkeys((m.device, m.shape) for m in results):
        least = next(m.bytes for m in results if (m.device, m.shape) == key)
        title = f"{key[1]} float32 on {key[0]}, forward + backward; at least {_size(least)} to move"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        for column in ("loss", "time", "x textbook", "x copy", "extra peak"):
            table.add_column(column, justify="left" if column == "loss" else "right", no_wrap=True)
        for m in results:
            if (m.device, m.shape) == key:
                time_text = f"{m.seconds * 1e6:.0f} µs" if m.seconds < 1e-2 else f"{m.seconds * 1e3:.1f} ms"
                table.add_row(m.loss, time_text, f"{m.ratio:.2f}", f"{m.copies:.1f}", _size(m.peak_bytes))
        console.print(table)


def _size(count: float) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def main(argv: list[str] | None = None) -> int:
    parser = Parser("dembench bench", description="Measure speed; every figure is a ratio inside one run.")
    parser.add_argument("what", choices=["loss"], help="loss: the losses of core, forward and backward")
    parser.add_argument("--device", choices=["cpu", "cuda"], action="append", help="default: cpu, and cuda if there")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU (default 1)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of measuring each loss at each shape (default 1)")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args(argv)
    devices = options.device or ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    if "cuda" in devices and not torch.cuda.is_available():
        print("dembench bench: --device cuda: PyTorch finds no CUDA device here", file=sys.stderr)
        return 2
    for wrong, message in (
        (options.threads < 1, f"--threads: expected at least 1, got {options.threads}"),
        (not 0 < options.seconds < 3600, f"--seconds: expected more than 0 and less than 3600, got {options.seconds}"),
        (
            options.json and not options.json.parent.is_dir(),
            f"--json: no folder {options.json and options.json.parent}",
        ),
    ):
        if wrong:
            print(f"dembench bench: {message}", file=sys.stderr)
            return 2
    torch.set_num_threads(options.threads)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler counts bytes here, and need not say so
    results: list[Measurement] = []
    console = Console()
    for device in devices:
        for shape in SHAPES:
            found = measure(shape, device, options.seconds)
            show(found, console)
            results += found
    console.print(
        "x textbook: time against the textbook entropy, same run. x copy: against a plain copy of the least bytes.\n"
        "extra peak: memory held at most beside the logits and their gradient."
    )
    if options.json:
        record = {"torch": torch.__version__, "threads": options.threads, "results": [asdict(m) for m in results]}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What the loss term of a segmentation step costs: against a textbook entropy, against the step, and in memory."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from dembench.core import DEM, EM, AdaDEM
from dembench.scripts.bench.loss import textbook_entropy
from dembench.scripts.bench.timing import best_times, peak_bytes, size_text, time_text

HELP = "the loss term of segmentation, alone and in a training step"
CLASSES = 19
LOGITS = (2, CLASSES, 512, 1024)
DEPTHS = {"cpu": 18, "cuda": 101}  # of the ResNet below DeepLab-V2


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--logits", type=int, nargs=3, default=[2, 512, 1024], metavar=("N", "H", "W"))
    parser.add_argument("--step", type=int, nargs=3, metavar=("N", "H", "W"), help="images of each domain a step")
    parser.add_argument("--depth", type=int, help="of the ResNet (default 18 on the CPU, 101 on a GPU)")


def run(options: Namespace, console: Console) -> dict[str, Any]:
    """The loss alone at ``--logits``; and a step of MinEnt at ``--step``, 1 x 256 x 512 on the CPU by default."""
    if min(*options.logits, *(options.step or [1])) < 1:
        raise ValueError("--logits and --step: expected numbers of at least 1")
    found = {}
    for device in options.devices:
        n, h, w = options.logits
        alone = losses((n, CLASSES, h, w), device, options.seconds)
        show_losses(alone, (n, CLASSES, h, w), device, console)
        size = tuple(options.step or ([1, 256, 512] if device == "cpu" else options.logits))
        depth = options.depth or DEPTHS[device]
        step = steps(size, depth, device, options.seconds)
        show_steps(step, size, depth, device, console)
        found[device] = {"logits": [n, CLASSES, h, w], "losses": alone, "step_size": size, "depth": depth, "step": step}
    console.print(
        "extra peak: memory held at most beside the logits and their gradient;\n"
        "copies: the same in copies of the logits.\n"
        "share: time of the term of both heads, forward and backward, of the whole step;\n"
        "over: of the step, what it takes beyond a textbook entropy. The interpolation\n"
        "of the logits is the step's, not the term's."
    )
    return found


def candidates(device: str) -> dict[str, Callable[..., Any]]:
    """Losses by name; the first one is what the others are compared with."""
    return {
        "textbook entropy": textbook_entropy,
        "EM": EM(),
        "DEM(1.2, 0.8)": DEM(1.2, 0.8),
        "AdaDEM": AdaDEM(CLASSES).to(device),
    }


def losses(shape: tuple[int, ...], device: str, seconds: float) -> dict[str, dict[str, float]]:
    """Time and memory of each loss, forward and backward of its mean.

    Returns: {loss: seconds, ratio (to the textbook), peak_bytes (beside logits and gradient), copies (of the logits)}.
    """
    z = (3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(device).requires_grad_()
    calls = {name: forward_backward(loss, z) for name, loss in candidates(device).items()}
    best = best_times(calls, device, seconds)
    size, found = z.numel() * z.element_size(), {}
    for name, call in calls.items():
        z.grad = None
        peak = max(0, peak_bytes(call, device) - size)
        ratio = best[name] / best["textbook entropy"]
        found[name] = {"seconds": best[name], "ratio": ratio, "peak_bytes": peak, "copies": peak / size}
    return found


def forward_backward(loss: Callable[..., Any], *logits: torch.Tensor) -> Callable[[], object]:
    def call() -> None:
        for z in logits:
            z.grad = None
            loss(z).mean().backward()

    return call


def steps(size: tuple[int, ...], depth: int, device: str, seconds: float) -> dict[str, dict[str, float]]:
    """Steps of MinEnt on DeepLab-V2 with each loss, and each loss alone on both heads' logits, all by turns.

    Returns: {loss: step (seconds), term (seconds), share (term / step), over (beyond the textbook's term / step)}, step
        being that with the textbook entropy.
    """
    n, h, w = size
    heads = [torch.randn(n, CLASSES, h, w, device=device).mul_(3).requires_grad_() for _ in range(2)]
    terms = {name: forward_backward(loss, *heads) for name, loss in candidates(device).items()}
    calls = {"step": training_step(size, depth, device), **terms}
    best = best_times(calls, device, seconds)
    textbook, step = best["textbook entropy"], best["step"]
    return {
        name: {"step": step, "term": best[name], "share": best[name] / step, "over": (best[name] - textbook) / step}
        for name in terms
    }


def training_step(
    size: tuple[int, ...], depth: int, device: str, loss: torch.nn.Module | None = None
) -> Callable[[], object]:
    """One step of the task's MinEnt, by default with the textbook entropy: two passes, two gradients, one update."""
    import numpy as np

    from dembench.tasks.segmentation.data import NORMALISATIONS, pack
    from dembench.tasks.segmentation.methods.min_ent import MinEnt
    from dembench.tasks.segmentation.nets import deeplab_v2

    n, h, w = size
    torch.manual_seed(0)
    network = deeplab_v2(depth=depth)(CLASSES, dict(NORMALISATIONS["imagenet"]))
    method = MinEnt(loss or Textbook(), network=network, num_classes=CLASSES).to(device).train()
    method.network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 1e-4, momentum=0.9)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2 * n, h, w, 3), np.uint8)
    labels = rng.integers(0, CLASSES, (n, h, w), np.uint8)

    def batch(rows: range, labelled: bool) -> dict[str, list[Any]]:
        items = [pack(images[i], labels[i % n] if labelled else None, str(i)) for i in rows]
        return {key: [item[key] for item in items] for key in ("inputs", "data_samples")}

    def call() -> None:
        data = {"source": batch(range(n), True), "target": batch(range(n, 2 * n), False), "progress": 0.5}
        optimizer.zero_grad()
        method.gradients(data)
        optimizer.step()

    return call


class Textbook(torch.nn.Module):
    def forward(self, logits: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return textbook_entropy(logits)


def show_losses(found: dict[str, dict[str, float]], shape: tuple[int, ...], device: str, console: Console) -> None:
    table = _table(f"{shape} float32 on {device}, forward + backward", "time", "x textbook", "extra peak", "copies")
    for name, m in found.items():
        peak = size_text(m["peak_bytes"])
        table.add_row(name, time_text(m["seconds"]), f"{m['ratio']:.2f}", peak, f"{m['copies']:.2f}")
    console.print(table)


def show_steps(
    found: dict[str, dict[str, float]], size: tuple[int, ...], depth: int, device: str, console: Console
) -> None:
    n, h, w = size
    step = next(iter(found.values()))["step"]
    title = (
        f"a step of MinEnt, DeepLab-V2 on ResNet-{depth}, {n} + {n} images of {w}x{h} on {device}: {time_text(step)}"
    )
    table = _table(title, "term", "share", "over")
    for name, m in found.items():
        table.add_row(name, time_text(m["term"]), f"{m['share']:.1%}", f"{m['over']:+.1%}")
    console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("loss")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table

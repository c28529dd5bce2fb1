"""The methods of corruption TTA next to textbook loops of the same, and the generator of corruptions."""

from __future__ import annotations

import importlib
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from dembench.core import EM, AdaDEM
from dembench.lookup import lookup
from dembench.scripts.bench import textbook_forward, textbook_tta
from dembench.scripts.bench.loss import LiteralAdaDEM
from dembench.scripts.bench.operations import count, host_counters
from dembench.scripts.bench.timing import best_times, peak_bytes, size_text, time_of, time_text

HELP = "the methods of corruption TTA, a step and a reset; the corruptions"
LOSSES = ("em", "adadem")
STEP = {"lr": 1e-8, "optimizer": "momentum"}  # a rate at which the model stays where it is, step after step
OURS: dict[str, tuple[str, dict[str, Any]]] = {  # module, and options that let every sample through the gates
    "Source": ("source", {}),
    "Norm": ("norm", {}),
    "T3A": ("t3a", {"keep": 20}),
    "Tent": ("tent", STEP),
    "ETA": ("eta", {**STEP, "margin": 1.0, "d": 1.1}),
    "EATA": ("eata", {**STEP, "margin": 1.0, "d": 1.1, "fisher_alpha": 1.0}),
    "SAR": ("sar", {**STEP, "margin": 1.0, "reset_below": 0.0, "freeze": "none"}),
    "DeYO": ("deyo", {**STEP, "margin": 1.0, "plpd": -1.0, "freeze": "none"}),
    "TIPI": ("tipi", {**STEP, "start": "random", "entropy_weight": 1.0, "predict": "running"}),
    "TTC": ("ttc", {**STEP, "accumulate": None}),
}


@dataclass(frozen=True)
class Measurement:
    """One method's step on one batch, and the textbook loop's."""

    device: str
    method: str
    batch: int
    seconds: float  # the best of many
    textbook_seconds: float
    forward_seconds: float  # one pass of the model without gradients
    operations: int  # aten operations that compute, in a step
    textbook_operations: int
    waits: int  # of the host for the device, in a step
    textbook_waits: int
    peak_bytes: int
    textbook_peak_bytes: int
    reset_seconds: float
    textbook_reset_seconds: float


class WithFeatures(nn.Module):
    """Keeps what enters the last linear layer: the features that T3A and TTC need."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.linear = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        self.linear.register_forward_pre_hook(self._keep)
        self.kept: Tensor | None = None

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.kept = inputs[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def features(self, x: Tensor) -> Tensor:
        self.model(x)
        return self.kept

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.model(x), self.kept


def textbook(name: str, model: nn.Module, loss: Callable[[Tensor], Tensor], images: Tensor) -> Any:
    """The loop of ``name`` with the same settings as in ``OURS``."""
    net = WithFeatures(model)
    classes = net.linear.out_features
    ceiling = float(torch.tensor(classes).log())
    eps = 2 / 255
    options: dict[str, dict[str, Any]] = {
        "Tent": {},
        "ETA": {"margin": ceiling, "d": 1.1},
        "EATA": {"margin": ceiling, "d": 1.1, "alpha": 1.0, "images": images.split(64)},
        "SAR": {"margin": ceiling, "recover_below": 0.0},
        "DeYO": {"below": ceiling, "margin": 0.4 * ceiling, "above": -1.0},
        "TTC": {"features": net.both},
    }
    if name == "T3A":
        return textbook_forward.T3A(net.eval().features, net.linear, 20)
    if name in ("Source", "Norm"):
        return getattr(textbook_forward, name)(net)
    if name == "TIPI":
        return textbook_tta.TIPI(
            net,
            loss,
            eps=eps,
            weight=1.0,
            lr_per_sample=STEP["lr"] / 200,
            optimizer=STEP["optimizer"],
            start=lambda x: (torch.rand_like(x) * 2 - 1) * eps,
        )
    return getattr(textbook_tta, name)(net, loss, **STEP, **options[name])


def build_model(name: str) -> tuple[nn.Module, int]:
    """A model with random weights, and the size of its images.

    Args:
        name: "cifar_resnet20", "wrn_28_10" and the like of other depths and widths, or a name of torchvision's.
    Raises: ValueError for a name that is none.
    """
    from dembench.tasks.tta import models

    cifar = re.fullmatch(r"cifar_resnet(\d+)", name)
    if cifar:
        return models.cifar_resnet(int(cifar[1])), 32
    wide = re.fullmatch(r"wrn_(\d+)_(\d+)", name)
    if wide:
        return models.wide_resnet(int(wide[1]), int(wide[2])), 32
    return models.torchvision_model(name, weights=None), 224


def our_method(name: str, model: nn.Module, loss: Callable[[Tensor], Tensor], images: Tensor) -> Any:
    """The method on ``model``, which it changes; EATA takes ``images`` for source images."""
    module, options = OURS[name]
    ours = getattr(importlib.import_module(f"dembench.tasks.tta.methods.{module}"), name)(model, loss, **options)
    if getattr(ours, "source_images", 0):
        ours.see_source(images)
    return ours


def both_sides(name: str, model: nn.Module, x: Tensor, loss: str) -> tuple[Any, Any]:
    """Our method and the textbook loop, each on a copy of the model; EATA takes x for source images."""
    classes = [module for module in model.modules() if isinstance(module, nn.Linear)][-1].out_features
    ours = our_method(name, deepcopy(model), EM() if loss == "em" else AdaDEM(classes).to(x.device), x)
    plain = textbook_tta.entropy if loss == "em" else LiteralAdaDEM(classes, x)
    return ours, textbook(name, deepcopy(model), plain, x)


def measure(name: str, model: nn.Module, x: Tensor, device: str, seconds: float, loss: str = "em") -> Measurement:
    """Times a step of our method and of the textbook loop by turns, on the same batch and equal models.

    Args:
        name: of ``OURS``.
        model: not changed.
        x: images in [0, 1].
        device: where model and images are.
        seconds: of measuring each of the two.
        loss: "em" or "adadem", in ours and, written out, in the textbook loop.
    """
    ours, theirs = both_sides(name, model, x, loss)
    bare = deepcopy(model).eval()

    def forward() -> None:
        with torch.no_grad():
            bare(x)

    calls = {"ours": lambda: ours(x), "textbook": lambda: theirs(x), "forward": forward}
    best = best_times(calls, device, seconds)
    counts = {key: count(calls[key], _host(method)) for key, method in (("ours", ours), ("textbook", theirs))}
    peaks = {key: peak_bytes(calls[key], device) for key in counts}
    resets = {key: getattr(method, "reset", lambda: None) for key, method in (("ours", ours), ("textbook", theirs))}
    reset = dict.fromkeys(resets, float("inf"))
    for _ in range(3):
        for key, call in resets.items():
            calls[key]()  # there is something to take back
            reset[key] = min(reset[key], time_of(call, device))
    return Measurement(
        device,
        name,
        len(x),
        best["ours"],
        best["textbook"],
        best["forward"],
        counts["ours"].calls.total(),
        counts["textbook"].calls.total(),
        counts["ours"].waits.total(),
        counts["textbook"].waits.total(),
        peaks["ours"],
        peaks["textbook"],
        reset["ours"],
        reset["textbook"],
    )


def _host(method: Any) -> list[Tensor]:
    optimizer = getattr(getattr(method, "learner", method), "optimizer", None)
    return [] if optimizer is None else host_counters(optimizer)


def show(results: list[Measurement], title: str, console: Console) -> None:
    """Two tables, one line a method; where two figures stand together the second is the textbook loop's."""
    times = _table(f"{title}: time of a step", "method", "step", "textbook", "x textbook", "x forward", "reset")
    costs = _table(f"{title}: what a step asks for", "method", "operations", "waits", "peak")
    for m in results:
        times.add_row(
            m.method,
            time_text(m.seconds),
            time_text(m.textbook_seconds),
            f"{m.seconds / m.textbook_seconds:.2f}",
            f"{m.seconds / m.forward_seconds:.1f}",
            f"{time_text(m.reset_seconds)} | {time_text(m.textbook_reset_seconds)}",
        )
        costs.add_row(
            m.method,
            f"{m.operations} | {m.textbook_operations}",
            f"{m.waits} | {m.textbook_waits}",
            f"{size_text(m.peak_bytes)} | {size_text(m.textbook_peak_bytes)}",
        )
    console.print(times)
    console.print(costs)


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def time_corruptions(count: int, device: str) -> dict[str, float]:
    """Seconds for each of the 15 corruptions of ``count`` random images 32 x 32 at severity 5."""
    from dembench.tasks.common.corruptions import CORRUPTIONS, corrupt

    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images, index = images.to(device), torch.arange(count)
    corrupt(images[:8], CORRUPTIONS[0], 5, index[:8])  # what is loaded once is loaded before the clock runs

    def one(name: str) -> float:
        return time_of(lambda: corrupt(images, name, 5, index), device)

    return {name: one(name) for name in CORRUPTIONS}


def show_corruptions(seconds: dict[str, float], count: int, device: str, console: Console) -> None:
    title = f"{count} images 32 x 32, severity 5, on {device}"
    table = _table(title, "corruption", "time", "10,000 images")
    for name, value in [*seconds.items(), (f"all {len(seconds)}", sum(seconds.values()))]:
        table.add_row(name, time_text(value), f"{value / count * 10_000:.1f} s")
    console.print(table)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--method", action="append", help=f"one of {', '.join(OURS)}; default: all")
    parser.add_argument("--model", default="cifar_resnet20", help="also wrn_28_10, or a torchvision name")
    parser.add_argument("--batch", type=int, default=200, help="images in a batch (default 200)")
    parser.add_argument("--loss", choices=LOSSES, default="em", help="in the place of the entropy (default em)")
    parser.add_argument("--images", type=int, default=256, help="to corrupt (default 256; 0 leaves it out)")


def run(options: Namespace, console: Console) -> dict[str, Any]:
    """Raises: ValueError for an unknown method or model, a batch < 2 or images < 0."""
    if options.batch < 2:
        raise ValueError(f"--batch: expected at least 2, got {options.batch}")
    if options.images < 0:
        raise ValueError(f"--images: expected at least 0, got {options.images}")
    names = [lookup(name, OURS, "method") for name in options.method or OURS]
    torch.manual_seed(0)
    model, size = build_model(options.model)
    x = torch.rand(options.batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    results: list[Measurement] = []
    corruptions: dict[str, dict[str, float]] = {}
    for device in options.devices:
        there = deepcopy(model).to(device, memory_format=torch.channels_last)
        batch = x.to(device).contiguous(memory_format=torch.channels_last)
        found = [measure(name, there, batch, device, options.seconds, options.loss) for name in names]
        title = f"{options.model} on {device}, batches of {options.batch}, float32, {options.loss}"
        show(found, title, console)
        results += found
        if options.images:
            corruptions[device] = time_corruptions(options.images, device)
            show_corruptions(corruptions[device], options.images, device, console)
    console.print(
        "Every sample passes the gates. x textbook: a step's time against the textbook\n"
        "loop's, by turns on the same batch. x forward: against one pass without\n"
        "gradients. reset, operations, waits of the host for the device, peak memory\n"
        "beyond what lies there before: ours | textbook's."
    )
    return {
        "model": options.model,
        "loss": options.loss,
        "results": [asdict(m) for m in results],
        "images": options.images,
        "corruption_seconds": corruptions,
    }

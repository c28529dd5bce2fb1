"""Test-time prompt tuning step by step: what each exact speed-up gains over the plain procedure."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from torch import Tensor

    from dembench.tasks.prompt.clip import Clip

HELP = "prompt tuning of CLIP: cut, packed, shared and kept against the plain procedure"
VIEWS = 64
STAGES = (  # name, encoding, first forward shared, images side by side, features of views kept
    ("plain", "full", False, False, False),
    ("cut to the longest", "truncated", False, False, False),
    ("packed", "packed", False, False, False),
    ("first pass shared", "packed", True, False, False),
    ("images in blocks", "packed", True, True, False),
    ("view features kept", "packed", True, True, True),
)


@dataclass(frozen=True)
class Measurement:
    """One image at one stage, seconds of processor time (of the clock on a GPU)."""

    device: str
    model: str
    classes: int
    stage: str
    seconds: float
    text_seconds: float  # without the image tower
    gain: float  # of the plain procedure's time to this one's
    measured_classes: int  # the text tower's time on so many, times classes / measured_classes
    difference: float  # largest of a logit to the plain procedure's on the measured classes, of their spread
    same_prediction: float  # share of images, on the measured classes


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--model", choices=["digits", "vit", "all"], default="digits", help="default: digits")
    parser.add_argument("--images", type=int, help="images to tune (default: 64 for digits, 2 for vit)")
    parser.add_argument("--classes", type=int, default=1000, help="of ImageNet, for vit (default 1000)")
    parser.add_argument("--steps", type=int, default=1, help="of tuning (default 1)")


def run(options: Namespace, console: Console) -> dict[str, Any]:
    """Raises: ValueError for numbers that make no sense."""
    if not 10 <= options.classes <= 1000 or options.steps < 1 or (options.images is not None and options.images < 1):
        raise ValueError("expected --classes 10 to 1000, --steps and --images of at least 1")
    results: list[Measurement] = []
    for device in options.devices:
        for name in ("digits", "vit") if options.model == "all" else (options.model,):
            images = options.images or (64 if name == "digits" else 2)
            found = measure(name, device, images, options.classes, options.steps)
            show(found, console)
            results += found
    console.print(
        "Each line has what those above it have. text: without the image tower. gain: plain time over this.\n"
        "differs: largest distance of a logit to the plain one, of the logits' spread; where a gradient is nearly 0,\n"
        "rounding can turn the sign of AdamW's first step. same: predictions. Lines that measured fewer classes give\n"
        "the text tower's time in proportion."
    )
    return {"results": [asdict(m) for m in results]}


def measure(name: str, device: str, images: int, classes: int, steps: int) -> list[Measurement]:
    """All stages of one model with random weights on random images."""
    import torch

    from dembench.core import EM
    from dembench.tasks.prompt.methods.tpt import TPT
    from dembench.tasks.prompt.text import Prompts

    clip, names, template, block = _model(name, classes)
    clip.to(device)
    few = names if name == "digits" else names[:: max(1, len(names) // 100)]
    pixels = torch.randint(0, 256, (VIEWS, 3, clip.size, clip.size), dtype=torch.uint8)
    view_seconds, _ = _timed(lambda: clip.encode_images(pixels), device)
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(images, 1, clip.encode_images(pixels[:1]).shape[1], generator=generator)
    views = torch.nn.functional.normalize(
        own + 0.5 * torch.randn(images, VIEWS, own.shape[2], generator=generator), dim=-1
    )
    views = views.to(device)

    def tune(prompts: Prompts, shared: bool, side_by_side: bool, count: int) -> tuple[float, Tensor]:
        method = TPT(prompts, EM(), aggregate="marginal", steps=steps, shared_forward=shared)
        parts = views[:count].split(block if side_by_side else 1)
        seconds, logits = _timed(lambda: torch.cat([method(part) for part in parts]), device)
        return seconds / count, logits

    results: list[Measurement] = []
    plain: Tensor | None = None
    for stage, encoding, shared, side_by_side, kept in STAGES:
        count = images if side_by_side else min(images, 8)
        seconds, logits = tune(Prompts(clip, few, template, encoding=encoding), shared, side_by_side, count)
        plain = logits if plain is None else plain
        measured = few
        if encoding == "packed" and len(few) < len(names):
            measured = names
            seconds, _ = tune(Prompts(clip, names, template, encoding=encoding), shared, side_by_side, count)
        text_seconds = seconds * len(names) / len(measured)
        total = text_seconds + (0 if kept else view_seconds)
        both = min(len(plain), len(logits))
        difference = float((logits[:both] - plain[:both]).abs().max() / plain.std())
        same = float((logits[:both].argmax(1) == plain[:both].argmax(1)).float().mean())
        gain = (results[0].seconds if results else total) / total
        results.append(
            Measurement(device, name, len(names), stage, total, text_seconds, gain, len(measured), difference, same)
        )
    return results


def _model(name: str, classes: int) -> tuple[Clip, list[str], str, int]:
    """A model with random weights, class names, a template, and how many images are tuned side by side."""
    import torch

    from dembench.tasks.prompt.clip import Clip, require_open_clip
    from dembench.tasks.prompt.digits import TEMPLATE, WORDS
    from dembench.tasks.prompt.models import open_clip_model
    from dembench.tasks.prompt.tiny import build, tokenizer

    if name == "digits":
        torch.manual_seed(0)
        half = (0.5, 0.5, 0.5)
        clip = Clip(build(), tokenizer(), size=32, mean=half, std=half, name=name, weights_id="random")
        return clip, list(WORDS), TEMPLATE, 32
    names = list(require_open_clip().IMAGENET_CLASSNAMES[:classes])
    return open_clip_model("ViT-B-16-quickgelu", weights=None), names, "a photo of a {}.", 2


def _timed(call: Callable[[], Tensor], device: str) -> tuple[float, Tensor]:
    """Seconds of the faster of two calls, and its result; of processor time on a CPU, which others cannot take away."""
    import torch

    clock = time.process_time if device == "cpu" else time.perf_counter
    best = float("inf")
    for _ in range(2):
        if device == "cuda":
            torch.cuda.synchronize()
        start = clock()
        result = call()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, clock() - start)
    return best, result


def show(results: list[Measurement], console: Console) -> None:
    """One table."""
    first = results[0]
    unit = "processor time" if first.device == "cpu" else "time"
    title = f"{first.model}, {first.classes} classes, {VIEWS} views, on {first.device}: {unit} an image"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("", "seconds", "text", "gain", "classes", "differs", "same"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for m in results:
        cells = (f"{m.seconds:.3g}", f"{m.text_seconds:.3g}", f"{m.gain:.1f}", str(m.measured_classes))
        table.add_row(m.stage, *cells, f"{m.difference:.1e}", f"{m.same_prediction:.0%}")
    console.print(table)

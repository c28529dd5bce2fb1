"""A step of each task on the GPU, and on the CPUs of the same machine, at the sizes of the papers, random weights.

The losses are EM, AdaDEM and one that costs next to nothing, so that what a loss costs shows within a step.
"""

from __future__ import annotations

import gc
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from dembench.core import EM, AdaDEM
from dembench.scripts.gpu.rows import Rows
from dembench.scripts.gpu.timing import step_figures

CPU_THREADS = 8  # at most
Step = Callable[[], object]


class FirstLogit(nn.Module):
    """In the place of a loss: what a step costs without one."""

    def forward(self, logits: Tensor, mask: Tensor | None = None) -> Tensor:
        return logits[:, 0]


LOSSES: dict[str, Callable[[], nn.Module]] = {"EM": EM, "AdaDEM": AdaDEM, "no loss": FirstLogit}


@dataclass(frozen=True)
class Case:
    """A step to be timed.

    Args:
        name: of the method, with its loss.
        work: images, or steps of environments, that it does.
        make: (device) builds the model and returns the step.
        device: where it runs.
    """

    name: str
    work: float
    make: Callable[[str], Step]
    device: str


def run(name: str, rows: Rows, device: str, tiny: bool) -> None:
    """Times all cases of a task, on the GPU first; one that raises is a row with its error, and the others go on.

    Raises: RuntimeError at the end where any of them raised.
    """
    torch.set_num_threads(min(CPU_THREADS, torch.get_num_threads()))
    title, unit, cases = TASKS[name]
    seconds = 0.02 if tiny else 0.5
    rates: dict[str, float] = {}
    failed = []
    for case in cases(device, tiny):
        where = case.device if case.device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
        line = {"step": case.name, "on": where, unit: case.work}
        try:
            figures = step_figures(case.make(case.device), case.device, case.work, seconds)
        except Exception as error:
            traceback.print_exc()
            failed.append(case.name)
            rows.add(title, **line, error=f"{type(error).__name__}: {error}"[:300])
            continue
        finally:
            gc.collect()
            torch.cuda.empty_cache()
        if case.device == "cuda":
            rates[case.name] = figures["per second"]
        elif case.name in rates:
            figures["GPU is faster by"] = rates[case.name] / figures["per second"]
        rows.add(title, **line, **figures)
    if failed:
        raise RuntimeError(f"{name}: {len(failed)} steps failed: {', '.join(failed)}")


def sides(device: str, gpu: Any, cpu: Any) -> list[tuple[str, Any]]:
    """The devices to measure on, each with its sizes; a check of the CPU alone has the tiny ones as ``cpu``."""
    return [("cuda", gpu), ("cpu", cpu)] if device == "cuda" else [("cpu", cpu)]


def tta(device: str, tiny: bool) -> Iterator[Case]:
    from dembench.scripts.bench.tta import build_model, our_method

    def make(method: str, loss: str, batch: int, where: str) -> Step:
        torch.manual_seed(0)
        model, size = build_model("cifar_resnet20" if tiny else "resnet50")
        x = torch.rand(batch, 3, size, size, device=where).contiguous(memory_format=torch.channels_last)
        ours = our_method(method, model.to(where, memory_format=torch.channels_last), LOSSES[loss](), x)
        return lambda: ours(x)

    for where, batch in sides(device, 64, 4 if tiny else 8):
        for method in ("Tent", "EATA", "SAR"):
            for loss in LOSSES if where == "cuda" else ["EM"]:
                yield Case(f"{method}, {loss}", batch, partial(make, method, loss, batch), where)


def prompt(device: str, tiny: bool) -> Iterator[Case]:
    from dembench.scripts.bench.prompt import VIEWS, _model
    from dembench.tasks.prompt.methods.tpt import TPT
    from dembench.tasks.prompt.text import Prompts

    @lru_cache(maxsize=1)
    def parts(where: str) -> tuple[Any, list[str], str, Tensor]:
        clip, names, template, _ = _model("digits" if tiny else "vit", 1000)
        clip.to(where)
        count = 4 if tiny else VIEWS
        pixels = torch.randint(0, 256, (count, 3, clip.size, clip.size), dtype=torch.uint8, device=where)
        return clip, names, template, pixels

    def encode(where: str) -> Step:
        clip, _, _, pixels = parts(where)
        return lambda: clip.encode_images(pixels)

    def tune(loss: str, images: int, where: str) -> Step:
        clip, names, template, pixels = parts(where)
        width = clip.encode_images(pixels[:1]).shape[1]
        own = torch.randn(images, len(pixels), width, device=where, generator=torch.Generator(where).manual_seed(0))
        method = TPT(Prompts(clip, names, template), LOSSES[loss](), aggregate="marginal")
        features = nn.functional.normalize(own, dim=-1)
        return lambda: method(features)

    for where, blocks in sides(device, (1, 4), (1,)):
        yield Case(f"features of {4 if tiny else VIEWS} views", 1, encode, where)
        for loss in LOSSES if where == "cuda" else ["EM"]:
            yield Case(f"TPT, {loss}", 1, partial(tune, loss, 1), where)
        for images in blocks[1:]:
            yield Case(f"TPT, EM, {images} images at once", images, partial(tune, "EM", images), where)


def semi(device: str, tiny: bool) -> Iterator[Case]:
    import numpy as np

    from dembench.scripts.bench.semi import our_step

    def make(loss: str, batch: int, ratio: int, depth: int, where: str) -> Step:
        images = np.random.default_rng(0).integers(0, 256, (2048, 32, 32, 3), dtype=np.uint8)
        options = Namespace(batch=batch, ratio=ratio, depth=depth)
        return our_step(images, where, options, None if loss == "no loss" else LOSSES[loss]())[0]

    for where, batch in sides(device, 64, 2 if tiny else 8):
        ratio, depth = (1, 10) if tiny else (7, 28)
        work = batch * (1 + ratio)
        for loss in LOSSES if where == "cuda" else ["no loss"]:
            yield Case(f"FixMatch, {loss}", work, partial(make, loss, batch, ratio, depth), where)


def segmentation(device: str, tiny: bool) -> Iterator[Case]:
    from dembench.scripts.bench.segmentation import training_step

    def make(loss: str, size: tuple[int, int, int], depth: int, where: str) -> Step:
        return training_step(size, depth, where, LOSSES[loss]())

    full, quarter, small = (1, 720, 1280), (1, 360, 640), (1, 32, 48)
    for where, size in sides(device, full, small if tiny else quarter):
        n, h, w = size
        for loss in LOSSES if where == "cuda" else ["EM"]:
            step = partial(make, loss, size, 18 if tiny else 101)
            yield Case(f"MinEnt, {loss}", 2 * n * h * w / (720 * 1280), step, where)


def minigrid(device: str, tiny: bool) -> Iterator[Case]:
    from dembench.scripts.bench.minigrid import agents

    def make(name: str, where: str) -> Step:
        return agents("MiniGrid-DoorKey-5x5-v0", where, [name])[name]

    for where, _ in sides(device, None, None):
        for name in ("fast, EM",) if tiny else ("fast, EM", "fast, AdaDEM", "stock, EM"):
            yield Case(f"PPO, {name}", 1024, partial(make, name), where)


def corruptions(device: str, tiny: bool) -> Iterator[Case]:
    from dembench.tasks.common.corruptions import CORRUPTIONS, corrupt

    def make(name: str, count: int, where: str) -> Step:
        draw = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=draw).to(where)
        return lambda: corrupt(images, name, 5, torch.arange(count))

    for where, count in sides(device, 1000, 4 if tiny else 200):
        for name in CORRUPTIONS:
            yield Case(name, count, partial(make, name, count), where)


TASKS: dict[str, tuple[str, str, Callable[[str, bool], Iterator[Case]]]] = {
    "tta": ("Corruption TTA, ResNet-50, 224 x 224", "images", tta),
    "prompt": ("Prompt tuning, ViT-B/16, 64 views, 1,000 classes", "images", prompt),
    "semi": ("Semi-supervised learning, WRN-28-2, 64 + 448 images", "images", semi),
    "segmentation": (
        "Segmentation, DeepLab-V2 on ResNet-101, 1 + 1 images of 1280 x 720 (on the CPU 640 x 360)",
        "images of 1280 x 720",
        segmentation,
    ),
    "minigrid": ("PPO on Minigrid DoorKey-5x5, a rollout and its updates", "steps", minigrid),
    "corruptions": ("The 15 corruptions, 32 x 32, severity 5", "images", corruptions),
}

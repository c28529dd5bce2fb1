"""CLIPs small enough to be trained here: one for digits in nine styles, one for CIFAR-10 in six."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dembench.tasks.base import Note
from dembench.tasks.common.originals import Originals
from dembench.tasks.prompt import cifar
from dembench.tasks.prompt.captions import WordTokenizer
from dembench.tasks.prompt.clip import Clip
from dembench.tasks.prompt.digits import CAPTIONS, RENDERING, SIZE, STYLES, WORDS, affine, as_rgb, digits, stylise
from dembench.tasks.prompt.training import Batch, SmallClip

POSITIONS = 12
TEXT = {"context_length": POSITIONS, "width": 64, "heads": 4, "layers": 3}
ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": SIZE, "layers": (1, 1, 1, 1), "width": 16, "head_width": 32},  # a small ResNet
    "text_cfg": TEXT,
}
RECIPE = {"version": 1, "lr": 1e-3, "weight_decay": 0.05, "turn": 12, "zoom": 0.12, "shift": 0.1}
DIGITS = SmallClip(
    "digits_clip", "the digits CLIP", ARCHITECTURE, WORDS, STYLES, CAPTIONS, RECIPE["lr"], RECIPE["weight_decay"]
)

CIFAR_SIZE = 64  # images are enlarged, as CLIP's ResNet divides the side by 32
CIFAR_ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": CIFAR_SIZE, "layers": (2, 2, 2, 2), "width": 32, "head_width": 32},
    "text_cfg": TEXT,
}
CIFAR_RECIPE = {"version": 1, "lr": 1e-3, "weight_decay": 0.05, "least_area": 0.25}
CIFAR_STEPS = 20_000  # where a GPU trains
CIFAR = SmallClip(
    "cifar_clip",
    "the CIFAR CLIP",
    CIFAR_ARCHITECTURE,
    cifar.WORDS,
    cifar.STYLES,
    cifar.CAPTIONS,
    CIFAR_RECIPE["lr"],
    CIFAR_RECIPE["weight_decay"],
    interpolation="bilinear",
)


def digits_clip(seed: int = 0, steps: int = 400, batch_size: int = 128, cache: str | Path | None = None) -> Clip:
    """A CLIP of 1.5 million parameters. ``load`` takes it from the cache folder, or trains it first (about a minute).

    Args:
        seed: of initialisation and training. steps, batch_size: of its training.
        cache: folder of trained weights; None is $DEMBENCH_CACHE or the user's cache folder.
    The same seed, torch version and kind of processor give the same weights bit for bit.
    Raises: ValueError for a wrong number.
    """
    DIGITS.check(seed=seed, steps=steps, batch_size=batch_size)
    recipe = {**RECIPE, "steps": steps, "batch_size": batch_size}
    identity = (RENDERING, ARCHITECTURE, recipe, CAPTIONS, STYLES)
    return DIGITS.clip(identity, _digits, seed=seed, steps=steps, batch_size=batch_size, cache=cache)


def cifar_clip(
    source: str | Path,
    seed: int = 0,
    steps: int | None = None,
    batch_size: int = 256,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    cache: str | Path | None = None,
) -> Clip:
    """A CLIP of 7 million parameters for the ten classes of CIFAR-10, trained on the training images of ``source``.

    ``load`` takes it from the cache folder, or trains it first.

    Args:
        source: as that of ``tasks.prompt.cifar.Cifar10``, with training images.
        seed: of initialisation and training. steps, batch_size: of its training; steps None is 20,000, for which the
            weights have to be in the cache already where a CPU would train.
        device: that trains; the weights are told apart by it and can be used on any.
        cache: folder of trained weights; None is $DEMBENCH_CACHE or the user's cache folder.
    The same seed, images, torch version and kind of processor give the same weights, on a CPU bit for bit.
    Raises: ValueError for a wrong number, for a CPU that would train for hours, for cuda where there is none, and with
        FileNotFoundError what ``tasks.common.originals.read_originals`` raises.
    """
    there = torch.cuda.is_available()
    where = ("cuda" if there else "cpu") if device == "auto" else device
    chosen = CIFAR_STEPS if steps is None else steps
    CIFAR.check(seed=seed, steps=chosen, batch_size=batch_size)
    images = cifar.originals(source, "train", cache)
    recipe = {**CIFAR_RECIPE, "steps": chosen, "batch_size": batch_size, "device": where}
    identity = (images.fingerprint, CIFAR_ARCHITECTURE, recipe, cifar.WORDS, cifar.CAPTIONS, cifar.STYLES)
    path = CIFAR.path(CIFAR.kind(identity), seed, cache)
    if not path.is_file() and where == "cuda" and not there:
        text = f"cifar_clip: no weights at {path} and no CUDA device here to train them"
        raise ValueError(f"{text}; give model.device=cpu with a small model.steps")
    if not path.is_file() and where == "cpu" and steps is None:
        text = f"cifar_clip: its {CIFAR_STEPS:,} steps would keep a CPU core busy for half a day"
        raise ValueError(f"{text}: run it on a GPU (device=cuda), or give model.steps, such as model.steps=300")
    what = f"a CLIP of 7 million parameters that saw no other classes ({chosen} steps of {batch_size}, on {where})"
    note = Note("cifar_clip", f"{what}: compares losses in one procedure, says nothing on CLIP at its real size")
    return CIFAR.clip(
        identity,
        lambda: _cifar(images, where),
        seed=seed,
        steps=chosen,
        batch_size=batch_size,
        cache=cache,
        device=where,
        notes=(note,),
    )


def build() -> nn.Module:
    """The untrained network for digits. Raises: ModuleNotFoundError where open_clip is not installed."""
    return DIGITS.build()


def tokenizer() -> WordTokenizer:
    """The vocabulary of all captions of digits."""
    return DIGITS.tokenizer()


def _digits() -> Batch:
    """Train digits in random styles, slightly turned, scaled and moved."""
    images, labels = digits("train")

    def batch(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(images), (size,), generator=generator)
        style = torch.randint(len(STYLES), (size,), generator=generator)
        draw = 2 * torch.rand(size, 4, generator=generator) - 1
        angle = torch.deg2rad(RECIPE["turn"] * draw[:, 0])
        x = affine(images[chosen], angle, 1 + RECIPE["zoom"] * draw[:, 1], RECIPE["shift"] * draw[:, 2:])
        x = _styled(x, style, STYLES, lambda part, name: stylise(part, name, generator))
        return as_rgb(x).float().div_(127.5).sub_(1), style * len(WORDS) + labels[chosen]

    return batch


def _cifar(source: Originals, device: str) -> Batch:
    """Square crops of at least a quarter of an image, enlarged, half of them mirrored, in random styles.

    What is drawn is drawn on the CPU, so that it is the same everywhere; images are on the device.
    """
    images, labels = torch.from_numpy(source.images).to(device), torch.from_numpy(source.labels).to(device)

    def batch(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(images), (size,), generator=generator).to(device)
        style = torch.randint(len(cifar.STYLES), (size,), generator=generator).to(device)
        draw = torch.rand(size, 4, generator=generator).to(device)
        least = CIFAR_RECIPE["least_area"]
        side = (least + (1 - least) * draw[:, 0]).sqrt()
        x = crop(images[chosen].float().div_(255), side, 2 * draw[:, 1:3] - 1, draw[:, 3] < 0.5, CIFAR_SIZE)
        x = _styled(x, style, cifar.STYLES, cifar.stylise)
        return x.mul(2).sub_(1), style * len(cifar.WORDS) + labels[chosen]

    return batch


def crop(images: Tensor, side: Tensor, place: Tensor, mirrored: Tensor, size: int) -> Tensor:
    """Square parts of square images (N, C, H, H), bilinear, as (N, C, size, size).

    Args:
        side: (N,) of a part, in sides of the image. place: (N, 2), x and y, -1 (left, top) to 1. mirrored: (N,) bool.
    """
    middle = (1 - side)[:, None] * place
    zero = torch.zeros_like(side)
    across = torch.where(mirrored, -side, side)
    matrix = torch.stack(
        [torch.stack([across, zero, middle[:, 0]], 1), torch.stack([zero, side, middle[:, 1]], 1)], dim=1
    )
    grid = F.affine_grid(matrix, [len(images), images.shape[1], size, size], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _styled(x: Tensor, style: Tensor, names: tuple[str, ...], stylise: Callable[[Tensor, str], Tensor]) -> Tensor:
    """Images, in place, each in its own style."""
    for number, name in enumerate(names):
        x[style == number] = stylise(x[style == number], name)
    return x

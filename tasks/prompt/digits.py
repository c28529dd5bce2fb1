"""Digits that need no download as image and text: scikit-learn's 8x8 digits at 32x32 RGB, in nine styles that captions
name, and under six corruptions that no caption names and training never shows."""

from __future__ import annotations

from functools import cache as remember

import torch
from torch import Tensor
from torch.nn import functional as F

from dembench.tasks.common.digits import source_digits
from dembench.tasks.prompt import captions

SIZE = 32
RENDERING = {"version": 1, "size": SIZE}
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
STYLES = ("plain", "noisy", "blurry", "dark", "inverted", "bold", "thin", "faded", "pixelated")
TEMPLATE = "a photo of the digit {}."
CAPTIONS = (  # see tasks.prompt.captions.caption
    "a {1}photo of the digit {0}.",
    "a {1}picture of the number {0}.",
    "an image of a {1}digit {0}.",
    "a {1}drawing of a {0}.",
    "the {1}number {0}.",
)
CORRUPTIONS = ("noise", "salt_pepper", "contrast", "rotate", "blobs", "occlude")


def style_templates() -> tuple[str, ...]:
    """The 45 templates with {} that training has seen, for the ensemble."""
    return captions.style_templates(STYLES, CAPTIONS)


@remember
def digits(split: str) -> tuple[Tensor, Tensor]:
    """The "train" (1,007) or "test" (790) digits: float32 images (N, 1, 32, 32) in [0, 1] and int64 labels (N,).

    Of nine digits of a class, in the order of the source, the first five go to train.
    Raises: ValueError for another split.
    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, 1998, as in scikit-learn.
    """
    if split not in ("train", "test"):
        raise ValueError(f"digits: expected the split train or test, got {split!r}")
    source, target = source_digits()
    images = torch.from_numpy(source).float().div_(16)[:, None]
    images = F.interpolate(images, size=[SIZE, SIZE], mode="bilinear", align_corners=False)
    labels = torch.from_numpy(target)
    rank = F.one_hot(labels, 10).cumsum(0).gather(1, labels[:, None])[:, 0] - 1  # how many of its class came before
    chosen = (rank % 9 < 5) == (split == "train")
    return images[chosen].contiguous(), labels[chosen]


def stylise(images: Tensor, style: str, generator: torch.Generator) -> Tensor:
    """Images (N, 1, 32, 32) in one of the styles; in [0, 1]."""
    match style:
        case "plain":
            return images
        case "noisy":
            return (images + 0.15 * torch.randn(images.shape, generator=generator)).clamp(0, 1)
        case "blurry":
            return F.avg_pool2d(F.avg_pool2d(images, 5, 1, 2), 3, 1, 1)
        case "dark":
            return 0.4 * images
        case "inverted":
            return 1 - images
        case "bold":
            return F.max_pool2d(images, 3, 1, 1)
        case "thin":
            return -F.max_pool2d(-images, 3, 1, 1)
        case "faded":
            return 0.35 + 0.3 * images
        case "pixelated":
            return F.interpolate(F.avg_pool2d(images, 4), scale_factor=4, mode="nearest")
    raise ValueError(f"unknown style {style!r}; valid: {', '.join(STYLES)}")


def corrupt(images: Tensor, corruption: str, seed: int) -> Tensor:
    """Images (N, 1, 32, 32) in [0, 1] under a corruption; ValueError for an unknown one.

    ``noise``: Gaussian, std 0.3. ``salt_pepper``: a fifth of the pixels black or white. ``contrast``: shrunk to a
    quarter about a grey that differs from image to image. ``rotate``: by 25 to 45 degrees to either side. ``blobs``:
    four soft light spots. ``occlude``: a grey square of 14 pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    n, _, height, width = images.shape

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    rows, columns = torch.arange(height).view(-1, 1), torch.arange(width)
    match corruption:
        case "noise":
            images = images + 0.3 * torch.randn(images.shape, generator=generator)
        case "salt_pepper":
            draw = uniform(*images.shape)
            images = torch.where(draw < 0.1, 0.0, torch.where(draw > 0.9, 1.0, images))
        case "contrast":
            grey = uniform(n, 1, 1, 1, low=0.3, high=0.7)
            images = grey + (images - 0.5) / 4
        case "rotate":
            angle = torch.deg2rad(uniform(n, low=25, high=45)) * uniform(n).sub(0.5).sign()
            images = affine(images, angle, torch.ones(n), torch.zeros(n, 2))
        case "blobs":
            for _ in range(4):
                y, x = uniform(2, n, 1, 1, 1, high=height)
                images = images + 0.6 * torch.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 18)
        case "occlude":
            y, x = uniform(2, n, 1, 1, 1, high=height - 14).floor()
            covered = (rows >= y) & (rows < y + 14) & (columns >= x) & (columns < x + 14)
            images = torch.where(covered, 0.5, images)
        case _:
            raise ValueError(f"unknown corruption {corruption!r}; valid: {', '.join(CORRUPTIONS)}")
    return images.clamp(0, 1)


def affine(images: Tensor, angle: Tensor, zoom: Tensor, shift: Tensor) -> Tensor:
    """Images (N, 1, H, W) turned by ``angle`` (N,) radians, enlarged ``zoom`` times (N,), moved by ``shift`` (N, 2) in
    half sides; black comes in from outside."""
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    matrix = torch.stack([torch.stack([cos, -sin, -shift[:, 0]], 1), torch.stack([sin, cos, -shift[:, 1]], 1)], 1)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def as_rgb(images: Tensor) -> Tensor:
    """Images (N, 1, H, W) in [0, 1] as uint8 (N, 3, H, W)."""
    return images.mul(255).round_().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()

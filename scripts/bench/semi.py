"""What a step of FixMatch costs: our loop against a textbook loop that augments by Pillow in worker processes."""

from __future__ import annotations

import random
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dembench.scripts.bench.timing import best_times, time_text

HELP = "FixMatch on a wide residual network against a textbook loop with Pillow in 2 workers"
CLASSES = 10
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, default=8, help="labelled images a step (default 8)")
    parser.add_argument("--ratio", type=int, default=3, help="unlabelled images for each (default 3)")
    parser.add_argument("--depth", type=int, default=28, help="of the wide residual network (default 28)")
    parser.add_argument("--steps", type=int, default=4, help="steps of the textbook loop that are timed (default 4)")
    parser.add_argument("--workers", type=int, default=2, help="of the textbook loop (default 2)")


def run(options: Namespace, console: Any) -> dict[str, Any]:
    """Times augmentation per image, the step beside the network alone, and both loops in samples per second."""
    if min(options.batch, options.ratio, options.steps) < 1 or options.workers < 0:
        raise ValueError("expected --batch, --ratio, --steps >= 1 and --workers >= 0")
    images = np.random.default_rng(0).integers(0, 256, (512, 32, 32, 3), dtype=np.uint8)
    found: dict[str, Any] = {"augmentation": augmentation(images, options.seconds)}
    mine, textbook = (found["augmentation"][name] for name in ("ours", "pillow"))
    for kind in ("weak", "strong"):
        times = f"ours {time_text(mine[kind])}, Pillow {time_text(textbook[kind])}"
        console.print(f"{kind} view, CPU time per image: {times} ({textbook[kind] / mine[kind]:.1f}x)")
    for device in options.devices:
        found[device] = one = step(images, device, options)
        console.print(f"{device}: step {time_text(one['step'])}, {one['over_network']:.3f} of the network alone")
        console.print(
            f"{device}: {one['ours_per_second']:.1f} samples/s, textbook loop {one['textbook_per_second']:.1f} "
            f"({one['speedup']:.2f}x)"
        )
    return found


def augmentation(images: np.ndarray, seconds: float) -> dict[str, dict[str, float]]:
    """CPU seconds per image of a normalised weak or strong view; the best of several batches."""
    from dembench.tasks.semi import augment

    pixels, recipe = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), augment.Recipe()
    mean, std, generator = torch.tensor(MEAN), torch.tensor(STD), torch.Generator().manual_seed(0)

    def batched(strong: bool) -> Tensor:
        x = augment.weak(pixels, recipe, augment.draw_weak(recipe, len(pixels), 32, 32, generator))
        if strong:
            x = augment.strong(x, recipe, augment.draw_strong(recipe, len(x), generator))
        return augment.to_float(x, mean, std)

    few = images[:64]
    weak, strong = pillow_views()
    calls: dict[tuple[str, str], tuple[Callable[[], object], int]] = {
        ("ours", "weak"): (lambda: batched(False), len(images)),
        ("ours", "strong"): (lambda: batched(True), len(images)),
        ("pillow", "weak"): (lambda: [weak(image) for image in few], len(few)),
        ("pillow", "strong"): (lambda: [strong(image) for image in few], len(few)),
    }
    found: dict[str, dict[str, float]] = {"ours": {}, "pillow": {}}
    for (who, kind), (call, n) in calls.items():
        call()
        best, end = float("inf"), time.perf_counter() + seconds
        while time.perf_counter() < end or best == float("inf"):
            start = time.process_time()
            call()
            best = min(best, (time.process_time() - start) / n)
        found[who][kind] = best
    return found


def step(images: np.ndarray, device: str, options: Namespace) -> dict[str, float]:
    """Our step, the network's part of it alone, and the textbook loop."""
    ours, network = our_step(images, device, options)
    times = best_times({"step": ours, "network": network}, device, options.seconds)
    samples = options.batch * (1 + options.ratio)
    textbook = textbook_loop(images, device, options)
    return {
        **times,
        "over_network": times["step"] / times["network"],
        "ours_per_second": samples / times["step"],
        "textbook_per_second": samples / textbook,
        "speedup": textbook / times["step"],
    }


def our_step(
    images: np.ndarray, device: str, options: Namespace, loss: nn.Module | None = None
) -> tuple[Callable[[], None], Callable[[], None]]:
    """One iteration of the trainer; and a forward and backward pass of the same network on as many images."""
    from dembench.tasks.semi.augment import Recipe
    from dembench.tasks.semi.methods.fixmatch import FixMatch
    from dembench.tasks.semi.nets import wide_resnet
    from dembench.tasks.semi.protocol import Protocol
    from dembench.tasks.semi.sources import Pool
    from dembench.tasks.semi.trainer import Trainer

    torch.manual_seed(0)
    labels = torch.arange(len(images)) % CLASSES
    pool = Pool.of(images, labels.numpy())
    data = Namespace(
        name="noise", recipe=Recipe(), mean=MEAN, std=STD, num_classes=CLASSES,
        labelled=pool, unlabelled=pool.images, validation=pool, test=pool,
    )  # fmt: skip
    protocol = Protocol(1 << 20, options.batch, options.ratio, ema=0.999)
    net = wide_resnet(options.depth)(CLASSES)
    trainer = Trainer(data, net, FixMatch(loss), protocol, seed=0, device=device)

    def ours() -> None:
        trainer.advance()

    bare = wide_resnet(options.depth)(CLASSES).to(device, memory_format=torch.channels_last).train()
    rows = options.batch * (1 + 2 * options.ratio)
    x = torch.randn(rows, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    y = torch.arange(rows, device=device) % CLASSES

    def network() -> None:
        bare.zero_grad()
        F.cross_entropy(bare(x), y).backward()

    return ours, network


def textbook_loop(images: np.ndarray, device: str, options: Namespace) -> float:
    """Seconds a step of FixMatch as it is commonly written, workers included, after a first step that starts them."""
    from torch.utils.data import DataLoader

    from dembench.tasks.semi.nets import wide_resnet

    torch.manual_seed(0)
    weak, strong = pillow_views()
    count, loaders = options.steps + 1, []
    for size, views, workers in (
        (options.batch, (weak,), options.workers // 2),
        (options.batch * options.ratio, (weak, strong), options.workers - options.workers // 2),
    ):
        index = [i % len(images) for i in range(size * count)]
        loaders.append(DataLoader(Views(images, index, views), size, num_workers=workers))
    net = wide_resnet(options.depth)(CLASSES).to(device).train()
    average = [p.detach().clone() for p in net.parameters()]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.03, momentum=0.9, nesterov=True, weight_decay=5e-4)
    times = []
    start = time.perf_counter()
    for (x, y), (w, s, _) in zip(*loaders, strict=True):
        textbook_step(net, average, optimizer, [t.to(device) for t in (x, w, s, y)])
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        start = time.perf_counter()
    return sum(times[1:]) / options.steps


def textbook_step(net: nn.Module, average: list[Tensor], optimizer: torch.optim.Optimizer, batch: list[Tensor]) -> None:
    x, weak, strong, y = batch
    labelled, z_weak, z_strong = net(torch.cat([x, weak, strong])).split([len(x), len(weak), len(strong)])
    confidence, target = z_weak.detach().softmax(1).max(1)
    mask = (confidence >= 0.95).float()
    loss = F.cross_entropy(labelled, y) + (F.cross_entropy(z_strong, target, reduction="none") * mask).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        for mean, p in zip(average, net.parameters(), strict=True):
            mean.mul_(0.999).add_(p, alpha=0.001)


class Views(torch.utils.data.Dataset):
    """The views of each image of ``index``, and a label."""

    def __init__(self, images: np.ndarray, index: list[int], views: tuple[Callable[[np.ndarray], Tensor], ...]) -> None:
        self.images, self.index, self.views = images, index, views

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> tuple[Any, ...]:
        image = self.images[self.index[i]]
        return (*(view(image) for view in self.views), self.index[i] % CLASSES)


def pillow_views() -> tuple[Callable[[np.ndarray], Tensor], Callable[[np.ndarray], Tensor]]:
    """The weak and the strong view as pipelines of torchvision on Pillow images, one image at a time."""
    from PIL import Image
    from torchvision import transforms as T

    geometry = T.Compose([T.RandomCrop(32, padding=4, padding_mode="reflect"), T.RandomHorizontalFlip()])
    finish = T.Compose([T.ToTensor(), T.Normalize(MEAN, STD)])

    def weak(image: np.ndarray) -> Tensor:
        return finish(geometry(Image.fromarray(image)))

    def strong(image: np.ndarray) -> Tensor:
        return finish(pillow_strong(geometry(Image.fromarray(image))))

    return weak, strong


def pillow_strong(image: Any) -> Any:
    """Three of RandAugment's operations and a cutout."""
    from PIL import Image, ImageDraw, ImageEnhance, ImageOps

    def affine(*matrix: float) -> Callable[[Any], Any]:
        return lambda picture: picture.transform(picture.size, Image.Transform.AFFINE, matrix)

    def enhance(kind: Any) -> Callable[[Any], Any]:
        return lambda picture: kind(picture).enhance(random.uniform(0.05, 0.95))

    share = random.uniform(-0.3, 0.3)
    operations: list[Callable[[Any], Any]] = [
        ImageOps.autocontrast, ImageOps.equalize, lambda picture: picture,
        *map(enhance, (ImageEnhance.Brightness, ImageEnhance.Color, ImageEnhance.Contrast, ImageEnhance.Sharpness)),
        lambda picture: ImageOps.posterize(picture, random.randint(4, 7)),
        lambda picture: ImageOps.solarize(picture, random.randint(0, 255)),
        lambda picture: picture.rotate(random.uniform(-30, 30)),
        affine(1, share, 0, 0, 1, 0), affine(1, 0, 0, share, 1, 0),
        affine(1, 0, 32 * share, 0, 1, 0), affine(1, 0, 0, 0, 1, 32 * share),
    ]  # fmt: skip
    for operation in random.choices(operations, k=3):
        image = operation(image)
    side, x, y = random.uniform(0, 16), random.uniform(0, 32), random.uniform(0, 32)
    left, top = int(max(0.0, x - side / 2)), int(max(0.0, y - side / 2))
    ImageDraw.Draw(image).rectangle((left, top, min(32, left + side), min(32, top + side)), (125, 123, 114))
    return image

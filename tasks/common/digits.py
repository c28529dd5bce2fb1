"""Digits that need no download: scikit-learn's 1,797 8x8 digits as 32x32 RGB images, and two networks trained on them.

The digits are drawn as light strokes (0.8) on dark ground (0.2): drawn in full black and white they would shrug off
corruptions that are made for photographs, drawn with much less contrast they would drown in noise.
"""

from __future__ import annotations

import gzip
from functools import cache as remember
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dembench.tasks.common.cache import cache_folder, check_writable, load_state, save_state, short_hash
from dembench.tasks.common.digits_nets import DigitsConvNet, DigitsTransformer, Normalized

RENDERING = {"version": 1, "size": 32, "ground": 0.2, "contrast": 0.6}
NETS: dict[str, type[nn.Module]] = {"digits_convnet": DigitsConvNet, "digits_transformer": DigitsTransformer}
RECIPES: dict[str, dict[str, float]] = {
    "digits_convnet": {"version": 1, "epochs": 15, "batch_size": 50, "lr": 3e-3, "weight_decay": 1e-4},
    "digits_transformer": {"version": 1, "epochs": 25, "batch_size": 50, "lr": 3e-3, "weight_decay": 1e-2},
}


def source_digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits as ``sklearn.datasets.load_digits`` gives them: images (1797, 8, 8), float64 from 0 to 16,
    and labels (1797,), int64. Read from its file, because importing scikit-learn takes a second.

    Raises: ModuleNotFoundError where scikit-learn is not installed.
    """
    spec = find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the digits come with scikit-learn: pip install scikit-learn", name="sklearn")
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(path, "rt") as file:
        rows = np.loadtxt(file, delimiter=",")
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64)


@remember
def _all_digits() -> tuple[Tensor, Tensor]:
    source, labels = source_digits()
    images = torch.from_numpy(source).float().div_(16)[:, None]
    size = [int(RENDERING["size"])] * 2
    images = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
    images = RENDERING["ground"] + RENDERING["contrast"] * images
    return images.mul_(255).round_().to(torch.uint8).expand(-1, 3, -1, -1), torch.from_numpy(labels)


def digits(split: str) -> tuple[Tensor, Tensor]:
    """The "train" (901) or "test" (896) digits: uint8 images (N, 3, 32, 32) and int64 labels (N,).

    Within each class, in the order of the source, the first, third, fifth ... go to train and the others to test.
    Raises: ValueError for another split.
    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, 1998, as in scikit-learn.
    """
    if split not in ("train", "test"):
        raise ValueError(f"digits: expected the split train or test, got {split!r}")
    images, labels = _all_digits()
    rank = F.one_hot(labels, 10).cumsum(0).gather(1, labels[:, None])[:, 0] - 1  # how many of its class came before
    chosen = (rank % 2 == 0) == (split == "train")
    return images[chosen].contiguous(), labels[chosen]


def digits_convnet(seed: int = 0, cache: str | Path | None = None) -> Normalized:
    """A small convolutional network with BatchNorm, trained here on the clean train digits; see ``trained``."""
    return trained("digits_convnet", seed, cache)


def digits_transformer(seed: int = 0, cache: str | Path | None = None) -> Normalized:
    """A small vision transformer with LayerNorm, trained here on the clean train digits; see ``trained``."""
    return trained("digits_transformer", seed, cache)


def trained(name: str, seed: int = 0, cache: str | Path | None = None) -> Normalized:
    """The network ``name`` from the cache folder, trained first where it is not there (seconds, one CPU thread).

    The same seed, torch version and kind of processor give the same weights bit for bit. ``weights_id`` is the hash of
    the recipe, the seed and the torch version, so it is the same everywhere.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"{name}: expected an integer seed >= 0, got {seed!r}")
    key = short_hash(name, RENDERING, RECIPES[name], seed, torch.__version__)
    path = cache_folder(cache) / "models" / f"{name}-{key}.pt"
    state = load_state(path)
    if state is None:
        check_writable(path.parent)
        state = train(name, seed)
        save_state(path, state)
    with torch.random.fork_rng(devices=[]):
        net = NETS[name]()
    net.load_state_dict(state)
    ground, contrast = RENDERING["ground"], RENDERING["contrast"]
    return Normalized([ground] * 3, [contrast] * 3, net, num_classes=10, weights_id=f"{name}:{key}").eval()


def train(name: str, seed: int) -> dict[str, Any]:
    """Trains the network ``name`` on the clean train digits without augmentation; returns its state dict (CPU).

    AdamW with a cosine schedule. Torch's global generator and thread count are as before afterwards.
    """
    recipe = RECIPES[name]
    images, labels = digits("train")
    x = (images.float() / 255 - RENDERING["ground"]) / RENDERING["contrast"]
    batch, epochs = int(recipe["batch_size"]), int(recipe["epochs"])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            net = NETS[name]().train()
            optimizer = torch.optim.AdamW(net.parameters(), lr=recipe["lr"], weight_decay=recipe["weight_decay"])
            steps = epochs * (len(x) // batch)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            for _ in range(epochs):
                for chosen in torch.randperm(len(x))[: len(x) // batch * batch].view(-1, batch):
                    optimizer.zero_grad()
                    F.cross_entropy(net(x[chosen]), labels[chosen]).backward()
                    optimizer.step()
                    schedule.step()
    finally:
        torch.set_num_threads(threads)
    return net.state_dict()

"""What a run must say about its own settings, and what it must refuse once the method is there."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from dembench.tasks.base import ConfigError, Note
from dembench.tasks.tta.methods.norm import Norm

ALONE = "more than 1 value per channel"  # what torch says of a BatchNorm that is shown a single value


def remarks(method: Any, x: Tensor, *, smallest: int, fresh: bool, window: int | None = None) -> Iterator[Note]:
    """Notes on what the settings make of the method, where the numbers alone would not tell.

    Args:
        x: a first batch of the stream (N, 3, H, W).
        smallest: the images of the smallest batch that the method will see.
        fresh: whether the method starts afresh before every batch.
        window: images of a sliding window, whose first predictions are made from fewer.
    Raises: ConfigError where a BatchNorm that uses batch statistics would see a single value per channel.
    """
    if fresh and getattr(method, "adapted", None):
        yield Note(
            "updates",
            "the method starts afresh before every batch: with one step, one that predicts before its update gives "
            "the predictions of an unadapted model with the same statistics",
        )
    parts = getattr(method, "parts", None)
    if parts is not None and parts.accumulate is not None and parts.batches_per_update(len(x)) == 1:
        text = (
            f"accumulate={parts.accumulate} images at batches of {len(x)} is Q = 1: each batch is an update of its own"
        )
        yield Note("accumulation", text)
    model = getattr(method, "model", None)
    if not isinstance(model, nn.Module):
        return
    if isinstance(method, Norm) and not any(map(_is_batch_norm, model.modules())):
        yield Note("statistics", "the model has no BatchNorm: NORM has nothing to exchange and predicts as Source")
    if smallest == 1 and isinstance(method, Norm) and method.looks_at_batch and method.layers:
        _check_one_image(model, x[:1], method.layers)
    if smallest == 1 and any(map(_uses_batch, model.modules())):
        _check_one_image(model, x[:1], [layer for layer in model.modules() if _uses_batch(layer)])
        if window is None:
            yield Note("batch", "batches of a single image: BatchNorm normalises by the statistics of one image")
        else:
            text = f"until the window has {window} images, BatchNorm normalises by the statistics of those that came"
            yield Note("batch", f"{text}, at first of one image")


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)


def _uses_batch(module: nn.Module) -> bool:
    return _is_batch_norm(module) and (module.training or module.running_mean is None)


@torch.no_grad()
def _check_one_image(model: nn.Module, x: Tensor, layers: list[nn.Module]) -> None:
    """Raises ConfigError where one of the layers is shown a single value per channel of one image."""
    seen: list[bool] = []
    hooks = [layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].numel() == args[0].shape[1]))
             for layer in layers]  # fmt: skip
    try:
        with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
            deepcopy(model)(x)
    except ValueError as error:
        if ALONE not in str(error):
            raise
        seen.append(True)
    finally:
        for hook in hooks:
            hook.remove()
    if any(seen):
        raise ConfigError(
            f"a batch of one image of {x.shape[2]}x{x.shape[3]} leaves a BatchNorm of the model a single value per "
            "channel, which has no variance; choose protocol.batch_size and data.num_images so that every batch has "
            "two or more images, or a method that keeps the source statistics"
        )

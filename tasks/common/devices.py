"""Moving things to a device without a wait of the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
_WORD = 8  # bytes that every tensor of a parcel begins at a multiple of


def placed(loss: T, device: torch.device | str) -> T:
    """A loss with all its tensors on the device, in place; what is no module is given back as it is."""
    return loss.to(device) if isinstance(loss, nn.Module) else loss


def laid_out(model: nn.Module, device: torch.device | str) -> nn.Module:
    """A model on the device, in place, in channels-last format: on a CPU images are then a third faster. One with
    parameters of five axes, as of 3D convolutions, keeps its format, for which torch has no channels-last order."""
    if any(tensor.dim() == 5 for tensor in (*model.parameters(), *model.buffers())):
        return model.to(device)
    return model.to(device, memory_format=torch.channels_last)


def in_order(x: Tensor) -> Tensor:
    """Images (N, C, H, W) in channels-last format; inputs of any other shape as they are."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def send(tree: T, device: torch.device | str) -> T:
    """The same tuples, named tuples and dicts with their CPU tensors on the device; ``device="cpu"`` gives them back.

    All of them travel in one pinned copy that the host does not wait for.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return tree
    tensors: list[Tensor] = []
    _each(tree, lambda tensor: tensors.append(tensor) if tensor.is_cpu else None)
    sizes = [-(-tensor.nbytes // _WORD) * _WORD for tensor in tensors]
    parcel = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=device.type == "cuda")
    for part, tensor in zip(parcel.split(sizes), tensors, strict=True):
        _as(part, tensor).copy_(tensor)
    sent = parcel.to(device, non_blocking=True)
    arrived = (_as(part, tensor) for part, tensor in zip(sent.split(sizes), tensors, strict=True))
    return _each(tree, lambda tensor: next(arrived) if tensor.is_cpu else tensor)


def count(values: Tensor, length: int) -> Tensor:
    """How often each of 0 to ``length - 1`` is among ``values`` (N,) int64, as (length,) int64.

    Like ``torch.bincount``, which makes the host wait for a GPU to tell it the largest value.
    """
    if values.device.type == "cpu":
        return torch.bincount(values, minlength=length)
    return torch.zeros(length, dtype=torch.int64, device=values.device).scatter_add_(0, values, torch.ones_like(values))


def _each(tree: Any, function: Callable[[Tensor], Any]) -> Any:
    """The tree with ``function`` of its tensors in their place."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: _each(value, function) for key, value in tree.items()}
    if isinstance(tree, tuple):
        parts = [_each(part, function) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return tree


def _as(part: Tensor, tensor: Tensor) -> Tensor:
    """Bytes in the dtype and shape of a tensor."""
    return part[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)

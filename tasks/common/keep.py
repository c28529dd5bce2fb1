"""Trained tensors that a run keeps as files, in safetensors, and reads again to judge them on other data.

A task that keeps some says under which names in ``saves``, is told what is wanted by its attribute ``save``, yields
``kept`` files at the end of ``run``, and judges tensors that were read by ``judge(make_method, tensors)``.
"""

from __future__ import annotations

from collections.abc import Mapping

from safetensors.torch import save
from torch import Tensor, nn

from dembench.tasks.base import Artifact

SUFFIX = ".safetensors"


def kept(name: str, tensors: Mapping[str, Tensor]) -> Artifact:
    """The file ``name.safetensors`` of named tensors, which are copied to the host."""
    return Artifact(name + SUFFIX, save({key: copied(tensor).cpu() for key, tensor in tensors.items()}))


def copied(tensor: Tensor) -> Tensor:
    """Its values in memory of its own, rows after rows."""
    return tensor.detach().clone().contiguous()


def put(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Loads all tensors of a module; ValueError where names or shapes differ."""
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the weights that were kept do not fit this network: {reason}") from error

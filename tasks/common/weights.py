"""The state dict in a file of weights, whatever wrapped it: containers around it and prefixes before its names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dembench.tasks.common.tensors import load_checkpoint

PREFIXES = ("module.", "_orig_mod.", "model.")  # of DataParallel, torch.compile, Lightning
CONTAINERS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "params", "weights"),
    *("ema", "ema_state_dict", "ema_model", "state_dict_ema", "model_ema"),
)


class State(dict[str, Tensor]):
    """Tensors by name; ``note`` says what was taken off around them, empty where nothing was."""

    note = ""


def read_state(path: Path, what: str = "") -> State:
    """The tensors of a checkpoint or a safetensors file, by the names that a network has.

    Args:
        what: put before the path in a message, such as "model.weights: ".
    Raises: ValueError where the file does not load as weights only, or holds no tensors by name.
    """
    try:
        found = load_checkpoint(path)
    except ValueError as error:
        raise ValueError(f"{what}{error}; save the state dict of tensors alone and give that file") from error
    return unwrapped(found, f"{what}{path}")


def unwrapped(found: Any, origin: str) -> State:
    """The state dict in what a file holds. Raises: ValueError, which begins with ``origin``, where there is none."""
    taken = []
    while isinstance(found, dict) and not _is_state(found):
        key = next((key for key in CONTAINERS if isinstance(found.get(key), dict) and found[key]), None)
        if key is None:
            break
        taken.append(f"the entry {key}")
        found = found[key]
    if not isinstance(found, dict) or not _is_state(found):
        raise ValueError(f"{origin} holds no state dict: expected names with tensors, or those under 'state_dict'")
    found.pop("n_averaged", None)  # of torch's AveragedModel
    while prefix := next((prefix for prefix in PREFIXES if _all_begin(found, prefix)), ""):
        taken.append(f"the prefix {prefix}")
        found = {key.removeprefix(prefix): value for key, value in found.items()}
    state = State(found)
    if taken:
        state.note = f"weights: {', '.join(taken)} of the file is left out"
    return state


def _is_state(found: dict[Any, Any]) -> bool:
    return bool(found) and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in found.items())


def _all_begin(state: dict[str, Tensor], prefix: str) -> bool:
    """Whether all names have a prefix, those without any dot, such as RobustBench's mu and sigma, apart."""
    dotted = [key for key in state if "." in key]
    return bool(dotted) and all(key.startswith(prefix) for key in dotted)


def note_of(model: Any) -> str:
    """What a model says of its file of weights, be it a network or what makes one."""
    parts = [model, *(model.modules() if isinstance(model, torch.nn.Module) else ())]
    return next(filter(None, (getattr(part, "weights_note", "") for part in parts)), "")

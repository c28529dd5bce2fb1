"""Builders of models: the CLIPs for digits and CIFAR-10 that are trained here, and whatever open_clip names."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dembench.lookup import lookup
from dembench.tasks.common.cache import file_hash
from dembench.tasks.common.tensors import is_torchscript, read_tensors, state_dict_of
from dembench.tasks.prompt.clip import Clip, require_open_clip
from dembench.tasks.prompt.tiny import cifar_clip, digits_clip

__all__ = ["cifar_clip", "digits_clip", "open_clip_model"]


def open_clip_model(
    arch: str, weights: str | Path | None = "openai", quick_gelu: bool | None = None, seed: int = 0
) -> Clip:
    """A CLIP of open_clip with the preprocessing of its weights.

    Args:
        arch: a name of ``open_clip.list_models()``. OpenAI's weights want the names that end in -quickgelu.
        weights: a tag of ``open_clip.list_pretrained()`` (downloaded once), the path of a checkpoint, or None for
            random weights. OpenAI's own files, which are TorchScript archives, are read as tensors; nothing in them
            runs.
        quick_gelu: the activation that the weights of a path were trained with, which a file does not say: True for
            OpenAI's and what was tuned from them. A tag knows it.
        seed: of random weights.
    Raises: ValueError for unknown names, an activation that does not fit the weights, a text tower whose prompts cannot
        be injected; FileNotFoundError, also where a download fails; ModuleNotFoundError without open_clip.
    """
    open_clip = require_open_clip()
    lookup(arch, open_clip.list_models(), "open_clip model")
    config = open_clip.get_model_config(arch)
    own = bool(config.get("quick_gelu", False))
    path = _path(weights)
    if path is not None:
        if not path.is_file():
            raise FileNotFoundError(f"weights: no file {path}; give a tag of open_clip, a path, or null")
        if quick_gelu is None:
            text = "a file does not say which activation its weights were trained with: give model.quick_gelu=true"
            raise ValueError(f"{text} (OpenAI's weights and what was tuned from them) or false")
        weights_id, source = f"open_clip:{arch}:{file_hash(path)}:{quick_gelu}", str(path)
    elif weights is not None:
        tag = lookup(str(weights), open_clip.list_pretrained_tags_by_model(arch), f"open_clip weights of {arch}")
        wanted = bool((open_clip.get_pretrained_cfg(arch, tag) or {}).get("quick_gelu", False))
        if wanted != (own if quick_gelu is None else quick_gelu):
            kind = "QuickGELU" if wanted else "GELU"
            name = f"{arch}-quickgelu" if wanted else arch.removesuffix("-quickgelu")
            raise ValueError(
                f"the weights {tag} were trained with {kind}, {arch} has another activation: take arch={name}"
            )
        quick_gelu, weights_id, source = wanted, f"open_clip:{arch}:{tag}", tag
    else:
        weights_id, source = f"open_clip:{arch}:random:{seed}:{bool(quick_gelu) or own}", None
    if own and quick_gelu is False:
        raise ValueError(
            f"{arch} has QuickGELU; for weights trained with GELU take arch={arch.removesuffix('-quickgelu')}"
        )
    if "hf_model_name" in config["text_cfg"]:
        raise ValueError(f"{arch}: its text tower comes from Hugging Face; prompts cannot be injected into it")
    own_file = path is not None and is_torchscript(path)
    model, tokenizer = _create(open_clip, arch, None if own_file else source, bool(quick_gelu), seed)
    if own_file:
        _load_torchscript(model, path, arch)
    prepared = open_clip.get_model_preprocess_cfg(model)
    size = prepared["size"]
    size = size if isinstance(size, int) else int(size[0])
    if prepared.get("resize_mode", "shortest") != "shortest":
        raise ValueError(f"{arch}: its images are resized by {prepared['resize_mode']!r}; expected 'shortest'")
    return Clip(
        model,
        tokenizer,
        size=size,
        mean=prepared["mean"],
        std=prepared["std"],
        interpolation=prepared.get("interpolation", "bicubic"),
        name=arch,
        weights_id=weights_id,
    )


def _create(open_clip: Any, arch: str, source: str | None, quick_gelu: bool, seed: int) -> tuple[torch.nn.Module, Any]:
    try:
        with torch.random.fork_rng(devices=[]), _silence():
            torch.manual_seed(seed)
            model = open_clip.create_model(arch, pretrained=source, force_quick_gelu=quick_gelu)
            return model, open_clip.get_tokenizer(arch)
    except UserWarning as error:
        raise ValueError(f"{arch} with {source}: {error}") from error
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        if source is not None and Path(source).is_file():
            raise ValueError(f"{source} does not fit {arch}: {reason}") from error
        text = (
            f"the open_clip weights {source} of {arch} are not on this machine and could not be downloaded ({reason})"
        )
        raise FileNotFoundError(f"{text}; download them elsewhere and give model.weights=PATH") from error


def _load_torchscript(model: torch.nn.Module, path: Path, arch: str) -> None:
    state = state_dict_of(read_tensors(path))
    for name in ("input_resolution", "context_length", "vocab_size"):  # numbers of the architecture, in OpenAI's files
        state.pop(name, None)
    wanted = model.state_dict()
    wrong = sorted(name for name, value in wanted.items() if name not in state or state[name].shape != value.shape)
    wrong += sorted(state.keys() - wanted.keys() - {"attn_mask"})
    if wrong:
        raise ValueError(f"{path} does not fit {arch}: {wrong[0]} and {len(wrong) - 1} more tensors are others")
    model.load_state_dict({name: state[name] for name in wanted})


@contextmanager
def _silence() -> Iterator[None]:
    """Hides open_clip's log of what it loads; a QuickGELU mismatch, of which it only warns, raises."""
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*QuickGELU.*")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _path(weights: str | Path | None) -> Path | None:
    """A path where ``weights`` is one: tags have neither slash nor dot."""
    if weights is None or (isinstance(weights, str) and not any(mark in weights for mark in "/\\.")):
        return None
    return Path(weights).expanduser()

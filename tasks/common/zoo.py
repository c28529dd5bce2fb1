"""Networks of timm and torchvision by name, and checkpoints: what they hold and whether it fits."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dembench.lookup import lookup
from dembench.tasks.common.cache import file_hash
from dembench.tasks.common.weights import read_state

MULTI_HEAD = ("googlenet", "inception_v3")  # in training mode, where batch statistics live, they return several heads
UNTRAINED = "untrained"


@dataclass(frozen=True)
class Weights:
    """What a name and ``weights`` mean.

    Args:
        weights_id: names them by content, not by path.
        state: names and tensors; None for the random initialisation, or where ``net`` holds them.
        net: the network that has them loaded, where the library does both at once.
        preset: torchvision's transforms of them.
        origin: for messages.
    """

    weights_id: str
    state: dict[str, Tensor] | None = None
    net: nn.Module | None = None
    preset: Any = None
    origin: object = ""


def build(library: Literal["timm", "torchvision"], arch: str, *, num_classes: int, **options: Any) -> nn.Module:
    """The network without weights; logits (N, num_classes). ``options`` go to its constructor."""
    if library == "timm":
        return timm().create_model(arch, pretrained=False, num_classes=num_classes, **options)
    import torchvision.models as models

    return models.get_model(arch, weights=None, num_classes=num_classes, **options)


def torchvision_weights(arch: str, weights: str | Path | None, num_classes: int | None = None) -> Weights:
    """Weights of a network of torchvision.

    Args:
        arch: a name of ``torchvision.models.list_models(module=torchvision.models)``; googlenet and inception_v3 are
            left out, because they return several heads in training mode.
        weights: a name such as "DEFAULT" or "IMAGENET1K_V1" (downloaded once by torch.hub), the path of a state dict,
            or None for the random initialisation.
        num_classes: that weights of a name must have; None is any.
    Raises: ValueError for unknown names and files without tensors; FileNotFoundError, also where a download fails.
    """
    import torchvision.models as models

    lookup(arch, [name for name in models.list_models(module=models) if name not in MULTI_HEAD], "torchvision model")
    known = models.get_model_weights(arch)
    chosen: Any = known.DEFAULT
    if weights is None:
        return Weights(UNTRAINED, preset=chosen.transforms())
    if _looks_like_a_path(weights):
        path = existing(weights)
        return Weights(file_hash(path), read_state(path), preset=chosen.transforms(), origin=path)
    if not _is_default(weights):
        chosen = known[lookup(str(weights), ["DEFAULT", *(entry.name for entry in known)], f"weights of {arch}")]
    if num_classes not in (None, classes := len(chosen.meta["categories"])):
        raise ValueError(f"{chosen} has {classes} classes, but num_classes={num_classes}")
    return Weights(f"torchvision:{chosen}", _download(chosen), None, chosen.transforms(), chosen)


def timm_weights(arch: str, weights: str | Path | None, num_classes: int | None = None, **options: Any) -> Weights:
    """Weights of a network of timm.

    Args:
        arch: a name of ``timm.list_models()``, with the tag of its weights where it matters, such as
            vit_base_patch16_224.augreg_in21k_ft_in1k: what the plain name means differs between versions of timm.
        weights: "DEFAULT" (downloaded once by huggingface_hub), the path of a state dict, or None for the random
            initialisation.
        num_classes: that downloaded weights must have; None is any.
        options: of the network, to which timm fits what it downloads.
    Raises: as ``torchvision_weights``; ModuleNotFoundError where timm is not installed.
    """
    library = timm()
    base, _, tag = arch.partition(".")
    lookup(base, library.list_models(), "timm model")
    tags = [name.partition(".")[2] for name in library.list_pretrained(f"{base}.*")]
    if tag:
        lookup(tag, tags, f"timm weights of {base}")
    if weights is None:
        return Weights(UNTRAINED)
    if not _is_default(weights):
        path = existing(weights)
        return Weights(file_hash(path), read_state(path), origin=path)
    if not tags:
        raise ValueError(f"timm has no weights for {base}; give model.weights=PATH or model.weights=null")
    try:
        net = library.create_model(arch, pretrained=True, **options)
    except OSError as error:
        text = f"timm weights {arch} are not on this machine and could not be downloaded ({_one_line(error)})"
        raise FileNotFoundError(f"{text}; download them elsewhere and give model.weights=PATH") from error
    if num_classes not in (None, net.num_classes):
        raise ValueError(f"timm weights {arch} have {net.num_classes} classes, but num_classes={num_classes}")
    weights_id = f"timm:{base}.{net.pretrained_cfg.get('tag') or 'untagged'}"
    return Weights(weights_id, net=net, origin=f"timm weights {arch}")


def timm() -> ModuleType:
    """The package; ModuleNotFoundError where it is not installed."""
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("timm models need the package timm: pip install dembench[timm]") from error
    return timm


def _is_default(weights: str | Path | None) -> bool:
    return str(weights).upper() == "DEFAULT"


def _looks_like_a_path(weights: str | Path) -> bool:
    return isinstance(weights, Path) or bool(re.search(r"[/\\.]", weights))


def existing(weights: str | Path) -> Path:
    path = Path(weights).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"weights: no file {path}; set DEMBENCH_DATA to the folder that has weights/, or give "
            "model.weights=PATH (`dembench list model` says where the files are found)"
        )
    return path


def load(net: nn.Module, state: dict[str, Tensor], origin: object) -> None:
    """Loads every tensor or raises ValueError; only BatchNorm's batch counter may be absent, old files lack it."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*to a meta parameter")  # where only the fit is looked at
            wrong = net.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ValueError(f"{origin} does not fit the model: {_one_line(error)}") from error
    missing = [key for key in wrong.missing_keys if not key.endswith("num_batches_tracked")]
    if missing or wrong.unexpected_keys:
        lacks, has = ", ".join(missing[:3]) or "nothing", ", ".join(wrong.unexpected_keys[:3]) or "nothing"
        raise ValueError(f"{origin} does not fit the model: it lacks {lacks} and has {has} that the model has not")
    net.weights_note = getattr(state, "note", "")


def _download(weights: Any) -> dict[str, Tensor]:
    """The state dict of torchvision weights, from torch.hub's cache or the network, with its hash checked."""
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except OSError as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise FileNotFoundError(
            f"torchvision weights {weights} are not on this machine and could not be downloaded "
            f"({_one_line(error)}); put {weights.url} into {folder}, or give model.weights=PATH"
        ) from error
    # the DenseNet files are older than the module names: norm.1 is norm1 today
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key): value for key, value in state.items()}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

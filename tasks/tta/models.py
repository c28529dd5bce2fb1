"""Builders of source models. Each returns a ``Normalized`` network in eval mode: float images in [0, 1], logits out.

Every model has ``num_classes`` and ``weights_id``, which names the weights by what they are and not by where they lie.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from dembench.lookup import lookup
from dembench.tasks.common.cache import file_hash
from dembench.tasks.common.cifar_nets import CIFARResNeXt, WideResNet
from dembench.tasks.common.digits import digits_convnet, digits_transformer
from dembench.tasks.common.digits_nets import CIFARResNet, Normalized
from dembench.tasks.common.images import Preprocess, of_timm, of_torchvision
from dembench.tasks.common.weights import read_state

__all__ = [
    "cifar_resnet",
    "cifar_resnext",
    "digits_convnet",
    "digits_transformer",
    "timm_model",
    "torchvision_model",
    "wide_resnet",
]

CIFAR_RESNET_DEPTHS = (20, 32, 44, 56)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # the CIFAR-10 files were trained so, too
MULTI_HEAD = ("googlenet", "inception_v3")  # in training mode, where batch statistics live, they return several heads


def cifar_resnet(depth: int = 20, weights: str | Path | None = None, num_classes: int = 10) -> Normalized:
    """A CIFAR-10 residual network of depth 20, 32, 44 or 56, inputs (N, 3, 32, 32).

    Args:
        weights: a checkpoint, see ``tasks.common.weights``. None is the random initialisation by torch's global
            generator.
    Raises: ValueError for another depth and for a file that holds something else; FileNotFoundError.
    Source: He et al., Deep Residual Learning for Image Recognition, 2016, section 4.2.
    """
    if depth not in CIFAR_RESNET_DEPTHS:
        valid = ", ".join(map(str, CIFAR_RESNET_DEPTHS))
        raise ValueError(f"cifar_resnet: expected a depth of {valid}, got {depth!r}")
    if weights is None:
        net = CIFARResNet(depth, num_classes)
        return _finish(net, IMAGENET_MEAN, IMAGENET_STD, num_classes, "untrained")
    path = _existing(weights)
    state = read_state(path)
    found = 2 + 6 * len({key.split(".")[1] for key in state if key.startswith("layer1.")})
    if "linear.weight" not in state or found == 2:
        raise ValueError(f"{path} holds no CIFAR ResNet: its first names are {', '.join(list(state)[:4])}")
    if found != depth:
        raise ValueError(f"{path} holds a ResNet-{found}, but depth={depth} was asked for")
    if len(state["linear.weight"]) != num_classes:
        raise ValueError(f"{path} has {len(state['linear.weight'])} classes, but num_classes={num_classes}")
    net = CIFARResNet(depth, num_classes)
    _load(net, state, path)
    return _finish(net, IMAGENET_MEAN, IMAGENET_STD, num_classes, file_hash(path))


def wide_resnet(
    depth: int = 28,
    width: int = 10,
    weights: str | Path | None = None,
    num_classes: int = 10,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
) -> Normalized:
    """A wide residual network for 32x32 images, such as WRN-28-10 and WRN-40-2, of a checkpoint as RobustBench has.

    Args:
        weights: as for ``cifar_resnet``.
        mean, std: the normalisation that the weights were trained with; where the file has its own, as ``mu`` and
            ``sigma``, that is taken.
    Raises: as ``cifar_resnet``.
    """
    net = WideResNet(depth, width, num_classes)
    return _with_checkpoint(net, "fc", f"WRN-{depth}-{width}", weights, num_classes, mean, std)


def cifar_resnext(
    depth: int = 29,
    groups: int = 4,
    base_width: int = 32,
    weights: str | Path | None = None,
    num_classes: int = 10,
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    std: Sequence[float] = (0.5, 0.5, 0.5),
) -> Normalized:
    """A ResNeXt for 32x32 images, such as ResNeXt-29 (4x32d) trained with AugMix; see ``wide_resnet``."""
    net = CIFARResNeXt(depth, groups, base_width, num_classes)
    what = f"ResNeXt-{depth} ({groups}x{base_width}d)"
    return _with_checkpoint(net, "classifier", what, weights, num_classes, mean, std)


def _with_checkpoint(
    net: nn.Module,
    head: str,
    what: str,
    weights: str | Path | None,
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Normalized:
    """``net`` with the tensors of a file, whose own normalisation counts where it has one."""
    if weights is None:
        return _finish(net, tuple(mean), tuple(std), num_classes, "untrained")
    path = _existing(weights)
    state = read_state(path)
    for key in [key for key in state if key.startswith("sub_block1.")]:  # never used by anyone
        del state[key]
    if "mu" in state and "sigma" in state:
        mean, std = state.pop("mu").flatten().tolist(), state.pop("sigma").flatten().tolist()
    if f"{head}.weight" not in state:
        raise ValueError(f"{path} holds no {what}: its first names are {', '.join(list(state)[:4])}")
    if len(state[f"{head}.weight"]) != num_classes:
        raise ValueError(f"{path} has {len(state[f'{head}.weight'])} classes, but num_classes={num_classes}")
    _load(net, state, path)
    return _finish(net, tuple(mean), tuple(std), num_classes, file_hash(path))


def torchvision_model(arch: str, weights: str | Path | None = "DEFAULT", num_classes: int = 1000) -> Normalized:
    """A classification network of torchvision with the mean and std of the weights' own transforms.

    Args:
        arch: a name of ``torchvision.models.list_models(module=torchvision.models)``; googlenet and inception_v3 are
            left out, because they return several heads in training mode.
        weights: a name such as "DEFAULT" or "IMAGENET1K_V1" (downloaded once by torch.hub), the path of a state dict
            (normalised as the architecture's default weights), or None for the random initialisation.
        num_classes: 1000 unless the state dict of a path has another number.
    Raises: ValueError for unknown names and files that do not fit; FileNotFoundError, also where a download fails.
    """
    import torchvision.models as zoo

    lookup(arch, [name for name in zoo.list_models(module=zoo) if name not in MULTI_HEAD], "torchvision model")
    known = zoo.get_model_weights(arch)
    named = weights is not None and not _looks_like_a_path(weights)
    chosen: Any = known.DEFAULT
    if named and not _is_default(weights):
        chosen = known[lookup(str(weights), ["DEFAULT", *(entry.name for entry in known)], f"weights of {arch}")]
    if named and num_classes != len(chosen.meta["categories"]):
        raise ValueError(f"{chosen} has {len(chosen.meta['categories'])} classes, but num_classes={num_classes}")
    path = None if named or weights is None else _existing(weights)
    preset = chosen.transforms()
    net = zoo.get_model(arch, weights=None, num_classes=num_classes)
    if path:
        _load(net, read_state(path), path)
        weights_id = file_hash(path)
    elif named:
        _load(net, _download(chosen), chosen)
        weights_id = f"torchvision:{chosen}"
    else:
        weights_id = "untrained"
    return _finish(net, preset.mean, preset.std, num_classes, weights_id, of_torchvision(preset))


def timm_model(arch: str, weights: str | Path | None = "DEFAULT", num_classes: int = 1000) -> Normalized:
    """A network of timm with the mean and std of its pretrained configuration.

    Args:
        arch: a name of ``timm.list_models()``, with the tag of its weights where it matters, such as
            vit_base_patch16_224.augreg_in21k_ft_in1k: what the plain name stands for differs between versions of timm.
        weights: "DEFAULT" (downloaded once by huggingface_hub), the path of a state dict, or None for the random
            initialisation.
        num_classes: the number that the weights have.
    Raises: ValueError for unknown names and files that do not fit; FileNotFoundError, also where a download fails;
        ModuleNotFoundError where timm is not installed.
    """
    timm = _timm()
    base, _, tag = arch.partition(".")
    lookup(base, timm.list_models(), "timm model")
    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{base}.*")]
    if tag:
        lookup(tag, tags, f"timm weights of {base}")
    if weights is not None and not _is_default(weights):
        path = _existing(weights)
        state = read_state(path)
        net = timm.create_model(arch, pretrained=False, num_classes=num_classes)
        _load(net, state, path)
        weights_id = file_hash(path)
    elif weights is None:
        net = timm.create_model(arch, pretrained=False, num_classes=num_classes)
        weights_id = "untrained"
    else:
        if not tags:
            raise ValueError(f"timm has no weights for {base}; give model.weights=PATH or model.weights=null")
        try:
            net = timm.create_model(arch, pretrained=True)
        except OSError as error:
            text = f"timm weights {arch} are not on this machine and could not be downloaded ({_one_line(error)})"
            raise FileNotFoundError(f"{text}; download them elsewhere and give model.weights=PATH") from error
        if net.num_classes != num_classes:
            raise ValueError(f"timm weights {arch} have {net.num_classes} classes, but num_classes={num_classes}")
        weights_id = f"timm:{base}.{net.pretrained_cfg.get('tag') or 'untagged'}"
    config = timm.data.resolve_data_config(model=net)
    return _finish(net, config["mean"], config["std"], num_classes, weights_id, of_timm(config))


def _timm() -> ModuleType:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("timm models need the package timm: pip install dembench[timm]") from error
    return timm


def _finish(
    net: nn.Module, mean: Any, std: Any, num_classes: int, weights_id: str, preprocess: Preprocess | None = None
) -> Normalized:
    return Normalized(mean, std, net, num_classes=num_classes, weights_id=weights_id, preprocess=preprocess).eval()


def _is_default(weights: str | Path | None) -> bool:
    return str(weights).upper() == "DEFAULT"


def _looks_like_a_path(weights: str | Path) -> bool:
    return isinstance(weights, Path) or bool(re.search(r"[/\\.]", weights))


def _existing(weights: str | Path) -> Path:
    path = Path(weights).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"weights: no file {path}; set DEMBENCH_DATA to the folder that has weights/, or give "
            "model.weights=PATH (`dembench list model` says where the files are found)"
        )
    return path


def _load(net: nn.Module, state: dict[str, Tensor], origin: object) -> None:
    """Loads every tensor or raises ValueError; only BatchNorm's batch counter may be absent, old files lack it."""
    try:
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

"""Builders of source models. Each returns a ``Normalized`` network in eval mode: float images in [0, 1], logits out.

Every model has ``num_classes`` and ``weights_id``, which names the weights by content, not by path.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from dembench.tasks.common import zoo
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
SMALL = Preprocess(32, 32, "bilinear")  # native size of networks for CIFAR: images of 32 pixels stay as they are
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # the CIFAR-10 files were trained so, too


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
        return _finish(net, IMAGENET_MEAN, IMAGENET_STD, num_classes, "untrained", SMALL)
    path = zoo.existing(weights)
    state = read_state(path)
    found = 2 + 6 * len({key.split(".")[1] for key in state if key.startswith("layer1.")})
    if "linear.weight" not in state or found == 2:
        raise ValueError(f"{path} holds no CIFAR ResNet: its first names are {', '.join(list(state)[:4])}")
    if found != depth:
        raise ValueError(f"{path} holds a ResNet-{found}, but depth={depth} was asked for")
    if len(state["linear.weight"]) != num_classes:
        raise ValueError(f"{path} has {len(state['linear.weight'])} classes, but num_classes={num_classes}")
    net = CIFARResNet(depth, num_classes)
    zoo.load(net, state, path)
    return _finish(net, IMAGENET_MEAN, IMAGENET_STD, num_classes, file_hash(path), SMALL)


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
        return _finish(net, tuple(mean), tuple(std), num_classes, "untrained", SMALL)
    path = zoo.existing(weights)
    state = read_state(path)
    for key in [key for key in state if key.startswith("sub_block1.")]:  # never used by anyone
        del state[key]
    if "mu" in state and "sigma" in state:
        mean, std = state.pop("mu").flatten().tolist(), state.pop("sigma").flatten().tolist()
    if f"{head}.weight" not in state:
        raise ValueError(f"{path} holds no {what}: its first names are {', '.join(list(state)[:4])}")
    if len(state[f"{head}.weight"]) != num_classes:
        raise ValueError(f"{path} has {len(state[f'{head}.weight'])} classes, but num_classes={num_classes}")
    zoo.load(net, state, path)
    return _finish(net, tuple(mean), tuple(std), num_classes, file_hash(path), SMALL)


def torchvision_model(arch: str, weights: str | Path | None = "DEFAULT", num_classes: int = 1000) -> Normalized:
    """A classification network of torchvision with the mean and std of the weights' own transforms.

    Args:
        arch, weights: see ``zoo.torchvision_weights``; the file of a path is normalised as the default weights.
        num_classes: 1000 unless the state dict of a path has another number.
    Raises: ValueError for unknown names and files that do not fit; FileNotFoundError, also where a download fails.
    """
    found = zoo.torchvision_weights(arch, weights, num_classes)
    net = zoo.build("torchvision", arch, num_classes=num_classes)
    if found.state is not None:
        zoo.load(net, found.state, found.origin)
    preset = found.preset
    return _finish(net, preset.mean, preset.std, num_classes, found.weights_id, of_torchvision(preset))


def timm_model(arch: str, weights: str | Path | None = "DEFAULT", num_classes: int = 1000) -> Normalized:
    """A network of timm with the mean and std of its pretrained configuration.

    Args:
        arch, weights: see ``zoo.timm_weights``.
        num_classes: the number that the weights have.
    Raises: ValueError for unknown names and files that do not fit; FileNotFoundError, also where a download fails;
        ModuleNotFoundError where timm is not installed.
    """
    found = zoo.timm_weights(arch, weights, num_classes)
    net = found.net
    if net is None:
        net = zoo.build("timm", arch, num_classes=num_classes)
        if found.state is not None:
            zoo.load(net, found.state, found.origin)
    config = zoo.timm().data.resolve_data_config(model=net)
    return _finish(net, config["mean"], config["std"], num_classes, found.weights_id, of_timm(config))


def _finish(
    net: nn.Module, mean: Any, std: Any, num_classes: int, weights_id: str, preprocess: Preprocess | None = None
) -> Normalized:
    return Normalized(mean, std, net, num_classes=num_classes, weights_id=weights_id, preprocess=preprocess).eval()

"""A network of one's own as a source model: by the dotted name of its class, or an object given in Python.

The one convention: a network takes images (N, 3, H, W) in [0, 1] and returns logits (N, C). Its attribute
``preprocess`` says how a photograph becomes such an input, and, if it has mean and std, that the network wants them
taken off: a mapping {resize, crop, interpolation, squash, mean, std}, a ``Preprocess``, or what torchvision's
``weights.transforms()`` returns. A network of timm needs none: its data configuration says the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dembench.lookup import lookup
from dembench.tasks.common import zoo
from dembench.tasks.common.digits_nets import Normalized
from dembench.tasks.common.images import Preprocess, of_timm, of_torchvision
from dembench.tasks.common.weights import note_of, read_state

PROBE = 32  # pixels of the images by which classes are counted, where the network does not say how large its own are
SEED = 7_919  # of the network whose fingerprint is taken; unlike those of runs, so that a random one is known
KEYS = ("resize", "crop", "interpolation", "squash", "mean", "std")  # of ``preprocess`` as a mapping
_given: dict[str, nn.Module] = {}  # networks that were given in this process, by class and fingerprint


def network(network: Callable[..., nn.Module] | str, weights: str | Path | None = None) -> Normalized:
    """A network of one's own as a source model in eval mode.

    Args:
        network: a class or function that makes it, as ``model=my.module.Net`` names; what it draws comes from torch's
            generator, that is from the run's seed. A text is the class of an object that was given in Python.
        weights: a checkpoint, see ``tasks.common.weights``; None keeps what the network comes with. Of an object, its
            fingerprint.
    Raises: ValueError where it is no network, or the file does not fit; FileNotFoundError.
    """
    if isinstance(network, str):
        return as_source(object_of(network, weights), str(weights), f"{network}, given as an object in Python")
    made = Maker(network, weights)
    return as_source(made(), made.weights_id)


class Maker:
    """Builds a network, with the tensors of a file if one is given; ``maker(num_classes=10)`` passes arguments on,
    and ``arguments`` are those with which the fingerprint is made.

    ``weights_id`` is a hash of all tensors of the network as it is built under one seed: of what it loads or is given,
    and of its own initialisation where nothing else is. It names a network that is random alike for every seed.
    """

    def __init__(self, network: Callable[..., nn.Module], weights: str | Path | None = None, **arguments: Any) -> None:
        self._build = network
        self._path = None if weights is None else zoo.existing(weights)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            self.weights_id = fingerprint(self(**arguments))

    def __call__(self, **arguments: Any) -> nn.Module:
        built = self._build(**arguments)
        if not isinstance(built, nn.Module):
            raise ValueError(f"model: expected a torch.nn.Module, got {type(built).__name__}")
        if self._path is not None:
            zoo.load(built, read_state(self._path), self._path)
        return built


def give(net: nn.Module) -> tuple[str, str]:
    """Keeps a copy of a network for runs of this process; returns its class and its fingerprint."""
    name, weights = f"{type(net).__module__}.{type(net).__qualname__}", fingerprint(net)
    _given[f"{name} {weights}"] = deepcopy(net)
    return name, weights


def forget() -> None:
    """Lets go of the networks that were given."""
    _given.clear()


def object_of(name: str, weights: object) -> nn.Module:
    """A copy of the network that was given under these; ValueError in a process in which none was."""
    if f"{name} {weights}" not in _given:
        raise ValueError(f"model: {name} was given as an object to another process of Python; pass it to dembench.run")
    return deepcopy(_given[f"{name} {weights}"])


def fingerprint(net: nn.Module) -> str:
    """A hash of names, shapes, types and values of all parameters and buffers, ``own:`` and 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        if not isinstance(value, Tensor):  # extra state
            digest.update(f"{name} {value!r}".encode())
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"own:{digest.hexdigest()[:16]}"


def as_source(net: nn.Module, weights_id: str, origin: str = "") -> Normalized:
    """A network as the tasks know their source models: in eval mode, with its normalisation, transform and classes."""
    preprocess, mean, std = transform_of(net)
    net.eval()
    classes = getattr(net, "num_classes", None)
    if not isinstance(classes, int) or isinstance(classes, bool):
        classes = count_classes(net, PROBE if preprocess is None else preprocess.crop)
    source = Normalized(mean, std, net, num_classes=classes, weights_id=weights_id, preprocess=preprocess).eval()
    size = sum(parameter.numel() for parameter in net.parameters())
    random = "" if fingerprint(net) == weights_id else "; some of them are random and follow the seed"
    said = f"{origin or f'{type(net).__module__}.{type(net).__qualname__}'}: {size:,} parameters, {weights_id}{random}"
    source.weights_note = "; ".join(filter(None, [said, note_of(net)]))  # type: ignore[assignment]
    return source


def transform_of(net: nn.Module) -> tuple[Preprocess | None, tuple[float, ...], tuple[float, ...]]:
    """How a photograph becomes an input, None where the network does not say, and mean and std to take off.

    Raises: ValueError for a ``preprocess`` of another kind.
    """
    told = net._modules.get("preprocess", getattr(net, "preprocess", None))  # torchvision's is a module
    plain = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if told is None and isinstance(getattr(net, "pretrained_cfg", None), Mapping):
        config = zoo.timm().data.resolve_data_config(model=net)
        return of_timm(config), tuple(config["mean"]), tuple(config["std"])
    if told is None or isinstance(told, Preprocess):
        return told, *plain
    if isinstance(told, Mapping):
        for key in told:
            lookup(str(key), KEYS, "key of preprocess")
        sizes = {key: value for key, value in told.items() if key not in ("mean", "std")}
        if "crop" not in sizes:
            raise ValueError("preprocess: expected crop, the pixels of a side of the input")
        sizes.setdefault("resize", sizes["crop"])
        found = (tuple(told.get(key, default)) for key, default in zip(("mean", "std"), plain, strict=True))
        return Preprocess(**sizes), *found
    if hasattr(told, "resize_size"):
        return of_torchvision(told), tuple(told.mean), tuple(told.std)
    kinds = "a mapping with resize and crop, a Preprocess, or weights.transforms() of torchvision"
    raise ValueError(f"preprocess of {type(net).__name__}: expected {kinds}, got {type(told).__name__}")


@torch.no_grad()
def count_classes(net: nn.Module, side: int) -> int:
    """C of the logits (N, C) for images of ``side`` pixels. Raises: ValueError where it returns something else."""
    parameter = next(net.parameters(), torch.empty(0))
    with torch.random.fork_rng(devices=[]):
        try:
            logits = net(torch.zeros(2, 3, side, side, device=parameter.device, dtype=parameter.dtype))
        except (RuntimeError, ValueError, AssertionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{type(net).__name__} takes no images (2, 3, {side}, {side}) ({reason}); set its num_classes, and its "
                "preprocess if its images have another size"
            ) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"{type(net).__name__}: expected logits (2, C) for two images, got {got}")
    return logits.shape[1]

"""Pretrained weights: files of torchvision, of ADVENT and of mmsegmentation, renamed to mmsegmentation's names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from dembench.tasks.common.weights import read_state

OURS = ("backbone", "decode_head", "auxiliary_head", "neck")
RESNET = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "layer5", "layer6", "fc", "stem")
HEADS = {"layer5": "auxiliary_head", "layer6": "decode_head"}  # of ADVENT's ResNetMulti


def load_weights(path: Path, segmentor: nn.Module) -> str:
    """Puts the weights of a file into an EncoderDecoder; returns what was taken off around them, see ``State``.

    The file holds a state dict, bare or as ``state_dict``, of: a ResNet of torchvision, or ADVENT's ImageNet file (the
    backbone alone; heads stay as they are); a network that ADVENT trained; an EncoderDecoder.

    Raises: ValueError where the file is no state dict that torch loads safely, or does not fit, with the first names.
    """
    found = read_state(path, "model.weights: ")
    state = renamed(found)
    own = segmentor.state_dict()
    prefixes = {name.split(".")[0] for name in state}
    wanted = {name for name in own if name.split(".")[0] in prefixes and not name.endswith("num_batches_tracked")}
    missing = sorted(wanted - state.keys())
    unknown = sorted(state.keys() - own.keys())
    other = sorted(n for n in state.keys() & own.keys() if state[n].shape != own[n].shape)
    for what, names in (("lacks", missing), ("has, beyond the network,", unknown), ("has another shape for", other)):
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise ValueError(f"model.weights: {path} does not fit the network: it {what} {shown}")
    segmentor.load_state_dict(state, strict=False)
    return found.note


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under mmsegmentation's names; a classifier of ImageNet is left out.

    Source: https://github.com/valeoai/ADVENT, ``ResNetMulti``: layer5 classifies the third stage, layer6 the fourth.
    """
    state = {_without_prefix(name): value for name, value in state.items()}
    if any(name.split(".")[0] in OURS for name in state):
        return {name: value for name, value in state.items() if name.split(".")[0] in OURS}
    trained = any(name.startswith("layer6.") for name in state)  # the ImageNet file has another layer5 instead
    found = {}
    for name, value in state.items():
        part, _, rest = name.partition(".")
        if part in HEADS:
            if trained:
                found[f"{HEADS[part]}.{rest.replace('conv2d_list', 'branches')}"] = value
        elif part != "fc":
            found[f"backbone.{name}"] = value
    return found


def _without_prefix(name: str) -> str:
    """The name from its first known part on: ``module.conv1.weight`` and ``Scale.conv1.weight`` are the same."""
    parts = name.split(".")
    for i in range(min(len(parts), 3)):
        if parts[i] in (*OURS, *RESNET):
            return ".".join(parts[i:])
    return name

"""Which normalisation layers SAR and DeYO leave alone at the top of a network."""

from __future__ import annotations

from typing import Literal

from torch import nn

from dembench.core.adapt import ALL_NORMS, top_layers

Freeze = Literal["none", "depth", "names", "full_names"]
FREEZE = ("none", "depth", "names", "full_names")
PATTERNS = ("layer4", "blocks.9", "blocks.10", "blocks.11", "norm.")


def frozen_layers(model: nn.Module, rule: Freeze) -> list[str]:
    """Names of modules whose parameters stay as they are.

    Args:
        rule: "depth" is the last stage or the last quarter of the blocks and all that follows, in any network
            (``core.adapt.top_layers``); on torchvision's ResNet and timm's ViT that is what the authors freeze. "names"
            is their rule to the letter: parts of names of those two networks, which match nothing in most others, with
            wrappers around the model left out of the names. "full_names" keeps these, as the collection of
            mariodoebler does: the last norm of a wrapped ViT is "model.norm" there, which no pattern matches.
            "none" freezes nothing.
    """
    if rule == "depth":
        return top_layers(model)
    if rule in ("names", "full_names"):
        start = _wrapping(model) if rule == "names" else ""
        return [
            name
            for name, module in model.named_modules()
            if isinstance(module, ALL_NORMS) and _matches(name.removeprefix(start))
        ]
    return []


def _matches(name: str) -> bool:
    return name == "norm" or any(pattern in name for pattern in PATTERNS)


def _wrapping(model: nn.Module) -> str:
    """What the names of all parameters begin with."""
    names = [name.split(".") for name, _ in model.named_parameters()]
    shared = 0
    while all(len(name) > shared + 1 for name in names) and len({name[shared] for name in names}) == 1:
        shared += 1
    return "".join(f"{part}." for part in names[0][:shared]) if names else ""

"""Checks of a source model of the task tta."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from dembench.core import EM
from dembench.core.adapt import norm_affine
from dembench.tasks.common.own import fingerprint

from . import finding
from .finding import Checks, Skipped, Wrong, compare, no_loose_tensors, on_gpu, slope_of


def check_model(make: Callable[[], nn.Module], side: int | None = None) -> Checks:
    """Of a source model of the task tta, as ``model=NAME`` builds it.

    Args:
        side: pixels of its images; None takes those of its ``preprocess``, or 32.
    """
    nets: list[nn.Module] = []

    def net() -> nn.Module:
        if not nets:
            nets.append(make())
        return nets[0]

    def images(n: int, dtype: torch.dtype = torch.float32) -> Tensor:
        size: int = side or getattr(getattr(net(), "preprocess", None), "crop", None) or 32
        return finding.images(n, size=size).to(dtype)

    def shape() -> None:
        classes = getattr(net(), "num_classes", None)
        with torch.no_grad():
            logits = net()(images(3))
        if not isinstance(logits, Tensor) or logits.shape != (3, classes):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise Wrong(f"expected logits (3, {classes}) for 3 images and num_classes={classes}, got {got}")
        if not bool(logits.isfinite().all()):
            raise Wrong("logits of random images are not finite")

    def one() -> None:
        x = images(4)
        with torch.no_grad():
            whole, alone = net()(x), net()(x[:1])
        if not torch.allclose(whole[:1], alone, rtol=1e-3, atol=1e-3 * float(whole.abs().max())):
            raise Wrong("in eval() an image alone has other logits than in a batch")

    def repeatable() -> None:
        if net().training:
            raise Wrong("it is not in eval()")
        x = images(2)
        with torch.no_grad():
            if not torch.equal(net()(x), net()(x)):
                raise Wrong("in eval() the same images have other logits the second time")

    def gradient() -> None:
        own = deepcopy(net()).double()
        parameter = next(iter(norm_affine(own).values()))
        own.requires_grad_(False)
        x, name = images(2, torch.float64), _name_of(own, parameter)
        start = parameter.detach()[:4].clone().requires_grad_()

        def value(p: Tensor) -> Tensor:
            whole = torch.cat([p, parameter.detach()[4:]])
            return EM()(torch.func.functional_call(own, {name: whole}, (x,))).mean()

        compare(slope_of(value, start), lambda p: float(value(p)), start, "", close=1e-4)

    def state() -> None:
        other = deepcopy(net())
        other.load_state_dict(net().state_dict())
        if fingerprint(other) != fingerprint(net()):
            raise Wrong("its state dict, loaded again, gives other tensors")

    def named() -> None:
        if not getattr(net(), "weights_id", None):
            raise Wrong("no weights_id: results could not say which weights they are of")
        if make().weights_id != net().weights_id:
            raise Wrong("built again it has another weights_id: run ids would change from start to start")

    def transform() -> None:
        if getattr(net(), "preprocess", None) is None:
            raise Skipped("none; image folders need the attribute preprocess (docs/own_network.md)")

    def device() -> None:
        no_loose_tensors(net())
        on_gpu(lambda where: deepcopy(net()).to(where)(images(2).to(where)))

    yield "shape: images (N, 3, H, W) in [0, 1] to finite logits (N, num_classes)", shape
    yield "batch of one: as in a larger batch", one
    yield "determinism: in eval(), the same logits again", repeatable
    yield "gradient: reaches the normalisation layers; finite differences in float64", gradient
    yield "state dict: comes back", state
    yield "weights_id: the same when built again", named
    yield "preprocess: how photographs become inputs", transform
    yield "device: all tensors move along", device


def _name_of(net: nn.Module, parameter: nn.Parameter) -> str:
    """The name of one of its parameters."""
    return next(name for name, own in net.named_parameters() if own is parameter)

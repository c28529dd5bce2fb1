"""How long, in which batches, at which rates: the part of a run that all methods share."""

from __future__ import annotations

from dataclasses import dataclass

from dembench.tasks.common import training


@dataclass(frozen=True)
class Protocol(training.Protocol):
    """SGD with momentum, and a polynomial rate ``(1 - i / horizon) ** power`` in iteration i from 0.

    Args:
        iterations: steps of the optimiser(s).
        batch_size: images of each domain a step, over all devices.
        lr: of the backbone.
        head_multiplier: factor on it for the heads.
        backbone_multiplier: factor on it for everything else.
        repeated_backbone: steps along the same gradient for each weight of the backbone: one for each module inside the
            backbone that holds it, itself included, as in ADVENT's code, whose generator of parameters walks nested
            modules; so three for a convolution of a residual block. False takes one for all.
        momentum, weight_decay: of SGD; weight decay is on every weight.
        power: of the rate's decay; discriminators follow it as well.
        horizon: iterations in which the rate would reach 0; 0 takes ``iterations``.
        eval_every: iterations between evaluations; the last iteration is always evaluated.
        checkpoint_every: iterations between checkpoints; 0 is at each evaluation.
        pictures: test images that are drawn with their predictions; 0 draws none.
        workers: processes that load images; 0 loads in the training process.
        devices: GPUs (or CPU processes) over which each batch is divided.
    Raises: ValueError for numbers out of range and batches that do not divide.
    Source: ADVENT stops at 120,000 iterations with a horizon of 250,000.
    """

    iterations: int
    batch_size: int = 1
    lr: float = 2.5e-4
    head_multiplier: float = 10.0
    backbone_multiplier: float = 1.0
    repeated_backbone: bool = False
    momentum: float = 0.9
    weight_decay: float = 5e-4
    power: float = 0.9
    horizon: int = 0
    eval_every: int = 2000
    checkpoint_every: int = 0
    pictures: int = 3
    workers: int = 0
    devices: int = 1

    def __post_init__(self) -> None:
        self.check_at_least(
            {
                1: ("iterations", "batch_size", "eval_every", "devices"),
                0: ("checkpoint_every", "weight_decay", "power", "horizon", "pictures", "workers"),
            }
        )
        for name in ("lr", "head_multiplier", "backbone_multiplier"):
            if getattr(self, name) <= 0:
                raise ValueError(f"protocol: expected {name} > 0, got {getattr(self, name)!r}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"protocol: expected momentum in [0, 1), got {self.momentum}")
        if self.horizon and self.horizon < self.iterations:
            raise ValueError(f"protocol: expected horizon >= iterations = {self.iterations}, got {self.horizon}")
        self.check_division()

    def decay(self, done: int) -> float:
        """Factor on all rates after ``done`` iterations, from 1: all up to then make (1 - done / horizon) ** power.

        As mmengine's PolyLR, to the last bit.
        """
        return (1 - 1 / ((self.horizon or self.iterations) - done + 1)) ** self.power

"""Argument checks of the losses, so that all errors speak with one voice."""

from __future__ import annotations

import math

from torch import Tensor

REDUCTIONS = ("none", "mean", "sum")


def check_logits(name: str, logits: Tensor, mask: Tensor | None, reduction: str) -> None:
    """Refuses what is not (N, C, ...) floating-point logits with a boolean mask (N, ...) and a known reduction.

    Raises:
        ValueError: wrong dtype, shape, mask or reduction.
    """
    if not logits.is_floating_point():
        raise ValueError(f"{name}: expected floating-point logits, got {logits.dtype}")
    if logits.dim() < 2 or logits.shape[1] == 0:
        raise ValueError(f"{name}: expected logits (N, C, ...) with C > 0 classes on axis 1, got {tuple(logits.shape)}")
    if mask is not None:
        positions = logits.shape[:1] + logits.shape[2:]
        if str(mask.dtype) != "torch.bool" or mask.shape != positions:
            raise ValueError(
                f"{name}: expected a boolean mask {tuple(positions)}, got {mask.dtype} {tuple(mask.shape)}"
            )
    if reduction not in REDUCTIONS:
        raise ValueError(f"{name}: expected reduction in {REDUCTIONS}, got {reduction!r}")


def check_dem(tau: float, alpha: float) -> None:
    """Holds (tau, alpha) to Proposition A.1: alpha >= 0 and 0 < tau <= 2/alpha (alpha = 0, CADF alone, bounds nothing).

    Raises:
        ValueError: outside that region, or not finite.
    """
    if not (math.isfinite(alpha) and alpha >= 0):
        raise ValueError(f"dem: expected a finite alpha >= 0, got {alpha}")
    if not (math.isfinite(tau) and tau > 0 and tau * alpha <= 2 * (1 + 1e-12)):
        bound = f"{2 / alpha:g}" if alpha > 0 else "infinity"
        raise ValueError(f"dem: expected 0 < tau <= 2/alpha = {bound} (Proposition A.1), got tau={tau}, alpha={alpha}")


def check_adadem(momentum: float, alpha: float, norm_type: float, norm_of: str) -> None:
    """Holds AdaDEM's options to what the paper defines.

    Raises:
        ValueError: momentum outside (0, 1], alpha < 0 or not finite, norm_type not 1, 2 or infinity, norm_of not
            "cadf" or "em".
    """
    if not 0 < momentum <= 1:
        raise ValueError(f"adadem: expected 0 < momentum <= 1, got {momentum}")
    if not (math.isfinite(alpha) and alpha >= 0):
        raise ValueError(f"adadem: expected a finite alpha >= 0, got {alpha}")
    if norm_type not in (1, 2, math.inf):
        raise ValueError(f"adadem: expected norm_type 1, 2 or infinity, got {norm_type!r}")
    if norm_of not in ("cadf", "em"):
        raise ValueError(f"adadem: expected norm_of 'cadf' or 'em', got {norm_of!r}")


def check_table(table: Tensor, classes: int) -> None:
    """Refuses a calibrator table that is not floating-point (C, C).

    Raises:
        ValueError: wrong shape or dtype.
    """
    if table.shape != (classes, classes) or not table.is_floating_point():
        raise ValueError(
            f"adadem: expected a floating-point table ({classes}, {classes}), got {table.dtype} {tuple(table.shape)}"
        )

"""The losses as pure functions: em, cadf, gmc, dem, adadem, and the calibrator's step, update_table.

Logits are (N, C) or (N, C, ...), classes on axis 1; in a map every position is a sample. float64 is computed in
float64, everything else in float32, and losses of half-precision logits come back in float32; gradients have the
dtype of the logits. All logarithms are natural. A class masked out by a logit of minus infinity takes no part.

Source: "Decoupled Entropy Minimization", NeurIPS 2025, arXiv 2511.03256.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _calibrator as calibrator
from . import _kernels as kernels
from ._rows import Rows, Table, many, uniform_rows
from .checks import check_adadem, check_dem, check_logits, check_table

__all__ = ["adadem", "cadf", "dem", "em", "gmc", "uniform_table", "update_table"]


def em(logits: Tensor, *, mask: Tensor | None = None, reduction: str = "none") -> Tensor:
    """Entropy of softmax(logits), H = -sum p log p.

    Args:
        logits: (N, C, ...) floating point.
        mask: (N, ...) bool, True where the position counts; None counts all. Masked-out positions are ignored (they may
            be NaN).
        reduction: "none", "mean" (over the positions that count; 0 if there are none) or "sum".
    Returns: nats, (N, ...) for "none" with 0 where the mask is False, else a scalar.
    Raises: ValueError for integer logits, a wrong mask or an unknown reduction.
    Source: eq. 1. Gradient -p (log p + H). Identity: ``dem`` at tau = alpha = 1; em = cadf + gmc.
    """
    check_logits("em", logits, mask, reduction)
    return _dem(logits, 1, 1, mask, reduction)


def cadf(logits: Tensor, *, mask: Tensor | None = None, reduction: str = "none") -> Tensor:
    """Cluster Aggregation Driving Factor, the reward part of the entropy, T = -sum p z.

    Arguments, result and errors as in ``em``. Source: eq. 5. Gradient -p (z + T + 1).
    """
    check_logits("cadf", logits, mask, reduction)
    return _dem(logits, 1, 0, mask, reduction)


def gmc(logits: Tensor, *, mask: Tensor | None = None, reduction: str = "none") -> Tensor:
    """Gradient Mitigation Calibrator, the penalty part of the entropy, Q = logsumexp(z).

    Arguments, result and errors as in ``em``. Source: eq. 5. Gradient p.
    """
    check_logits("gmc", logits, mask, reduction)
    z = logits.to(kernels.accumulation_dtype(logits))
    if mask is not None:
        z = z.masked_fill(~mask.unsqueeze(1), 0)
    value = z.logsumexp(1)
    return reduce(value if mask is None else value.masked_fill(~mask, 0), mask, reduction)


def dem(
    logits: Tensor, *, tau: float = 1.0, alpha: float = 1.0, mask: Tensor | None = None, reduction: str = "none"
) -> Tensor:
    """Entropy split into a reward of temperature tau and a penalty of weight alpha.

    -sum softmax(z / tau) z + alpha logsumexp(z)

    Arguments and result as in ``em``. Where alpha is not 1 the value and, through the logits' offset, only the value
    depends on a constant added to all logits of a sample: give it raw logits, not log-probabilities.
    Raises: also ValueError for (tau, alpha) outside Proposition A.1.
    Source: eq. 11. Identities: (1, 1) is ``em``; (1, 0) is ``cadf``.
    """
    check_logits("dem", logits, mask, reduction)
    check_dem(tau, alpha)
    return _dem(logits, tau, alpha, mask, reduction)


def adadem(
    logits: Tensor,
    table: Tensor | None = None,
    *,
    norm: bool = True,
    norm_type: float = 1,
    norm_of: str = "cadf",
    mec: bool = True,
    alpha: float = 1.0,
    momentum: float = 0.1,
    mask: Tensor | None = None,
    reduction: str = "none",
) -> Tensor:
    """Adaptive DEM: CADF's reward at unit norm against the mean prediction of the pseudo class.

    -(1/delta) sum (p - alpha a_k) z, with k = argmax p (the first of several), delta the norm of CADF's gradient
    and a_k row k of the table, both constants. The value is not an entropy: never hold it against a threshold.

    Args:
        logits, mask, reduction: as in ``em``.
        table: (C, C) calibrator, rows sum to 1, already moved by this batch (``update_table``). None starts from
            ``uniform_table`` and moves it by this batch, as a fresh ``core.AdaDEM`` does.
        norm: False puts delta = 1 (the paper's AdaDEM-MEC).
        norm_type: 1, 2 or infinity, the norm that delta is.
        norm_of: "cadf", or "em" for the norm of the whole entropy's gradient (AdaDEM-V), held above 1e-4.
        mec: False puts a_k = p as a constant (AdaDEM-Norm); the value then is 0, the gradient EM's over delta, and
            the table is not read.
        alpha: weight of the calibrator.
        momentum: pi of the table's step; used only where table is None.
    Returns: (N, ...) for "none" with 0 where the mask is False, else a scalar.
    Raises: ValueError for wrong logits, mask, reduction, options or table.
    Source: eq. 12. Gradient -(1/delta) (p (z + T + 1) - alpha a_k).
    """
    check_logits("adadem", logits, mask, reduction)
    check_adadem(momentum, alpha, norm_type, norm_of)
    options = calibrator.Options(norm, norm_type, norm_of, mec, alpha)
    if table is None:
        fresh = fresh_table(logits) if mec else None
        return adadem_step(logits, fresh, options, momentum, False, False, mask, reduction)[0]
    check_table(table, logits.shape[1])
    return adadem_step(logits, table, options, None, False, False, mask, reduction)[0]


def uniform_table(
    num_classes: int, *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """AdaDEM's calibrator before any batch, (C, C) with 1/C everywhere."""
    return torch.full((num_classes, num_classes), 1 / num_classes, device=device, dtype=dtype)


def update_table(table: Tensor, logits: Tensor, *, momentum: float = 0.1, mask: Tensor | None = None) -> Tensor:
    """AdaDEM's calibrator after one batch: row k moves to (1 - pi) row + pi mean of p over the samples with argmax k.

    Args:
        table: (C, C); not changed.
        logits: (N, C, ...) and mask (N, ...) as in ``em``; no gradient flows.
        momentum: pi in (0, 1].
    Returns: a new table (C, C), its dtype at least that of the accumulation; rows without a sample are as before.
        Where ``torch.distributed`` is initialised, the means are over the batches of all ranks.
    Raises: ValueError for wrong logits, mask, momentum or table.
    Source: eq. 12 and the text below it.
    """
    check_logits("update_table", logits, mask, "none")
    check_adadem(momentum, 1, 1, "cadf")
    check_table(table, logits.shape[1])
    options = calibrator.Options(norm=False)
    with torch.no_grad():
        moved = adadem_step(logits, table, options, momentum, False, True, mask, "none")[1]
    assert isinstance(moved, Tensor)
    return moved


def fresh_table(logits: Tensor) -> Table:
    """The calibrator before any batch, for a batch of logits (N, C, ...); by rows where there are many classes."""
    classes, device, dtype = logits.shape[1], logits.device, kernels.accumulation_dtype(logits)
    if many(classes):
        return uniform_rows(classes, logits.numel() // classes, device=device, dtype=dtype)
    return uniform_table(classes, device=device, dtype=dtype)


def adadem_step(
    logits: Tensor,
    table: Table | None,
    options: calibrator.Options,
    momentum: float | None,
    inplace: bool,
    across_ranks: bool,
    mask: Tensor | None,
    reduction: str,
) -> tuple[Tensor, Table | None]:
    """One batch of AdaDEM in one go: the table's step, unless momentum is None, and the loss. No checks.

    ``table`` may be None where ``options.mec`` is False.
    """
    if mask is None and isinstance(table, Tensor) and options == calibrator.DEFAULT and logits.dim() == 2:
        found = calibrator.directly(logits, table, momentum, inplace, across_ranks)
        if found is not None:
            return reduce(found[0], None, reduction), found[1]
    rows = kernels.in_rows(logits) or logits.shape[1] > calibrator.ONE_HOT_CLASSES or isinstance(table, Rows)
    held = table.rows if isinstance(table, Rows) else table
    dtype = kernels.accumulation_dtype(logits, *(() if held is None else (held,)))
    if isinstance(table, Tensor) and table.dtype != dtype:
        table = table.to(dtype)
    if kernels.accumulation_dtype(logits) != dtype:  # a float64 table asks for float64
        logits = logits.to(dtype)
    z = kernels.canonical(logits, rows)
    skip = _skip(mask, rows, logits.dim())
    value, table = calibrator.adadem(z, table, skip, options, momentum, inplace, across_ranks)
    return reduce(_positions(value, logits), mask, reduction), table


def _dem(logits: Tensor, tau: float, alpha: float, mask: Tensor | None, reduction: str) -> Tensor:
    rows = kernels.in_rows(logits)
    value = kernels.dem(kernels.canonical(logits, rows), tau, alpha, _skip(mask, rows, logits.dim()))
    return reduce(_positions(value, logits), mask, reduction)


def _skip(mask: Tensor | None, rows: bool, dims: int) -> Tensor | None:
    """The masked-out positions, in the shape that ``kernels.canonical`` gives one class."""
    if mask is None:
        return None
    return kernels.canonical((~mask).unsqueeze(1), rows or dims == 2)


def _positions(value: Tensor, logits: Tensor) -> Tensor:
    """A result per position, (M,) or (N, S), in the shape (N, ...) of the logits' positions."""
    return value if logits.dim() == 2 else value.reshape(logits.shape[:1] + logits.shape[2:])


def reduce(value: Tensor, mask: Tensor | None, reduction: str) -> Tensor:
    """Reduces (N, ...), which is 0 where the mask is False."""
    if reduction == "none":
        return value
    if reduction == "sum":
        return value.sum()
    return value.sum() / (max(value.numel(), 1) if mask is None else mask.sum().clamp(min=1))

"""The losses as modules, under the same names as in ``core.functional``; AdaDEM holds its calibrator's table."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from . import functional
from ._calibrator import Options
from ._kernels import accumulation_dtype, transformed
from .checks import check_adadem, check_dem, check_logits

__all__ = ["CADF", "DEM", "EM", "GMC", "AdaDEM"]


class EM(nn.Module):
    """``core.functional.em`` as a module: (N, C, ...) logits to (N, ...) nats.

    Args:
        reduction: "none", "mean" or "sum".
    """

    def __init__(self, *, reduction: str = "none"):
        super().__init__()
        self.reduction = reduction

    def forward(self, logits: Tensor, mask: Tensor | None = None) -> Tensor:
        return functional.em(logits, mask=mask, reduction=self.reduction)


class CADF(EM):
    """``core.functional.cadf`` as a module."""

    def forward(self, logits: Tensor, mask: Tensor | None = None) -> Tensor:
        return functional.cadf(logits, mask=mask, reduction=self.reduction)


class GMC(EM):
    """``core.functional.gmc`` as a module."""

    def forward(self, logits: Tensor, mask: Tensor | None = None) -> Tensor:
        return functional.gmc(logits, mask=mask, reduction=self.reduction)


class DEM(nn.Module):
    """``core.functional.dem`` as a module: entropy split into a reward and a penalty.

    Args:
        tau: temperature of the reward, 0 < tau <= 2/alpha.
        alpha: weight of the penalty, at least 0; 0 leaves CADF alone.
        reduction: "none", "mean" or "sum".
    Raises: ValueError for (tau, alpha) outside Proposition A.1.
    """

    def __init__(self, tau: float = 1.0, alpha: float = 1.0, *, reduction: str = "none"):
        super().__init__()
        check_dem(tau, alpha)
        self.tau, self.alpha, self.reduction = tau, alpha, reduction

    def forward(self, logits: Tensor, mask: Tensor | None = None) -> Tensor:
        return functional.dem(logits, tau=self.tau, alpha=self.alpha, mask=mask, reduction=self.reduction)

    def extra_repr(self) -> str:
        return f"tau={self.tau}, alpha={self.alpha}"


class AdaDEM(nn.Module):
    """``core.functional.adadem`` with its calibrator: (N, C, ...) logits to a loss (N, ...). Nothing to tune.

    ``table`` is a buffer (C, C), row k the running mean of the predictions with pseudo label k, kept in float32 at
    least. In training mode each batch moves it before its loss is formed; in ``eval()`` it is frozen, as a
    BatchNorm's statistics are. It follows the logits to their device, and becomes float64 with float64 logits. Where
    ``torch.distributed`` is initialised it moves by the class means over the batches of all ranks, so that every rank
    must call it. Do not use it inside activation checkpointing: recomputation would update the table twice.

    Args:
        num_classes: C; None takes it from the first batch, or from a state dict.
        norm, norm_type, norm_of, mec, alpha, momentum: the paper's ablations, see ``core.functional.adadem``.
        episodic: start every batch from the uniform table, keep nothing and ask no other rank (``torch.func.vmap``
            needs this or one table per sample, as ``torch.func.stack_module_state`` makes them).
        reduction: "none", "mean" or "sum".
    Raises: ValueError for options that the paper does not define, or logits of another class count.
    Source: arXiv 2511.03256, eq. 12.
    """

    table: Tensor | None

    def __init__(
        self,
        num_classes: int | None = None,
        *,
        norm: bool = True,
        norm_type: float | Literal["inf"] = 1,
        norm_of: str = "cadf",
        mec: bool = True,
        alpha: float = 1.0,
        momentum: float = 0.1,
        episodic: bool = False,
        reduction: str = "none",
    ):
        super().__init__()
        norm_type = float(norm_type)  # configurations are JSON, which has no infinity: there it is a text
        check_adadem(momentum, alpha, norm_type, norm_of)
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"adadem: expected num_classes >= 1, got {num_classes}")
        self._lazy = num_classes is None
        self.options = Options(norm, norm_type, norm_of, mec, alpha)
        self.momentum, self.episodic, self.reduction = momentum, episodic, reduction
        self.register_buffer("table", None if num_classes is None else functional.uniform_table(num_classes))

    def forward(self, logits: Tensor, mask: Tensor | None = None) -> Tensor:
        check_logits("adadem", logits, mask, self.reduction)
        momentum: float | None
        if self.episodic:
            dtype = accumulation_dtype(logits)
            table = functional.uniform_table(logits.shape[1], device=logits.device, dtype=dtype)
            momentum, inplace = self.momentum, False
        else:
            table, inplace = self._table_for(logits), True
            momentum = self.momentum if self.training else None
        return functional.adadem_step(logits, table, self.options, momentum, inplace, inplace, mask, self.reduction)[0]

    def reset(self) -> None:
        """Puts the calibrator back to 1/C, in place."""
        if self.table is not None:
            self.table.fill_(1 / self.table.shape[-1])

    def reset_where(self, condition: Tensor) -> None:
        """``reset`` where a 0-dim bool on the table's device is True, without asking the host."""
        if self.table is not None:
            self.table.copy_(torch.where(condition, 1 / self.table.shape[-1], self.table))

    def _table_for(self, logits: Tensor) -> Tensor:
        classes, dtype, table = logits.shape[1], accumulation_dtype(logits), self.table
        if table is not None and table.shape[-1] != classes:
            raise ValueError(f"adadem: built for {table.shape[-1]} classes, got logits {tuple(logits.shape)}")
        if table is None or table.dtype not in (dtype, torch.float64) or table.device != logits.device:
            with nullcontext() if torch.compiler.is_compiling() else torch.inference_mode(False):
                self.table = table = self._fitted(table, logits, dtype)
        elif not torch.compiler.is_compiling() and table.is_inference() and not torch.is_inference_mode_enabled():
            self.table = table = table.clone()
        if self.training and transformed() and not torch.compiler.is_compiling():
            _check_batched(logits, table)
        return table

    def _fitted(self, table: Tensor | None, logits: Tensor, dtype: torch.dtype) -> Tensor:
        """The table at the first batch, or as these logits need it."""
        if table is None:
            table = functional.uniform_table(logits.shape[1], device=logits.device, dtype=dtype)
        table = table.to(logits.device)
        if table.dtype not in (dtype, torch.float64):
            table = table.to(dtype)
            table = table / table.sum(-1, keepdim=True)  # 1/C in float32 is not 1/C in float64
        return table

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AdaDEM:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.table is not None and self.table.dtype in (torch.float16, torch.bfloat16):
            self.table = self.table.float()  # a running mean drifts in half precision
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}table")
        if self._lazy and saved is None:
            self.table = None  # saved before its first batch
        elif self._lazy and saved is not None and (self.table is None or self.table.shape != saved.shape):
            self.table = torch.empty_like(saved, dtype=accumulation_dtype(saved))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        shown = {**self.options._asdict(), "momentum": self.momentum, "episodic": self.episodic}
        defaults = {**Options()._asdict(), "momentum": 0.1, "episodic": False}
        return ", ".join(f"{key}={value}" for key, value in shown.items() if value != defaults[key])


def _check_batched(logits: Tensor, table: Tensor) -> None:
    batched = getattr(getattr(torch._C, "_functorch", None), "is_batchedtensor", None)
    if batched is not None and batched(logits) and not batched(table):  # else vmap's own error says less
        raise RuntimeError(
            "adadem: under torch.func.vmap one table cannot follow several samples; use AdaDEM(episodic=True), or give "
            "each sample a table of its own (torch.func.stack_module_state and torch.func.functional_call)"
        )

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
from ._rows import Rows, Table, by_rows, many, uniform_rows
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

    With more than 8,192 classes the table is kept by rows, of those classes that have been predicted: ``table`` is
    None, ``rows[slots]`` equals it, and state dicts of either form load into the other. Such a table grows, so it
    synchronises with the device once a batch and cannot learn inside a CUDA graph, ``torch.compile`` or
    ``torch.func.vmap`` (``by_rows=False`` or ``episodic=True`` can). With ``mec=False`` there is no table.

    Args:
        num_classes: C; None takes it from the first batch, or from a state dict.
        norm, norm_type, norm_of, mec, alpha, momentum: the paper's ablations, see ``core.functional.adadem``.
        by_rows: whether the table is kept by rows; None decides by the number of classes.
        episodic: start every batch from the uniform table, keep nothing and ask no other rank (``torch.func.vmap``
            needs this or one table per sample, as ``torch.func.stack_module_state`` makes them).
        reduction: "none", "mean" or "sum".
    Raises: ValueError for options that the paper does not define, or logits of another class count.
    Source: arXiv 2511.03256, eq. 12.
    """

    stops_gradient = True  # the norm and the table are constants to it, as in the paper
    table: Tensor | None
    rows: Tensor | None
    slots: Tensor | None

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
        by_rows: bool | None = None,
        episodic: bool = False,
        reduction: str = "none",
    ):
        super().__init__()
        norm_type = float(norm_type)  # configurations are JSON, which has no infinity: there it is a text
        check_adadem(momentum, alpha, norm_type, norm_of)
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"adadem: expected num_classes >= 1, got {num_classes}")
        self.num_classes, self.by_rows = num_classes, by_rows
        self.options = Options(norm, norm_type, norm_of, mec, alpha)
        self.momentum, self.episodic, self.reduction = momentum, episodic, reduction
        for name in ("table", "rows", "slots"):
            self.register_buffer(name, None)
        self._keeps = mec and not episodic
        if num_classes is not None and self._keeps:
            self._hold(self._uniform(num_classes))

    def forward(self, logits: Tensor, mask: Tensor | None = None) -> Tensor:
        check_logits("adadem", logits, mask, self.reduction)
        momentum: float | None = self.momentum if self.training or self.episodic else None
        kept = not self.episodic
        table = self._table_for(logits)
        value, table = functional.adadem_step(logits, table, self.options, momentum, kept, kept, mask, self.reduction)
        if kept and isinstance(table, Rows) and table.rows is not self.rows:  # it has grown
            self._hold(table)
        return value

    def reset(self) -> None:
        """Puts the calibrator back to 1/C, in place."""
        for held in (self.table, self.rows):
            if held is not None:
                held.fill_(1 / held.shape[-1])
        if self.slots is not None:
            self.slots.zero_()

    def reset_where(self, condition: Tensor) -> None:
        """``reset`` where a 0-dim bool on the table's device is True, without asking the host."""
        for held in (self.table, self.rows):
            if held is not None:
                held.copy_(torch.where(condition, 1 / held.shape[-1], held))
        if self.slots is not None:
            self.slots.copy_(torch.where(condition, 0, self.slots))

    def _held(self) -> Table | None:
        rows, slots = self._buffers["rows"], self._buffers["slots"]  # faster than as attributes
        return self._buffers["table"] if rows is None or slots is None else Rows(rows, slots)

    def _hold(self, table: Table | None) -> None:
        self.table = None if isinstance(table, Rows) else table
        self.rows, self.slots = table if isinstance(table, Rows) else (None, None)

    def _uniform(self, classes: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> Table:
        if self._rowwise(classes):
            return uniform_rows(classes, 0, device=device, dtype=dtype)
        return functional.uniform_table(classes, device=device, dtype=dtype)

    def _rowwise(self, classes: int) -> bool:
        return many(classes) if self.by_rows is None else self.by_rows

    def _table_for(self, logits: Tensor) -> Table | None:
        """The table as these logits need it, also the first ones."""
        classes, dtype, compiling = logits.shape[1], accumulation_dtype(logits), torch.compiler.is_compiling()
        table = self._held()
        rows = table.rows if isinstance(table, Rows) else table
        known = self.num_classes if rows is None else rows.shape[-1]
        if known is not None and known != classes:
            raise ValueError(f"adadem: built for {known} classes, got logits {tuple(logits.shape)}")
        if not self.options.mec:
            return None
        if self.episodic:
            return functional.fresh_table(logits)
        if rows is None or rows.dtype not in (dtype, torch.float64) or rows.device != logits.device:
            with nullcontext() if compiling else torch.inference_mode(False):
                table = self._uniform(classes, logits.device, dtype) if table is None else _fitted(table, logits, dtype)
                self._hold(table)
        elif not compiling and rows.is_inference() and not torch.is_inference_mode_enabled():
            table = Rows(rows.clone(), table.slots.clone()) if isinstance(table, Rows) else rows.clone()
            self._hold(table)
        if self.training and transformed():
            if isinstance(table, Rows):
                raise RuntimeError(
                    "adadem: a table by rows cannot grow under torch.func or torch.compile; use AdaDEM(by_rows=False), "
                    "AdaDEM(episodic=True) or eval()"
                )
            if not compiling and table is not None:
                _check_batched(logits, table)
        return table

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AdaDEM:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in ("table", "rows"):
            held = getattr(self, name)
            if held is not None and held.dtype in (torch.float16, torch.bfloat16):
                setattr(self, name, held.float())  # a running mean drifts in half precision
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Takes either form of the table; a lazy module, and rows, take their size from the state."""
        keys = [f"{prefix}{name}" for name in ("table", "rows", "slots")]
        square, rows, slots = (state_dict.get(key) for key in keys)
        saved = Rows(rows, slots) if rows is not None and slots is not None else square
        if saved is None and self.num_classes is None:
            self._hold(None)  # saved before its first batch
        elif saved is not None:
            for key in keys:
                state_dict.pop(key, None)
            if self._keeps:
                classes = saved[0].shape[-1]
                if isinstance(saved, Rows) and not self._rowwise(classes):
                    saved = saved.rows[saved.slots]
                elif isinstance(saved, Tensor) and self._rowwise(classes):
                    saved = by_rows(saved)
                self._make_room(saved)
                if isinstance(saved, Rows):
                    state_dict[keys[1]], state_dict[keys[2]] = saved
                else:
                    state_dict[keys[0]] = saved
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _make_room(self, saved: Table) -> None:
        """Buffers for a saved table, where its size is not that of a table that the module was built for."""
        held, like = self._held(), saved.rows if isinstance(saved, Rows) else saved
        here = held.rows if isinstance(held, Rows) else held
        if here is not None and (here.shape == like.shape or (self.num_classes or like.shape[-1]) != like.shape[-1]):
            return
        room = torch.empty_like(like, dtype=accumulation_dtype(like), device=None if here is None else here.device)
        self._hold(Rows(room, torch.empty_like(saved.slots, device=room.device)) if isinstance(saved, Rows) else room)

    def extra_repr(self) -> str:
        names = ("momentum", "by_rows", "episodic")
        shown = {**self.options._asdict(), **{name: getattr(self, name) for name in names}}
        defaults = {**Options()._asdict(), "momentum": 0.1, "by_rows": None, "episodic": False}
        return ", ".join(f"{key}={value}" for key, value in shown.items() if value != defaults[key])


def _fitted(table: Table, logits: Tensor, dtype: torch.dtype) -> Table:
    """The table on the logits' device, in at least their precision."""
    if isinstance(table, Rows):
        rows = _fitted(table.rows, logits, dtype)
        assert isinstance(rows, Tensor)
        return Rows(rows, table.slots.to(logits.device))
    table = table.to(logits.device)
    if table.dtype not in (dtype, torch.float64):
        table = table.to(dtype)
        table = table / table.sum(-1, keepdim=True)  # 1/C in float32 is not 1/C in float64
    return table


def _check_batched(logits: Tensor, table: Tensor) -> None:
    batched = getattr(getattr(torch._C, "_functorch", None), "is_batchedtensor", None)
    if batched is not None and batched(logits) and not batched(table):  # else vmap's own error says less
        raise RuntimeError(
            "adadem: under torch.func.vmap one table cannot follow several samples; use AdaDEM(episodic=True), or give "
            "each sample a table of its own (torch.func.stack_module_state and torch.func.functional_call)"
        )

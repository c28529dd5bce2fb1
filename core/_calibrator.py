"""AdaDEM and its Marginal Entropy Calibrator (MEC) in closed form; notation and block scheme of ``core._kernels``.

    delta = sum |p (z + T + 1)| = sum p |c - u + 1|
    value = -(1/delta) sum (p - alpha a_k) z
    gradient = -(1/delta) (p (c - u + 1) - alpha a_k)

The table needs all of the batch before the first value can be formed, so there are two looks: one for the table's step
and the rewards, one for the value and the calibrators. Rows of the table meet the batch by products with a one-hot
matrix or by index (``by_index``), and where a batch of many classes is smaller than the table, only the rows that it
names are touched.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import NamedTuple

import torch
import torch.distributed
from torch import Tensor

from core._kernels import (
    Kept,
    accumulation_dtype,
    blocks_of,
    centre,
    closed_form,
    cut,
    eager_cpu,
    full_precision,
    join,
    maximum,
    probabilities,
    silence,
    softmax_graph,
    transformed,
    wants_gradient,
    weigh,
)

ONE_HOT_CLASSES = 128
_RUN, _LONG_RUN = 1 << 9, 1 << 12
_LANED_CLASSES = 512
_SEARCHED = 1 << 13  # logits
_SMALLEST_EM_NORM = 1e-4  # AdaDEM-V's delta vanishes for uniform and one-hot predictions; 1/delta must fit in float16


class Options(NamedTuple):
    """AdaDEM's ablations, as ``core.functional.adadem`` documents them."""

    norm: bool = True
    norm_type: float = 1
    norm_of: str = "cadf"
    mec: bool = True
    alpha: float = 1.0


def by_index(z: Tensor) -> bool:
    """Whether rows of the table are indexed rather than multiplied by one-hot blocks.

    Indices win on a CPU and where there are many classes. With few, adding at indices is a queue on a GPU, and
    ``torch.func.vmap`` has no way to do it in place.
    """
    return z.shape[1] > ONE_HOT_CLASSES or eager_cpu(z)


def _ranks(z: Tensor, dtype: torch.dtype) -> Tensor:
    """C, C-1, .., 1 along the class axis of z, over C + 1: the greatest among tied classes is that of the first."""
    classes = z.shape[1]
    ranks = torch.arange(classes, 0, -1, device=z.device, dtype=dtype).div_(classes + 1)
    return ranks if z.dim() == 2 else ranks.unsqueeze(1)


def _look(z: Tensor, skip: Tensor | None, ranks: Tensor | None, index: bool) -> tuple[Tensor, Tensor, Tensor]:
    """m, c, and how a block's positions name their rows of the table by the first of their greatest logits.

    That is row numbers (M,), or a one-hot block laid out as z is. Where there is more than a little to search, in
    float passes, since ``max`` with indices is many times slower than without; where there is little, ranks are None.
    """
    if ranks is None:
        m, rows = z.max(1, keepdim=True)
        m = m.to(accumulation_dtype(z))
        return m, centre(z, m, skip), rows.squeeze(1)
    m = maximum(z)
    c = centre(z, m, skip)
    found = c.sign().add_(ranks).amax(1, keepdim=True)  # the sign is 0 at the greatest and -1 elsewhere
    if index:
        classes = z.shape[1]
        return m, c, (classes - (found * (classes + 1)).nan_to_num(nan=1).round_()).long().flatten()
    return m, c, (ranks == found).to(c.dtype)


def _gather(table: Tensor, address: Tensor, like: Tensor) -> Tensor:
    """Row a_k of the table for each position, laid out as ``like``, a block of z."""
    if address.dim() == 1:
        if like.dim() == 2:
            return table.index_select(0, address)
        images, classes, pixels = like.shape
        return table.t().index_select(1, address).view(classes, images, pixels).transpose(0, 1)
    with full_precision(table):
        return address @ table if address.dim() == 2 else table.t() @ address


class _Tally:
    """Sums of p and counts per pseudo label over the batch, and the table's step from them.

    A float32 sum of many like numbers drifts, so none runs over more than ``_RUN`` rows of few classes, or
    ``_LONG_RUN`` rows of many, before it joins the others.
    """

    def __init__(self) -> None:
        self.sums: Tensor | None = None
        self.counts: Tensor | None = None
        self._part: Tensor | None = None
        self._part_rows = 0

    def add(self, p: Tensor, address: Tensor, skip: Tensor | None) -> None:
        """Adds a block, whose p is 0 at positions to skip."""
        if address.dim() == 1:
            counts = _counts(p, address, skip)
            if p.shape[1] <= _LANED_CLASSES and eager_cpu(p):
                self._add(_sums_by_index(p, address))
            else:
                self._add_rows_of_many(p, address)
        else:
            if skip is not None:
                address = address.masked_fill(skip, 0)
            with full_precision(p):
                self._add(address.t() @ p if p.dim() == 2 else (address @ p.transpose(1, 2)).sum(0))
            counts = address.sum(0) if p.dim() == 2 else address.sum((0, 2))
        self.counts = counts if self.counts is None else self.counts + counts

    def _add(self, sums: Tensor) -> None:
        self.sums = sums if self.sums is None else self.sums + sums

    def _add_rows_of_many(self, p: Tensor, rows: Tensor) -> None:
        for piece, where in zip(torch.split(p, _LONG_RUN), torch.split(rows, _LONG_RUN), strict=True):
            if self._part is None or self._part_rows + len(where) > _LONG_RUN:
                self._close_part()
                self._part, self._part_rows = p.new_zeros(p.shape[1], p.shape[1]), 0
            self._part_rows += len(where)
            if transformed():  # zeros have one axis less than p
                self._part = self._part.index_add(0, where, piece)
            else:
                self._part.index_add_(0, where, piece)

    def _close_part(self) -> None:
        if self._part is not None:
            self._add(self._part)
            self._part = None

    def step(self, table: Tensor, momentum: float, inplace: bool, across_ranks: bool) -> Tensor:
        """Row k moves by ``momentum`` towards the mean of p over pseudo label k; rows without a sample stay."""
        self._close_part()
        assert self.sums is not None, "add() comes before step()"
        assert self.counts is not None
        if across_ranks and distributed():
            self.sums = self.sums.contiguous()
            torch.distributed.all_reduce(self.sums)
            torch.distributed.all_reduce(self.counts)
        counts = self.counts.unsqueeze(1)
        means = self.sums.div_(counts.clamp(min=1))
        weight = counts.clamp(max=1).mul_(momentum)
        if inplace and not transformed():
            return table.lerp_(means, weight)
        moved = table.lerp(means, weight)
        return table.copy_(moved) if inplace else moved


def _sums_by_index(p: Tensor, rows: Tensor) -> Tensor:
    """Sums of p per row of the table, (C, C), each in lanes of at most ``_RUN`` positions."""
    classes, lanes = p.shape[1], -(-rows.shape[0] // _RUN)
    planes = p if p.dim() == 2 else p.transpose(0, 1).reshape(classes, -1)
    if lanes <= 1:
        sums = p.new_zeros(classes, classes)
        return sums.index_add_(0, rows, planes) if p.dim() == 2 else sums.index_add_(1, rows, planes).t()
    rows = torch.add(_lanes(rows.shape[0], lanes), rows, alpha=lanes)
    if p.dim() == 2:
        return p.new_zeros(classes * lanes, classes).index_add_(0, rows, planes).view(classes, lanes, classes).sum(1)
    return p.new_zeros(classes, classes * lanes).index_add_(1, rows, planes).view(classes, classes, lanes).sum(2).t()


@lru_cache(maxsize=8)
def _lanes(positions: int, lanes: int) -> Tensor:
    with torch.inference_mode(False):
        return torch.arange(positions).remainder_(lanes)


def distributed() -> bool:
    """True where several ranks share the batch, whose class means then are the means over all of it."""
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


def _step_named_rows(table: Tensor, p: Tensor, rows: Tensor, skip: Tensor | None, momentum: float) -> None:
    """``_Tally.step`` in place where the batch is smaller than the table: only rows that the batch names are touched.

    Of N_k samples that name row k, each moves it by momentum / N_k of the way from where it was to its own p.
    """
    counts = _counts(p, rows, skip).index_select(0, rows).unsqueeze(1)
    here = table.index_select(0, rows)
    move = torch.sub(p, here, out=here).mul_(momentum / counts)
    if skip is not None:  # a row may have no sample that counts, and its move be infinite
        move = move.masked_fill_(skip, 0)
    table.index_add_(0, rows, move)


def _counts(p: Tensor, rows: Tensor, skip: Tensor | None) -> Tensor:
    """Samples of each pseudo label, (C,), as floats."""
    counted = p.new_ones(rows.shape[0]) if skip is None else (~skip).flatten().to(p.dtype)
    zeros = p.new_zeros(p.shape[1])
    return zeros.index_add(0, rows, counted) if transformed() else zeros.index_add_(0, rows, counted)


def adadem(
    z: Tensor,
    table: Tensor,
    skip: Tensor | None,
    options: Options,
    momentum: float | None,
    inplace: bool,
    across_ranks: bool,
) -> tuple[Tensor, Tensor]:
    """AdaDEM (eq. 12) of every position of z, (M, C) or (N, C, S), differentiable: (M,) or (N, S).

    The table takes its step on this batch first, unless ``momentum`` is None; ``inplace`` says where that is written,
    ``across_ranks`` whether the batch is spread over the ranks of ``torch.distributed``.
    Returns the value and the table that was used.
    """
    wanted = wants_gradient(z)
    with torch.no_grad():
        value, kept, delta, table = _adadem(z.detach(), table, skip, options, momentum, inplace, across_ranks, wanted)
    return closed_form(z, value, kept, delta, skip, partial(_reward_graph, mec=options.mec)), table


def _adadem(
    z: Tensor,
    table: Tensor,
    skip: Tensor | None,
    options: Options,
    momentum: float | None,
    inplace: bool,
    across_ranks: bool,
    wanted: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Value, minus delta times its gradient, delta, and the table after its step."""
    blocks, classes = blocks_of(z), z.shape[1]
    kept = Kept(z, blocks, wanted)
    step = momentum if options.mec else None
    index = by_index(z)
    ranks = None if index and z.dim() == 2 and z.numel() <= _SEARCHED else _ranks(z, accumulation_dtype(z))
    few = index and inplace and z.dim() == 2 and len(blocks) == 1 and z.shape[0] <= classes
    named_rows = few and not transformed() and not (across_ranks and distributed())
    tally = None if step is None or named_rows else _Tally()
    parts: list[tuple[Tensor, Tensor]] = []
    looks: list[tuple[Tensor | None, Tensor, bool]] = []
    for block in blocks:
        zb, skipped = cut(z, block), cut(skip, block)
        m, c, address = _look(zb, skipped, ranks, index)
        p = probabilities(zb, skipped, c.dtype)
        weighted, u, masked = weigh(c, p)
        reward = torch.addcmul(weighted, p, u - 1 if options.mec else u, value=-1, out=kept.target(block))
        parts.append((u + m, _delta(reward, p, options, skipped)))
        if tally is not None:
            tally.add(p, address, skipped)
        elif step is not None:
            _step_named_rows(table, p, address, skipped, step)
        looks.append((reward if wanted else None, address, masked))
    if tally is not None and step is not None:
        table = tally.step(table, step, inplace, across_ranks)

    means, delta = join(parts, z, blocks)
    if not options.mec:
        for block, (kept_reward, _, _) in zip(blocks, looks, strict=True):
            if kept_reward is not None:
                kept.put(block, kept_reward)
        return torch.zeros_like(delta), kept.tensor, delta, table
    values = []
    for block, (kept_reward, address, masked) in zip(blocks, looks, strict=True):
        zb, mean, skipped = cut(z, block), cut(means, block), cut(skip, block)
        rows = shown = _gather(table, address, zb)
        if masked:  # a class that is masked out counts with z = 0, and gets no reward and no penalty
            out = zb == -math.inf
            zb, shown = zb.masked_fill(out, 0), rows.masked_fill(out, 0)
        if kept_reward is not None:
            kept.put(block, kept_reward.sub_(shown, alpha=options.alpha))
        # sum (p - alpha a_k) z, centred at sum p z, so that the rounding of a_k, whose sum is 1, meets small numbers
        value = rows.mul_(zb - mean).sum(1, keepdim=True)
        if options.alpha != 1:
            value = value.mul_(options.alpha) - (1 - options.alpha) * mean
        values.append((silence(value.div_(cut(delta, block)), skipped),))
    return join(values, z, blocks)[0], kept.tensor, delta, table


def _delta(reward: Tensor, p: Tensor, options: Options, skip: Tensor | None) -> Tensor:
    """Norm over the classes of CADF's gradient, or of the entropy's (AdaDEM-V); 1 at positions to skip.

    ``reward`` is p (z + T + 1), or without MEC p (log p + H).
    """
    if not options.norm:
        return torch.ones_like(reward[:, :1])
    if (options.norm_of == "cadf") != options.mec:
        reward = reward - p if options.mec else reward + p
    if options.norm_type == 1:
        norm = reward.abs().sum(1, keepdim=True)
    elif options.norm_type == 2:
        norm = reward.square().sum(1, keepdim=True).sqrt_()
    else:
        norm = reward.abs().amax(1, keepdim=True)
    if options.norm_of == "em":
        norm = norm.clamp(min=_SMALLEST_EM_NORM)
    elif options.norm_type == 1:
        norm = norm.clamp(min=1)  # its sum is 1, so its L1 norm is not below 1
    return norm if skip is None else norm.masked_fill(skip, 1)


def _reward_graph(z: Tensor, skip: Tensor | None, mec: bool) -> Tensor:
    p, log_p, entropy = softmax_graph(z, 1, skip)
    return p * (log_p + entropy + 1 if mec else log_p + entropy)

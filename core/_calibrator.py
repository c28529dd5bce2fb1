"""AdaDEM and its Marginal Entropy Calibrator (MEC) in closed form; notation and block scheme of ``core._kernels``.

    delta = sum |p (z + T + 1)| = sum p |c - u + 1|
    value = -(1/delta) sum (p - alpha a_k) z
    gradient = -(1/delta) (p (c - u + 1) - alpha a_k)

Rows of the table meet the batch in one of two ways. Up to ``ONE_HOT_CLASSES`` classes, products with a one-hot matrix
gather and scatter them (no index, any layout); beyond, rows are indexed, and where the batch is smaller than the table
only the rows that the batch names are touched.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor

from core._kernels import (
    SMALL,
    WHOLE,
    Block,
    blocks_of,
    centre,
    closed_form,
    cut,
    drop_masked_classes,
    fill,
    full_precision,
    join,
    look,
    may_mask_classes,
    silence,
    softmax_graph,
    transformed,
)

ONE_HOT_CLASSES = 128
_SMALLEST_EM_NORM = 1e-4  # AdaDEM-V's delta vanishes for uniform and one-hot predictions; 1/delta must fit in float16


class Options(NamedTuple):
    """AdaDEM's ablations, as ``core.functional.adadem`` documents them."""

    norm: bool = True
    norm_type: float = 1
    norm_of: str = "cadf"
    mec: bool = True
    alpha: float = 1.0


def indexed(classes: int) -> bool:
    """Whether rows of the table are indexed, which needs z as (M, C), rather than multiplied by one-hot blocks."""
    return classes > ONE_HOT_CLASSES


def uniform_table(classes: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """The calibrator before any batch: 1/C everywhere, (C, C)."""
    return torch.full((classes, classes), 1 / classes, device=device, dtype=dtype)


def _ranks(z: Tensor, dtype: torch.dtype) -> Tensor:
    """C, C-1, .., 1 along the class axis of z: the greatest rank among tied classes is that of the first."""
    ranks = torch.arange(z.shape[1], 0, -1, device=z.device, dtype=dtype)
    return ranks if z.dim() == 2 else ranks.unsqueeze(1)


def _pseudo_labels(c: Tensor, ranks: Tensor) -> Tensor:
    """Rank of the first class whose c is 0, (M, 1) or (N, 1, S). In-place float passes, because argmax is many times
    slower where the classes are not innermost."""
    return _is_zero(c.clone()).mul_(ranks).amax(1, keepdim=True)


def _is_zero(x: Tensor) -> Tensor:
    """1 where x is 0, else 0, in the dtype of x; overwrites x, which is several times faster than booleans."""
    return (x == 0).to(x.dtype) if transformed() else x.eq_(0)  # vmap knows no rule for eq_


def _address(labels: Tensor, ranks: Tensor) -> Tensor:
    """How a block's positions name their rows of the table: row numbers (M,), or a one-hot block laid out as z is."""
    classes = ranks.shape[-1] if ranks.dim() == 1 else ranks.shape[0]
    return (classes - labels).long().squeeze(1) if indexed(classes) else _is_zero(labels - ranks)


def _gather(table: Tensor, address: Tensor) -> Tensor:
    """Row a_k of the table for each position, laid out as z is."""
    if indexed(table.shape[-1]):
        return table.index_select(0, address)
    with full_precision(table):
        return address @ table if address.dim() == 2 else table.t() @ address


class _Tally:
    """Sums of p and counts per pseudo label over the batch, and the table's step from them."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None
        self.counts: Tensor | None = None

    def add(self, p: Tensor, address: Tensor, skip: Tensor | None) -> None:
        """Adds a block, whose p is 0 at positions to skip. Out of place, so that it holds under ``torch.func.vmap``."""
        classes = p.shape[1]
        if indexed(classes):
            counted = p.new_ones(p.shape[0]) if skip is None else (~skip).squeeze(1).to(p.dtype)
            sums = p.new_zeros(classes, classes) if self.sums is None else self.sums
            counts = p.new_zeros(classes) if self.counts is None else self.counts
            self.sums, self.counts = sums.index_add(0, address, p), counts.index_add(0, address, counted)
            return
        if skip is not None:
            address = address.masked_fill(skip, 0)
        with full_precision(p):
            if p.dim() == 2:
                sums, counts = address.t() @ p, address.sum(0)
            else:
                sums, counts = (address @ p.transpose(1, 2)).sum(0), address.sum((0, 2))
        self.sums = sums if self.sums is None else self.sums + sums
        self.counts = counts if self.counts is None else self.counts + counts

    def step(self, table: Tensor, momentum: float, inplace: bool) -> Tensor:
        """Row k moves by ``momentum`` towards the mean of p over pseudo label k; rows without a sample stay."""
        assert self.sums is not None, "add() comes before step()"
        assert self.counts is not None
        if distributed():
            torch.distributed.all_reduce(self.sums)
            torch.distributed.all_reduce(self.counts)
        counts = self.counts.unsqueeze(1)
        means = self.sums / counts.clamp(min=1)
        weight = counts.clamp(max=1) * momentum
        if inplace and not transformed():
            return table.lerp_(means, weight)
        moved = table.lerp(means, weight)
        return table.copy_(moved) if inplace else moved


def distributed() -> bool:
    """True where several ranks share the batch, whose class means then are the means over all of it."""
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


def _step_named_rows(table: Tensor, p: Tensor, rows: Tensor, skip: Tensor | None, momentum: float) -> None:
    """``_Tally.step`` in place where the batch is smaller than the table: only rows that the batch names are touched.

    A row that several samples name is written several times with one and the same content.
    """
    counted = p.new_ones(p.shape[0]) if skip is None else (~skip).squeeze(1).to(p.dtype)
    counts = p.new_zeros(p.shape[1]).index_add_(0, rows, counted).index_select(0, rows).unsqueeze(1)
    if skip is None:
        table.index_copy_(0, rows, table.index_select(0, rows).mul_(1 - momentum))
        table.index_add_(0, rows, p * (momentum / counts))
    else:
        table.index_copy_(0, rows, table.index_select(0, rows).mul_(1 - momentum * counts.clamp(max=1)))
        table.index_add_(0, rows, p * (momentum / counts.clamp(min=1)))


class Statistics(NamedTuple):
    """What the forward pass knows of each position, (M, 1) or (N, 1, S); ``labels`` is the rank of the pseudo label."""

    m: Tensor
    u: Tensor
    delta: Tensor
    labels: Tensor


def _reward(weighted: Tensor, p: Tensor, u: Tensor, options: Options) -> Tensor:
    """What the gradient takes off: p (z + T + 1), or without MEC p (log p + H); ``weighted`` is p c."""
    return torch.addcmul(weighted, p, u - 1 if options.mec else u, value=-1)


def _delta(reward: Tensor, p: Tensor, options: Options) -> Tensor:
    """Norm over the classes of CADF's gradient, or of the entropy's (AdaDEM-V), from the result of ``_reward``."""
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
        return norm.clamp(min=_SMALLEST_EM_NORM)
    return norm.clamp(min=1) if options.norm_type == 1 else norm  # its sum is 1, so its L1 norm is not below 1


def _value(z: Tensor, mean: Tensor, rows: Tensor, skip: Tensor | None, options: Options, masked: bool) -> Tensor:
    """-sum (p - alpha a_k) z = alpha sum a_k (z - mean) - (1 - alpha) mean, where mean = sum p z.

    Centred so, the rounding of a_k, whose sum is 1, meets small numbers. A class that is masked out counts with z = 0.
    """
    shown = z.nan_to_num(nan=math.nan, posinf=math.inf, neginf=0.0) if masked else z
    value = centre(shown, mean, skip).mul_(rows).sum(1, keepdim=True)
    return value if options.alpha == 1 else value.mul_(options.alpha) - (1 - options.alpha) * mean


def adadem_forward(
    z: Tensor,
    table: Tensor,
    skip: Tensor | None,
    options: Options,
    momentum: float | None,
    inplace: bool,
    differentiable: bool,
) -> tuple[Tensor, Statistics, Tensor, Tensor, Tensor | None]:
    """AdaDEM (eq. 12) of every position of z, (M, C) or (N, C, S), after the table's step on this batch.

    ``momentum`` None leaves the table as it is; ``inplace`` says where its step is written. Returns the value, the
    statistics, the table, what the backward pass needs of it (the gathered rows where those are fewer), and the
    gradient where z is small and one is wanted.
    """
    blocks, masked, classes = blocks_of(z), may_mask_classes(z), z.shape[1]
    ranks = _ranks(z, table.dtype)
    step = momentum if options.mec else None
    single = len(blocks) == 1
    few = indexed(classes) and z.shape[0] <= classes
    named_rows = few and single and inplace and not (distributed() or transformed())
    tally = None if step is None or named_rows else _Tally()
    parts = []
    for block in blocks:
        skipped = cut(skip, block)
        m, c, p = look(cut(z, block), skipped)
        labels = _pseudo_labels(c, ranks)
        address = _address(labels, ranks)
        c = drop_masked_classes(c, masked)
        weighted = c * p
        u = weighted.sum(1, keepdim=True)
        if tally is not None:
            tally.add(p, address, skipped)
        elif step is not None:
            _step_named_rows(table, p, address, skipped, step)
        if not single:
            parts.append((m, u, _delta(_reward(weighted, p, u, options), p, options), labels))
    if tally is not None and step is not None:
        table = tally.step(table, step, inplace)

    if single:
        rows, value = table, None
        if options.mec:
            rows = _gather(table, address)
            value = _value(z, m + u, rows, skip, options, masked)
            rows = _hide(rows, z) if masked else rows
        reward = _reward(weighted, p, u, options)
        delta = _delta(reward, p, options)
        statistics, grad = Statistics(m, u, delta, labels), None
        if z.numel() > SMALL and not few:
            rows = table
        elif differentiable and z.numel() <= SMALL:
            grad = _gradient(reward, rows, options).div_(-delta).to(z.dtype)
        value = torch.zeros_like(u) if value is None else value.div_(delta)
        return silence(value, skip), statistics, table, rows, grad

    statistics = Statistics(*join(parts, z, blocks))
    value = torch.zeros_like(statistics.u)
    for block in blocks if options.mec else ():
        m, u, delta, labels = (cut(x, block) for x in statistics)
        rows, skipped = _gather(table, _address(labels, ranks)), cut(skip, block)
        found = _value(cut(z, block), m + u, rows, skipped, options, masked).div_(delta)
        cut(value, block).copy_(silence(found, skipped))
    return value, statistics, table, table, None


def _hide(rows: Tensor, z: Tensor) -> Tensor:
    """The calibrators without the classes that are masked out, which get no reward and no penalty."""
    return rows * (z > -math.inf)


def _gradient(reward: Tensor, rows: Tensor, options: Options) -> Tensor:
    """reward - alpha a_k, which is the gradient but for -1/delta; overwrites the reward."""
    return reward.sub_(rows, alpha=options.alpha) if options.mec else reward


def _adadem_save(ctx: Any, inputs: tuple[Any, ...]) -> None:
    z, _, u, delta, labels, rows, grad, skip, ctx.options, ctx.gathered = inputs
    ctx.save_for_backward(z, u, delta, labels, rows, grad, skip)


def _adadem_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    z, u, delta, labels, rows, grad, skip = ctx.saved_tensors
    options = ctx.options
    g = silence(g.unsqueeze(1), skip)
    if grad is not None and not torch.is_grad_enabled():
        return (grad * g).to(z.dtype), *(None,) * 9
    weight = g / -delta
    ranks = _ranks(z, u.dtype)

    def calibrators(block: Block, masked: bool) -> Tensor:
        if ctx.gathered or not options.mec:
            return rows  # type: ignore[no-any-return]
        found = _gather(rows, _address(cut(labels, block), ranks))
        return _hide(found, cut(z, block)) if masked else found

    if torch.is_grad_enabled():  # the gradient itself is to be differentiated; delta and a_k are constants
        p, log_p = softmax_graph(z, 1, skip)
        entropy = -(p * log_p).sum(1, keepdim=True)
        grad = p * (log_p + entropy + 1 if options.mec else log_p + entropy)
        if options.mec:
            grad = grad - options.alpha * calibrators(WHOLE, True)
        return ((grad * weight).to(z.dtype), *(None,) * 9)
    masked = may_mask_classes(z)

    def gradient(block: Block, out: Tensor | None) -> Tensor:
        _, c, p = look(cut(z, block), cut(skip, block))
        reward = _reward(drop_masked_classes(c, masked).mul_(p), p, cut(u, block), options)
        return torch.mul(_gradient(reward, calibrators(block, masked), options), cut(weight, block), out=out)

    return (fill(z, blocks_of(z), gradient), *(None,) * 9)


_adadem_gradient_of = closed_form(_adadem_save, _adadem_backward)


def adadem(
    z: Tensor, table: Tensor, skip: Tensor | None, options: Options, momentum: float | None, inplace: bool
) -> tuple[Tensor, Tensor]:
    """AdaDEM of every position with its closed-form gradient, (M,) or (N, S), and the table it used."""
    differentiable = torch.is_grad_enabled()
    with torch.no_grad():
        value, statistics, table, rows, grad = adadem_forward(
            z.detach(), table, skip, options, momentum, inplace, differentiable
        )
        if not differentiable:
            return value.squeeze(1), table
        gathered = rows is not table
        if inplace and not gathered:  # the next batch may move the table before this one goes backward
            rows = rows.clone() if options.mec else rows
    _, u, delta, labels = statistics
    return _adadem_gradient_of(z, value, u, delta, labels, rows, grad, skip, options, gathered), table

"""AdaDEM and its Marginal Entropy Calibrator (MEC) in closed form; notation and block scheme of ``core._kernels``.

    delta = sum |p (z + T + 1)| = sum e |c - u + 1| / s
    value = -(1/delta) sum (p - alpha a_k) z = -(1/delta) (u - alpha sum a_k c + (1 - alpha) m)
    gradient = -(1/delta) (e (c - u + 1) / s - alpha a_k)

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
    cut,
    drop_masked_classes,
    fill,
    join,
    look,
    may_mask_classes,
    silence,
    softmax_graph,
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
    return c.clone().eq_(0).mul_(ranks).amax(1, keepdim=True)


def _one_hot(labels: Tensor, ranks: Tensor) -> Tensor:
    return (labels - ranks).eq_(0)


def _rows(labels: Tensor, classes: int) -> Tensor:
    return (classes - labels).long().squeeze(1)


def _gather(table: Tensor, labels: Tensor, ranks: Tensor) -> Tensor:
    """Row a_k of the table for each position, laid out as z is."""
    if indexed(table.shape[-1]):
        return table.index_select(0, _rows(labels, table.shape[-1]))
    one_hot = _one_hot(labels, ranks)
    return one_hot @ table if one_hot.dim() == 2 else table.t() @ one_hot


class _Tally:
    """Sums of p and counts per pseudo label over the batch, and the table's step from them."""

    def __init__(self, classes: int, like: Tensor):
        self.sums = like.new_zeros(classes, classes)
        self.counts = like.new_zeros(classes)

    def add(self, p: Tensor, labels: Tensor, ranks: Tensor, skip: Tensor | None) -> None:
        """Out of place, so that it holds under ``torch.func.vmap``, where p carries one axis more than the sums."""
        classes = p.shape[1]
        if indexed(classes):
            if skip is not None:
                p = p.masked_fill(skip, 0)
            counted = torch.ones_like(labels) if skip is None else (~skip).to(p.dtype)
            rows = _rows(labels, classes)
            self.sums = self.sums.index_add(0, rows, p)
            self.counts = self.counts.index_add(0, rows, counted.squeeze(1))
            return
        one_hot = _one_hot(labels, ranks)
        if skip is not None:
            one_hot.masked_fill_(skip, 0)
        if p.dim() == 2:
            self.sums = self.sums + one_hot.t() @ p
            self.counts = self.counts + one_hot.sum(0)
        else:
            self.sums = self.sums + (one_hot @ p.transpose(1, 2)).sum(0)
            self.counts = self.counts + one_hot.sum((0, 2))

    def step(self, table: Tensor, momentum: float, inplace: bool) -> Tensor:
        """Row k moves by ``momentum`` towards the mean of p over pseudo label k; rows without a sample stay."""
        if distributed():
            torch.distributed.all_reduce(self.sums)
            torch.distributed.all_reduce(self.counts)
        means = self.sums / self.counts.clamp(min=1).unsqueeze(1)
        weight = (self.counts.clamp(max=1) * momentum).unsqueeze(1)
        return table.lerp_(means, weight) if inplace else table.lerp(means, weight)


def distributed() -> bool:
    """True where several ranks share the batch, whose class means then are the means over all of it."""
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


def _step_named_rows(table: Tensor, p: Tensor, labels: Tensor, skip: Tensor | None, momentum: float) -> None:
    """``_Tally.step`` in place where the batch is smaller than the table: only rows that the batch names are touched.

    A row that several samples name is written several times with one and the same content.
    """
    classes = table.shape[0]
    rows = _rows(labels, classes)
    counted = torch.ones_like(labels) if skip is None else (~skip).to(p.dtype)
    counts = p.new_zeros(classes).index_add_(0, rows, counted.squeeze(1)).index_select(0, rows).unsqueeze(1)
    table.index_copy_(0, rows, table.index_select(0, rows).mul_(1 - momentum * counts.clamp(max=1)))
    share = p * (counted * momentum / counts.clamp(min=1))
    table.index_add_(0, rows, share if skip is None else share.masked_fill_(skip, 0))


class Statistics(NamedTuple):
    """What the forward pass knows of each position, (M, 1) or (N, 1, S); ``labels`` is the rank of the pseudo label."""

    m: Tensor
    u: Tensor
    delta: Tensor
    labels: Tensor


def _reward(c: Tensor, p: Tensor, u: Tensor, options: Options) -> Tensor:
    """What the gradient takes off: p (z + T + 1), or without MEC p (log p + H); overwrites c."""
    return c.sub_(u - 1 if options.mec else u).mul_(p)


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
        return norm.clamp_(min=_SMALLEST_EM_NORM)
    return norm.clamp_(min=1) if options.norm_type == 1 else norm  # its sum is 1, so its L1 norm is not below 1


def _value(c: Tensor, m: Tensor, u: Tensor, delta: Tensor | None, rows: Tensor, options: Options) -> Tensor:
    """-(1/delta) sum (p - alpha a_k) z, from c with -m for classes that are masked out, which puts their z at 0."""
    value = (c * rows).sum(1, keepdim=True)
    if options.alpha != 1:
        value = value.mul_(options.alpha) - (1 - options.alpha) * m
    value = value.sub_(u)
    return value if delta is None else value.div_(delta)


def _shown(z: Tensor, m: Tensor, skip: Tensor | None) -> Tensor:
    """z - m with 0 put for a z of minus infinity."""
    c = z.nan_to_num(nan=math.nan, posinf=math.inf, neginf=0.0) - m
    return c if skip is None else c.masked_fill_(skip, 0)


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
    named_rows = single and inplace and indexed(classes) and z.shape[0] <= classes and not distributed()
    tally = None if step is None or named_rows else _Tally(classes, table)
    parts = []
    for block in blocks:
        skipped = cut(skip, block)
        m, c, p = look(cut(z, block), skipped)
        labels = _pseudo_labels(c, ranks)
        c = drop_masked_classes(c, masked)
        u = (c * p).sum(1, keepdim=True)
        if tally is not None:
            tally.add(p, labels, ranks, skipped)
        elif step is not None:
            _step_named_rows(table, p, labels, skipped, step)
        if not single:
            parts.append((m, u, _delta(_reward(c, p, u, options), p, options), labels))
    if tally is not None:
        table = tally.step(table, step, inplace)

    if single:
        rows = _gather(table, labels, ranks) if options.mec else table
        value = torch.zeros_like(u)
        if options.mec:
            value = _value(_shown(z, m, skip) if masked else c, m, u, None, rows, options)
            rows = _hide(rows, z) if masked else rows
        reward = _reward(c, p, u, options)
        delta = _delta(reward, p, options)
        statistics, grad = Statistics(m, u, delta, labels), None
        if z.numel() > SMALL and not (indexed(classes) and z.shape[0] <= classes):
            rows = table
        elif differentiable and z.numel() <= SMALL:
            grad = _gradient(reward, rows, -1 / delta, options).to(z.dtype)
        return silence(value.div_(delta), skip), statistics, table, rows, grad

    statistics = Statistics(*join(parts, z, blocks))
    value = torch.zeros_like(statistics.u)
    for block in blocks if options.mec else ():
        m, u, delta, labels = (cut(x, block) for x in statistics)
        zb, skipped = cut(z, block), cut(skip, block)
        c = _shown(zb, m, skipped) if masked else centre(zb, m, skipped)
        rows = _gather(table, labels, ranks)
        cut(value, block).copy_(silence(_value(c, m, u, delta, rows, options), skipped))
    return value, statistics, table, table, None


def _hide(rows: Tensor, z: Tensor) -> Tensor:
    """The calibrators without the classes that are masked out, which get no reward and no penalty."""
    return rows * (z > -math.inf)


def _gradient(reward: Tensor, rows: Tensor, weight: Tensor, options: Options, out: Tensor | None = None) -> Tensor:
    """(reward - alpha a_k) times a weight; overwrites the reward."""
    if options.mec:
        reward = reward.sub_(rows, alpha=options.alpha)
    return torch.mul(reward, weight, out=out)


class AdaDEMGradient(torch.autograd.Function):
    """Gives a value of ``adadem_forward`` its closed-form gradient, -(1/delta) (p (z + T + 1) - alpha a_k)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        z: Tensor,
        value: Tensor,
        u: Tensor,
        delta: Tensor,
        labels: Tensor,
        rows: Tensor,
        grad: Tensor | None,
        skip: Tensor | None,
        options: Options,
        gathered: bool,
    ) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, _, u, delta, labels, rows, grad, skip, ctx.options, ctx.gathered = inputs
        ctx.save_for_backward(z, u, delta, labels, rows, grad, skip)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        z, u, delta, labels, rows, grad, skip = ctx.saved_tensors
        options = ctx.options
        g = silence(g, skip)
        if grad is not None and not torch.is_grad_enabled():
            return (grad * g).to(z.dtype), *(None,) * 9
        weight = g / -delta
        ranks = _ranks(z, u.dtype)

        def calibrators(block: Block, masked: bool) -> Tensor:
            if ctx.gathered or not options.mec:
                return rows
            found = _gather(rows, cut(labels, block), ranks)
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
            reward = _reward(drop_masked_classes(c, masked), p, cut(u, block), options)
            return _gradient(reward, calibrators(block, masked), cut(weight, block), options, out)

        return (fill(z, blocks_of(z), gradient), *(None,) * 9)


def adadem(
    z: Tensor, table: Tensor, skip: Tensor | None, options: Options, momentum: float | None, inplace: bool
) -> tuple[Tensor, Tensor]:
    """AdaDEM of every position with its closed-form gradient, (M, 1) or (N, 1, S), and the table it used."""
    differentiable = torch.is_grad_enabled()
    with torch.no_grad():
        value, statistics, table, rows, grad = adadem_forward(
            z.detach(), table, skip, options, momentum, inplace, differentiable
        )
        if not differentiable:
            return value, table
        gathered = rows is not table
        if inplace and not gathered:  # the next batch may move the table before this one goes backward
            rows = rows.clone() if options.mec else rows
    _, u, delta, labels = statistics
    return AdaDEMGradient.apply(z, value, u, delta, labels, rows, grad, skip, options, gathered), table

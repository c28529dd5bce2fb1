"""AdaDEM and its Marginal Entropy Calibrator (MEC) in closed form; notation and block scheme of ``core._kernels``.

    delta = sum |p (z + T + 1)| = sum p |c - u + 1|
    value = -(1/delta) sum (p - alpha a_k) z
    gradient = -(1/delta) (p (c - u + 1) - alpha a_k)

The table needs all of the batch before the first value can be formed, so there are two looks: one for pseudo labels,
p and the table's step, one for rewards, calibrators and values. Between the looks the gradient's memory holds p. Rows
of the table meet the batch by products with a one-hot matrix or by index (``by_index``), and where a batch of many
classes is smaller than the table, only the rows that it names are touched. With very many classes the table is kept by
rows (``_rows``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor
from torch.nn import functional

from ._kernels import (
    Block,
    Scratch,
    accumulation_dtype,
    blank,
    blocks_of,
    centre,
    closed_form,
    cut,
    eager_cpu,
    eager_form,
    full_precision,
    fused,
    has_tangent,
    join,
    maximum,
    pieces,
    probabilities,
    room_for,
    silence,
    softmax_graph,
    transformed,
    wants_gradient,
    weigh,
    widen,
)
from ._rows import Rows, Table, slots_with, with_room

ONE_HOT_CLASSES = 128
_RUN, _LONG_RUN = 1 << 9, 1 << 12
_MANY_CLASSES = 512
_LITTLE = 1 << 13  # logits: in fewer, a maximum is found as soon with its index as without
_MOVES = 8  # of a row of the table by single samples; more would be rounded too often
_LARGE = 1 << 23  # elements of a temporary that are taken at a time
_SHORT = 1 << 16  # logits: for fewer, few calls count rather than fast ones
_SMALLEST_EM_NORM = 1e-4  # AdaDEM-V's delta vanishes for uniform and one-hot predictions; 1/delta must fit in float16


class Options(NamedTuple):
    """AdaDEM's ablations, as ``core.functional.adadem`` documents them."""

    norm: bool = True
    norm_type: float = 1
    norm_of: str = "cadf"
    mec: bool = True
    alpha: float = 1.0


DEFAULT = Options()
_DISTRIBUTED = torch.distributed.is_available()

# a private name, which spares small operations a tenth of their time; ``no_grad`` does not
_below_autograd: Callable[[], AbstractContextManager[Any]] = getattr(
    torch._C, "_AutoDispatchBelowAutograd", nullcontext
)


def by_index(z: Tensor) -> bool:
    """Whether rows of the table are indexed rather than multiplied by one-hot blocks.

    Indices win on a CPU and where there are many classes. With few, adding at indices is a queue on a GPU, and
    ``torch.func.vmap`` has no way to do it in place.
    """
    return z.shape[1] > ONE_HOT_CLASSES or eager_cpu(z)


def _ranks(z: Tensor) -> Tensor:
    """0, -1, -2, .. along the class axis of z: the greatest among tied classes is that of the first."""
    ranks = torch.arange(0, -z.shape[1], -1, device=z.device, dtype=accumulation_dtype(z))
    return ranks if z.dim() == 2 else ranks.unsqueeze(1)


def _search(c: Tensor, ranks: Tensor, index: bool, room: Tensor | None) -> Tensor:
    """How a block's positions name their rows of the table by the first of their greatest logits; may overwrite c.

    That is row numbers (M,), or a one-hot block in the shape of c. Two float passes: ``max`` with indices takes many
    times as long as without.
    """
    # the greatest, c = 0, have their ranks, all others far less (logits closer than 1e-35 count as tied)
    found = torch.add(ranks, c, alpha=torch.finfo(c.dtype).max, out=room).amax(1, keepdim=True)
    return found.neg_().nan_to_num_(nan=0).long().flatten() if index else (ranks == found).to(c.dtype)


def _gather(table: Tensor, address: Tensor, like: Tensor, room: Tensor | None) -> Tensor:
    """Row a_k of the table for each position, in the shape of ``like``, a block of z."""
    if address.dim() == 1:
        if like.dim() == 2:
            return torch.index_select(table, 0, address, out=room)
        images, classes, pixels = like.shape
        return table.t().index_select(1, address).view(classes, images, pixels).transpose(0, 1)
    with full_precision(table):
        return address @ table if address.dim() == 2 else table.t() @ address


class Tally:
    """Sums of p and counts per pseudo label over the batch, and the table's step from them.

    A float32 sum of many like numbers drifts, so none runs over more than ``_RUN`` rows of few classes, or
    ``_LONG_RUN`` rows of many, before it joins the others.
    """

    def __init__(self, sums: Tensor | None = None, counts: Tensor | None = None) -> None:
        self.sums, self.counts = sums, counts

    def add(self, p: Tensor, address: Tensor, skip: Tensor | None, m: Tensor) -> None:
        """Adds a block, whose p is 0 at positions to skip, but for samples whose logits are not finite."""
        outside = _outside(m, skip)
        if outside is not skip:
            p, skip = silence(p, outside), outside
        if address.dim() == 1:
            counts = _counts(p, address, skip)
            if p.shape[1] <= _MANY_CLASSES and eager_cpu(p):
                self._add(_sums_by_index(p, address))
            else:
                for piece, rows in zip(torch.split(p, _LONG_RUN), torch.split(address, _LONG_RUN), strict=True):
                    self._add(_sums_of_many(piece, rows))
        else:
            if skip is not None:
                address = address.masked_fill(skip, 0)
            with full_precision(p):
                self._add(address.t() @ p if p.dim() == 2 else (address @ p.transpose(1, 2)).sum(0))
            counts = address.sum(0) if p.dim() == 2 else address.sum((0, 2))
        self.counts = counts if self.counts is None else self.counts + counts

    def _add(self, sums: Tensor) -> None:
        self.sums = sums if self.sums is None else self.sums + sums

    def step(self, table: Tensor, momentum: float, inplace: bool, alone: bool) -> Tensor:
        """Row k moves by ``momentum`` towards the mean of p over pseudo label k; rows without a sample stay."""
        assert self.sums is not None, "add() comes before step()"
        assert self.counts is not None
        if not alone:
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


def _outside(m: Tensor, skip: Tensor | None) -> Tensor | None:
    """The positions that do not enter the table: those to skip, and samples with NaN or infinite logits, whose
    maximum m is not finite. One of these would make a row NaN for good."""
    if eager_cpu(m) and math.isfinite(m.sum().item()):
        return skip
    broken = ~m.isfinite()
    return broken if skip is None else skip | broken


def _sums_of_many(p: Tensor, rows: Tensor) -> Tensor:
    """Sums of p, (M, C), per row of the table, (C, C)."""
    if eager_cpu(p):  # every row is written once, and in their order
        counts = torch.bincount(rows, minlength=p.shape[1])
        return functional.embedding_bag(rows.argsort(), p, counts.cumsum(0) - counts, mode="sum")
    zeros = p.new_zeros(p.shape[1], p.shape[1])  # which has one axis less than p under ``torch.func.vmap``
    return zeros.index_add(0, rows, p) if transformed() else zeros.index_add_(0, rows, p)


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
    return _DISTRIBUTED and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


def _step_named_rows(
    table: Tensor, p: Tensor, rows: Tensor, counts: Tensor, skip: Tensor | None, momentum: float
) -> Tensor:
    """``Tally.step`` where the batch is smaller than the table: only rows that the batch names are touched.

    Of N_k samples that name row k, each moves it by momentum / N_k of the way from where it was to its own p. ``rows``
    and ``counts``, (M,), are k and N_k of each sample. In place but under transforms, some classes at a time.
    """
    weight, size = (-momentum / counts).unsqueeze(1), table.shape[1]
    for classes in pieces(size, size if transformed() else max(1, _LARGE // max(1, len(rows)))):
        part = table[:, classes]
        move = part.index_select(0, rows).sub_(p[:, classes]).mul_(weight)
        if skip is not None:  # a row may have no sample that counts, and its move be infinite
            move = blank(move, skip)
        if transformed():
            return table.index_add(0, rows, move)
        part.index_add_(0, rows, move)
    return table


def _step_rows(
    table: Rows, p: Tensor, labels: Tensor, skip: Tensor | None, momentum: float, inplace: bool, alone: bool
) -> Rows:
    """``Tally.step`` of a table by rows; in place where it can be, with more rows where classes are new."""
    counts = _counts(p, labels, skip)
    if not alone:
        torch.distributed.all_reduce(counts)
    rows, slots = table.rows, slots_with(table.slots, counts > 0)
    if inplace:
        rows, slots = with_room(rows, slots), table.slots.copy_(slots)
    if alone:
        here = slots.index_select(0, labels)
        return Rows(_step_named_rows(rows, p, here, counts.index_select(0, labels), skip, momentum), slots)
    named = counts.nonzero().flatten()  # on all ranks
    place = ((counts > 0).cumsum(0) - 1).index_select(0, labels).clamp(min=0)
    sums = p.new_zeros(max(1, len(named)), p.shape[1]).index_add_(0, place, silence(p, skip))[: len(named)]
    torch.distributed.all_reduce(sums)
    here = slots.index_select(0, named)
    means = sums.div_(counts.index_select(0, named).unsqueeze(1))
    return Rows(rows.index_copy_(0, here, rows.index_select(0, here).lerp_(means, momentum)), slots)


def _counts(p: Tensor, rows: Tensor, skip: Tensor | None) -> Tensor:
    """Samples of each pseudo label, (C,), as floats."""
    counted = p.new_ones(rows.shape[0]) if skip is None else (~skip).flatten().to(p.dtype)
    zeros = p.new_zeros(p.shape[1])
    return zeros.index_add(0, rows, counted) if transformed() else zeros.index_add_(0, rows, counted)


def adadem(
    z: Tensor,
    table: Table | None,
    skip: Tensor | None,
    options: Options,
    momentum: float | None,
    inplace: bool,
    across_ranks: bool,
) -> tuple[Tensor, Table | None]:
    """AdaDEM (eq. 12) of every position of z, (M, C) or (N, C, S), differentiable: (M,) or (N, S).

    The table takes its step on this batch first, unless ``momentum`` is None; ``inplace`` says where that is written,
    ``across_ranks`` whether the batch is spread over the ranks of ``torch.distributed``.
    A table by rows takes z as (M, C); without ``options.mec`` there need be none.
    Returns the value and the table that was used.
    """
    wanted, graph = wants_gradient(z), partial(_reward_graph, mec=options.mec)
    if not isinstance(table, Rows) and (kernels := fused(z, table)) is not None:
        alone = not (across_ranks and distributed())
        return kernels.adadem(z, table, skip, options, momentum, inplace, alone, graph)  # type: ignore[no-any-return]
    with torch.no_grad():
        value, kept, delta, table = _adadem(z.detach(), table, skip, options, momentum, inplace, across_ranks)
    return closed_form(z, value, kept if wanted else None, -delta, skip, graph), table


def directly(
    z: Tensor, table: Tensor, momentum: float | None, inplace: bool, across_ranks: bool
) -> tuple[Tensor, Tensor] | None:
    """``adadem`` without options for few, short rows, (M, C), in as few calls as can be.

    None where there are more, or where logits are not finite; then nothing has happened.
    """
    if not (0 < z.numel() <= _SHORT and z.shape[0] <= _RUN and accumulation_dtype(z) == table.dtype and eager_cpu(z)):
        return None
    if table.requires_grad or has_tangent(z) or (across_ranks and distributed()):
        return None
    with _below_autograd():
        found = _directly(z.detach().to(table.dtype), table, momentum, inplace)
    if found is None:
        return None
    value, kept, delta, table = found
    if not (z.requires_grad and torch.is_grad_enabled()):
        return value.squeeze(1), table
    return eager_form(z, value, kept, delta, None, _penalty_graph), table


def _directly(
    z: Tensor, table: Tensor, momentum: float | None, inplace: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Value, delta times its gradient, delta, and the table after its step."""
    if z.numel() <= _LITTLE:
        m, labels = z.max(1, True)
        c = z.sub(m)
        p = c.exp()
    else:
        c = z.sub(z.amax(1, True))
        labels, p = _search(c, _ranks(c), True, None).unsqueeze(1), c.mul(1 / math.log(2)).exp2_()
    p.div_(p.sum(1, True))
    reward = c.mul(p)
    u = reward.sum(1, True)
    if not math.isfinite(u.sum().item()):
        return None
    label = labels.squeeze(1)
    if momentum is not None:  # as in ``_step_named_rows``
        move = table.index_select(0, label).sub_(p).div_(label.bincount().take(labels))
        table = table if inplace else table.clone()
        if z.shape[0] <= _MOVES * z.shape[1]:
            table.index_add_(0, label, move, alpha=-momentum)
        else:
            table.sub_(torch.zeros_like(table).index_add_(0, label, move), alpha=momentum)
    penalty = table.index_select(0, label)
    reward.addcmul_(p, u - 1, value=-1)
    delta = torch.abs(reward, out=p).sum(1, True)  # below 1 by its rounding at most
    value = c.mul_(penalty).sum(1, True).sub_(u).div_(delta)
    return value, penalty.sub_(reward), delta, table


def _adadem(
    z: Tensor,
    table: Table | None,
    skip: Tensor | None,
    options: Options,
    momentum: float | None,
    inplace: bool,
    across_ranks: bool,
) -> tuple[Tensor, Tensor, Tensor, Table | None]:
    """Value, minus delta times its gradient, delta, and the table after its step."""
    blocks = blocks_of(z)
    room, scratch = room_for(z, blocks), Scratch(z, blocks)
    used = table if options.mec else None
    alone = not (across_ranks and distributed())
    looks, addresses, used = _look(z, used, skip, momentum, inplace, alone, blocks, scratch, room)
    rows = used.rows if isinstance(used, Rows) else used
    results = []
    for look, address in zip(looks[::-1], addresses[::-1], strict=True):  # the last are still in cache
        zb, skipped = cut(z, look.block), cut(skip, look.block)
        target = None if room is None else look.p
        result, reward = _calibrate(zb, rows, address, skipped, options, look, scratch, target)
        results.append(result)
    value, delta = join(results[::-1], z, blocks)
    return value, reward if room is None else room, delta, table if used is None else used


class _Look(NamedTuple):
    """What the first look at a block leaves to the second."""

    block: Block
    m: Tensor
    c: Tensor | None  # None where that is to be formed again
    p: Tensor


def _look(
    z: Tensor,
    table: Table | None,
    skip: Tensor | None,
    momentum: float | None,
    inplace: bool,
    alone: bool,
    blocks: list[Block],
    scratch: Scratch,
    room: Tensor | None,
) -> tuple[list[_Look], list[Tensor], Table | None]:
    """The first look at every block, where its positions find their rows in the table, and that after its step.

    With several blocks, ``room`` holds their p. Without a table, the second is of no use.
    """
    by_rows = isinstance(table, Rows)
    index = by_rows or by_index(z)
    ranks = None if z.numel() <= _LITTLE and z.dim() == 2 and index else _ranks(z)
    few = index and inplace and alone and z.dim() == 2 and z.shape[0] <= z.shape[1] and not transformed()
    together = few or by_rows or (z.dim() == 2 and z.shape[1] > _MANY_CLASSES)
    tally = Tally()
    looks: list[_Look] = []
    addresses: list[Tensor] = []
    for block in blocks:
        zb, skipped = cut(z, block), cut(skip, block)
        spare, _ = scratch.like(zb)
        if ranks is None:  # little to search, in a single block
            m, rows = zb.max(1, keepdim=True)
            m, address = m.to(accumulation_dtype(z)), rows.squeeze(1)
            c = centre(zb, m, skipped)
            p = probabilities(c, skipped)
        else:
            wide = widen(zb, spare)
            m = maximum(wide)
            c = centre(wide, m, skipped, spare)
            p = probabilities(c, skipped, room=cut(room, block))
            address = _search(c, ranks, index, spare) if table is not None else m
        if table is not None and momentum is not None and not together:
            tally.add(p, address, skipped, m)
        looks.append(_Look(block, m, c if room is None else None, p))
        addresses.append(address)
    if table is None:
        return looks, addresses, None
    if momentum is not None:
        if together and room is not None:
            p, m, address = room, torch.cat([look.m for look in looks]), torch.cat(addresses)
        if isinstance(table, Rows):
            table = _step_rows(table, p, address, _outside(m, skip), momentum, inplace, alone)
        elif few:
            outside = _outside(m, skip)
            counts = _counts(p, address, outside).index_select(0, address)
            table = _step_named_rows(table, p, address, counts, outside, momentum)
        else:
            if together:
                tally.add(p, address, skip, m)
            table = tally.step(table, momentum, inplace, alone)
    if isinstance(table, Rows):
        addresses = [table.slots.index_select(0, address) for address in addresses]
    return looks, addresses, table


def _calibrate(
    z: Tensor,
    table: Tensor | None,
    address: Tensor,
    skip: Tensor | None,
    options: Options,
    look: _Look,
    scratch: Scratch,
    target: Tensor | None,
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """The second look at a block: value and delta, and minus delta times the gradient, which goes to ``target``."""
    spare, other = scratch.like(z)
    m, p = look.m, look.p
    c = look.c if look.c is not None else centre(widen(z, spare), m, skip, spare)
    weighted, u, masked = weigh(torch.mul(c, p, out=other), p)
    slope = None
    if options.norm and options.mec != (options.norm_of == "cadf"):
        slope = torch.addcmul(weighted, p, u if options.mec else u - 1, value=-1)
    reward = torch.addcmul(weighted, p, u - 1 if options.mec else u, value=-1, out=target)
    delta = _delta(reward if slope is None else slope, options, skip, other)
    if table is None:
        return (torch.zeros_like(delta), delta), reward
    penalty = shown = _gather(table, address, z, other)
    if masked:  # a class that is masked out counts with z = 0, and gets no reward and no penalty
        out = z == -math.inf
        c, shown = torch.where(out, -m, c), penalty.masked_fill(out, 0)
    reward.sub_(shown, alpha=options.alpha)
    # sum (p - alpha a_k) z, centred at m, so that the rounding of a_k, whose sum is 1, meets small numbers
    value = penalty.mul_(c).sum(1, keepdim=True).sub_(u)
    if options.alpha != 1:
        value = value.mul_(options.alpha) - (1 - options.alpha) * (u + m)
    return (silence(value.div_(delta), skip), delta), reward


def smallest_delta(options: Options) -> float:
    """What delta is held above: AdaDEM-V's vanishes; CADF's L1 norm is not below 1, since its gradient's sum is -1."""
    if options.norm_of == "em":
        return _SMALLEST_EM_NORM
    return 1 if options.norm_type == 1 else 0


def _delta(slope: Tensor, options: Options, skip: Tensor | None, room: Tensor | None) -> Tensor:
    """Norm over the classes of CADF's gradient, or of the entropy's (AdaDEM-V); 1 at positions to skip."""
    if not options.norm:
        return torch.ones_like(slope[:, :1])
    if options.norm_type == 1:
        norm = torch.abs(slope, out=room).sum(1, keepdim=True)
    elif options.norm_type == 2:
        norm = slope.square().sum(1, keepdim=True).sqrt_()
    else:
        norm = torch.abs(slope, out=room).amax(1, keepdim=True)
    norm = norm.clamp(min=smallest_delta(options))
    return norm if skip is None else norm.masked_fill(skip, 1)


def _reward_graph(z: Tensor, skip: Tensor | None, mec: bool) -> Tensor:
    p, log_p, entropy = softmax_graph(z, 1, skip)
    return p * (log_p + entropy + 1 if mec else log_p + entropy)


def _penalty_graph(z: Tensor, skip: Tensor | None) -> Tensor:
    return -_reward_graph(z, skip, mec=True)

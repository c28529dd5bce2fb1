"""EM, CADF, DEM and AdaDEM as Triton kernels: an optional second path for CUDA, whose truth is the eager one.

Notation and formulas of ``_kernels`` and ``_calibrator``. A program holds whole samples in registers, so that the
forward pass reads the logits once and writes a value a sample, and the backward pass reads them once more and writes
the gradient in their dtype; nothing of the logits' size is kept between the two. AdaDEM reads them once or twice more
beforehand, for pseudo labels and class sums: once for at most ``FEW`` classes (products with one-hot tiles), twice for
more (sorted by pseudo label, segment by segment). All sums run in a fixed order, without atomics: repeated calls give
the same bits. The host never waits.

Arithmetic is float32. Layouts: (M, C) with any strides and (N, C, S) with any strides, up to ``MOST`` classes.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]
from torch import Tensor

from ._calibrator import Options, Tally, smallest_delta
from ._kernels import Graph, has_tangent, transformed, wants_gradient

FEW = 64  # classes whose sums over a batch are formed by products
MOST = 1 << 14  # classes that a program holds in registers
_TILE = 1 << 11  # logits that a program works on at a time
_PROGRAMS = 1 << 9  # enough to fill a device
_RUN = 1 << 9  # positions that one float32 sum runs over before it joins the others
_SEGMENT = 1 << 6  # the same, of positions sorted by pseudo label
_COLUMNS = 1 << 10

# --- parts of the kernels ------------------------------------------------------------------------------------------


@triton.jit
def _places(tile, positions, pixels, skip, MAPS: tl.constexpr, MASKED: tl.constexpr, BP: tl.constexpr):
    """Image, pixel and position number of the BP positions of a tile, and which of them exist, and count."""
    at = tl.arange(0, BP)
    if MAPS:
        across = tl.cdiv(pixels, BP)
        image = tl.zeros((BP,), tl.int64) + tile // across
        pixel = tile % across * BP + at
        position = image * pixels + pixel
        exists = (pixel < pixels) & (position < positions)
    else:
        image = (tile * BP + at).to(tl.int64)
        pixel = at * 0
        position = image
        exists = position < positions
    counts = exists
    if MASKED:
        counts = exists & (tl.load(skip + position, mask=exists, other=1) == 0)
    return image, pixel, position, exists, counts


@triton.jit
def _offsets(image, pixel, columns, image_stride, class_stride, pixel_stride):
    start = image * image_stride + pixel.to(tl.int64) * pixel_stride
    return start[:, None] + columns.to(tl.int64)[None, :] * class_stride


@triton.jit
def _read(z, offsets, counts, columns, classes):
    """Logits in float32, minus infinity where there is none."""
    inside = counts[:, None] & (columns < classes)[None, :]
    return tl.load(z + offsets, mask=inside, other=-float("inf")).to(tl.float32)


@triton.jit
def _softmax(z, counts, columns, CP: tl.constexpr):
    """m, pseudo label k, c, exp c, and the sum of exp c without class k; the last is NaN for logits not finite."""
    m = tl.where(counts, tl.max(z, 1), 0.0)
    label = tl.min(tl.where(z == m[:, None], columns[None, :], CP), 1)
    c = z - m[:, None]
    e = tl.exp(c)
    others = tl.sum(tl.where(columns[None, :] == label[:, None], 0.0, e), 1) + (m - m)
    return m, label, c, e, others


@triton.jit
def _weigh(c, p):
    weighted = tl.where(p == 0, 0.0, c * p)
    return weighted, tl.sum(weighted, 1)


@triton.jit
def _log1p(x):
    y = 1 + x
    return tl.where(y == 1, x, tl.log(y) * (x / tl.where(y == 1, 1.0, y - 1)))


# --- the kernels ---------------------------------------------------------------------------------------------------


@triton.jit
def _dem_kernel(
    z, skip, value, g, gradient,
    positions, pixels, classes, zn, zc, zs, gn, gc, gs, tau, alpha,
    PLAIN: tl.constexpr, PENALTY: tl.constexpr, GRADIENT: tl.constexpr,
    MAPS: tl.constexpr, MASKED: tl.constexpr, BP: tl.constexpr, CP: tl.constexpr,
):  # fmt: skip
    """The value of each position, or g times its gradient."""
    image, pixel, position, exists, counts = _places(tl.program_id(0), positions, pixels, skip, MAPS, MASKED, BP)
    columns = tl.arange(0, CP)
    x = _read(z, _offsets(image, pixel, columns, zn, zc, zs), counts, columns, classes)
    m, label, c, e, others = _softmax(x, counts, columns, CP)
    q = e / (1 + others)[:, None]
    p = q
    if not PLAIN:
        warm = tl.exp(c / tau)
        p = warm / tl.sum(warm, 1)[:, None]
    weighted, u = _weigh(c, p)
    if GRADIENT:
        if PLAIN:
            kept = weighted - p * (u - (1 - alpha))[:, None]
        else:
            kept = (weighted - p * (u - tau)[:, None]) / tau - alpha * q
        factor = tl.load(g + position, mask=counts, other=0.0).to(tl.float32)
        result = tl.where(counts[:, None], -kept * factor[:, None], 0.0)
        inside = exists[:, None] & (columns < classes)[None, :]
        tl.store(gradient + _offsets(image, pixel, columns, gn, gc, gs), result, mask=inside)
    else:
        result = -u - (1 - alpha) * m
        if PENALTY:
            result += alpha * _log1p(others)
        tl.store(value + position, tl.where(counts, result, 0.0), mask=exists)


@triton.jit
def _label_kernel(
    z, skip, labels, positions, pixels, classes, zn, zc, zs,
    MAPS: tl.constexpr, MASKED: tl.constexpr, BP: tl.constexpr, CP: tl.constexpr,
):  # fmt: skip
    """The pseudo label of each position, C for those that do not enter the table."""
    image, pixel, position, exists, counts = _places(tl.program_id(0), positions, pixels, skip, MAPS, MASKED, BP)
    columns = tl.arange(0, CP)
    x = _read(z, _offsets(image, pixel, columns, zn, zc, zs), counts, columns, classes)
    _, label, _, _, others = _softmax(x, counts, columns, CP)
    tl.store(labels + position, tl.where(counts & (others == others), label, classes), mask=exists)


@triton.jit
def _few_kernel(
    z, skip, sums, numbers, positions, pixels, classes, zn, zc, zs, rounds,
    TILES: tl.constexpr, MAPS: tl.constexpr, MASKED: tl.constexpr, BP: tl.constexpr, CP: tl.constexpr,
):  # fmt: skip
    """Sums of p (C, C) and numbers (C) by pseudo label, over each program's tiles."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    columns = tl.arange(0, CP)
    total = tl.zeros((CP, CP), tl.float32)
    number = tl.zeros((CP,), tl.float32)
    for turn in range(rounds):
        part = tl.zeros((CP, CP), tl.float32)
        for step in range(TILES):
            tile = (turn * TILES + step) * programs + program
            image, pixel, position, exists, counts = _places(tile, positions, pixels, skip, MAPS, MASKED, BP)
            x = _read(z, _offsets(image, pixel, columns, zn, zc, zs), counts, columns, classes)
            _, label, _, e, others = _softmax(x, counts, columns, CP)
            enters = counts & (others == others)
            p = tl.where(enters[:, None], e / (1 + others)[:, None], 0.0)
            named = tl.where(enters[:, None] & (columns[None, :] == label[:, None]), 1.0, 0.0)
            part = tl.dot(tl.trans(named), p, part, input_precision="ieee")
            number += tl.sum(named, 0)
        total += part
    where = columns[:, None] * CP + columns[None, :]
    tl.store(sums + program.to(tl.int64) * CP * CP + where, total)
    tl.store(numbers + program * CP + columns, number)


@triton.jit
def _segment_kernel(
    z, order, starts, heads, sums, pixels, classes, zn, zc, zs,
    MAPS: tl.constexpr, BP: tl.constexpr, CP: tl.constexpr,
):  # fmt: skip
    """Sum of p over each segment of the positions sorted by pseudo label."""
    segment = tl.program_id(0)
    columns = tl.arange(0, CP)
    if tl.load(heads + segment) < classes:
        start, end = tl.load(starts + segment), tl.load(starts + segment + 1)
        total = tl.zeros((CP,), tl.float32)
        for first in range(start, end, BP):
            at = first + tl.arange(0, BP)
            counts = at < end
            position = tl.load(order + at, mask=counts, other=0)
            pixel = position * 0
            image = position
            if MAPS:
                image = position // pixels
                pixel = position % pixels
            x = _read(z, _offsets(image, pixel, columns, zn, zc, zs), counts, columns, classes)
            _, _, _, e, others = _softmax(x, counts, columns, CP)
            total += tl.sum(tl.where(counts[:, None], e / (1 + others)[:, None], 0.0), 0)
        tl.store(sums + segment.to(tl.int64) * classes + columns, total, mask=columns < classes)


@triton.jit
def _class_kernel(
    segment_sums, starts, heads, table, numbers, classes, momentum, STEP: tl.constexpr, COLUMNS: tl.constexpr
):
    """Adds the segments of a class; its row of the table moves, or becomes the sum where STEP is False."""
    segment = tl.program_id(0)
    label = tl.load(heads + segment)
    before = tl.load(heads + segment - 1, mask=segment > 0, other=-1)
    if (label < classes) & (label != before):
        columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        inside = columns < classes
        total = tl.zeros((COLUMNS,), tl.float32)
        end = segment
        while tl.load(heads + end) == label:
            total += tl.load(segment_sums + end.to(tl.int64) * classes + columns, mask=inside, other=0.0)
            end += 1
        number = (tl.load(starts + end) - tl.load(starts + segment)).to(tl.float32)
        row = table + label.to(tl.int64) * classes + columns
        if STEP:
            here = tl.load(row, mask=inside, other=0.0)
            total = here * (1 - momentum) + momentum * (total / number)
        else:
            tl.store(numbers + label, number)
        tl.store(row, total, mask=inside)


@triton.jit
def _adadem_kernel(
    z, table, skip, value, weight, g, gradient,
    positions, pixels, classes, zn, zc, zs, gn, gc, gs, alpha,
    NORM: tl.constexpr, CADF: tl.constexpr, MEC: tl.constexpr, SMALLEST: tl.constexpr, OWN: tl.constexpr,
    GRADIENT: tl.constexpr, MAPS: tl.constexpr, MASKED: tl.constexpr, BP: tl.constexpr, CP: tl.constexpr,
):  # fmt: skip
    """The value and delta of each position, or g times its gradient.

    NORM: 0 for delta = 1, else its norm's type, 3 for infinity. OWN: row i of the table is position i's.
    """
    image, pixel, position, exists, counts = _places(tl.program_id(0), positions, pixels, skip, MAPS, MASKED, BP)
    columns = tl.arange(0, CP)
    x = _read(z, _offsets(image, pixel, columns, zn, zc, zs), counts, columns, classes)
    m, label, c, e, others = _softmax(x, counts, columns, CP)
    p = e / (1 + others)[:, None]
    weighted, u = _weigh(c, p)
    entropy = weighted - p * u[:, None]  # minus the gradient of the entropy; p more is minus CADF's
    slope = entropy + p if CADF else entropy
    delta = tl.full((BP,), 1.0, tl.float32)
    if NORM == 1:
        delta = tl.sum(tl.abs(slope), 1)
    elif NORM == 2:
        delta = tl.sqrt(tl.sum(slope * slope, 1))
    elif NORM == 3:
        delta = tl.max(tl.abs(slope), 1)
    delta = tl.where(delta < SMALLEST, SMALLEST, delta)
    inside = exists[:, None] & (columns < classes)[None, :]
    out = x == -float("inf")
    if MEC:
        named = position if OWN else tl.minimum(label, classes - 1).to(tl.int64)
        a = tl.load(table + named[:, None] * classes + columns[None, :], mask=inside, other=0.0)
        kept = entropy + p - tl.where(out, 0.0, alpha * a)
        result = tl.sum(a * tl.where(out, -m[:, None], c), 1) - u
        result = (alpha * result - (1 - alpha) * (u + m)) / delta
    else:
        kept = entropy
        result = tl.zeros((BP,), tl.float32)
    if GRADIENT:
        factor = tl.load(g + position, mask=counts, other=0.0).to(tl.float32) / delta
        result = tl.where(counts[:, None], -kept * factor[:, None], 0.0)
        tl.store(gradient + _offsets(image, pixel, columns, gn, gc, gs), result, mask=inside)
    else:
        tl.store(value + position, tl.where(counts, result, 0.0), mask=exists)
        tl.store(weight + position, tl.where(counts, delta, 1.0), mask=exists)


# --- how they are called -------------------------------------------------------------------------------------------


class _Layout:
    """How the kernels walk over z, (M, C) or (N, C, S)."""

    def __init__(self, z: Tensor, block: int | None = None):
        self.maps = z.dim() == 3
        self.classes, self.pixels = z.shape[1], z.shape[2] if self.maps else 1
        self.positions = z.shape[0] * self.pixels
        self.columns = max(16, triton.next_power_of_2(self.classes))
        least = 16 if self.maps else 1  # neighbours in memory
        spread = triton.next_power_of_2(triton.cdiv(self.positions, _PROGRAMS))
        self.block = block or max(least, min(_TILE // self.columns, spread))
        self.tiles = triton.cdiv(self.pixels, self.block) * z.shape[0] if self.maps else triton.cdiv(len(z), self.block)
        self.size = self.positions, self.pixels, self.classes

    def options(self, **flags: Any) -> dict[str, Any]:
        warps = min(16, max(4, self.columns * self.block // 1024))
        return {"MAPS": self.maps, "BP": self.block, "CP": self.columns, "num_warps": warps, **flags}


def _strides(x: Tensor) -> tuple[int, int, int]:
    return x.stride(0), x.stride(1), x.stride(2) if x.dim() == 3 else 0


def _bytes(skip: Tensor | None) -> Tensor | None:
    return None if skip is None else skip.reshape(-1).view(torch.uint8)


def _launch(kernel: Any, grid: tuple[int, ...], z: Tensor, *arguments: Any, **options: Any) -> None:
    with torch.cuda.device_of(z):  # type: ignore[no-untyped-call]
        kernel[grid](z, *arguments, **options)


def serves(z: Tensor, table: Tensor | None = None) -> bool:
    """Whether the kernels take z, (M, C) or (N, C, S), and the table."""
    return (
        (z.is_cuda or os.environ.get("TRITON_INTERPRET") == "1")
        and z.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and (table is None or table.dtype == torch.float32)
        and z.shape[1] <= (MOST if z.dim() == 2 else MOST // 16)
        and z.numel() > 0
        and not transformed()
        and not has_tangent(z)
    )


# --- DEM -----------------------------------------------------------------------------------------------------------


def dem(z: Tensor, tau: float, alpha: float, skip: Tensor | None, graph: Graph) -> Tensor:
    """``_kernels.dem`` of every position of z: (M,) or (N, S)."""
    form = partial(_dem, tau=tau, alpha=alpha)
    value = form(z.detach(), skip)
    return _Recomputed.apply(z, value, None, skip, graph, form) if wants_gradient(z) else value


def _dem(z: Tensor, skip: Tensor | None, *, tau: float, alpha: float, g: Tensor | None = None) -> Tensor:
    """The value, (M,) or (N, S), or with g of that shape the gradient times g, as z."""
    layout = _Layout(z)
    value = gradient = z
    if g is None:
        value = z.new_empty(layout.positions, dtype=torch.float32)
    else:
        gradient = torch.empty_like(z)
    _launch(
        _dem_kernel, (layout.tiles,),
        z, _bytes(skip), value, g, gradient, *layout.size, *_strides(z), *_strides(gradient), float(tau), float(alpha),
        **layout.options(PLAIN=tau == 1, PENALTY=alpha != 0, GRADIENT=g is not None, MASKED=skip is not None),
    )  # fmt: skip
    return gradient if g is not None else value.view(z.shape[:1] + z.shape[2:])


# --- AdaDEM --------------------------------------------------------------------------------------------------------


def adadem(
    z: Tensor,
    table: Tensor,
    skip: Tensor | None,
    options: Options,
    momentum: float | None,
    inplace: bool,
    alone: bool,
    graph: Graph,
) -> tuple[Tensor, Tensor]:
    """``_calibrator.adadem``: the value, (M,) or (N, S), and the table that was used."""
    wanted = wants_gradient(z)
    with torch.no_grad():
        y, rows, own = z.detach(), table, False
        if options.mec:
            sparse = wanted and math.prod(_positions(z)) < z.shape[1]  # fewer rows of the table are used than it has
            labels = _labels(y, skip) if z.shape[1] > FEW or sparse else None
            if momentum is not None:
                rows = table = _step(y, table, skip, labels, momentum, inplace, alone)
            if sparse and labels is not None:
                rows, own = table.index_select(0, labels.clamp(max=z.shape[1] - 1)), True
            elif wanted:
                rows = table.clone()  # the table may have moved on before the backward pass
        form = partial(_adadem, options=options, own=own)
        value, delta = form(y, skip, rows)
    if wanted:
        value = _Recomputed.apply(z, value, delta, skip, graph, form, rows)
    return value, table


def _positions(z: Tensor) -> torch.Size:
    return z.shape[:1] + z.shape[2:]


def _adadem(
    z: Tensor, skip: Tensor | None, table: Tensor, *, options: Options, own: bool, g: Tensor | None = None
) -> Any:
    """The value and delta, (M,) or (N, S) each, or with g of that shape the gradient times g, as z."""
    layout = _Layout(z)
    value = weight = gradient = z
    if g is None:
        value, weight = z.new_empty((2, layout.positions), dtype=torch.float32)
    else:
        gradient = torch.empty_like(z)
    flags = {
        "NORM": (3 if options.norm_type == math.inf else int(options.norm_type)) if options.norm else 0,
        "CADF": options.norm_of == "cadf",
        "MEC": options.mec,
        "SMALLEST": smallest_delta(options),
        "OWN": own,
    }
    _launch(
        _adadem_kernel, (layout.tiles,),
        z, table, _bytes(skip), value, weight, g, gradient,
        *layout.size, *_strides(z), *_strides(gradient), float(options.alpha),
        **layout.options(**flags, GRADIENT=g is not None, MASKED=skip is not None),
    )  # fmt: skip
    return gradient if g is not None else (value.view(_positions(z)), weight.view(_positions(z)))


def _labels(z: Tensor, skip: Tensor | None) -> Tensor:
    """The pseudo label of each position in a row, C for those that do not enter the table."""
    layout = _Layout(z)
    labels = z.new_empty(layout.positions, dtype=torch.int32)
    _launch(
        _label_kernel,
        (layout.tiles,),
        z,
        _bytes(skip),
        labels,
        *layout.size,
        *_strides(z),
        **layout.options(MASKED=skip is not None),
    )
    return labels


def _step(
    z: Tensor,
    table: Tensor,
    skip: Tensor | None,
    labels: Tensor | None,
    momentum: float,
    inplace: bool,
    alone: bool,
) -> Tensor:
    """The table after its step on the batch."""
    if z.shape[1] <= FEW:
        return Tally(*_sums_of_few(z, skip)).step(table, momentum, inplace, alone)
    assert labels is not None
    if not alone:
        sums, numbers = torch.zeros_like(table), table.new_zeros(len(table))
        _add_segments(z, labels, sums, numbers, None)
        return Tally(sums, numbers).step(table, momentum, inplace, alone)
    table = table if inplace else table.clone()
    _add_segments(z, labels, table, None, momentum)
    return table


def _sums_of_few(z: Tensor, skip: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sums of p, (C, C), and numbers of positions, (C,), by pseudo label."""
    layout = _Layout(z, 32)
    size, most = layout.columns, _RUN // layout.block
    programs = min(layout.tiles, _PROGRAMS, (1 << 22) // size**2)
    share = triton.cdiv(layout.tiles, programs)
    tiles = min(most, triton.next_power_of_2(share))
    sums = z.new_empty((programs, size, size), dtype=torch.float32)
    numbers = z.new_empty((programs, size), dtype=torch.float32)
    _launch(
        _few_kernel, (programs,),
        z, _bytes(skip), sums, numbers, *layout.size, *_strides(z), triton.cdiv(share, tiles),
        **layout.options(TILES=tiles, MASKED=skip is not None),
    )  # fmt: skip
    return sums.sum(0)[: layout.classes, : layout.classes], numbers.sum(0)[: layout.classes]


def _add_segments(z: Tensor, labels: Tensor, table: Tensor, numbers: Tensor | None, momentum: float | None) -> None:
    """The step in place, or with ``momentum`` None sums and numbers by pseudo label into zeros."""
    count, classes = len(labels), z.shape[1]
    ordered, order = labels.sort(stable=True)
    at = torch.arange(count, device=z.device)
    first = at % _SEGMENT == 0
    first[1:] |= ordered[1:] != ordered[:-1]
    segments = triton.cdiv(count, _SEGMENT) + min(count, classes + 1)  # the most there can be; the last is none
    place = torch.where(first, first.cumsum(0) - 1, segments)
    starts = at.new_full((segments + 1,), count).scatter_(0, place, torch.where(first, at, count))
    heads = labels.new_full((segments + 1,), classes).scatter_(0, place, torch.where(first, ordered, classes))
    layout = _Layout(z)
    block = max(1, _TILE // layout.columns)
    sums = z.new_empty((segments, classes), dtype=torch.float32)
    _launch(
        _segment_kernel,
        (segments,),
        z,
        order,
        starts,
        heads,
        sums,
        layout.pixels,
        classes,
        *_strides(z),
        **layout.options(BP=block),
    )
    _launch(
        _class_kernel,
        (segments, triton.cdiv(classes, _COLUMNS)),
        sums,
        starts,
        heads,
        table,
        numbers,
        classes,
        momentum or 0.0,
        STEP=momentum is not None,
        COLUMNS=_COLUMNS,
    )


# --- autograd ------------------------------------------------------------------------------------------------------


def _in_memory(g: Tensor) -> bool:
    """False where g stands for many gradients (``is_grads_batched``), which can be seen no other way."""
    try:
        return not transformed() and g.data_ptr() is not None
    except RuntimeError:
        return False


class _Recomputed(torch.autograd.Function):
    """A value, (M,) or (N, S), whose gradient is formed from the logits anew.

    ``form(z, skip, *saved, g=g)`` is the gradient times g; ``weight`` and ``graph`` are as in ``_kernels.closed_form``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        value: Tensor,
        weight: Tensor | None,
        skip: Tensor | None,
        graph: Graph,
        form: Callable[..., Tensor],
        *saved: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(z, weight, skip, *saved)
        ctx.graph, ctx.form = graph, form
        return value.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        z, weight, skip, *saved = ctx.saved_tensors
        nothing = (None,) * (5 + len(saved))
        if not torch.is_grad_enabled() and _in_memory(g):
            return ctx.form(z, skip, *saved, g=g.contiguous()), *nothing
        y = z.detach().float()  # the gradient itself is to be differentiated, or many are asked for
        slope = ctx.form(y, skip, *saved, g=y.new_ones(_positions(y)))
        moving = ctx.graph(z, skip)
        change = moving.detach() - moving if weight is None else (moving.detach() - moving) / weight.unsqueeze(1)
        g = g.unsqueeze(1) if skip is None else g.unsqueeze(1).masked_fill(skip, 0)
        return ((slope + change) * g).to(z.dtype), *nothing

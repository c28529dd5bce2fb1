"""EM, CADF, DEM and AdaDEM as Triton kernels: the path that CUDA tensors take, whose truth is the eager one.

Notation and formulas of ``_kernels`` and ``_calibrator``. Samples (M, C) lie in registers, whole; of maps (N, C, S) a
program takes some hundred neighbouring pixels and walks over their classes, again and again while they are in the
cache. So the forward pass reads the logits once and writes a value a sample, and the backward pass reads them once more
and writes the gradient in their dtype; nothing of the logits' size is kept between the two. AdaDEM's table has to know
the whole batch before the first value, so its logits are read once more beforehand where there are at most ``FEW``
classes (class sums by products with one-hot tiles), and twice where there are more (pseudo labels; then sums over the
samples sorted by pseudo label, segment by segment). All sums run in a fixed order, without atomics: repeated calls give
the same bits. The host never waits.

Arithmetic is float32; one-hot products take three passes in TF32, which lose at most 2^-21 of p. Any strides will do.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]
from torch import Tensor

from ._calibrator import Options, Tally, smallest_delta
from ._kernels import Graph, has_tangent, transformed, wants_gradient

FEW = 128  # classes whose sums over a batch are formed by products; maps have no more in AdaDEM
MOST = 1 << 14  # classes of a sample that a program holds in registers
_TILE = 1 << 11  # logits that a program works on at a time
_PIXELS = 1 << 8  # the same, of one class of a map
_STRIP = 1 << 7  # the same, of a product with a one-hot tile
_PROGRAMS = 1 << 9  # enough to fill a device
_SUMS = 1 << 11  # programs that add up p by pseudo label; more take longer to be added themselves
_RUN = 1 << 9  # positions that one float32 sum runs over before it joins the others
_SEGMENT = 1 << 6  # the same, of positions sorted by pseudo label
_COLUMNS = 1 << 10

# --- parts of the kernels ------------------------------------------------------------------------------------------


@triton.jit
def _sample(tile, samples, skip, MASKED: tl.constexpr, BP: tl.constexpr):
    """The BP samples of a tile, which of them exist, and which count."""
    at = (tile * BP + tl.arange(0, BP)).to(tl.int64)
    exists = at < samples
    counts = exists
    if MASKED:
        counts = exists & (tl.load(skip + at, mask=exists, other=1) == 0)
    return at, exists, counts


@triton.jit
def _pixel(tile, images, pixels, skip, MASKED: tl.constexpr, BP: tl.constexpr):
    """Image and pixel of the BP neighbours of a tile, their positions, which of them exist, and which count."""
    across = tl.cdiv(pixels, BP)
    image = tl.zeros((BP,), tl.int64) + tile // across
    pixel = tile % across * BP + tl.arange(0, BP)
    exists = (pixel < pixels) & (image < images)
    position = image * pixels + pixel
    counts = exists
    if MASKED:
        counts = exists & (tl.load(skip + position, mask=exists, other=1) == 0)
    return image, pixel.to(tl.int64), position, exists, counts


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
def _read_class(here, counts):
    return tl.load(here, mask=counts, other=-float("inf")).to(tl.float32)


@triton.jit
def _walk_softmax(start, counts, classes, zc, BP: tl.constexpr):
    """``_softmax`` of pixels: m, pseudo label (C for none), the sum of exp c without class k, and that of c exp c."""
    m = tl.full((BP,), -float("inf"), tl.float32)
    here = start
    for _ in range(classes):
        m = tl.maximum(m, _read_class(here, counts))
        here += zc
    m = tl.where(counts, m, 0.0)
    label = tl.zeros((BP,), tl.int32) + classes
    others = m - m
    weighted = tl.zeros((BP,), tl.float32)
    here = start
    for k in range(classes):
        c = _read_class(here, counts) - m
        e = tl.exp(c)
        first = (c == 0) & (label == classes)
        label = tl.where(first, k, label)
        others += tl.where(first, 0.0, e)
        weighted += tl.where(e == 0, 0.0, c * e)
        here += zc
    return m, label, others, weighted


@triton.jit
def _weigh(c, p):
    weighted = tl.where(p == 0, 0.0, c * p)
    return weighted, tl.sum(weighted, 1)


@triton.jit
def _log1p(x):
    y = 1 + x
    return tl.where(y == 1, x, tl.log(y) * (x / tl.where(y == 1, 1.0, y - 1)))


@triton.jit
def _dem_value(u, m, others, alpha, PENALTY: tl.constexpr):
    result = -u - (1 - alpha) * m
    if PENALTY:
        result += alpha * _log1p(others)
    return result


@triton.jit
def _dem_kept(c, p, q, u, tau, alpha, PLAIN: tl.constexpr):
    """Minus the gradient of DEM."""
    weighted = tl.where(p == 0, 0.0, c * p)
    if PLAIN:  # noqa: SIM108 - decided when the kernel is built
        kept = weighted - p * (u - (1 - alpha))
    else:
        kept = (weighted - p * (u - tau)) / tau - alpha * q
    return kept


# --- DEM -----------------------------------------------------------------------------------------------------------


@triton.jit
def _dem_samples(
    z, skip, value, g, gradient,
    samples, classes, zn, zc, gs, dn, dc, tau, alpha,
    PLAIN: tl.constexpr, PENALTY: tl.constexpr, GRADIENT: tl.constexpr,
    MASKED: tl.constexpr, BP: tl.constexpr, CP: tl.constexpr,
):  # fmt: skip
    """The value of each sample, or g times its gradient."""
    at, exists, counts = _sample(tl.program_id(0), samples, skip, MASKED, BP)
    columns = tl.arange(0, CP)
    x = _read(z, at[:, None] * zn + columns.to(tl.int64)[None, :] * zc, counts, columns, classes)
    m, _, c, e, others = _softmax(x, counts, columns, CP)
    q = e / (1 + others)[:, None]
    p = q
    if not PLAIN:
        warm = tl.exp(c / tau)
        p = warm / tl.sum(warm, 1)[:, None]
    _, u = _weigh(c, p)
    if GRADIENT:
        factor = tl.load(g + at * gs, mask=counts, other=0.0).to(tl.float32)
        kept = _dem_kept(c, p, q, u[:, None], tau, alpha, PLAIN)
        result = tl.where(counts[:, None], -kept * factor[:, None], 0.0)
        inside = exists[:, None] & (columns < classes)[None, :]
        tl.store(gradient + at[:, None] * dn + columns.to(tl.int64)[None, :] * dc, result, mask=inside)
    else:
        tl.store(value + at, tl.where(counts, _dem_value(u, m, others, alpha, PENALTY), 0.0), mask=exists)


@triton.jit
def _dem_pixels(
    z, skip, value, g, gradient,
    images, pixels, classes, zn, zc, zs, gn, gs, dn, dc, ds, tau, alpha,
    PLAIN: tl.constexpr, PENALTY: tl.constexpr, GRADIENT: tl.constexpr, MASKED: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    image, pixel, position, exists, counts = _pixel(tl.program_id(0), images, pixels, skip, MASKED, BP)
    start = z + image * zn + pixel * zs
    m, _, others, weighted = _walk_softmax(start, counts, classes, zc, BP)
    total = 1 + others
    warm_total = total
    if not PLAIN:
        warm_total = tl.zeros((BP,), tl.float32)
        weighted = tl.zeros((BP,), tl.float32)
        here = start
        for _ in range(classes):
            c = _read_class(here, counts) - m
            warm = tl.exp(c / tau)
            warm_total += warm
            weighted += tl.where(warm == 0, 0.0, c * warm)
            here += zc
    u = weighted / tl.where(counts, warm_total, 1.0)
    if GRADIENT:
        factor = tl.load(g + image * gn + pixel * gs, mask=counts, other=0.0).to(tl.float32)
        here = start
        there = gradient + image * dn + pixel * ds
        for _ in range(classes):
            c = _read_class(here, counts) - m
            q = tl.exp(c) / total
            p = q
            if not PLAIN:
                p = tl.exp(c / tau) / warm_total
            kept = _dem_kept(c, p, q, u, tau, alpha, PLAIN)
            tl.store(there, tl.where(counts, -kept * factor, 0.0), mask=exists)
            here += zc
            there += dc
    else:
        tl.store(value + position, tl.where(counts, _dem_value(u, m, others, alpha, PENALTY), 0.0), mask=exists)


# --- AdaDEM --------------------------------------------------------------------------------------------------------


@triton.jit
def _adadem_samples(
    z, table, skip, value, weight, g, gradient,
    samples, classes, zn, zc, gs, dn, dc, alpha,
    NORM: tl.constexpr, CADF: tl.constexpr, MEC: tl.constexpr, SMALLEST: tl.constexpr, OWN: tl.constexpr,
    GRADIENT: tl.constexpr, MASKED: tl.constexpr, BP: tl.constexpr, CP: tl.constexpr,
):  # fmt: skip
    """The value and delta of each sample, or g times its gradient.

    NORM: 0 for delta = 1, else its norm's type, 3 for infinity. OWN: row i of the table is sample i's.
    """
    at, exists, counts = _sample(tl.program_id(0), samples, skip, MASKED, BP)
    columns = tl.arange(0, CP)
    x = _read(z, at[:, None] * zn + columns.to(tl.int64)[None, :] * zc, counts, columns, classes)
    m, label, c, e, others = _softmax(x, counts, columns, CP)
    p = e / (1 + others)[:, None]
    weighted, u = _weigh(c, p)
    entropy = weighted - p * u[:, None]  # minus the gradient of the entropy; p more is minus CADF's
    if GRADIENT:
        delta = tl.load(weight + at, mask=counts, other=1.0)
    else:
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
        named = at if OWN else tl.minimum(label, classes - 1).to(tl.int64)
        a = tl.load(table + named[:, None] * classes + columns[None, :], mask=inside, other=0.0)
        kept = entropy + p - tl.where(out, 0.0, alpha * a)
        result = tl.sum(a * tl.where(out, -m[:, None], c), 1) - u
        result = (alpha * result - (1 - alpha) * (u + m)) / delta
    else:
        kept = entropy
        result = tl.zeros((BP,), tl.float32)
    if GRADIENT:
        factor = tl.load(g + at * gs, mask=counts, other=0.0).to(tl.float32) / delta
        result = tl.where(counts[:, None], -kept * factor[:, None], 0.0)
        tl.store(gradient + at[:, None] * dn + columns.to(tl.int64)[None, :] * dc, result, mask=inside)
    else:
        tl.store(value + at, tl.where(counts, result, 0.0), mask=exists)
        tl.store(weight + at, tl.where(counts, delta, 1.0), mask=exists)


@triton.jit
def _adadem_pixels(
    z, table, skip, value, weight, g, gradient,
    images, pixels, classes, zn, zc, zs, gn, gs, dn, dc, ds, alpha,
    NORM: tl.constexpr, CADF: tl.constexpr, MEC: tl.constexpr, SMALLEST: tl.constexpr,
    GRADIENT: tl.constexpr, MASKED: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    image, pixel, position, exists, counts = _pixel(tl.program_id(0), images, pixels, skip, MASKED, BP)
    start = z + image * zn + pixel * zs
    m, label, others, weighted = _walk_softmax(start, counts, classes, zc, BP)
    total = 1 + others
    u = weighted / total
    row = table + tl.minimum(label, classes - 1) * classes
    here = start
    if GRADIENT:
        factor = tl.load(g + image * gn + pixel * gs, mask=counts, other=0.0).to(tl.float32)
        factor = factor / tl.load(weight + position, mask=counts, other=1.0)
        there = gradient + image * dn + pixel * ds
        for k in range(classes):
            x = _read_class(here, counts)
            c = x - m
            p = tl.exp(c) / total
            kept = tl.where(p == 0, 0.0, c * p) - p * u
            if MEC:
                a = tl.load(row + k, mask=counts, other=0.0)
                kept += p - tl.where(x == -float("inf"), 0.0, alpha * a)
            tl.store(there, tl.where(counts, -kept * factor, 0.0), mask=exists)
            here += zc
            there += dc
    else:
        delta = tl.full((BP,), 0.0 if NORM else 1.0, tl.float32)
        result = tl.zeros((BP,), tl.float32)
        for k in range(classes):
            x = _read_class(here, counts)
            c = x - m
            p = tl.exp(c) / total
            slope = tl.where(p == 0, 0.0, c * p) - p * u
            if CADF:
                slope += p
            if NORM == 1:
                delta += tl.abs(slope)
            elif NORM == 2:
                delta += slope * slope
            elif NORM == 3:
                delta = tl.maximum(delta, tl.abs(slope))
            if MEC:
                a = tl.load(row + k, mask=counts, other=0.0)
                result += a * tl.where(x == -float("inf"), -m, c)
            here += zc
        if NORM == 2:
            delta = tl.sqrt(delta)
        delta = tl.where(delta < SMALLEST, SMALLEST, delta)
        if MEC:
            result = (alpha * (result - u) - (1 - alpha) * (u + m)) / delta
        tl.store(value + position, tl.where(counts, result, 0.0), mask=exists)
        tl.store(weight + position, tl.where(counts, delta, 1.0), mask=exists)


# --- the step of the table, few classes ----------------------------------------------------------------------------


@triton.jit
def _few_sums(
    z, skip, sums, numbers, images, pixels, classes, zn, zc, zs, rounds,
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
            if MAPS:
                image, pixel, _, _, counts = _pixel(tile, images, pixels, skip, MASKED, BP)
                start = image * zn + pixel * zs
                m, label, others, _ = _walk_softmax(z + start, counts, classes, zc, BP)
                x = _read(z, start[:, None] + columns.to(tl.int64)[None, :] * zc, counts, columns, classes)
                e = tl.exp(x - m[:, None])
            else:
                at, _, counts = _sample(tile, images, skip, MASKED, BP)
                x = _read(z, at[:, None] * zn + columns.to(tl.int64)[None, :] * zc, counts, columns, classes)
                _, label, _, e, others = _softmax(x, counts, columns, CP)
            enters = counts & (others == others)
            p = tl.where(enters[:, None], e / (1 + others)[:, None], 0.0)
            named = tl.where(enters[:, None] & (columns[None, :] == label[:, None]), 1.0, 0.0)
            part = tl.dot(tl.trans(named), p, part, input_precision="tf32x3")
            number += tl.sum(named, 0)
        total += part
    where = columns[:, None] * CP + columns[None, :]
    tl.store(sums + program.to(tl.int64) * CP * CP + where, total)
    tl.store(numbers + program * CP + columns, number)


@triton.jit
def _few_step(sums, numbers, table, before, programs, classes, momentum, AT_A_TIME: tl.constexpr, CP: tl.constexpr):
    """Adds the programs' sums of a class; its row of the table is that before, moved if the class has samples."""
    label = tl.program_id(0)
    columns = tl.arange(0, CP)
    total = tl.zeros((CP,), tl.float32)
    number = 0.0
    for first in range(0, programs, AT_A_TIME):
        at = first + tl.arange(0, AT_A_TIME)
        there = at < programs
        tile = (at * CP + label)[:, None] * CP + columns[None, :]
        total += tl.sum(tl.load(sums + tile, mask=there[:, None], other=0.0), 0)
        number += tl.sum(tl.load(numbers + at * CP + label, mask=there, other=0.0))
    inside = columns < classes
    row = tl.load(before + label * classes + columns, mask=inside, other=0.0)
    moved = row * (1 - momentum) + momentum * (total / tl.maximum(number, 1.0))
    tl.store(table + label * classes + columns, tl.where(number > 0, moved, row), mask=inside)


# --- the step of the table, many classes ---------------------------------------------------------------------------


@triton.jit
def _labels_kernel(z, skip, labels, samples, classes, zn, zc, MASKED: tl.constexpr, BP: tl.constexpr, CP: tl.constexpr):
    """The pseudo label of each sample, C for those that do not enter the table."""
    at, exists, counts = _sample(tl.program_id(0), samples, skip, MASKED, BP)
    columns = tl.arange(0, CP)
    x = _read(z, at[:, None] * zn + columns.to(tl.int64)[None, :] * zc, counts, columns, classes)
    _, label, _, _, others = _softmax(x, counts, columns, CP)
    tl.store(labels + at, tl.where(counts & (others == others), label, classes), mask=exists)


@triton.jit
def _first_at_least(ordered, count, wanted, steps):
    """Where each wanted number would stand in the sorted ones: how many are less."""
    low = wanted * 0
    high = low + count
    for _ in range(steps):
        open_ = low < high
        middle = (low + high) // 2
        less = open_ & (tl.load(ordered + middle, mask=open_, other=0) < wanted)
        low = tl.where(less, middle + 1, low)
        high = tl.where(open_ & ~less, middle, high)
    return low


@triton.jit
def _bounds(ordered, starts, segments, count, classes, steps, SEGMENT: tl.constexpr, CP: tl.constexpr):
    """Of each class, and of what comes after the last, the first sample in their order and the first segment."""
    columns = tl.arange(0, CP)
    start = _first_at_least(ordered, count, columns, steps)
    end = _first_at_least(ordered, count, columns + 1, steps)
    number = tl.where(columns < classes, (end - start + SEGMENT - 1) // SEGMENT, 0)
    tl.store(starts + columns, start, mask=columns <= classes)
    tl.store(segments + columns, tl.cumsum(number, 0) - number, mask=columns <= classes)


@triton.jit
def _segment_sums(
    z, order, starts, segments, sums, classes, zn, zc, steps, SEGMENT: tl.constexpr, BP: tl.constexpr, CP: tl.constexpr
):
    """Sum of p over each segment of the samples sorted by pseudo label."""
    segment = tl.program_id(0)
    columns = tl.arange(0, CP)
    if segment < tl.load(segments + classes):
        label = _first_at_least(segments, classes + 1, segment + 1, steps) - 1  # the last class that starts so early
        first = tl.load(starts + label) + (segment - tl.load(segments + label)) * SEGMENT
        end = tl.minimum(first + SEGMENT, tl.load(starts + label + 1))
        total = tl.zeros((CP,), tl.float32)
        for here in range(first, end, BP):
            at = here + tl.arange(0, BP)
            counts = at < end
            sample = tl.load(order + at, mask=counts, other=0)
            x = _read(z, sample[:, None] * zn + columns.to(tl.int64)[None, :] * zc, counts, columns, classes)
            _, _, _, e, others = _softmax(x, counts, columns, CP)
            total += tl.sum(tl.where(counts[:, None], e / (1 + others)[:, None], 0.0), 0)
        tl.store(sums + segment.to(tl.int64) * classes + columns, total, mask=columns < classes)


@triton.jit
def _class_step(sums, starts, segments, table, numbers, classes, momentum, STEP: tl.constexpr, COLUMNS: tl.constexpr):
    """Adds the segments of a class; its row of the table moves, or becomes the sum where STEP is False."""
    label = tl.program_id(0)
    first, end = tl.load(segments + label), tl.load(segments + label + 1)
    if first < end:
        columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        inside = columns < classes
        total = tl.zeros((COLUMNS,), tl.float32)
        here = sums + first.to(tl.int64) * classes + columns
        for _ in range(first, end):
            total += tl.load(here, mask=inside, other=0.0)
            here += classes
        number = (tl.load(starts + label + 1) - tl.load(starts + label)).to(tl.float32)
        row = table + label.to(tl.int64) * classes + columns
        if STEP:
            before = tl.load(row, mask=inside, other=0.0)
            total = before * (1 - momentum) + momentum * (total / number)
        else:
            tl.store(numbers + label, number)
        tl.store(row, total, mask=inside)


# --- how they are called -------------------------------------------------------------------------------------------


class _Layout:
    """How the kernels walk over z, (M, C) or (N, C, S)."""

    def __init__(self, z: Tensor, block: int | None = None):
        self.maps = z.dim() == 3
        self.images, self.classes, self.pixels = z.shape[0], z.shape[1], z.shape[2] if self.maps else 1
        self.positions = self.images * self.pixels
        self.columns = max(16, triton.next_power_of_2(self.classes))
        spread = triton.next_power_of_2(triton.cdiv(self.positions, _PROGRAMS))
        least, most = (16, _PIXELS) if self.maps else (1, _TILE // self.columns)
        self.block = block or max(least, min(most, spread))
        across, down = (self.pixels, self.images) if self.maps else (self.images, 1)
        self.tiles = triton.cdiv(across, self.block) * down
        self.size = (self.images, self.pixels, self.classes) if self.maps else (self.images, self.classes)

    def options(self, **flags: Any) -> dict[str, Any]:
        if self.maps:
            return {"BP": self.block, **flags}
        warps = min(16, max(4, self.columns * self.block // 1024))
        return {"BP": self.block, "CP": self.columns, "num_warps": warps, **flags}


def _bytes(skip: Tensor | None) -> Tensor | None:
    return None if skip is None else skip.reshape(-1).view(torch.uint8)


def _launch(kernel: Any, grid: tuple[int, ...], z: Tensor, *arguments: Any, **options: Any) -> None:
    if z.is_cuda and z.device.index != torch.cuda.current_device():
        with torch.cuda.device(z.device):
            kernel[grid](z, *arguments, **options)
    else:
        kernel[grid](z, *arguments, **options)


def serves(z: Tensor, table: Tensor | None = None) -> bool:
    """Whether the kernels take z, (M, C) or (N, C, S), and the table, and can be built here."""
    return (
        z.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and (table is None or table.dtype == torch.float32)
        and (z.shape[1] <= MOST if z.dim() == 2 else z.shape[1] <= FEW or table is None)
        and z.numel() > 0
        and not transformed()
        and not has_tangent(z)
        and (z.device.type == "cpu" or _can_be_built(z.device))  # on a CPU in Triton's interpreter
    )


@lru_cache
def _can_be_built(device: torch.device) -> bool:
    """Whether a kernel runs on the device: Triton needs a C compiler, and a card of compute capability 7 or more."""
    if torch.version.cuda is None or torch.cuda.get_device_capability(device)[0] < 7:
        return False
    z = torch.zeros((1, 2), device=device)
    try:
        _dem(z, None, tau=1, alpha=1)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        warnings.warn(f"core: Triton's kernels cannot be built here, the losses are slower ({reason})", stacklevel=2)
        return False
    return True


# --- DEM -----------------------------------------------------------------------------------------------------------


def dem(z: Tensor, tau: float, alpha: float, skip: Tensor | None, graph: Graph) -> Tensor:
    """``_kernels.dem`` of every position of z: (M,) or (N, S)."""
    form = partial(_dem, tau=tau, alpha=alpha)
    return _Recomputed.apply(z, skip, graph, form) if wants_gradient(z) else form(z.detach(), skip)


def _dem(z: Tensor, skip: Tensor | None, *, tau: float, alpha: float, g: Tensor | None = None) -> Tensor:
    """The value, (M,) or (N, S), or with g of that shape the gradient times g, as z."""
    layout = _Layout(z)
    value = gradient = z
    if g is None:
        value = torch.empty(_positions(z), dtype=torch.float32, device=z.device)
    else:
        gradient = torch.empty_like(z)
    _launch(
        _dem_pixels if layout.maps else _dem_samples, (layout.tiles,),
        z, _bytes(skip), value, g, gradient,
        *layout.size, *z.stride(), *_strides(g, layout), *gradient.stride(), float(tau), float(alpha),
        **layout.options(PLAIN=tau == 1, PENALTY=alpha != 0, GRADIENT=g is not None, MASKED=skip is not None),
    )  # fmt: skip
    return value if g is None else gradient


def _strides(g: Tensor | None, layout: _Layout) -> tuple[int, ...]:
    return g.stride() if g is not None else (0, 0) if layout.maps else (0,)


def _positions(z: Tensor) -> torch.Size:
    return z.shape[:1] + z.shape[2:]


# --- AdaDEM --------------------------------------------------------------------------------------------------------


def adadem(
    z: Tensor,
    table: Tensor | None,
    skip: Tensor | None,
    options: Options,
    momentum: float | None,
    inplace: bool,
    alone: bool,
    graph: Graph,
) -> tuple[Tensor, Tensor | None]:
    """``_calibrator.adadem``: the value, (M,) or (N, S), and the table that was used."""
    wanted = wants_gradient(z)
    rows, own = table, False
    if options.mec and table is not None:
        with torch.no_grad():
            y = z.detach()
            sparse = wanted and z.dim() == 2 and z.shape[0] < z.shape[1]  # fewer rows of the table are used than it has
            labels = _labels(y, skip) if z.shape[1] > FEW or sparse else None
            if momentum is not None:
                rows = table = _step(y, table, skip, labels, momentum, inplace, alone)
            if sparse and labels is not None:
                rows, own = table.index_select(0, labels.clamp(max=z.shape[1] - 1)), True
            elif wanted:
                rows = table.clone()  # the table may have moved on before the backward pass
    form = partial(_adadem, options=options, own=own)
    if wanted:
        return _Recomputed.apply(z, skip, graph, form, rows), table
    return form(z.detach(), skip, rows)[0], table


def _adadem(
    z: Tensor,
    skip: Tensor | None,
    table: Tensor | None,
    delta: Tensor | None = None,
    *,
    options: Options,
    own: bool,
    g: Tensor | None = None,
) -> Any:
    """The value and delta, (M,) or (N, S) each, or with delta and g of that shape the gradient times g, as z."""
    layout = _Layout(z)
    value = gradient = z
    if g is None:
        value, delta = torch.empty((2, *_positions(z)), dtype=torch.float32, device=z.device)
    else:
        gradient = torch.empty_like(z)
    flags = {
        "NORM": (3 if options.norm_type == math.inf else int(options.norm_type)) if options.norm else 0,
        "CADF": options.norm_of == "cadf",
        "MEC": options.mec,
        "SMALLEST": smallest_delta(options),
        **({} if layout.maps else {"OWN": own}),
    }
    _launch(
        _adadem_pixels if layout.maps else _adadem_samples, (layout.tiles,),
        z, z if table is None else table, _bytes(skip), value, delta, g, gradient,
        *layout.size, *z.stride(), *_strides(g, layout), *gradient.stride(), float(options.alpha),
        **layout.options(**flags, GRADIENT=g is not None, MASKED=skip is not None),
    )  # fmt: skip
    return gradient if g is not None else (value, delta)


def _labels(z: Tensor, skip: Tensor | None) -> Tensor:
    """The pseudo label of each sample, C for those that do not enter the table."""
    layout = _Layout(z)
    labels = torch.empty(len(z), dtype=torch.int32, device=z.device)
    options = layout.options(MASKED=skip is not None)
    _launch(_labels_kernel, (layout.tiles,), z, _bytes(skip), labels, *layout.size, *z.stride(), **options)
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
    classes = z.shape[1]
    if classes <= FEW:
        sums, numbers = _sums_of_few(z, skip)
        if not alone:
            sums, numbers = sums.sum(0)[:classes, :classes], numbers.sum(0)[:classes]
            return Tally(sums, numbers).step(table, momentum, inplace, alone)
        moved = table if inplace and table.is_contiguous() else torch.empty_like(table).contiguous()
        at_a_time = max(1, 1 << 12 >> (sums.shape[1].bit_length() - 1))
        _launch(
            _few_step, (classes,),
            sums, numbers, moved, table.contiguous(), len(sums), classes, momentum,
            AT_A_TIME=at_a_time, CP=sums.shape[1],
        )  # fmt: skip
        return table.copy_(moved) if inplace and moved is not table else moved
    assert labels is not None
    if not alone:
        sums, numbers = torch.zeros_like(table), table.new_zeros(len(table))
        _add_segments(z, labels, sums, numbers, None)
        return Tally(sums, numbers).step(table, momentum, inplace, alone)
    table = table if inplace else table.clone()
    _add_segments(z, labels, table, None, momentum)
    return table


def _sums_of_few(z: Tensor, skip: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sums of p, (programs, CP, CP), and numbers of positions, (programs, CP), by pseudo label; CP is at least C."""
    layout = _Layout(z, _STRIP if z.dim() == 3 else 32)
    size, most = layout.columns, max(1, _RUN // layout.block)
    programs = min(layout.tiles, _SUMS, (1 << 22) // size**2)
    share = triton.cdiv(layout.tiles, programs)
    tiles = min(most, triton.next_power_of_2(share))
    sums = torch.empty((programs, size, size), dtype=torch.float32, device=z.device)
    numbers = torch.empty((programs, size), dtype=torch.float32, device=z.device)
    strides = z.stride() if layout.maps else (*z.stride(), 0)
    _launch(
        _few_sums, (programs,),
        z, _bytes(skip), sums, numbers,
        layout.images, layout.pixels, layout.classes, *strides, triton.cdiv(share, tiles),
        TILES=tiles, MAPS=layout.maps, MASKED=skip is not None, BP=layout.block, CP=size,
        num_warps=4 if size <= 64 else 16,
    )  # fmt: skip
    return sums, numbers


def _add_segments(z: Tensor, labels: Tensor, table: Tensor, numbers: Tensor | None, momentum: float | None) -> None:
    """The step in place, or with ``momentum`` None sums and numbers by pseudo label into zeros."""
    count, classes = len(labels), z.shape[1]
    ordered, order = labels.sort(stable=True)
    starts, segments = torch.empty((2, classes + 1), dtype=torch.int32, device=z.device)
    columns = triton.next_power_of_2(classes + 1)
    _launch(
        _bounds, (1,),
        ordered, starts, segments, count, classes, count.bit_length(),
        SEGMENT=_SEGMENT, CP=columns, num_warps=min(16, max(4, columns // 256)),
    )  # fmt: skip
    layout = _Layout(z)
    most = triton.cdiv(count, _SEGMENT) + min(count, classes)
    sums = torch.empty((most, classes), dtype=torch.float32, device=z.device)
    _launch(
        _segment_sums, (most,),
        z, order, starts, segments, sums, classes, *z.stride(), (classes + 1).bit_length(),
        **layout.options(BP=max(1, _TILE // layout.columns), SEGMENT=_SEGMENT),
    )  # fmt: skip
    _launch(
        _class_step, (classes, triton.cdiv(classes, _COLUMNS)),
        sums, starts, segments, table, numbers, classes, momentum or 0.0,
        STEP=momentum is not None, COLUMNS=_COLUMNS,
    )  # fmt: skip


# --- autograd ------------------------------------------------------------------------------------------------------


def _in_memory(g: Tensor) -> bool:
    """False where g stands for many gradients (``is_grads_batched``), which can be seen no other way."""
    try:
        return not transformed() and g.data_ptr() is not None
    except RuntimeError:
        return False


class _Recomputed(torch.autograd.Function):
    """A value, (M,) or (N, S), whose gradient is formed from the logits anew.

    ``form(z, skip, *saved)`` is the value, or the value and delta;
    ``form(z, skip, *saved, weight, g=g)`` is the gradient times g. ``graph`` is as in ``_kernels.closed_form``.
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, skip: Tensor | None, graph: Graph, form: Callable[..., Any], *saved: Tensor | None
    ) -> Tensor:
        result = form(z, skip, *saved)
        value, *weight = result if isinstance(result, tuple) else (result,)
        ctx.save_for_backward(z, skip, *saved, *weight)
        ctx.graph, ctx.form, ctx.weighted = graph, form, bool(weight)
        return value  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        z, skip, *saved = ctx.saved_tensors
        nothing = (None,) * (3 + len(saved) - ctx.weighted)
        if not torch.is_grad_enabled() and _in_memory(g):
            return ctx.form(z, skip, *saved, g=g), *nothing
        y = z.detach().float()  # the gradient itself is to be differentiated, or many are asked for
        slope = ctx.form(y, skip, *saved, g=y.new_ones(()).expand(_positions(y)))
        moving = ctx.graph(z, skip)
        change = moving.detach() - moving
        if ctx.weighted:
            change = change / saved[-1].unsqueeze(1)
        g = g.unsqueeze(1) if skip is None else g.unsqueeze(1).masked_fill(skip, 0)
        return ((slope + change) * g).to(z.dtype), *nothing

"""Closed forms of EM, CADF and DEM, computed block by block.

Notation: m = max z, c = z - m, p = softmax(z / tau), u = sum p c, all over the classes. For tau = 1

    H = log s - u, s = 1 / max p     p (log p + H)  = p (c - u)          (minus EM's gradient)
    T = -u - m                       p (z + T + 1)  = p (c - u + 1)      (minus CADF's gradient)

which loses no digits for logits of any size. The forward pass keeps (m, u) of each sample and drops c and p; the
backward pass forms them again. So the logits are read once on the way forward and once on the way back, the gradient
is written once, and nothing else of their size is kept. On a CPU both passes walk over blocks that stay in cache;
elsewhere, and under ``torch.compile`` and ``torch.func``, the whole tensor is one block. Logits that fit into a cache
anyway get their gradient formed on the way forward, which saves the second look. A class that is masked out (a logit
of minus infinity) has p = 0 and takes no part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

BLOCK = 1 << 16  # elements of a block on the CPU: a handful of temporaries of this size stay in the second-level cache
SMALL = 2 * BLOCK  # up to here a second look at the logits costs more than keeping their gradient

Block = tuple[slice, slice]
WHOLE: Block = (slice(None), slice(None))


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any of the tensors is, else float32: nothing accumulates in half precision."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def transformed() -> bool:
    """True inside ``torch.func`` transforms, where some operations in place are slow or not allowed."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Shields matrix products from autocast, which would put them in half precision."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def canonical(x: Tensor, rows: bool) -> Tensor:
    """Views (N, C, ...) as (M, C) if ``rows``, else as (N, C, S)."""
    if x.dim() == 2:
        return x
    if rows:
        return x.movedim(1, -1).reshape(-1, x.shape[1])
    return x.reshape(x.shape[0], x.shape[1], math.prod(x.shape[2:]))


def classes_innermost(x: Tensor) -> bool:
    """True where the classes of (N, C, ...) lie next to each other in memory, so that rows are a view."""
    return x.dim() == 2 or (x.stride(1) == 1 and x.shape[1] > 1)


def blocks_of(z: Tensor) -> list[Block]:
    """Splits the positions of z, (M, C) or (N, C, S), into slices of the first and of the last axis."""
    if z.device.type != "cpu" or z.numel() <= SMALL or torch.compiler.is_compiling() or transformed():
        return [WHOLE]
    classes = z.shape[1]
    if z.dim() == 2:
        return [(rows, WHOLE[1]) for rows in _pieces(z.shape[0], max(1, BLOCK // classes))]
    if classes * z.shape[2] <= BLOCK:
        return [(images, WHOLE[1]) for images in _pieces(z.shape[0], BLOCK // (classes * z.shape[2]))]
    columns = list(_pieces(z.shape[2], max(16, BLOCK // classes)))
    return [(slice(n, n + 1), pixels) for n in range(z.shape[0]) for pixels in columns]


def _pieces(total: int, size: int) -> Iterable[slice]:
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def cut(x: Tensor | None, block: Block) -> Any:
    """The part of x, (M, .) or (N, ., S), that lies in the block; None stays None."""
    if x is None or block is WHOLE:
        return x
    return x[block[0]] if x.dim() == 2 else x[block[0], :, block[1]]


def join(parts: Sequence[tuple[Tensor, ...]], z: Tensor, blocks: list[Block]) -> tuple[Tensor, ...]:
    """Puts the per-position results of all blocks together again: (M, 1) or (N, 1, S) each."""
    if len(blocks) == 1:
        return parts[0]
    whole = tuple(part.new_empty((z.shape[0], 1, *z.shape[2:])) for part in parts[0])
    for block, part in zip(blocks, parts, strict=True):
        for target, piece in zip(whole, part, strict=True):
            cut(target, block).copy_(piece)
    return whole


def fill(z: Tensor, blocks: list[Block], gradient: Callable[[Block, Tensor | None], Tensor]) -> Tensor:
    """The gradient with respect to z, shape and dtype of z, from a function that gives one block of it and may write
    it to the tensor it is handed."""
    if len(blocks) == 1:
        return gradient(blocks[0], None).to(z.dtype)
    whole = torch.empty_like(z)
    direct = z.dtype == accumulation_dtype(z)
    for block in blocks:
        target = cut(whole, block)
        if direct:
            gradient(block, target)
        else:
            target.copy_(gradient(block, None))
    return whole


def may_mask_classes(z: Tensor) -> bool:
    """False where it is cheap to know that no logit is minus infinity; True costs a few passes over the logits."""
    if z.device.type != "cpu" or torch.compiler.is_compiling() or transformed():
        return True
    return z.numel() > 0 and not z.amin().item() > -math.inf


def look(z: Tensor, skip: Tensor | None, tau: float = 1) -> tuple[Tensor, Tensor, Tensor]:
    """m, c = z - m and p = softmax(z / tau) of a block, fresh memory; positions to skip have c = p = 0, whatever their
    logits hold."""
    dtype = accumulation_dtype(z)
    m = z.amax(1, keepdim=True).to(dtype)
    c = z - m
    p = z.softmax(1, dtype=dtype) if tau == 1 else (c / tau).softmax(1)
    if skip is not None:
        c.masked_fill_(skip, 0)
        p.masked_fill_(skip, 0)
    return m, c, p


def centre(z: Tensor, m: Tensor, skip: Tensor | None) -> Tensor:
    """z - m, fresh memory; positions to skip hold zeros."""
    c = z - m
    return c if skip is None else c.masked_fill_(skip, 0)


def drop_masked_classes(c: Tensor, needed: bool) -> Tensor:
    """Puts 0 for minus infinity, in place; NaN stays, so that a broken model cannot hide."""
    return c.nan_to_num_(nan=math.nan, posinf=math.inf, neginf=0.0) if needed else c


def silence(g: Tensor, skip: Tensor | None) -> Tensor:
    return g if skip is None else g.masked_fill(skip, 0)


def softmax_graph(z: Tensor, tau: float, skip: Tensor | None) -> tuple[Tensor, Tensor]:
    """p = softmax(z / tau) and log p with masked-out classes at 0, in operations that autograd can differentiate."""
    z = z.to(accumulation_dtype(z))
    if skip is not None:
        z = z.masked_fill(skip, 0)
    log_p = (z / tau).log_softmax(1)
    return log_p.exp(), log_p.masked_fill(log_p == -math.inf, 0)


def _log_sum(c: Tensor, p: Tensor) -> Tensor:
    """log s = -log max p. Near 1, max p has lost the digits that count, and the other classes' share gives them."""
    top = p.amax(1, keepdim=True)
    others = c.sign().mul_(p).sum(1, keepdim=True)  # minus the share of the classes below the maximum
    return -torch.where(top > 0.5, others.log1p(), top.log())


def closed_form(
    save: Callable[[Any, tuple[Any, ...]], None], backward: Callable[..., tuple[Tensor | None, ...]]
) -> Callable[..., Tensor]:
    """A function of (z, value, ...) that returns the value, (M,) or (N, S), differentiable in z by ``backward``.

    It stands on two autograd functions: ``torch.func`` wants the context set up apart from the forward pass, and that
    costs each call more than the forward pass of a small batch.
    """

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Tensor:
            save(ctx, inputs)
            return inputs[1].squeeze(1).clone()  # type: ignore[no-any-return]

    class Transformed(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*inputs: Any) -> Tensor:
            return inputs[1].squeeze(1).clone()  # type: ignore[no-any-return]

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            save(ctx, inputs)

    Eager.backward = Transformed.backward = staticmethod(backward)  # type: ignore[method-assign]

    def apply(*inputs: Any) -> Tensor:
        chosen = Transformed if transformed() else Eager
        return chosen.apply(*inputs)  # type: ignore[no-any-return]

    return apply


def dem_forward(
    z: Tensor, tau: float, alpha: float, skip: Tensor | None, differentiable: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """DEM (eq. 11) of every position of z, (M, C) or (N, C, S): -u_tau + alpha log s - (1 - alpha) m.

    Returns the value and u, (M, 1) or (N, 1, S), and the gradient where z is small and one is wanted.
    """
    blocks, masked = blocks_of(z), may_mask_classes(z)
    small = differentiable and z.numel() <= SMALL
    parts = []
    for block in blocks:
        skipped = cut(skip, block)
        m, c, p = look(cut(z, block), skipped, tau)
        q = p if tau == 1 or alpha == 0 else silence(c.softmax(1), skipped)
        penalty = None if alpha == 0 else _log_sum(c, q)
        c = drop_masked_classes(c, masked)
        u = (c * p).sum(1, keepdim=True)
        value = -u if penalty is None else penalty.mul_(alpha).sub_(u)
        if alpha != 1:
            value = value - (1 - alpha) * m
        parts.append((silence(value, skipped), u))
    grad = _dem_gradient(c, p, q, u, None, tau, alpha).to(z.dtype) if small else None
    value, u = join(parts, z, blocks)
    return value, u, grad


def _dem_gradient(
    c: Tensor, p: Tensor, q: Tensor, u: Tensor, g: Tensor | None, tau: float, alpha: float, out: Tensor | None = None
) -> Tensor:
    """(alpha q - p (z + T_tau + tau) / tau) g of a block; overwrites c and, where tau is 1, p."""
    weight = -1 / tau if g is None else g * (-1 / tau)
    reward = c.sub_(u - (1 - alpha if tau == 1 else tau)).mul_(p)
    if tau == 1 or alpha == 0:
        return torch.mul(reward, weight, out=out)
    return torch.add(reward.mul_(weight), q * (alpha if g is None else g * alpha), out=out)


def _dem_save(ctx: Any, inputs: tuple[Any, ...]) -> None:
    z, _, u, grad, skip, ctx.tau, ctx.alpha = inputs
    ctx.save_for_backward(z, u, grad, skip)


def _dem_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    z, u, grad, skip = ctx.saved_tensors
    tau, alpha = ctx.tau, ctx.alpha
    g = silence(g.unsqueeze(1), skip)
    if torch.is_grad_enabled():  # the gradient itself is to be differentiated
        p, log_p = softmax_graph(z, tau, skip)
        entropy = -(p * log_p).sum(1, keepdim=True)
        grad = alpha * softmax_graph(z, 1, skip)[0] - p * (log_p + entropy + 1)
        return ((grad * g).to(z.dtype), *(None,) * 6)
    if grad is not None:
        return (grad * g).to(z.dtype), *(None,) * 6
    masked = may_mask_classes(z)

    def gradient(block: Block, out: Tensor | None) -> Tensor:
        skipped = cut(skip, block)
        _, c, p = look(cut(z, block), skipped, tau)
        q = p if tau == 1 or alpha == 0 else silence(c.softmax(1), skipped)
        c = drop_masked_classes(c, masked)
        return _dem_gradient(c, p, q, cut(u, block), cut(g, block), tau, alpha, out)

    return (fill(z, blocks_of(z), gradient), *(None,) * 6)


_dem_gradient_of = closed_form(_dem_save, _dem_backward)


def dem(z: Tensor, tau: float, alpha: float, skip: Tensor | None) -> Tensor:
    """DEM of every position with its closed-form gradient, (M,) or (N, S)."""
    differentiable = torch.is_grad_enabled()
    with torch.no_grad():
        value, u, grad = dem_forward(z.detach(), tau, alpha, skip, differentiable)
    return _dem_gradient_of(z, value, u, grad, skip, tau, alpha) if differentiable else value.squeeze(1)

"""Closed forms of EM, CADF and DEM, computed block by block.

Notation: m = max z, c = z - m, p = softmax(z / tau), u = sum p c, all over the classes. For tau = 1

    H = log s - u, s = 1 / max p     p (log p + H) = p (c - u)          (minus EM's gradient)
    T = -u - m                       p (z + T + 1) = p (c - u + 1)      (minus CADF's gradient)

which loses no digits for logits of any size. Value and gradient are formed together, in one look at the logits: what
is kept for the backward pass is the gradient but for a factor per sample, one tensor of the logits' size, of float32 at
least (what is scaled up on the way back must not have vanished before), and the backward pass is one product. On a CPU
the look is taken in blocks that stay in cache; elsewhere, and under ``torch.compile`` and ``torch.func``, the whole
tensor is one block. A class that is masked out (a logit of minus infinity) has p = 0 and takes no part.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

TRITON = () if os.environ.get("DEMBENCH_TRITON") == "0" else ("cuda",)  # devices whose tensors go to ``_triton``
BLOCK = 1 << 19  # elements of a block on the CPU: a handful of temporaries of this size stay in cache
_TOGETHER = 16  # blocks in one where several threads meet after each operation, for which a busy machine lets them wait
_FEW = 40  # positions
_SHORT_ROW = 16  # classes: sums over so few elements next to each other are slow on a CPU

# a private name; where it is gone, calls take the paths that are right under transforms and without
_transforms_active: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)

Block = tuple[slice, slice]
WHOLE: Block = (slice(None), slice(None))


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any of the tensors is, else float32: nothing accumulates in half precision."""
    for tensor in tensors:
        if tensor.dtype == torch.float64:
            return torch.float64
    return torch.float32


def transformed() -> bool:
    """True inside ``torch.func`` transforms and ``torch.compile``, where to write in place is slow or not allowed."""
    return torch.compiler.is_compiling() or _transforms_active()


def eager_cpu(x: Tensor) -> bool:
    """Whether x can be looked at, and walked over, without waiting for a device or breaking a graph."""
    return not transformed() and x.is_cpu


def fused(z: Tensor, table: Tensor | None = None) -> Any:
    """The module ``_triton`` where it is to be used on this device and its kernels take these tensors, else None."""
    if z.device.type not in TRITON or transformed():
        return None
    kernels = _triton_module()
    return kernels if kernels is not None and kernels.serves(z, table) else None


@lru_cache
def _triton_module() -> Any:
    try:
        from . import _triton
    except ImportError:  # this PyTorch came without Triton
        return None
    return _triton


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Shields matrix products from autocast, which would put them in half precision."""
    kind = x.device.type
    shield = kind != "meta" and torch.is_autocast_enabled(kind)  # "meta" has no autocast to ask about
    return torch.autocast(kind, enabled=False) if shield else nullcontext()


def has_tangent(z: Tensor) -> bool:
    """Whether z is a dual tensor of ``torch.autograd.forward_ad``."""
    if torch.compiler.is_compiling() or getattr(forward_ad, "_current_level", 0) < 0:  # no level: soon answered
        return False
    return forward_ad.unpack_dual(z).tangent is not None  # type: ignore[no-untyped-call]


def wants_gradient(z: Tensor) -> bool:
    """Whether a derivative may be asked for; transforms hide from their inner levels what requires one."""
    return (torch.is_grad_enabled() and (z.requires_grad or transformed())) or has_tangent(z)


def canonical(x: Tensor, rows: bool) -> Tensor:
    """(N, C, ...) as (M, C) if ``rows``, else as contiguous (N, C, S); a view where the memory allows."""
    if x.dim() == 2:
        return x
    if rows:
        return x.movedim(1, -1).reshape(-1, x.shape[1])
    return x.reshape(x.shape[0], x.shape[1], math.prod(x.shape[2:])).contiguous()


def in_rows(x: Tensor) -> bool:
    """Whether (N, C, ...) is best looked at as rows: its classes are next to each other and are not too few."""
    return x.dim() == 2 or (x.stride(1) == 1 and x.shape[1] > (_SHORT_ROW if x.device.type == "cpu" else 1))


def blocks_of(z: Tensor) -> list[Block]:
    """Splits the positions of z, (M, C) or (N, C, S), into slices of the first and of the last axis."""
    if z.numel() <= BLOCK or not eager_cpu(z):
        return [WHOLE]
    classes, size = z.shape[1], BLOCK * (_TOGETHER if torch.get_num_threads() > 1 else 1)
    if z.numel() <= size:
        return [WHOLE]
    if z.dim() == 2:
        return [(rows, WHOLE[1]) for rows in pieces(z.shape[0], max(1, size // classes))]
    if classes * z.shape[2] <= size:
        return [(images, WHOLE[1]) for images in pieces(z.shape[0], size // (classes * z.shape[2]))]
    columns = list(pieces(z.shape[2], max(16, size // classes)))
    return [(slice(n, n + 1), pixels) for n in range(z.shape[0]) for pixels in columns]


def pieces(total: int, size: int) -> Iterable[slice]:
    """Slices of about ``size``, none much longer than another."""
    size = max(1, -(-total // max(1, round(total / size))))
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def cut(x: Tensor | None, block: Block) -> Any:
    """The part of x, (M, .) or (N, ., S), that is in the block; None stays None."""
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


def room_for(z: Tensor, blocks: list[Block]) -> Tensor | None:
    """Memory for a result of z's shape that comes block by block, for ``out=``; None where there is but one block."""
    return torch.empty_like(z, dtype=accumulation_dtype(z)) if len(blocks) > 1 else None


class Scratch:
    """Memory that one block after the other takes, so that it stays in cache; none where there is but one block."""

    def __init__(self, z: Tensor, blocks: list[Block]):
        self._memory: Tensor | None = None
        if len(blocks) > 1:
            self._memory = z.new_empty((2, cut(z, blocks[0]).numel()), dtype=accumulation_dtype(z))

    def like(self, zb: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Room for two results of a block's shape, for ``out=``."""
        if self._memory is None:
            return None, None
        first, second = self._memory[:, : zb.numel()].unbind()
        return first.view(zb.shape), second.view(zb.shape)


def widen(z: Tensor, room: Tensor | None = None) -> Tensor:
    """z itself, or on a CPU half precision as float32, in ``room`` or fresh memory: there its maximum is slow."""
    if z.dtype in (torch.float32, torch.float64) or not eager_cpu(z):
        return z
    return z.float() if room is None else room.copy_(z)


def centre(z: Tensor, m: Tensor, skip: Tensor | None, room: Tensor | None = None) -> Tensor:
    """c = z - m, in ``room`` or fresh memory; 0 at positions to skip, whatever their logits hold."""
    return blank(torch.sub(z, m, out=room), skip)


def blank(x: Tensor, skip: Tensor | None) -> Tensor:
    """Writes 0 over all classes of x, fresh memory, at the positions to skip."""
    if skip is None:
        return x
    if eager_cpu(x):  # ``masked_fill_`` with one mask for all classes takes five to ten times as long
        bits = torch.int32 if x.dtype == torch.float32 else torch.int64
        x.view(bits).bitwise_and_(skip.to(bits).sub_(1))
        return x
    return x.masked_fill_(skip, 0)


def probabilities(c: Tensor, skip: Tensor | None, tau: float = 1, room: Tensor | None = None) -> Tensor:
    """p = softmax(c / tau), in ``room`` or fresh memory; 0 at positions to skip.

    On a CPU by powers of 2 in plain passes, which take two thirds of the time of ``softmax`` for long rows, half for
    maps and a fifth for short rows, except where there are so few positions that a single call is faster.
    """
    if c.numel() > _FEW * c.shape[1] and eager_cpu(c):
        p = torch.mul(c, 1 / (tau * math.log(2)), out=room).exp2_()
        p.div_(p.sum(1, keepdim=True))
    else:
        p = torch.softmax(c if tau == 1 else c / tau, 1, out=room)
    return blank(p, skip)


def maximum(z: Tensor) -> Tensor:
    """m, in the dtype that accumulates."""
    m = z.amax(1, keepdim=True)
    return m if m.dtype in (torch.float32, torch.float64) else m.float()


def weigh(weighted: Tensor, p: Tensor) -> tuple[Tensor, Tensor, bool]:
    """From p c: p c itself, its sum over the classes, and whether classes may be masked out.

    A class that is masked out makes minus infinity times 0. On a CPU in eager mode the sum tells whether there is one,
    so that all others are spared the passes that take it away; a NaN of the model's own stays.
    """
    u = weighted.sum(1, keepdim=True)
    if eager_cpu(u):
        total = u.sum().item()
        if total - total == 0:
            return weighted, u, False
    weighted = weighted.masked_fill_(p == 0, 0)
    return weighted, weighted.sum(1, keepdim=True), True


def silence(x: Tensor, skip: Tensor | None) -> Tensor:
    """0 at the positions to skip."""
    return x if skip is None else x.masked_fill(skip, 0)


def softmax_graph(z: Tensor, tau: float, skip: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """p = softmax(z / tau), log p with masked-out classes at 0, and -sum p log p, all as autograd can differentiate."""
    z = silence(z.to(accumulation_dtype(z)), skip)
    log_p = (z / tau).log_softmax(1)
    p, log_p = log_p.exp(), log_p.masked_fill(log_p == -math.inf, 0)
    return p, log_p, -(p * log_p).sum(1, keepdim=True)


_keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)

# --- the autograd function of all closed forms ---------------------------------------------------------------------

Graph = Callable[[Tensor, Tensor | None], Tensor]


def _gradient(ctx: Any, g: Tensor) -> Tensor:
    z, kept, scale, skip = ctx.saved_tensors
    g = silence(g.unsqueeze(1), skip)
    g = -g if scale is None else g / scale
    if torch.is_grad_enabled():  # the gradient itself is to be differentiated
        return (_moving(ctx.graph, z, kept, skip) * g).to(z.dtype)
    return _multiply(kept, g, z.dtype)


def _moving(graph: Graph, z: Tensor, kept: Tensor, skip: Tensor | None) -> Tensor:
    """What was kept, as a function of z that can be differentiated."""
    moving = graph(z, skip)
    return kept + (moving - moving.detach())


def _multiply(kept: Tensor, g: Tensor, dtype: torch.dtype) -> Tensor:
    try:
        if kept.dtype != dtype:
            return _rounded(kept, g, dtype)
        if _last_use():
            return kept.mul_(g)
    except RuntimeError:  # g stands for many gradients (``is_grads_batched``), which can be seen no other way
        pass
    return (kept * g).to(dtype)


def _rounded(kept: Tensor, g: Tensor, dtype: torch.dtype) -> Tensor:
    """kept g in ``dtype``, rounded block by block in cache on a CPU, where an operation that rounds is slow."""
    target = torch.empty_like(kept, dtype=dtype)
    if not eager_cpu(kept):
        return torch.mul(kept, g, out=target)
    blocks = blocks_of(kept)
    scratch = Scratch(kept, blocks)
    for block in blocks:
        part = cut(kept, block)
        cut(target, block).copy_(torch.mul(part, cut(g, block), out=scratch.like(part)[0]))
    return target


def _last_use() -> bool:
    """Whether what was saved for this backward pass is dropped after it, so that the gradient may take its memory."""
    if transformed():
        return False
    return _keeps_graph is not None and not _keeps_graph()


class _Eager(torch.autograd.Function):
    """Takes z and a tuple of the rest, value first: what is no input may be returned as it is, and costs no time."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, rest: tuple[Any, ...]) -> Tensor:
        value, kept, scale, skip, ctx.graph = rest
        ctx.save_for_backward(z, kept, scale, skip)
        return value.squeeze_(1)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return _gradient(ctx, g), None


class _Transformed(torch.autograd.Function):
    """``_Eager`` for ``torch.func``, which wants the context set up apart, and for forward-mode derivatives.

    That costs a call 13 microseconds.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return inputs[1].squeeze(1).clone()  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, _, kept, scale, skip, ctx.graph = inputs
        ctx.save_for_backward(z, kept, scale, skip)
        ctx.save_for_forward(z, kept, scale, skip)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return _gradient(ctx, g), None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        if _transforms_active() and _forward_levels() > 1:
            raise RuntimeError(  # autograd would take this tangent for a constant
                "core: no forward-mode derivative of a forward-mode derivative: take one of the two in reverse mode, "
                "as torch.func.hessian does"
            )
        z, kept, scale, skip = ctx.saved_tensors
        change = (_moving(ctx.graph, z, kept, skip) * tangent).sum(1, keepdim=True)
        return silence(-change if scale is None else change / scale, skip).squeeze(1)


def _forward_levels() -> int:
    """How many forward-mode transforms of ``torch.func`` are active, by private names looked up where they are needed.

    Raises: RuntimeError where this PyTorch lacks them, since a wrong derivative would pass unseen.
    """
    try:
        from torch._C._functorch import TransformType
        from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
    except ImportError as error:
        raise RuntimeError(
            "core: forward mode of torch.func is not supported in this PyTorch; use reverse mode"
        ) from error
    return [level.key() for level in retrieve_all_functorch_interpreters()].count(TransformType.Jvp)


def closed_form(
    z: Tensor, value: Tensor, kept: Tensor | None, scale: Tensor | None, skip: Tensor | None, graph: Graph
) -> Tensor:
    """The value, (M, 1) or (N, 1, S), as (M,) or (N, S), with the gradient kept / scale in z, -kept without a scale.

    Takes the value's memory. ``graph`` forms from (z, skip), in differentiable operations, the part of ``kept`` that
    moves with z; it serves derivatives of the gradient.
    """
    if kept is None:
        return value.squeeze(1)
    if torch.compiler.is_compiling():
        return _surrogate(z, value, kept, scale, skip).squeeze(1)
    if transformed() or has_tangent(z):
        return _Transformed.apply(z, value, kept, scale, skip, graph)  # type: ignore[no-any-return]
    return eager_form(z, value, kept, scale, skip, graph)


def eager_form(z: Tensor, *rest: Any) -> Tensor:
    """``closed_form`` of eager mode, with something kept."""
    return _Eager.apply(z, rest)  # type: ignore[no-any-return]


def _surrogate(z: Tensor, value: Tensor, kept: Tensor, scale: Tensor | None, skip: Tensor | None) -> Tensor:
    """``closed_form`` in operations that the compiler can see through, also where it has a ``torch.func`` transform
    before it: a sum whose gradient is the closed form, less itself."""
    slope = (-kept if scale is None else kept / scale).detach()
    shown = silence(z.to(value.dtype), skip).masked_fill(z == -math.inf, 0)
    moving = (slope * shown).sum(1, keepdim=True)
    return value.detach() + (moving - moving.detach())


# --- DEM: every combination of tau and alpha, EM = (1, 1) and CADF = (1, 0) among them ------------------------------


def dem(z: Tensor, tau: float, alpha: float, skip: Tensor | None) -> Tensor:
    """DEM (eq. 11) of every position of z, (M, C) or (N, C, S), differentiable: (M,) or (N, S)."""
    wanted, graph = wants_gradient(z), partial(_dem_graph, tau=tau, alpha=alpha)
    if (kernels := fused(z)) is not None:
        return kernels.dem(z, tau, alpha, skip, graph)  # type: ignore[no-any-return]
    with torch.no_grad():
        value, kept = _dem(z.detach(), tau, alpha, skip, wanted)
    return closed_form(z, value, kept, None, skip, graph)


def _dem(z: Tensor, tau: float, alpha: float, skip: Tensor | None, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """-u_tau + alpha log s - (1 - alpha) m, and minus its gradient, p_tau (z + T_tau + tau) / tau - alpha p."""
    blocks = blocks_of(z)
    room = room_for(z, blocks) if wanted else None
    kept = None
    parts = []
    for block in blocks:
        zb, skipped = cut(z, block), cut(skip, block)
        wide = widen(zb)
        m = maximum(wide)
        c = centre(wide, m, skipped, None if wide is zb else wide)
        p = probabilities(c, skipped, tau)
        q = p if tau == 1 or alpha == 0 else probabilities(c, skipped)
        penalty = None if alpha == 0 else _log_sum(c, q)
        weighted, u, _ = weigh(c.mul_(p), p)
        value = -u if penalty is None else penalty.mul_(alpha).sub_(u)
        if alpha != 1:
            value = value - (1 - alpha) * m
        parts.append((silence(value, skipped),))
        if wanted and tau == 1:
            kept = torch.addcmul(weighted, p, u - (1 - alpha), value=-1, out=cut(room, block))
        elif wanted:
            reward = torch.addcmul(weighted, p, u - tau, value=-1).div_(tau)
            kept = torch.sub(reward, q, alpha=alpha, out=cut(room, block))
    return join(parts, z, blocks)[0], kept if room is None else room


def _dem_graph(z: Tensor, skip: Tensor | None, tau: float, alpha: float) -> Tensor:
    p, log_p, entropy = softmax_graph(z, tau, skip)
    return p * (log_p + entropy + 1) - alpha * softmax_graph(z, 1, skip)[0]


def _log_sum(c: Tensor, p: Tensor) -> Tensor:
    """log s = -log max p. Near 1, max p has lost the digits that count, and the other classes' share gives them."""
    top = p.amax(1, keepdim=True)
    others = c.sign().mul_(p).sum(1, keepdim=True)  # minus the share of the classes below the maximum
    return -torch.where(top > 0.5, others.log1p(), top.log())

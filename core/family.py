"""Losses beside which EM, DEM and AdaDEM are compared: other entropies, robust forms, and two that look at a batch.

All are modules: logits (N, C, ...), classes on axis 1, to a loss (N, ...), with ``mask`` (N, ...) and ``reduction`` as
in ``core.functional.em``; float64 stays float64, all else is computed and comes back in float32. Logarithms are
natural, gradients are autograd's, and a class masked out by a logit of minus infinity takes no part. No state is held.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ._kernels import accumulation_dtype
from .checks import check_logits
from .functional import reduce

__all__ = ["GCE", "SLR", "InformationMaximisation", "MarginalEntropy", "Renyi", "Tsallis"]


class _Loss(nn.Module):
    """Arguments, masks and reduction; ``value`` is the loss of log-probabilities.

    ``needs_batch`` is True where a sample's loss depends on the others, which then belong together: a caller that holds
    the samples of several images in one tensor has to call once an image.
    """

    needs_batch = False

    def __init__(self, *, reduction: str = "none"):
        super().__init__()
        self.reduction = reduction

    def forward(self, logits: Tensor, mask: Tensor | None = None) -> Tensor:
        check_logits(type(self).__name__, logits, mask, self.reduction)
        z = logits.to(accumulation_dtype(logits))
        if mask is not None:
            z = z.masked_fill(~mask.unsqueeze(1), 0)
        log_p = z.log_softmax(1)
        value = self.value(log_p.masked_fill(log_p == -math.inf, torch.finfo(log_p.dtype).min), mask)
        return reduce(value if mask is None else value.masked_fill(~mask, 0), mask, self.reduction)

    def value(self, log_p: Tensor, mask: Tensor | None) -> Tensor:
        """(N, C, ...) log-probabilities, finite, to (N, ...); what it is where the mask is False is of no account."""
        raise NotImplementedError


class GCE(_Loss):
    """Generalised cross-entropy with the model's own label, (1 - p_k^q) / q, k = argmax p (a constant).

    Args:
        q: 0 < q <= 1; towards 0 the cross-entropy -log p_k, 1 is 1 - p_k. 0.8 is RPL's.
    Raises: ValueError for another q.
    Source: Zhang and Sabuncu 2018, arXiv 1805.07836, L_q; as in RPL, Rusak et al. 2022, arXiv 2104.12928.
    """

    def __init__(self, q: float = 0.8, *, reduction: str = "none"):
        super().__init__(reduction=reduction)
        if not 0 < q <= 1:
            raise ValueError(f"gce: expected 0 < q <= 1, got {q}")
        self.q = q

    def value(self, log_p: Tensor, mask: Tensor | None) -> Tensor:
        return -torch.expm1(self.q * log_p.max(1).values) / self.q


class SLR(_Loss):
    """Soft likelihood ratio, -sum p log(p / (1 - p)), which does not saturate for confident predictions as EM does.

    Args:
        clip: probabilities are cut off above it, and have no gradient there, since the loss has no lower bound at
            p = 1; 0 < clip < 1. ROID's code has 0.99, and adds 1e-5 inside of the logarithm, which is left out here.
    Raises: ValueError for another clip.
    Source: Mummadi et al. 2021, arXiv 2106.14999, L_SLR; cut off as in ROID, Marsden et al. 2024, arXiv 2306.00650.
    """

    def __init__(self, clip: float = 0.99, *, reduction: str = "none"):
        super().__init__(reduction=reduction)
        if not 0 < clip < 1:
            raise ValueError(f"slr: expected 0 < clip < 1, got {clip}")
        self.clip = clip

    def value(self, log_p: Tensor, mask: Tensor | None) -> Tensor:
        log_p = log_p.clamp(max=math.log(self.clip))
        p = log_p.exp()
        return -(p * (log_p - torch.log1p(-p))).sum(1)


class MarginalEntropy(_Loss):
    """Entropy of the mean prediction, H(m), m = mean p; each sample's share is its cross-entropy -sum p log m.

    The mean over the samples is H(m), and has its gradient. **Needs a batch**: with one sample it is EM. MEMO's samples
    are views of one image; over a stream of images, it moves all of them towards one class. In a map every position is
    a sample. Each process of a distributed run takes its own batch.
    Source: MEMO, Zhang et al. 2022, arXiv 2110.09506.
    """

    needs_batch = True

    def value(self, log_p: Tensor, mask: Tensor | None) -> Tensor:
        p = log_p.exp()
        return -(p * _log_marginal(p, mask)).sum(1)


class InformationMaximisation(_Loss):
    """Entropy minus the marginal's, mean H(p) - H(m), m = mean p; each sample's share is -KL(p, m).

    The mean over the samples is minus the mutual information of sample and class: sure of each sample, balanced over
    all. **Needs a batch**: with one sample it is 0. In a map every position is a sample. Each process of a distributed
    run takes its own batch.
    Source: SHOT, Liang et al. 2020, arXiv 2002.08546, L_ent + L_div.
    """

    needs_batch = True

    def value(self, log_p: Tensor, mask: Tensor | None) -> Tensor:
        p = log_p.exp()
        return (p * (_log_marginal(p, mask) - log_p)).sum(1)


class Tsallis(_Loss):
    """Tsallis entropy, (1 - sum p^q) / (q - 1), q = ``order``; Shannon's where that is 1.

    Args:
        order: above 0; 2 is the Gini impurity. Close to 1 the difference loses digits.
    Raises: ValueError for another order.
    Source: Tsallis 1988, "Possible generalization of Boltzmann-Gibbs statistics", eq. 1.
    """

    def __init__(self, order: float = 2.0, *, reduction: str = "none"):
        super().__init__(reduction=reduction)
        self.order = _checked_order("tsallis", order)

    def value(self, log_p: Tensor, mask: Tensor | None) -> Tensor:
        if self.order == 1:
            return _shannon(log_p)
        return (log_p.exp() - (self.order * log_p).exp()).sum(1) / (self.order - 1)


class Renyi(_Loss):
    """Renyi entropy, log(sum p^a) / (1 - a), a = ``order``; Shannon's where that is 1.

    Args:
        order: above 0; 2 is the collision entropy. Close to 1 the logarithm loses digits.
    Raises: ValueError for another order.
    Source: Renyi 1961, "On measures of entropy and information", eq. 1.21.
    """

    def __init__(self, order: float = 2.0, *, reduction: str = "none"):
        super().__init__(reduction=reduction)
        self.order = _checked_order("renyi", order)

    def value(self, log_p: Tensor, mask: Tensor | None) -> Tensor:
        return _shannon(log_p) if self.order == 1 else (self.order * log_p).logsumexp(1) / (1 - self.order)


def _checked_order(name: str, order: float) -> float:
    if not 0 < order < math.inf:
        raise ValueError(f"{name}: expected a finite order > 0, got {order}")
    return order


def _shannon(log_p: Tensor) -> Tensor:
    return -(log_p.exp() * log_p).sum(1)


def _log_marginal(p: Tensor, mask: Tensor | None) -> Tensor:
    """log of the mean of p (N, C, ...) over all positions that count, (1, C, 1, ...)."""
    others = [axis for axis in range(p.dim()) if axis != 1]
    if mask is None:
        mean = p.mean(others, keepdim=True)
    else:
        mean = p.masked_fill(~mask.unsqueeze(1), 0).sum(others, keepdim=True) / mask.sum().clamp(min=1)
    return mean.clamp(min=torch.finfo(p.dtype).tiny).log()  # 0 for a class that is masked out

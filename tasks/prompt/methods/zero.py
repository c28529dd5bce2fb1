"""ZERO (Farina et al. 2024): the confident views vote.

As in the authors' code 30 % of the views vote (the paper's text says 10 %). Their rule for a tie asks views that did
not vote; here too, but in the order of their confidence, and if none of them is for one of the tied classes the
marginal of the voters decides. The probabilities are shares of votes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dembench.tasks.prompt.methods.base import confident, pick
from dembench.tasks.prompt.methods.marginal import Marginal, log_marginal

_LEAST = 1e-6  # of a vote: orders classes without a vote by the marginal and keeps logarithms finite


class Zero(Marginal):
    """Predicts log shares of votes; arguments as in ``Marginal``."""

    def predict(self, views: Tensor) -> Tensor:
        logits = self.logits(views, self.text)
        order = confident(logits, 1.0)
        count = max(1, int(self.selected * logits.shape[1]))
        ranked = pick(logits, order)
        votes = F.one_hot(ranked.argmax(2), logits.shape[2])  # (B, V, C)
        ballots = votes[:, :count].sum(1)
        tied = ballots == ballots.amax(1, keepdim=True)
        late = votes[:, count:] * tied[:, None]  # those that are for a tied class
        first = (late.sum(2).cumsum(1) == 1) & late.any(2)
        deciding = (late * first[..., None]).sum(1) * 0.5  # less than a vote
        shares = ballots + deciding * (tied.sum(1, keepdim=True) > 1) + _LEAST * log_marginal(ranked[:, :count]).exp()
        return torch.log(shares.float() / shares.sum(1, keepdim=True)).clamp(min=-50)

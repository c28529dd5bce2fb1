"""ZERO (Farina et al. 2024): the confident views vote.

As in the authors' code (3519fba) 30 % of the views vote (the paper's text says 10 %). The probabilities are shares of
votes.

Ties. Of k voters among V views, theirs asks views k, k + 1, .. in the order in which they were made, voters or not, and
takes the first that is for a tied class; views 0 to k - 1, the plain one among them, are not asked. That is
``ties="authors"``. By default the views that did not vote are asked in the order of their confidence. If none of them
is for a tied class the marginal of the voters decides here; theirs takes the best class of view k after ruling out
classes by an inverted index, which may be a class without a vote. On digits (3 seeds, 400 images in each of 7 sets)
109 of 8,400 images are tied, and the two orders differ in 52.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dembench.tasks.prompt.methods.base import Context, Shots, confident, pick
from dembench.tasks.prompt.methods.marginal import Marginal, log_marginal
from dembench.tasks.prompt.text import Prompts

_LEAST = 1e-6  # of a vote: orders classes without a vote by the marginal and keeps logarithms finite


class Zero(Marginal):
    """Predicts log shares of votes.

    Args:
        selected: share of the views that vote, those of least entropy.
        ties: "confidence" or "authors", the views that a tie asks.
    Raises: ValueError for another word.
    """

    def __init__(
        self,
        prompts: Prompts,
        loss: Any = None,
        *,
        selected: float = 0.3,
        ties: Literal["confidence", "authors"] = "confidence",
        context: Context | None = None,
        shots: Shots | None = None,
    ):
        super().__init__(prompts, loss, selected=selected, context=context, shots=shots)
        if ties not in ("confidence", "authors"):
            raise ValueError(f"zero: expected ties 'confidence' or 'authors', got {ties!r}")
        self.ties = ties

    def predict(self, views: Tensor) -> Tensor:
        logits = self.logits(views, self.text)
        count = max(1, int(self.selected * logits.shape[1]))
        ranked = pick(logits, confident(logits, 1.0))
        votes = F.one_hot(ranked.argmax(2), logits.shape[2])  # (B, V, C)
        ballots = votes[:, :count].sum(1)
        tied = ballots == ballots.amax(1, keepdim=True)
        asked = votes if self.ties == "confidence" else F.one_hot(logits.argmax(2), logits.shape[2])
        late = asked[:, count:] * tied[:, None]  # those that are for a tied class
        first = (late.sum(2).cumsum(1) == 1) & late.any(2)
        marginal = log_marginal(ranked[:, :count])
        likeliest = F.one_hot(marginal.masked_fill(~tied, -torch.inf).argmax(1), logits.shape[2])
        deciding = torch.where(late.any((1, 2))[:, None], (late * first[..., None]).sum(1), likeliest) * 0.5
        shares = ballots + deciding * (tied.sum(1, keepdim=True) > 1) + _LEAST * marginal.exp()  # 0.5: less than a vote
        return torch.log(shares.float() / shares.sum(1, keepdim=True)).clamp(min=-50)

"""What a setting can be chosen by without labels: information maximisation, and consistency under augmentation.

Cygert et al. 2024 (arXiv 2407.14231) compare these rules for test-time adaptation and find none that is always near the
choice with labels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dembench.tasks.base import Row

INFORMATION, CONSISTENCY = "information", "consistency"
NAMES = (INFORMATION, CONSISTENCY)  # of the metrics; both are better the higher they are


class Criteria:
    """Sums over the predictions of one stream.

    ``information`` is the entropy of the mean prediction minus the mean entropy of the predictions, in nats, from 0 to
    log C: high where predictions are certain and spread over the classes (Krause et al. 2010, RIM; Shi and Sha 2012;
    Liang et al. 2020, SHOT). ``consistency`` is the effective invariance of Deng et al. 2022 (arXiv 2207.07065), from 0
    to 1: the geometric mean of both top probabilities where an image and its augmented copy are given the same class,
    else 0; mean over samples.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.n = self.pairs = 0
        self._marginal = torch.zeros(num_classes, dtype=torch.float64, device=device)
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)  # nats, and effective invariance

    @torch.no_grad()
    def update(self, logits: Tensor, other: Tensor | None = None) -> None:
        """Adds a batch: logits (N, C, ...) of any floating dtype, every position a sample, and those of the augmented
        copies at the same positions, if there are some."""
        p = _rows(logits)
        self.n += len(p)
        self._marginal += p.sum(0)
        self._sums[0] += torch.special.entr(p).sum()
        if other is not None:
            (top, first), (high, second) = p.max(1), _rows(other).max(1)
            self.pairs += len(p)
            self._sums[1] += torch.where(first == second, (top * high).sqrt(), 0).sum()

    def values(self) -> dict[str, float]:
        """Both criteria; without consistency where no copies were given."""
        entropy, invariance = self._sums.tolist()
        marginal = float(torch.special.entr(self._marginal / self.n).sum())
        found = {INFORMATION: marginal - entropy / self.n}
        return {**found, CONSISTENCY: invariance / self.pairs} if self.pairs == self.n else found


def _rows(logits: Tensor) -> Tensor:
    """Probabilities (positions, C), float64."""
    return logits.detach().double().softmax(1).movedim(1, -1).flatten(0, -2)


def mean_rows(streams: list[Criteria]) -> list[Row]:
    """The mean over streams of what all of them have, as rows of the slice "mean"."""
    found = [one.values() for one in streams if one.n]
    shared = [name for name in NAMES if found and all(name in values for values in found)]
    units = {INFORMATION: "nats", CONSISTENCY: "fraction"}
    n = sum(one.n for one in streams)
    return [Row("mean", name, sum(v[name] for v in found) / len(found), units[name], n) for name in shared]


def shifted(x: Tensor) -> Tensor:
    """The augmented copy of images (N, C, H, W): moved down and right by a sixteenth of the height, at least a pixel;
    what comes in repeats the edge."""
    step = max(1, round(x.shape[2] / 16))
    return F.pad(x, (step, 0, step, 0), mode="replicate")[:, :, : x.shape[2], : x.shape[3]]

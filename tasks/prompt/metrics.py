"""Accuracy, calibration, and the comparison with zero-shot image by image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dembench.tasks.base import Flag, Histogram, Row
from dembench.tasks.common.metrics import StreamMetrics

AVERAGED = ("accuracy", "top5", "ece", "entropy", "agreement", "gained", "lost")


@dataclass(frozen=True)
class Counts:
    """Images that only the method got right, that only zero-shot got right, and all."""

    gained: int
    lost: int
    n: int

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.gained + other.gained, self.lost + other.lost, self.n + other.n)

    def row(self, slice: str) -> Row:
        """McNemar's exact test: how likely so uneven a split is where both are equally good."""
        return Row(slice, "mcnemar", mcnemar(self.gained, self.lost), "p", self.n)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p-value that the ``gained + lost`` images on which two classifiers differ fell evenly; 1 if none.

    Source: McNemar 1947, with the binomial distribution in place of chi-squared.
    """
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


class PromptMetrics:
    """Sums over the blocks of one image set; everything on the device until ``rows``."""

    def __init__(self, num_classes: int, device: torch.device | str = "cpu"):
        self._stream = StreamMetrics(num_classes, device)
        self._top = min(5, num_classes)
        self._sums = torch.zeros(4, dtype=torch.int64, device=device)  # in the top 5, agreeing, gained, lost

    def update(self, logits: Tensor, zero_shot: Tensor, labels: Tensor) -> Tensor:
        """Adds a block: logits (B, C) of the method and of zero-shot CLIP, labels (B,). Returns how many were right."""
        self._stream.update(logits, labels)
        predicted, reference = logits.argmax(1), zero_shot.argmax(1)
        right, was_right = predicted == labels, reference == labels
        near = (logits.topk(self._top, 1).indices == labels[:, None]).any(1) | right  # a tie for the fifth place
        parts = (near, predicted == reference, right & ~was_right, was_right & ~right)
        self._sums += torch.stack([part.sum() for part in parts])
        return right.sum()

    def rows(self, slice: str) -> list[Row]:
        """accuracy, top5, ece (15 bins), entropy (nats), agreement with zero-shot, gained, lost, and mcnemar's p."""
        known = {row.metric: row for row in self._stream.rows(slice)}
        n = self._stream.n
        near, agree, gained, lost = (self._sums / n).tolist()
        return [
            Row(slice, "accuracy", 1 - known["error"].value, "fraction", n),
            Row(slice, "top5", near, "fraction", n),
            known["ece"],
            known["entropy"],
            Row(slice, "agreement", agree, "fraction", n),
            Row(slice, "gained", gained, "fraction", n),
            Row(slice, "lost", lost, "fraction", n),
            self.counts.row(slice),
        ]

    @property
    def counts(self) -> Counts:
        gained, lost = self._sums[2:].tolist()
        return Counts(gained, lost, self._stream.n)

    def collapse(self, slice: str, histogram: Histogram) -> Iterator[Flag]:
        return self._stream.collapse(slice, histogram)

    def histogram(self, slice: str) -> Histogram:
        return self._stream.histogram(slice)


def mean_rows(rows: Sequence[Row], counts: Sequence[Counts], name: str) -> list[Row]:
    """Means over sets, each set with the same weight; the test is made anew on all images together."""
    means = []
    for metric in AVERAGED:
        same = [row for row in rows if row.metric == metric]
        value = sum(row.value for row in same) / len(same)
        means.append(Row(name, metric, value, same[0].unit, sum(row.n for row in same)))
    return [*means, sum(counts, Counts(0, 0, 0)).row(name)]

"""Long-tailed semi-supervised classification: the semi-supervised task, judged by head, medium and tail."""

from __future__ import annotations

from collections.abc import Iterator

from dembench.tasks.base import Event, Row
from dembench.tasks.common.confusion import Confusion
from dembench.tasks.common.metrics import StreamMetrics
from dembench.tasks.common.training import Values
from dembench.tasks.semi.task import SemiSupervised


class LongTail(SemiSupervised):
    """``SemiSupervised`` on long-tailed data, with the geometric mean of recalls and the recall of class thirds.

    Methods, schedule and optimiser are those of balanced data: imbalance changes nothing else.
    """

    def rows(self, confusion: Confusion, metrics: StreamMetrics, history: list[Values]) -> Iterator[Event]:
        yield from super().rows(confusion, metrics, history)
        n = int(confusion.counts.sum())
        yield Row("mean", "geometric_mean", confusion.geometric_mean(), "fraction", n)
        for name, value in confusion.thirds(self.data.training_counts).items():
            yield Row("mean", f"recall_{name}", value, "fraction", n)

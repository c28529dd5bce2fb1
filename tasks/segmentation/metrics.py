"""Scores of segmentation over all pixels of a test set, from one confusion: mmsegmentation's IoUMetric, and entropy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dembench.core.functional import em
from dembench.tasks.base import Row
from dembench.tasks.common.devices import count, send


class SegMetrics:
    """Counts pixels until it is asked.

    ``predicted_counts`` and ``label_counts`` are pixels per class, ignored ones in neither; ``finite`` says whether
    every logit was finite. A class that is neither predicted nor true has no IoU and is left out of the means, as in
    mmsegmentation and ADVENT. Areas are counted in whole numbers, on the logits' device: mmsegmentation's float32 sums
    lose pixels above 2^24, and it waits for the device at every image.

    Args:
        classes: their names, in the order of the logits.
        tail: the rare ones among them, whose mean IoU is reported apart.
        ignore_index: label of pixels that do not count.
        subsets: names of further sets of classes whose mean IoU is reported, such as SYNTHIA's 13.
    Raises: ValueError where a tail class or a class of a subset is not among the classes.
    """

    def __init__(
        self,
        classes: Sequence[str],
        tail: Sequence[str] = (),
        ignore_index: int = 255,
        subsets: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        groups = {"iou": tuple(classes), **({"iou_tail": tuple(tail)} if tail else {}), **(subsets or {})}
        if strange := sorted({name for names in groups.values() for name in names} - set(classes)):
            raise ValueError(f"metrics: {', '.join(strange)} not among the classes {', '.join(classes)}")
        self.classes, self.ignore_index = tuple(classes), ignore_index
        self.groups = {name: [self.classes.index(c) for c in names] for name, names in groups.items()}
        self._counts: Tensor | None = None  # (C * C + 1,) on the logits' device: true by predicted class, and ignored
        self._others: Tensor | None = None  # (2,) float64 there: nats, and batches with a logit that is not finite

    @torch.no_grad()
    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch: logits (N, C, H, W) at the labels' size, labels (N, H, W) int64.

        With labels on the CPU, nothing here waits for the device of the logits.
        Raises: ValueError for other shapes, and for a label that is neither a class nor ``ignore_index``.
        """
        classes = len(self.classes)
        wanted = (len(labels), classes, *labels.shape[1:])
        if logits.shape != wanted:
            raise ValueError(
                f"metrics: expected logits of {wanted} for labels of {tuple(labels.shape)}, got {tuple(logits.shape)}"
            )
        outside = (labels != self.ignore_index) & ((labels < 0) | (labels >= classes))
        if outside.any():
            raise ValueError(f"metrics: label {int(labels[outside][0])} is no class and not {self.ignore_index}")
        labels = send(labels, logits.device)
        valid = labels != self.ignore_index
        pairs = torch.where(valid, labels * classes + logits.argmax(1), classes**2)
        counts = count(pairs.flatten(), classes**2 + 1)
        entropy = em(logits.float())
        entropy = entropy[valid] if entropy.is_cpu else torch.where(valid, entropy, 0)  # no wait for their number
        others = torch.stack([entropy.double().sum(), (~logits.isfinite().all()).double()])
        self._counts = counts if self._counts is None else self._counts + counts
        self._others = others if self._others is None else self._others + others
        self.__dict__.pop("_read", None)

    @cached_property
    def _read(self) -> tuple[Tensor, float, bool]:
        """Areas (4, C) float64: intersection, union, predicted, label; nats; whether all was finite. One wait."""
        classes = len(self.classes)
        if self._counts is None or self._others is None:
            return torch.zeros(4, classes, dtype=torch.float64), 0.0, True
        *counts, _, entropy, strange = torch.cat([self._counts.double(), self._others]).tolist()
        table = torch.tensor(counts, dtype=torch.float64).view(classes, classes)
        hit, predicted, label = table.diagonal(), table.sum(0), table.sum(1)
        return torch.stack([hit, predicted + label - hit, predicted, label]), entropy, not strange

    @property
    def areas(self) -> Tensor:
        """(4, C) float64, pixels: intersection, union, predicted, label."""
        return self._read[0]

    @property
    def finite(self) -> bool:
        return self._read[2]

    @property
    def pixels(self) -> int:
        """Those that count."""
        return int(self.areas[3].sum())

    @property
    def predicted_counts(self) -> list[int]:
        return [int(n) for n in self.areas[2]]

    @property
    def label_counts(self) -> list[int]:
        return [int(n) for n in self.areas[3]]

    @property
    def miou(self) -> float:
        """Mean over the classes, a fraction."""
        return _mean(self.scores()["IoU"], self.groups["iou"])

    def scores(self) -> dict[str, np.ndarray]:
        """mmsegmentation's "IoU" and "Acc" per class (NaN where there is none) and "aAcc" of all pixels; fractions."""
        from mmseg.evaluation import IoUMetric

        return IoUMetric.total_area_to_metrics(*self.areas, metrics=["mIoU"])

    def rows(self) -> list[Row]:
        """Slice "mean" over all pixels and classes, and a slice per class with as many pixels as are labelled so.
        What is undefined, such as the recall of a class that no pixel shows, has no row and is in no mean.

        Metrics iou, iou_tail, recall, pixel_accuracy (fractions), entropy (nats a pixel), entropy_share (of log C).
        """
        scores, n = self.scores(), self.pixels
        entropy = self._read[1] / n if n else math.nan
        found = [Row("mean", name, _mean(scores["IoU"], of), "fraction", n) for name, of in self.groups.items()]
        found += [
            Row("mean", "recall", _mean(scores["Acc"], self.groups["iou"]), "fraction", n),
            Row("mean", "pixel_accuracy", float(scores["aAcc"]), "fraction", n),
            Row("mean", "entropy", entropy, "nats", n),
            Row("mean", "entropy_share", entropy / math.log(len(self.classes)), "fraction", n),
        ]
        for c, (name, pixels) in enumerate(zip(self.classes, self.label_counts, strict=True)):
            found.append(Row(name, "iou", float(scores["IoU"][c]), "fraction", pixels))
            found.append(Row(name, "recall", float(scores["Acc"][c]), "fraction", pixels))
        return [row for row in found if not math.isnan(row.value) or (row.metric.startswith("entropy") and n)]


def _mean(values: np.ndarray, of: Sequence[int]) -> float:
    """Over those that are not NaN; NaN where all are."""
    chosen = values[list(of)]
    chosen = chosen[~np.isnan(chosen)]
    return float(chosen.mean()) if len(chosen) else math.nan

"""Streaming classification metrics: summed on the device; the host asks for numbers once per slice."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dembench.tasks.base import Flag, Histogram, Note, Row
from dembench.tasks.common.confusion import Confusion

BINS = 15  # calibration bins, as in Guo et al. 2017
COLLAPSE_PREDICTED = 0.9
COLLAPSE_LABEL = 0.5
COLLAPSE_SAMPLES = 10


class StreamMetrics:
    """Error, negative log-likelihood, calibration error and entropy of a stream of batches.

    Sums are kept in float64 (counts in int64), one sum per batch, and nothing in ``update`` waits for the device.
    A logit that is not finite makes ``nll`` not finite; no sample is ever left out.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        if num_classes < 2:
            raise ValueError(f"StreamMetrics: expected num_classes >= 2, got {num_classes}")
        self.num_classes = num_classes
        self.device = torch.device(device)
        self.n = 0
        self._sums = torch.zeros(3, dtype=torch.float64, device=self.device)  # wrong, nll, entropy
        self._bins = torch.zeros(3, BINS + 1, dtype=torch.float64, device=self.device)  # count, confidence, correct
        self._counts = torch.zeros(2, num_classes, dtype=torch.int64, device=self.device)  # predicted, label
        self._edges = torch.linspace(0, 1, BINS + 1, device=self.device)
        self._bin_numbers = torch.arange(BINS + 1, device=self.device)
        self._classes = torch.arange(num_classes, device=self.device)

    @torch.no_grad()
    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch: ``logits`` (N, C) of any floating dtype, ``labels`` (N,) of any integer dtype, 0..C-1.

        Raises: ValueError for a wrong shape or dtype. Labels outside 0..C-1 are an IndexError or RuntimeError of torch.
        """
        if logits.ndim != 2 or logits.shape[1] != self.num_classes or not logits.is_floating_point():
            got = f"{tuple(logits.shape)} {logits.dtype}"
            raise ValueError(f"StreamMetrics: expected floating logits of shape (N, {self.num_classes}), got {got}")
        if labels.shape != logits.shape[:1] or labels.is_floating_point() or labels.dtype is torch.bool:
            got = f"{tuple(labels.shape)} {labels.dtype}"
            raise ValueError(f"StreamMetrics: expected integer labels of shape ({len(logits)},), got {got}")
        labels = labels.to(self.device, torch.int64, non_blocking=True)
        logits = logits.detach().to(self.device)
        self.n += len(logits)

        predicted = logits.argmax(1)
        correct = predicted == labels
        log_p = logits.double().log_softmax(1)
        nll = -log_p.gather(1, labels[:, None])
        entropy = torch.special.entr(log_p.exp())  # 0 at p = 0, NaN at NaN
        self._sums += torch.stack([(~correct).sum(), nll.sum(), entropy.sum()])

        single = logits if logits.dtype is torch.float64 else logits.float()
        confidence = single.softmax(1).amax(1).float()
        # right=True: a confidence on an edge belongs above it, and those equal to 1 are a bin of their own
        index = torch.bucketize(confidence, self._edges, right=True).sub_(1).clamp_(0, BINS)
        member = (index[:, None] == self._bin_numbers).double()  # a product, not a scatter: the same bits on every run
        weights = torch.stack([torch.ones_like(confidence), confidence, correct.float()]).double()
        self._bins += weights @ member

        for row, values in enumerate((predicted, labels)):
            self._counts[row] += (values[:, None] == self._classes).sum(0)

    def rows(self, slice: str) -> list[Row]:
        """The four metrics over all batches so far, each with ``n`` samples.

        ``error`` is the fraction of wrong argmax predictions; ``nll`` the mean cross entropy and ``entropy`` the mean
        softmax entropy, in nats; ``ece`` the expected calibration error, a fraction: 15 equal bins of the top
        probability (float32), l1 norm, equal to torchmetrics' ``MulticlassCalibrationError(C, n_bins=15)``.

        Raises: ValueError where nothing was added.
        Source: Guo et al., On Calibration of Modern Neural Networks, 2017, equation 5.
        """
        if not self.n:
            raise ValueError(f"StreamMetrics: no samples in slice {slice!r}")
        gap = (self._bins[2] - self._bins[1]).abs().sum()  # |accuracy - confidence| times the bin's count
        wrong, nll, entropy, ece = (torch.cat([self._sums, gap[None]]) / self.n).tolist()
        return [
            Row(slice, "error", wrong, "fraction", self.n),
            Row(slice, "nll", nll, "nats", self.n),
            Row(slice, "ece", ece, "fraction", self.n),
            Row(slice, "entropy", entropy, "nats", self.n),
        ]

    def histogram(self, slice: str) -> Histogram:
        """How often each class was predicted and was true, over all batches so far."""
        predicted, label = self._counts.tolist()
        return Histogram(slice, tuple(predicted), tuple(label))

    def collapse(self, slice: str, histogram: Histogram) -> Iterator[Flag]:
        """One Flag where ``is_collapsed``, or where the model is certain of nearly all (a probability of 1) and right
        no more than by chance: as often as 1 / C, and two standard deviations of that."""
        place = "" if slice == "mean" else f" in {slice}"
        chance = 1 / self.num_classes
        spread = 2 * math.sqrt(chance * (1 - chance) / max(self.n, 1))
        if is_collapsed(histogram.predicted, histogram.label):
            share = max(histogram.predicted) / self.n
            yield Flag("collapse", slice, f"one class takes {share:.0%} of the predictions{place}")
        elif self.n >= COLLAPSE_SAMPLES:
            told = torch.stack([self._bins[0, BINS], self._bins[2].sum()]) / self.n
            certain, correct = told.tolist()
            if certain >= COLLAPSE_PREDICTED and correct <= chance + spread:
                text = f"certain of {certain:.0%} of the predictions, and {correct:.0%} right, which is chance{place}"
                yield Flag("collapse", slice, text)


class ClassMetrics(StreamMetrics):
    """Also numbers in which each class counts alike, for streams whose classes are out of balance."""

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        super().__init__(num_classes, device)
        self.confusion = Confusion(num_classes, self.device)

    @torch.no_grad()
    def update(self, logits: Tensor, labels: Tensor) -> None:
        super().update(logits, labels)
        labels = labels.to(self.device, torch.int64, non_blocking=True)
        self.confusion.update(logits.argmax(1).to(self.device), labels)

    def rows(self, slice: str) -> list[Row]:
        """Those of ``StreamMetrics``, and four more: ``f1`` and ``recall`` are means over classes, ``bias_kl`` and
        ``bias_tv`` say how far the shares of predictions are from those of labels, see ``Confusion.bias``.
        """
        found = super().rows(slice)
        macro, bias = self.confusion.macro(), self.confusion.bias()
        kl = [Row(slice, "bias_kl", bias["kl"], "nats", self.n)] * math.isfinite(bias["kl"])
        return [
            *found,
            Row(slice, "f1", macro["f1"], "fraction", self.n),
            Row(slice, "recall", macro["recall"], "fraction", self.n),
            *kl,  # not where a class that no sample has is predicted
            Row(slice, "bias_tv", bias["tv"], "fraction", self.n),
        ]


def undefined(names: Sequence[str], label_counts: Sequence[int]) -> Iterator[Note]:
    """One Note where no test sample shows some of the classes, whose own numbers are then left out."""
    if absent := [name for name, count in zip(names, label_counts, strict=True) if not count]:
        told = ", ".join(absent[:8]) + (f" and {len(absent) - 8} more" if len(absent) > 8 else "")
        rest = len(names) - len(absent)
        text = (
            f"no test sample shows {told}: what is undefined there is left out, and means over classes are over those "
        )
        yield Note("undefined", f"{text}with a value ({rest} of {len(names)} are shown)")


def is_collapsed(predicted_counts: Sequence[int], label_counts: Sequence[int]) -> bool:
    """Whether one class takes nearly all predictions although it is not nearly all of the data.

    The rule: the most predicted class has at least 90 % of the predictions and at most 50 % of the labels. Fewer than
    10 samples never count as collapsed.
    Raises: ValueError where the two differ in length or in sum, or are empty.
    """
    if len(predicted_counts) != len(label_counts) or not predicted_counts:
        sizes = f"{len(predicted_counts)} and {len(label_counts)}"
        raise ValueError(f"is_collapsed: expected counts of the same classes, got {sizes} classes")
    n = sum(predicted_counts)
    if n != sum(label_counts):
        raise ValueError(f"is_collapsed: expected as many labels as predictions, got {sum(label_counts)} and {n}")
    top = max(range(len(predicted_counts)), key=lambda k: predicted_counts[k])
    if n < COLLAPSE_SAMPLES:
        return False
    return predicted_counts[top] >= COLLAPSE_PREDICTED * n and label_counts[top] <= COLLAPSE_LABEL * n

"""Corruption test-time adaptation: a classifier adapts to corrupted images that it sees once, in order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tasks.base import Event, Flag, Method, Point, Row
from tasks.metrics import StreamMetrics, is_collapsed
from tasks.names import lookup
from tasks.tta.corruptions import CORRUPTIONS, SEVERITIES

_FLUSH = 16  # batches between two looks of the host at a GPU's numbers


@dataclass(frozen=True)
class Protocol:
    """Which corruptions come in which order, and what is forgotten in between.

    Args:
        reset: True starts the method afresh before each corruption (single-domain), False never does (continual).
        severity: 1 to 5.
        corruptions: names in the order of the stream, each once; None is all 15 in the standard order.
        batch_size: images a batch; the last of a corruption may be smaller.
        order_seed: shuffles the images of each corruption; None keeps the order of the data.
    Raises: ValueError for corruptions that are unknown, named twice or no list, a severity outside 1..5, a batch_size
        < 1, or an order_seed that is no whole number.
    """

    reset: bool
    severity: int = 5
    corruptions: Sequence[str] | None = None
    batch_size: int = 200
    order_seed: int | None = 0

    def __post_init__(self) -> None:
        if not _is_whole(self.severity) or self.severity not in SEVERITIES:
            raise ValueError(f"protocol: expected severity 1 to 5, got {self.severity!r}")
        if not _is_whole(self.batch_size) or self.batch_size < 1:
            raise ValueError(f"protocol: expected a whole batch_size >= 1, got {self.batch_size!r}")
        if self.order_seed is not None and not _is_whole(self.order_seed):
            raise ValueError(f"protocol: expected order_seed to be a whole number or null, got {self.order_seed!r}")
        if self.corruptions is None:
            return
        if isinstance(self.corruptions, str) or not isinstance(self.corruptions, Sequence) or not self.corruptions:
            raise ValueError(f"protocol: expected a list of one or more corruptions, got {self.corruptions!r}")
        for name in self.corruptions:
            lookup(name, CORRUPTIONS, "corruption")
        if len(set(self.corruptions)) < len(self.corruptions):
            raise ValueError(f"protocol: expected each corruption once, got {', '.join(self.corruptions)}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


class CorruptionTTA:
    """Error per corruption and their mean, online: each image is predicted once, before or while it is learned from.

    Every ``run`` starts from a copy of the model, so that one method leaves nothing behind for the next.

    Args:
        data: has ``domain(corruption, severity)``, see ``tasks.tta.data``.
        model: maps (N, 3, H, W) in [0, 1] to logits (N, C); its normalisation is inside.
        protocol: the stream.
        seed: of whatever draws numbers; the runner has set it.
        device: where model and images live.
        precision: "fp32", or "bf16" for autocast in the model's forward pass; losses and metrics stay in float32.
    Raises: ValueError where model and data disagree on the classes, or for an unknown precision.
    """

    def __init__(
        self,
        data: Any,
        model: nn.Module,
        protocol: Protocol,
        *,
        seed: int = 0,
        device: str = "cpu",
        precision: str = "fp32",
    ):
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"unknown precision {precision!r}; valid: fp32, bf16")
        classes = getattr(model, "num_classes", data.num_classes)
        if classes != data.num_classes:
            raise ValueError(f"the model has {classes} classes, {data.name} has {data.num_classes}")
        self.data, self.model, self.protocol, self.seed = data, model, protocol, seed
        self.device, self.precision = torch.device(device), precision

    @property
    def corruptions(self) -> tuple[str, ...]:
        return tuple(self.protocol.corruptions or self.data.corruptions)

    def __len__(self) -> int:
        return len(self.corruptions) * -(-self.data.num_images // self.protocol.batch_size)

    def run(self, make_method: Callable[..., Method]) -> Iterator[Event]:
        """Yields notes on the data, a Point for each batch, and rows, histogram and flags for each corruption.

        A note with the name of a corruption as its key is left out where that corruption is not in the stream.
        """
        yield from (note for note in self.data.notes if note.key not in CORRUPTIONS or note.key in self.corruptions)
        model: nn.Module = deepcopy(self.model)
        model.to(self.device, memory_format=torch.channels_last)  # a third faster on a CPU
        method = make_method(model=model if self.precision == "fp32" else Bfloat16(model, self.device.type))
        step, rows = 0, []
        for number, corruption in enumerate(self.corruptions):
            if self.protocol.reset:
                method.reset()
            name = f"{corruption}/{self.protocol.severity}"
            images, labels = self._domain(corruption, number)
            metrics = StreamMetrics(self.data.num_classes, self.device)
            waiting: list[Tensor] = []
            sizes: list[tuple[int, int]] = []
            for start in range(0, len(images), self.protocol.batch_size):
                x = images[start : start + self.protocol.batch_size].float().div_(255)
                x = x.contiguous(memory_format=torch.channels_last)
                y = labels[start : start + self.protocol.batch_size]
                before = method.updated
                logits = method(x).float()
                metrics.update(logits, y)
                waiting.append(_look(logits, y, method.last_loss))
                sizes.append((len(x), method.updated - before))
                if len(waiting) == (1 if self.device.type == "cpu" else _FLUSH) or start + len(x) == len(images):
                    for values, (n, updated) in zip(torch.stack(waiting).tolist(), sizes, strict=True):
                        correct, entropy, loss = values
                        yield Point(
                            step, name, n, int(correct), entropy, None if method.last_loss is None else loss, updated
                        )
                        step += 1
                    waiting, sizes = [], []
            found = metrics.rows(name)
            rows += found
            yield from found
            yield from _judge(metrics, found, name)
        yield from mean_rows(rows)

    def _domain(self, corruption: str, number: int) -> tuple[Tensor, Tensor]:
        """Images, uint8, and labels of one corruption on the device, in the order of the stream."""
        images, labels = self.data.domain(corruption, self.protocol.severity)
        if self.protocol.order_seed is not None:
            generator = torch.Generator().manual_seed(1000 * self.protocol.order_seed + number)
            order = torch.randperm(len(images), generator=generator)
            images, labels = images[order], labels[order]
        return images.to(self.device), labels.to(self.device)


class Bfloat16(nn.Module):
    """A model whose forward pass runs under bfloat16 autocast; its logits are float32 again."""

    def __init__(self, model: nn.Module, device_type: str):
        super().__init__()
        self.model, self.device_type = model, device_type

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(self.device_type, dtype=torch.bfloat16):
            return self.model(x).float()


def mean_rows(rows: Sequence[Row]) -> list[Row]:
    """The plain mean over slices of each metric, in the order of first appearance; a NaN stays a NaN."""
    means = []
    for metric in dict.fromkeys(row.metric for row in rows):
        same = [row for row in rows if row.metric == metric]
        value = sum(row.value for row in same) / len(same)
        means.append(Row("mean", metric, value, same[0].unit, sum(row.n for row in same)))
    return means


@torch.no_grad()
def _look(logits: Tensor, labels: Tensor, loss: Tensor | None) -> Tensor:
    """Correct predictions, mean entropy and mean loss of a batch, on the device."""
    log_p = logits.log_softmax(1)
    entropy = torch.special.entr(log_p.exp()).sum(1).mean()
    correct = (logits.argmax(1) == labels).sum()
    return torch.stack([correct.float(), entropy, entropy if loss is None else loss.float()])


def _judge(metrics: StreamMetrics, rows: Sequence[Row], name: str) -> Iterator[Event]:
    histogram = metrics.histogram(name)
    yield histogram
    if any(row.metric == "nll" and not math.isfinite(row.value) for row in rows):
        yield Flag("nan", name, f"a logit is not finite in {name}")
    if is_collapsed(histogram.predicted, histogram.label):
        share = max(histogram.predicted) / sum(histogram.predicted)
        yield Flag("collapse", name, f"one class takes {share:.0%} of the predictions in {name}")

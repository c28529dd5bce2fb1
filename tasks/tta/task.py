"""Corruption test-time adaptation: a classifier adapts to corrupted images that it sees once, in order."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from dembench.lookup import lookup
from dembench.tasks.base import PRECISIONS, ConfigError, Event, Flag, Method, Note, Point, Row
from dembench.tasks.common.corruptions import CORRUPTIONS, SEVERITIES
from dembench.tasks.common.criteria import Criteria, shifted
from dembench.tasks.common.criteria import mean_rows as criteria_rows
from dembench.tasks.common.devices import in_order, laid_out, send
from dembench.tasks.common.digits_nets import keep_classes
from dembench.tasks.common.keep import kept, put
from dembench.tasks.common.metrics import ClassMetrics, StreamMetrics
from dembench.tasks.common.parts import DataPart
from dembench.tasks.tta.data import DomainsPart, LongTailedDomains, size_of
from dembench.tasks.tta.remarks import remarks
from dembench.tasks.tta.streams import Domain, Part, Protocol, image_order, parts
from dembench.tasks.tta.window import Window

__all__ = ["CorruptionTTA", "Protocol", "mean_rows"]

_FLUSH = 16  # batches after which the host reads a GPU's numbers
_GATHERED = 4096  # samples of a mixed stream that are sorted into their domains at once


class CorruptionTTA:
    """Error per domain and their mean, online: each image is predicted once, before or while it is learned from.

    Where the protocol shifts the labels, also numbers in which each class counts alike, see ``ClassMetrics``.

    Every ``run`` starts from a copy of the model, so that one method leaves nothing behind for the next.

    Args:
        data: has ``domain(corruption, severity)``, see ``tasks.tta.data``.
        model: maps (N, 3, H, W) in [0, 1] to logits (N, C); its normalisation is inside.
        protocol: the stream.
        seed: chooses the clean images that some methods need first.
        device: where model and images live.
        precision: "fp32", or "bf16" for autocast in the model's forward pass; losses and metrics stay in float32.
        part: of the images of each domain; None is all of them.
    Raises: ValueError where model and data disagree on the classes, for a corruption that the data has not, or for an
        unknown precision.
    """

    splits = True  # the search of DEM* has a share of the images
    saves = ("last",)
    save = "none"  # the runner says what to keep

    def __init__(
        self,
        data: Any,
        model: nn.Module,
        protocol: Protocol,
        *,
        seed: int = 0,
        device: str = "cpu",
        precision: str = "fp32",
        part: DataPart | None = None,
    ):
        lookup(precision, PRECISIONS, "precision")
        data = data if part is None else DomainsPart(data, part)
        self.criteria = part is not None and part.criteria
        if protocol.rho is not None:
            data = LongTailedDomains(data, protocol.rho, protocol.reverse, protocol.order_seed)
        self.data, self.protocol, self.seed = data, protocol, seed
        self.device, self.precision = torch.device(device), precision
        for name in protocol.corruptions or ():
            lookup(name, getattr(data, "known", CORRUPTIONS), "corruption")
        self.graded = bool(getattr(data, "severities", SEVERITIES))
        self.parts = parts(protocol, self.corruptions, graded=self.graded)
        if hasattr(data, "require"):
            data.require([(domain.corruption, domain.severity) for part in self.parts for domain in part.domains])
        if hasattr(data, "use"):
            data.use(getattr(model, "preprocess", None))
        if hasattr(data, "place"):
            data.place(self.device)
        classes = getattr(model, "num_classes", data.num_classes)
        index = getattr(data, "class_index", None)
        if index is not None and classes > data.num_classes:
            model, classes = keep_classes(model, index), len(index)
        if classes != data.num_classes:
            raise ValueError(f"the model has {classes} classes, {data.name} has {data.num_classes}")
        self.model = model

    @property
    def corruptions(self) -> tuple[str, ...]:
        return tuple(self.protocol.corruptions or self.data.corruptions)

    def __len__(self) -> int:
        return sum(map(self.batches, self.parts))

    def batches(self, part: Part) -> int:
        """How many batches a part of the stream has."""
        return -(-self._images(part) // self.protocol.batch_size)

    def _images(self, part: Part) -> int:
        return sum(size_of(self.data, domain.corruption, domain.severity) for domain in part.domains)

    def check_method(self, make_method: Callable[..., Method]) -> None:
        """Builds a method and lets it go: what it refuses, it refuses here."""
        method: Any = make_method(model=deepcopy(self.model))
        if self.save != "none" and not method.in_model:
            raise ValueError(f"save={self.save}: {type(method).__name__} keeps what it learns outside of the model")

    def judge(self, make_method: Callable[..., Method], tensors: Mapping[str, Tensor]) -> Iterator[Event]:
        """What ``run`` yields of an adapted model that was kept, by the statistics that its method uses; it learns no
        more. Raises: ValueError where the tensors do not fit.
        """
        yield from self._stream(lambda **parts: Still(make_method(**parts), tensors))

    def run(self, make_method: Callable[..., Method]) -> Iterator[Event]:
        """Yields notes, a Point for each batch, and rows, histogram and flags for each domain; a method that resets
        itself and did says how often.

        A note with the name of a corruption as its key is left out where that corruption is not in the stream.
        """
        made: list[Any] = []

        def make(**parts: Any) -> Any:
            made.append(make_method(**parts))
            return made[-1]

        yield from self._stream(make)
        if self.save != "none":
            last = self.parts[-1].name
            rule = f"after {last}, with which the method started afresh" if self.protocol.reset else f"after {last}"
            yield Note("weights", f"files/weights.safetensors holds the model {rule}")
            yield kept("weights", made[0].model.state_dict())

    def _stream(self, make_method: Callable[..., Any]) -> Iterator[Event]:
        yield from (note for note in self.data.notes if note.key not in CORRUPTIONS or note.key in self.corruptions)
        if not self.graded:
            yield Note("severity", f"{self.data.name} has no severities: protocol.severity means nothing here")
        model = laid_out(deepcopy(self.model), self.device)
        method: Any = make_method(model=model if self.precision == "fp32" else Bfloat16(model, self.device.type))
        yield from self._show_source(method)
        yield from getattr(method, "notes", ())
        size = self.protocol.window
        window = None if size is None else Window(size)
        step, rows, scores = 0, [], None
        streams: list[Criteria] = []
        for part, coming in zip(self.parts, [*self.parts[1:], None], strict=True):
            if self.protocol.reset:
                method.reset()
                window = None if size is None else Window(size)
            if scores is None:
                scores = Scores(part.domains, self.data.num_classes, self.device, self.protocol.rho is not None)
            waiting: list[tuple[int, bool, Tensor]] = []
            left = self.batches(part)
            streams += [Criteria(self.data.num_classes, self.device)] if self.criteria else []
            for x, y, owners in self._batches(part):
                if not step and part is self.parts[0] and not waiting:
                    yield from remarks(method, x, smallest=self._smallest(), fresh=self._fresh(), window=size)
                if self.protocol.episodic:
                    method.reset()
                other = self._copy(method, x) if self.criteria and window is None else None
                before = method.updated
                logits, learned = (method(x), True) if window is None else window(method, x)
                logits, loss = logits.float(), method.last_loss if learned else None
                scores.update(logits, y, owners)
                for own in streams[-1:]:
                    own.update(logits, other)
                waiting.append((len(x), loss is not None, _look(logits, y, loss, method.updated - before)))
                left -= 1
                if not left or len(waiting) == (1 if self.device.type == "cpu" else _FLUSH):
                    numbers = torch.stack([look for _, _, look in waiting]).tolist()
                    for (n, has_loss, _), (correct, entropy, value, updated) in zip(waiting, numbers, strict=True):
                        yield Point(
                            step, part.name, n, int(correct), entropy, value if has_loss else None, int(updated)
                        )
                        step += 1
                    waiting = []
            if coming is not None and coming.name == part.name:
                continue
            for domain, metrics in scores.finished():
                found = metrics.rows(domain.name)
                rows += found
                yield from found
                yield from _judge(metrics, found, domain.name)
            scores = None
        yield from mean_rows(rows)
        yield from _partly(rows)
        yield from criteria_rows(streams)

    def _copy(self, method: Any, x: Tensor) -> Tensor:
        """Logits of the augmented batch, before the method has learned from the batch; nothing of the run moves."""
        passes = method.forward_passes
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            logits = method.peek(shifted(x))
        method.forward_passes = passes
        return logits.float()

    def _smallest(self) -> int:
        """Images of the smallest batch of the stream."""
        size = self.protocol.batch_size
        return min(self._images(part) % size or size for part in self.parts)

    def _fresh(self) -> bool:
        """Whether the method starts afresh before every batch."""
        return self.protocol.episodic or (self.protocol.reset and all(self.batches(part) == 1 for part in self.parts))

    def _show_source(self, method: Any) -> Iterator[Event]:
        """Clean images for a method that asks for some, and a note that says which."""
        if not getattr(method, "source_images", 0):
            return
        if not hasattr(self.data, "clean"):
            raise ConfigError(f"this method needs clean images, and {self.data.name} has none")
        try:
            images, note = self.data.clean(method.source_images, self.seed)
        except (ValueError, OSError) as error:
            raise ConfigError(str(error)) from error
        method.see_source(images.to(self.device))
        yield note

    def _batches(self, part: Part) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Images in [0, 1] and labels on the device, batch by batch, and in a mixed stream which domain each is of."""
        found = [self.data.domain(domain.corruption, domain.severity) for domain in part.domains]
        labels = [own for _, own in found]
        order = image_order(self.protocol, part.domains, labels)
        owners = torch.cat([torch.full_like(own, k) for k, own in enumerate(labels)])[order]
        images = found[0][0] if len(found) == 1 else _joined([own for own, _ in found])
        shown = torch.cat(labels)[order].to(self.device)
        size = self.protocol.batch_size
        if isinstance(images, Tensor):
            batches = iter(images[order].to(self.device).split(size))
        else:
            batches = images[order].batches(size)
        for start, batch in zip(range(0, len(order), size), batches, strict=True):
            x = in_order(send(batch, self.device).float().div_(255))
            now = slice(start, start + size)
            yield x, shown[now], owners[now]


class Still:
    """A method whose model has the given tensors and learns no more."""

    forward_passes = backward_passes = updated = 0
    last_loss = None

    def __init__(self, method: Any, tensors: Mapping[str, Tensor]) -> None:
        if not method.in_model:
            raise ValueError(f"{type(method).__name__} keeps what it learns outside of the model")
        put(method.model, tensors)
        self.method, self.notes = method, (Note("weights", "weights that were kept; nothing adapts"),)

    def peek(self, x: Tensor) -> Tensor:
        return self.method.peek(x).detach()

    __call__ = peek

    def reset(self) -> None:
        """Nothing changes."""


class Scores:
    """Metrics of each domain of a part. The batches of a mixed stream are sorted into domains many at a time."""

    def __init__(
        self, domains: Sequence[Domain], num_classes: int, device: torch.device, by_class: bool = False
    ) -> None:
        self.domains = domains
        kind = ClassMetrics if by_class else StreamMetrics
        self.metrics: Sequence[StreamMetrics] = [kind(num_classes, device) for _ in domains]
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []

    def update(self, logits: Tensor, labels: Tensor, owners: Tensor) -> None:
        """Adds a batch; ``owners`` (N,) on the CPU gives the number of each image's domain."""
        if len(self.metrics) == 1:
            self.metrics[0].update(logits, labels)
            return
        self._waiting.append((logits, labels, owners))
        if sum(len(own) for _, _, own in self._waiting) >= _GATHERED:
            self._sort()

    def finished(self) -> Iterator[tuple[Domain, StreamMetrics]]:
        self._sort()
        yield from zip(self.domains, self.metrics, strict=True)

    def _sort(self) -> None:
        if not self._waiting:
            return
        logits, labels, owners = (torch.cat(column) for column in zip(*self._waiting, strict=True))
        self._waiting = []
        rows = tuple((owners == number).nonzero()[:, 0] for number in range(len(self.metrics)))
        for own, metrics in zip(send(rows, logits.device), self.metrics, strict=True):
            if len(own):
                metrics.update(logits[own], labels[own])


class Bfloat16(nn.Module):
    """A model whose forward pass runs under bfloat16 autocast; its logits are float32 again."""

    def __init__(self, model: nn.Module, device_type: str):
        super().__init__()
        self.model, self.device_type = model, device_type

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(self.device_type, dtype=torch.bfloat16):
            return self.model(x).float()


def _joined(images: Sequence[Any]) -> Any:
    """Tensors, or collections of image files, as one."""
    return torch.cat(list(images)) if isinstance(images[0], Tensor) else reduce(operator.add, images)


def mean_rows(rows: Sequence[Row]) -> list[Row]:
    """The plain mean of each metric over the slices that have it, in the order of first appearance; a NaN stays one."""
    means = []
    for metric in dict.fromkeys(row.metric for row in rows):
        same = [row for row in rows if row.metric == metric]
        value = sum(row.value for row in same) / len(same)
        means.append(Row("mean", metric, value, same[0].unit, sum(row.n for row in same)))
    return means


def _partly(rows: Sequence[Row]) -> Iterator[Note]:
    """Notes on the metrics that some slices have and others have not."""
    slices = dict.fromkeys(row.slice for row in rows)
    for metric in dict.fromkeys(row.metric for row in rows):
        have = {row.slice for row in rows if row.metric == metric}
        if lacking := [name for name in slices if name not in have]:
            text = f"{metric} is undefined in {', '.join(lacking)}: a class that no image there shows was predicted"
            yield Note("undefined", f"{text}; its mean is over {len(have)} of {len(slices)} slices")


@torch.no_grad()
def _look(logits: Tensor, labels: Tensor, loss: Tensor | None, updated: int | Tensor) -> Tensor:
    """Correct predictions, mean entropy, mean loss and samples learned from of a batch, (4,) on the device.

    Where there is no loss, the third number means nothing. Nothing here waits for the device.
    """
    log_p = logits.log_softmax(1)
    entropy = torch.special.entr(log_p.exp()).sum(1).mean()
    correct = (logits.argmax(1) == labels).sum()
    if isinstance(updated, int):
        updated = torch.full((), updated, device=logits.device)
    told = (correct, entropy, entropy if loss is None else loss, updated)
    return torch.stack([value.float() for value in told])  # counts within a batch: exact


def _judge(metrics: StreamMetrics, rows: Sequence[Row], name: str) -> Iterator[Event]:
    histogram = metrics.histogram(name)
    yield histogram
    if any(row.metric == "nll" and not math.isfinite(row.value) for row in rows):
        yield Flag("nan", name, f"a logit is not finite in {name}")
    yield from metrics.collapse(name, histogram)

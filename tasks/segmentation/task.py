"""Unsupervised domain adaptation of segmentation: labelled source, unlabelled target, mean IoU on the target's test."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dembench.tasks.base import Artifact, Event, Flag, Histogram, Note, Row
from dembench.tasks.common.criteria import Criteria, mean_rows
from dembench.tasks.common.keep import kept, put
from dembench.tasks.common.metrics import is_collapsed, undefined
from dembench.tasks.common.orders import derived_seed
from dembench.tasks.common.parts import DataPart
from dembench.tasks.common.training import check_devices, launch
from dembench.tasks.segmentation.data import TestPart
from dembench.tasks.segmentation.methods.base import UDAMethod
from dembench.tasks.segmentation.methods.tent_seg import adapting
from dembench.tasks.segmentation.metrics import SegMetrics
from dembench.tasks.segmentation.nets import NetMaker, count_parameters
from dembench.tasks.segmentation.protocol import Protocol
from dembench.tasks.segmentation.trainer import Trainer

CERTAIN = 1 - 1e-6  # probability; a mean entropy below the rest, in nats, is of a network that is certain
FEW = 0.5  # share of the labels' effective number of classes below which predictions have collapsed


class Segmentation:
    """Mean IoU of the last iterate.

    The best evaluation on the target's test, which the literature publishes, is reported as ``iou_target_best`` and
    chooses nothing.

    Args:
        data: see ``tasks.segmentation.data``.
        model: builds the network for a number of classes.
        protocol: the schedule.
        seed: of initialisation, batches and everything else that is random.
        device: "cpu" or "cuda".
        precision: "fp32", or "bf16" for autocast; losses and metrics stay in float32.
        part: of the target's test images; None is all of them.
    """

    splits = True  # the search of DEM* has a share of the target's test images
    saves = ("last",)
    save = "none"  # the runner says what to keep

    def __init__(
        self,
        data: Any,
        model: NetMaker,
        protocol: Protocol,
        *,
        seed: int = 0,
        device: str = "cpu",
        precision: Literal["fp32", "bf16"] = "fp32",
        part: DataPart | None = None,
    ) -> None:
        self.data = data if part is None else TestPart(data, part)
        self.criteria = part is not None and part.criteria
        self.model, self.protocol, self.seed = model, protocol, seed
        self.device, self.precision = device, precision
        self.checkpoint: Path | None = None  # the runner says where
        check_devices(device, protocol.devices)
        if model.weights is not None:  # before any work, whether they fit
            model(len(data.classes), data.preprocessor())

    def __len__(self) -> int:
        return self.protocol.evaluations

    def run(self, make_method: Callable[..., UDAMethod]) -> Iterator[Event]:
        """Yields notes, Scalars at each evaluation, and rows, flags and pictures at the end."""
        torch.manual_seed(derived_seed(self.seed, "network"))
        network = self.model(len(self.data.classes), self.data.preprocessor())
        torch.manual_seed(derived_seed(self.seed, "method"))
        method = make_method(network=network, num_classes=len(self.data.classes), precision=self.precision)
        yield from self.notes(method)
        if self.protocol.devices > 1:
            task = copy.copy(self)
            task.model = None  # the method has the network, and a maker cannot be sent
            yield from launch(task.train, method, self.device, self.protocol.devices)
        else:
            yield from self.train(method)

    def notes(self, method: UDAMethod) -> Iterator[Note]:
        yield from self.data.notes
        yield Note(
            "selection", "iou is of the last iterate; iou_target_best is chosen on the target's test, for parity"
        )
        learns = count_parameters(method.network, trainable=True)
        yield Note("network", f"{count_parameters(method.network):,} parameters, of which {learns:,} learn")
        if method.adapts_at_test:
            yield Note("adapts", f"at test time the weights and biases of {adapting(method.network)}")
        if any(getattr(part, "needs_batch", False) for part in method.modules()):
            whole = "one image" if method.adapts_at_test else "the target images of a step"
            yield Note(
                "batch", f"the loss of a pixel depends on the others: it takes all pixels of {whole} as its batch"
            )
        if method.name == "source_only":
            yield Note("loss", "source_only does not use the loss")
        elif not method.term.active:
            yield Note("loss", f"{method.name} without a loss on target pixels")
        elif not method.replaces_entropy:
            weights = " and ".join(f"{weight:g}" for weight in method.term.weights.values())
            text = f"the loss is added to {method.name} on target pixels (its paper has none): weights {weights}"
            yield Note("loss", text)
        if method.repeated_in is not None:
            code, preset = method.repeated_in
            repeated = self.protocol.repeated_backbone
            does = f"a step for each module that holds it, as in {code}'s code" if repeated else "one step an iteration"
            other = "" if repeated else f"; {code}'s code takes about three for most (protocol={preset})"
            yield Note("rates", f"each weight of the backbone takes {does}{other}")
        if self.protocol.devices > 1:
            yield Note("devices", f"BatchNorm normalises by the images of each of {self.protocol.devices} processes")

    def train(self, method: UDAMethod) -> Iterator[Event]:
        """The part that each process of several runs; all yield the same numbers."""
        pictures = Gallery(self.data, self.protocol.pictures)
        trainer = Trainer(
            self.data,
            method,
            self.protocol,
            seed=self.seed,
            device=self.device,
            checkpoint=self.checkpoint,
            pictures=None if method.adapts_at_test else pictures,
        )
        yield from trainer.events()
        yield from self.evaluate(trainer, pictures)

    def evaluate(self, trainer: Trainer, pictures: Gallery) -> Iterator[Event]:
        """Rows, flags and pictures of the last iterate; a method that adapts at test time does so here."""
        method, metrics = trainer.method, trainer.final()
        if self.data.source_test is not None:
            yield from _renamed("source", trainer.evaluate(self.data.source_test))
        criteria = Criteria(len(self.data.classes), self.device) if self.criteria else None
        if method.adapts_at_test:
            yield from _renamed("before adaptation", metrics)
            method.prepare_test()
            metrics = trainer.evaluate(self.data.target_test, adapt=True, pictures=pictures, criteria=criteria)
        elif criteria is not None:
            trainer.evaluate(self.data.target_test, criteria=criteria)
        yield from metrics.rows()
        yield from mean_rows([criteria] if criteria is not None else [])
        n = sum(metrics.label_counts)
        if not method.adapts_at_test:
            yield Row("mean", "iou_target_best", max(values["iou"] for values in trainer.history), "fraction", n)
        predicted, label = metrics.predicted_counts, metrics.label_counts
        yield Histogram("mean", tuple(predicted), tuple(label))
        yield from collapse_flags(predicted, label)
        yield from chance_flags({row.metric: row.value for row in metrics.rows() if row.slice == "mean"}, len(label))
        yield from undefined(self.data.classes, label)
        if not metrics.finite:
            yield Flag("nan", "mean", "a logit is not finite")
        yield from pictures.artifacts()
        if self.save != "none":
            adapted = ", which test-time adaptation has moved" if method.adapts_at_test else ""
            yield Note("weights", f"files/weights.safetensors holds the network of the last iterate{adapted}")
            yield kept("weights", method.network.state_dict())

    def judge(self, make_method: Callable[..., UDAMethod], tensors: Mapping[str, Tensor]) -> Iterator[Event]:
        """Rows of a network that was kept, on the target's test images; nothing is learned.

        Raises: ValueError where it does not fit the classes.
        """
        yield from self.data.notes
        network = self.model(len(self.data.classes), self.data.preprocessor())
        put(network, tensors)
        method = make_method(network=network, num_classes=len(self.data.classes), precision=self.precision)
        trainer = Trainer(self.data, method, self.protocol, seed=self.seed, device=self.device)
        metrics = trainer.evaluate(self.data.target_test)
        yield from metrics.rows()
        yield Histogram("mean", tuple(metrics.predicted_counts), tuple(metrics.label_counts))
        yield from collapse_flags(metrics.predicted_counts, metrics.label_counts)


def collapse_flags(predicted: list[int], label: list[int]) -> Iterator[Flag]:
    """One Flag where predictions are of one class, or of far fewer classes than the labels are.

    The effective number of classes is the exponential of the entropy of their shares; below half of the labels' the
    predictions have collapsed.
    """
    few, many = effective_classes(predicted), effective_classes(label)
    if sum(predicted) == sum(label) and is_collapsed(predicted, label):
        yield Flag("collapse", "mean", f"one class takes {max(predicted) / sum(predicted):.0%} of the pixels")
    elif few < FEW * many:
        text = f"predictions are of {few:.1f} effective classes, labels of {many:.1f}"
        yield Flag("collapse", "mean", text)


def chance_flags(means: dict[str, float], classes: int) -> Iterator[Flag]:
    """One Flag where the network is certain of every pixel and right no more often than by chance."""
    if means.get("entropy", 1) <= 1 - CERTAIN and means["pixel_accuracy"] <= 1 / classes:
        text = f"certain of every pixel, and {means['pixel_accuracy']:.0%} right, which is chance"
        yield Flag("collapse", "mean", text)


def effective_classes(counts: list[int]) -> float:
    """exp of the entropy of the shares: C where all are equal, 1 where one has all."""
    total = max(sum(counts), 1)
    return math.exp(-sum(n / total * math.log(n / total) for n in counts if n))


class Gallery:
    """Keeps ``count`` test images, evenly spread, with their predictions, and draws them in one picture."""

    def __init__(self, data: Any, count: int) -> None:
        self.data = data
        size = len(data.target_test)
        self.wanted = {i * size // count for i in range(count)} if count else set()
        self.kept: list[tuple[torch.Tensor, ...]] = []

    def add(self, i: int, image: torch.Tensor, labels: torch.Tensor, logits: torch.Tensor) -> None:
        if i in self.wanted:
            self.kept.append((image, labels, logits))

    def artifacts(self) -> Iterator[Artifact]:
        if self.kept:
            from dembench.tasks.segmentation.pictures import picture

            images, labels, logits = map(list, zip(*self.kept, strict=True))
            drawn = picture(images, labels, logits, palette=self.data.palette, classes=self.data.classes)
            yield Artifact("predictions.png", drawn)


def _renamed(slice: str, metrics: SegMetrics) -> Iterator[Row]:
    """The rows of slice "mean" under another name: another set of images, or the network before it adapts."""
    for row in metrics.rows():
        if row.slice == "mean":
            yield Row(slice, row.metric, row.value, row.unit, row.n)

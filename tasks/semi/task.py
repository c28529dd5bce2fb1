"""Semi-supervised classification: few labelled and many unlabelled images, judged on a test set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dembench.lookup import lookup
from dembench.tasks.base import PRECISIONS, Artifact, Event, Flag, Histogram, Note, Row
from dembench.tasks.common.confusion import Confusion
from dembench.tasks.common.criteria import Criteria, mean_rows
from dembench.tasks.common.keep import kept, put
from dembench.tasks.common.metrics import StreamMetrics, undefined
from dembench.tasks.common.orders import derived_seed
from dembench.tasks.common.parts import DataPart
from dembench.tasks.common.training import Values, check_devices, launch
from dembench.tasks.semi.data import SearchPart, describe
from dembench.tasks.semi.methods.base import SemiMethod
from dembench.tasks.semi.nets import NetMaker
from dembench.tasks.semi.protocol import Protocol
from dembench.tasks.semi.trainer import Trainer


class SemiSupervised:
    """Accuracy of the last iterate, and of the evaluation that the validation images choose.

    The best accuracy on the test itself, which others publish, is reported as ``accuracy_test_best`` and chooses
    nothing.

    Args:
        data: see ``tasks.semi.data``.
        model: builds the network for a number of classes.
        protocol: the schedule.
        seed: of initialisation, batches, views and everything else that is random.
        device: "cpu" or "cuda".
        precision: "fp32", or "bf16" for autocast; losses, metrics and VAT's direction stay in float32.
        part: "search" judges on the validation images, which the rest never does.
    Raises: ValueError for an unknown precision.
    """

    splits = False  # the search of DEM* has the validation images
    searched = "the validation images"
    saves = ("last", "best_validation")
    save = "none"  # the runner says what to keep

    def __init__(
        self,
        data: Any,
        model: NetMaker,
        protocol: Protocol,
        *,
        seed: int = 0,
        device: str = "cpu",
        precision: str = "fp32",
        part: DataPart | None = None,
    ) -> None:
        lookup(precision, PRECISIONS, "precision")
        self.data = SearchPart(data, part) if part is not None and part.use == "search" else data
        self.criteria = part is not None and part.criteria
        self.model, self.protocol, self.seed = model, protocol, seed
        self.device, self.precision = device, precision
        self.checkpoint: Path | None = None  # the runner says where

    def __len__(self) -> int:
        return self.protocol.evaluations

    def made(self, make_method: Callable[..., SemiMethod]) -> SemiMethod:
        """The method for this data."""
        method = make_method(num_classes=self.data.num_classes)
        method.prepare(self.data.num_unlabelled, self.data.training_counts)
        return method

    def network(self, method: SemiMethod) -> nn.Module:
        """A new network for this data, with what the method adds to it."""
        return method.equip(self.model(num_classes=self.data.num_classes))

    def check_method(self, make_method: Callable[..., SemiMethod]) -> None:
        """Builds method, network and optimiser and lets them go: what they refuse, they refuse here.

        Raises: ValueError also where the method needs unlabelled samples and there are none, where the images are too
        small, or where there are too few devices.
        """
        method = self.made(make_method)
        if method.needed_views and not self.data.num_unlabelled:
            raise ValueError(f"{method.name} needs unlabelled samples, {self.data.name} has none")
        check_devices(self.device, self.protocol.devices)
        self.protocol.make_optimizer(probe(partial(self.network, method), self.data.view_size))

    def run(self, make_method: Callable[..., SemiMethod]) -> Iterator[Event]:
        """Yields notes, the chosen samples as files, Scalars at each evaluation, and rows at the end."""
        method = self.made(make_method)
        yield from self.notes(method)
        yield from (Artifact(name, text.encode()) for name, text in self.data.files().items())
        if self.protocol.devices > 1:
            yield from launch(self.train, method, self.device, self.protocol.devices)
        else:
            yield from self.train(method)

    def notes(self, method: SemiMethod) -> Iterator[Note]:
        yield from self.data.notes
        yield Note("samples", describe(self.data))
        text = "accuracy is of the last iterate; accuracy_test_best is chosen on the test, for parity"
        if not len(self.data.validation.labels):
            text += "; there are no validation images to select by (data.validation_per_class=N holds some out)"
        yield Note("selection", text)
        if method.name == "supervised":
            yield Note("loss", "supervised has no unlabelled samples and does not use the loss")
        elif method.slot.loss is None:
            yield Note("loss", f"{method.name} without a loss on the unlabelled samples")
        elif not method.replaces_entropy:
            yield Note(
                "loss",
                f"the loss is added to {method.name} (its paper has none; arXiv 2511.03256 does not say how): "
                f"weight {method.slot.weight:g}, {method.slot.view} view, ramp {method.slot.ramp:g}",
            )
        if self.protocol.devices > 1:
            yield Note("devices", f"BatchNorm normalises by the samples of each of {self.protocol.devices} processes")

    def train(self, method: SemiMethod) -> Iterator[Event]:
        """The part that each process of several runs; all yield the same numbers."""
        torch.manual_seed(derived_seed(self.seed, "network"))
        net = self.network(method)
        keep_best = self.save == "best_validation"
        settings = {"device": self.device, "precision": self.precision, "checkpoint": self.checkpoint}
        trainer = Trainer(self.data, net, method, self.protocol, seed=self.seed, keep_best=keep_best, **settings)
        yield from trainer.events()
        confusion, metrics = trainer.final
        yield from self.rows(confusion, metrics, trainer.history)
        if self.criteria:
            criteria = Criteria(self.data.num_classes, self.device)
            trainer.evaluate("test", criteria)
            yield from mean_rows([criteria])
        if self.save != "none":
            chosen = keep_best and len(self.data.validation.labels) > 0
            tensors = trainer.best if chosen else trainer.tensors()
            which = "the evaluation that the validation images choose" if chosen else "the last iterate"
            judged = "average" if "average" in tensors else "weights"
            yield Note("weights", f"files/{judged}.safetensors holds the weights that were judged, of {which}")
            yield from (kept(name, own) for name, own in tensors.items())

    def judge(self, make_method: Callable[..., SemiMethod], tensors: Mapping[str, Tensor]) -> Iterator[Event]:
        """Rows of a network that was kept, on this task's test images; nothing is learned.

        Raises: ValueError where the network does not fit the classes or the size of the images.
        """
        yield from self.data.notes
        method = self.made(make_method)
        net = self.network(method)
        put(net, tensors)
        trainer = Trainer(self.data, net, method, self.protocol, seed=self.seed, device=self.device)
        trainer.precision = self.precision
        yield from self.rows(*trainer.evaluate("test"), [])

    def rows(self, confusion: Confusion, metrics: StreamMetrics, history: list[Values]) -> Iterator[Event]:
        """Means over the test as slice "mean", and a slice per class."""
        n = int(confusion.counts.sum())
        yield Row("mean", "accuracy", confusion.accuracy(), "fraction", n)
        if history and all("validation_accuracy" in values for values in history):
            chosen = max(history, key=lambda values: values["validation_accuracy"])  # the first of equals
            yield Row("mean", "accuracy_validation_selected", chosen["accuracy"], "fraction", n)
        if history:
            yield Row("mean", "accuracy_test_best", max(values["accuracy"] for values in history), "fraction", n)
        for name, value in confusion.macro().items():
            yield Row("mean", name, value, "fraction", n)
        for name, unit in (("kl", "nats"), ("tv", "fraction")):
            if math.isfinite(value := confusion.bias()[name]):  # not where a class without test images is predicted
                yield Row("mean", f"bias_{name}", value, unit, n)
        yield from (row for row in metrics.rows("mean") if row.metric != "error")
        counts = confusion.label_counts.tolist()
        per_class = {name: values.tolist() for name, values in confusion.per_class().items()}
        for c, name in enumerate(self.data.class_names):
            if counts[c]:
                yield Row(name, "accuracy", per_class["recall"][c], "fraction", counts[c])  # the same, among one class
                for metric, values in per_class.items():
                    yield Row(name, metric, values[c], "fraction", counts[c])
        yield from undefined(self.data.class_names, counts)
        predicted, label = confusion.predicted_counts.tolist(), counts
        histogram = Histogram("mean", tuple(predicted), tuple(label))
        yield histogram
        if any(row.metric == "nll" and not math.isfinite(row.value) for row in metrics.rows("mean")):
            yield Flag("nan", "mean", "a logit is not finite")
        yield from metrics.collapse("mean", histogram)


def probe(make: Callable[[], nn.Module], size: tuple[int, int]) -> nn.Module:
    """The network that ``make`` makes, without its memory, after it was shown images (1, 3, *size).

    Raises: ValueError where it does not take them.
    """
    with torch.device("meta"), torch.no_grad():
        net = make().eval()
        try:
            net(torch.empty(1, 3, *size))
        except (AssertionError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"model: no network for images of {size[0]} x {size[1]} ({reason})") from error
    return net

"""Test-time prompt tuning: CLIP classifies images one by one, from views of each and the names of the classes."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dembench.lookup import lookup
from dembench.tasks.base import PRECISIONS, Artifact, Event, Flag, Note, Point
from dembench.tasks.common.criteria import Criteria
from dembench.tasks.common.criteria import mean_rows as criteria_rows
from dembench.tasks.common.keep import kept
from dembench.tasks.common.orders import generator
from dembench.tasks.common.parts import DataPart
from dembench.tasks.prompt.clip import Clip
from dembench.tasks.prompt.data import ImageSet, SetsPart
from dembench.tasks.prompt.features import STRETCH, ViewFeatures
from dembench.tasks.prompt.methods.base import PromptMethod
from dembench.tasks.prompt.metrics import PromptMetrics, mean_rows
from dembench.tasks.prompt.text import ENCODINGS, Encoding, Prompts
from dembench.tasks.prompt.views import Views

_FLUSH = 16  # blocks after which the host reads a GPU's numbers


@dataclass(frozen=True)
class Protocol:
    """What a method is shown, and how it is computed.

    Args:
        views: of each image.
        template: with one {}; None takes the data's own.
        block_size: images that are tuned side by side; each is an episode of its own, so it changes the speed only.
        encoding: of the prompts, see ``tasks.prompt.text``; it changes the speed only.
        features: "float16" or "float32", what features of views are rounded to.
        keep: keep them on disk for later runs. cache: where; None is $DEMBENCH_CACHE or the user's cache folder.
        aggregate_of: what a loss is applied to where the method does not say, by the loss's name; configurations of
            methods read it.
    Raises: ValueError for a wrong value.
    """

    views: Views = field(default_factory=Views)
    template: str | None = None
    block_size: int = 16
    encoding: Encoding = "packed"
    features: str = "float16"
    keep: bool = True
    cache: str | Path | None = None
    aggregate_of: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.block_size, bool) or not isinstance(self.block_size, int) or self.block_size < 1:
            raise ValueError(f"protocol: expected a whole block_size >= 1, got {self.block_size!r}")
        if self.template is not None and self.template.count("{}") != 1:
            got = f"got {self.template!r}"
            raise ValueError(f"protocol: expected a template with one {{}}, such as 'a photo of a {{}}.', {got}")
        if self.encoding not in ENCODINGS:
            raise ValueError(f"protocol: unknown encoding {self.encoding!r}; valid: {', '.join(ENCODINGS)}")


class PromptTuning:
    """Accuracy on each image set, their mean, and the mean over the shifted ones ("ood").

    Args:
        data: see ``tasks.prompt.data``. model: an image and text encoder. protocol: what is shown.
        seed: of the labelled shots that are drawn for a learned context, and of the order of a stream; the runner has
            set it elsewhere.
        device: where the model lives.
        precision: "fp32", or "bf16" for autocast in both towers; context, loss and metrics stay in float32.
        part: of the images of each set; None is all of them.
    Raises: ValueError for an unknown precision and what ``ViewFeatures`` refuses.
    """

    splits = True  # the search of DEM* has a share of the images
    saves = ("last",)
    save = "none"  # the runner says what to keep

    def __init__(
        self,
        data: Any,
        model: Clip,
        protocol: Protocol,
        *,
        seed: int = 0,
        device: str = "cpu",
        precision: str = "fp32",
        part: DataPart | None = None,
    ):
        lookup(precision, PRECISIONS, "precision")
        self.data = data if part is None else SetsPart(data, part)
        self.criteria = part is not None and part.criteria
        self.model, self.protocol, self.seed = model, protocol, seed
        self.device = torch.device(device)
        model.bf16 = precision == "bf16"
        self.features = ViewFeatures(
            model, protocol.views, dtype=protocol.features, cache=protocol.cache, keep=protocol.keep
        )

    @cached_property
    def sets(self) -> list[ImageSet]:
        return self.data.sets()

    def __len__(self) -> int:
        return sum(self.features.blocks(images, self.protocol.block_size) for images in self.sets)

    def prompts(self, class_names: tuple[str, ...]) -> Prompts:
        """The classes under the protocol's template."""
        template = self.protocol.template or self.data.template
        return Prompts(self.model, class_names, template, self.data.templates, self.protocol.encoding)

    def order(self, images: ImageSet) -> Tensor:
        """The order (N,) in which a stream has the images of a set, drawn by the seed."""
        return torch.randperm(len(images), generator=generator("stream", self.seed, images.name))

    def shots(self, count: int) -> tuple[Prompts, Tensor, Tensor]:
        """Training images for a method that learns from labels: classes, features (N, V, E), labels (N,)."""
        images = self.data.shots(count, self.seed)
        return self.prompts(images.class_names), self.features.all(images), images.labels

    def check_method(self, make_method: Callable[..., PromptMethod]) -> None:
        """Refuses before anything is run what a method cannot use: a damaged context, a loss without effect."""
        given = getattr(make_method, "keywords", {})
        for part in given.values():
            if hasattr(part, "check"):
                part.check()
        if hasattr(method := getattr(make_method, "func", None), "check"):
            method.check(self.protocol.views.count, **given)
        if self.save != "none" and given.get("context") is None:
            raise ValueError(f"save={self.save}: only a context that CoOp learned outlives an image (coop, tpt_coop)")

    def judge(self, make_method: Callable[..., PromptMethod], tensors: Mapping[str, Tensor]) -> Iterator[Event]:
        """What ``run`` yields with a context that was kept, ``ctx`` (n, D), in the place of one that is learned.

        Raises: ValueError where there is none.
        """
        if "ctx" not in tensors:
            raise ValueError(f"expected a context ctx, found {', '.join(sorted(tensors)) or 'nothing'}")
        yield Note("weights", "a context that was kept; none is learned")
        yield from self.run(partial(make_method, context=lambda shots: tensors["ctx"]))

    def run(self, make_method: Callable[..., PromptMethod]) -> Iterator[Event]:
        """Yields notes, a Point a block, rows, histogram and flags for each set, means, and the file cost.json."""
        self.model.load().to(self.device)
        notes: list[Note] = [*self.data.notes, *self.model.notes]  # each is said once
        yield from notes
        template = self.protocol.template or self.data.template
        yield Note("template", f"prompts are {template!r}")
        step, rows, counts, cost = 0, [], [], {}
        streams: list[Criteria] = []
        for images in self.sets:
            if names := _repeated(images.class_names):
                yield Note("names", f"classes of the same name, which no method can tell apart: {', '.join(names)}")
            start = time.process_time()
            prompts = self.prompts(images.class_names)
            method = make_method(prompts=prompts, shots=self.shots)
            new = [note for note in method.notes if note not in notes]
            notes += new
            yield from (*new, *(() if rows else method.artifacts))
            with torch.no_grad():
                text = prompts(prompts.words())
            seconds = {"setup": time.process_time() - start, "features": 0.0, "method": 0.0}
            metrics = PromptMetrics(len(images.class_names), self.device)
            streams += [Criteria(len(images.class_names), self.device)] if self.criteria else []
            order = self.order(images) if method.stream else None
            labels = (images.labels if order is None else images.labels[order]).to(self.device)
            waiting: list[tuple[int, int, Tensor]] = []
            left = self.features.blocks(images, self.protocol.block_size)
            start = time.process_time()
            for first, views in self.features(images, self.protocol.block_size, order):
                ready = time.process_time()
                other = self._copy(method, views) if self.criteria else None
                before = method.updated
                logits = method(views).float()
                for own in streams[-1:]:
                    own.update(logits, other)
                y = labels[first : first + len(views)]
                correct = metrics.update(logits, method.logits(views[:, 0], text), y)
                waiting.append((len(y), method.updated - before, _look(logits, correct, method.last_loss)))
                left -= 1
                if not left or len(waiting) == (1 if self.device.type == "cpu" else _FLUSH):
                    numbers = torch.stack([look for _, _, look in waiting]).tolist()
                    for (n, updated, _), (right, entropy, *loss) in zip(waiting, numbers, strict=True):
                        yield Point(step, images.name, n, int(right), entropy, *(loss or [None]), updated)
                        step += 1
                    waiting = []
                seconds["features"] += ready - start
                start = time.process_time()
                seconds["method"] += start - ready
            found = metrics.rows(images.name)
            rows.append((images.shifted, found))
            counts.append((images.shifted, metrics.counts))
            cost[images.name] = {"images": len(images), **{f"{k}_cpu_seconds": round(v, 3) for k, v in seconds.items()}}
            yield from found
            yield from _judge(metrics, found, images.name)
        if any(shifted for shifted, _ in rows) and not all(shifted for shifted, _ in rows):
            own = [row for shifted, found in rows if shifted for row in found]
            yield from mean_rows(own, [count for shifted, count in counts if shifted], "ood")
        yield from mean_rows([row for _, found in rows for row in found], [count for _, count in counts], "mean")
        yield from criteria_rows(streams)
        yield Artifact("cost.json", _cost(cost, self.device))
        if self.save != "none":
            yield Note("weights", "files/weights.safetensors holds the context that CoOp learned")
            yield kept("weights", {"ctx": method.context})

    def _copy(self, method: PromptMethod, views: Tensor) -> Tensor | None:
        """Logits of each image's second view, an augmented one, by the prompt that its views give; not counted."""
        if views.shape[1] < 2:
            return None
        return method.twin()(views.roll(-1, 1)).float()


def _look(logits: Tensor, correct: Tensor, loss: Tensor | None) -> Tensor:
    """Correct predictions, mean entropy and, if there is one, mean loss of a block, float64 on the device."""
    told = [correct, torch.special.entr(logits.softmax(1)).sum(1).mean()]
    return torch.stack([value.double() for value in (told if loss is None else [*told, loss])])


def _repeated(names: tuple[str, ...]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


def _judge(metrics: PromptMetrics, rows: list[Any], name: str) -> Iterator[Event]:
    histogram = metrics.histogram(name)
    yield histogram
    if any(row.metric == "entropy" and not math.isfinite(row.value) for row in rows):
        yield Flag("nan", name, f"a logit is not finite in {name}")
    yield from metrics.collapse(name, histogram)


def _cost(sets: dict[str, dict[str, float]], device: torch.device) -> bytes:
    """CPU seconds by set, features apart (near 0 if they were on disk), and the peak memory, except on Windows."""
    record: dict[str, Any] = {"sets": sets, "stretch": STRETCH}
    with contextlib.suppress(ModuleNotFoundError):  # Windows
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        record["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if device.type == "cuda":
        record["peak_device_bytes"] = torch.cuda.max_memory_allocated()
    return (json.dumps(record, indent=1) + "\n").encode()

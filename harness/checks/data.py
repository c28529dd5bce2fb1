"""Checks of data of the task tta."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .finding import Checks, Skipped, Wrong


def check_data(make: Callable[[], Any]) -> Checks:
    """Of data of the task tta, see ``tasks.tta.data``; the first two of its domains."""
    made: list[Any] = []

    def data() -> Any:
        if not made:
            made.append(_ready(make()))
        return made[0]

    def attributes() -> None:
        for name in ("name", "num_classes", "class_names", "corruptions", "known", "severities", "num_images", "notes",
                     "fingerprint"):  # fmt: skip
            if not hasattr(data(), name):
                raise Wrong(f"it has no {name} (docs/own_data.md)")
        if len(data().class_names) != data().num_classes:
            raise Wrong(f"{len(data().class_names)} class_names for num_classes={data().num_classes}")
        if not set(data().corruptions) <= set(data().known):
            raise Wrong("corruptions, the stream's domains, has names that are not in known")
        _domains(data())

    def shape() -> None:
        for domain in _domains(data()):
            images, labels = _tensors(data(), domain)
            if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
                raise Wrong(
                    f"{domain[0]}: expected uint8 images (N, 3, H, W), got {images.dtype} {tuple(images.shape)}"
                )
            if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
                raise Wrong(
                    f"{domain[0]}: expected int64 labels ({len(images)},), got {labels.dtype} {tuple(labels.shape)}"
                )
            if int(labels.min()) < 0 or int(labels.max()) >= data().num_classes:
                raise Wrong(
                    f"{domain[0]}: labels from {int(labels.min())} to {int(labels.max())}, "
                    f"num_classes={data().num_classes}"
                )
            size = data().size(*domain) if hasattr(data(), "size") else data().num_images
            if size != len(images):
                raise Wrong(f"{domain[0]}: {len(images)} images, and it says {size}")

    def repeatable() -> None:
        other = _ready(make())
        for domain in _domains(data()):
            first, again, anew = (_tensors(one, domain) for one in (data(), data(), other))
            for later in (again, anew):
                if not all(map(torch.equal, first, later)):
                    raise Wrong(f"{domain[0]}: other images or labels the second time")
        if other.fingerprint != data().fingerprint:
            raise Wrong("built again it has another fingerprint: run ids would change from start to start")

    def labels() -> None:
        if not hasattr(data(), "labels"):
            raise Skipped("no labels(): they are taken from domain()")
        for domain in _domains(data()):
            if not torch.equal(data().labels(*domain), _tensors(data(), domain)[1]):
                raise Wrong(f"{domain[0]}: labels() gives others than domain()")

    def clean() -> None:
        if not hasattr(data(), "clean"):
            raise Skipped("no clean(): methods that look at clean images first (eata) are refused")
        images, note = data().clean(4, 0)
        if images.dtype != torch.uint8 or images.dim() != 4 or not getattr(note, "text", ""):
            raise Wrong("expected clean(4, seed) to give uint8 images (4, 3, H, W) and a note")

    yield "attributes: names, classes, domains, fingerprint", attributes
    yield "shape: uint8 images (N, 3, H, W), int64 labels (N,) within num_classes", shape
    yield "determinism: the same again, and built again", repeatable
    yield "labels(): as domain() gives them", labels
    yield "clean(): images for methods that look at some first", clean


def _ready(data: Any) -> Any:
    """Data as a task prepares it: its files are there, and photographs become 32 pixels."""
    from dembench.tasks.common.images import Preprocess

    if hasattr(data, "use"):
        data.use(Preprocess(32, 32))
    if hasattr(data, "check"):
        data.check()
    return data


def _domains(data: Any) -> list[tuple[str, int | None]]:
    if not data.corruptions:
        raise Wrong("corruptions, the stream's domains, is empty")
    severity = data.severities[-1] if data.severities else None
    return [(name, severity) for name in data.corruptions[:2]]


def _tensors(data: Any, domain: tuple[str, int | None]) -> tuple[Tensor, Tensor]:
    images, labels = data.domain(*domain)
    return images if isinstance(images, Tensor) else images.tensor(), labels

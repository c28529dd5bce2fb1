"""The task: what is reported and flagged, and a run from the configuration to its record."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from made_domains import Blocks

from dembench.core import EM, AdaDEM
from dembench.harness import experiment
from dembench.harness.compose import ConfigError, compose, options
from dembench.tasks.base import Artifact, Event, Flag, Histogram, Note, Row, Scalars
from dembench.tasks.segmentation.data import PoolDataset
from dembench.tasks.segmentation.methods.adv_ent import AdvEnt
from dembench.tasks.segmentation.methods.min_ent import MinEnt
from dembench.tasks.segmentation.methods.source_only import SourceOnly
from dembench.tasks.segmentation.methods.tent_seg import TentSeg
from dembench.tasks.segmentation.metrics import SegMetrics
from dembench.tasks.segmentation.nets import deeplab_v2
from dembench.tasks.segmentation.protocol import Protocol
from dembench.tasks.segmentation.task import Segmentation, collapse_flags, effective_classes

NET = deeplab_v2(
    depth=18, width=4, stages=3, output_stride=4, dilations=(1, 2), style="pytorch", pool=False, freeze_norm=False
)
FEW = {"batch_size": 2, "lr": 0.02, "eval_every": 2, "pictures": 0}


def run(kind: Any, iterations: int = 4, **settings: Any) -> tuple[list[Event], Blocks]:
    data = Blocks()
    task = Segmentation(data, NET, Protocol(iterations, **FEW | settings))
    return list(task.run(kind)), data


def rows(events: list[Event]) -> dict[tuple[str, str], Row]:
    return {(e.slice, e.metric): e for e in events if isinstance(e, Row)}


def notes(events: list[Event]) -> dict[str, str]:
    return {e.key: e.text for e in events if isinstance(e, Note)}


def test_a_network_that_has_learned_is_right_and_reported_so() -> None:
    """Colours say the class: after 60 steps most source pixels are right; every way of counting agrees."""
    events, data = run(SourceOnly, 60, eval_every=30, lr=0.01)
    found = rows(events)
    assert found["source", "iou"].value > 0.4  # one class everywhere gives 0.12
    assert found["mean", "pixel_accuracy"].value > 0.4
    pixels = int((data.pools["target_test"].labels != 255).sum())
    assert {row.n for row in found.values() if row.slice == "mean"} == {pixels}
    assert found["mean", "iou"].value == pytest.approx(sum(found[c, "iou"].value for c in "abc") / 3)
    curve = [e for e in events if isinstance(e, Scalars)]
    assert [e.step for e in curve] == [30, 60]
    assert found["mean", "iou"].value == curve[-1].values["iou"]  # of the last iterate
    assert found["mean", "iou_target_best"].value == max(e.values["iou"] for e in curve)
    (histogram,) = [e for e in events if isinstance(e, Histogram)]
    assert sum(histogram.predicted) == sum(histogram.label) == pixels


def test_notes_say_what_the_loss_does() -> None:
    texts = {
        "source_only does not use": SourceOnly,
        "min_ent without a loss": partial(MinEnt, loss=None),
        "the loss is added to adv_ent on target pixels (its paper has none): weights 0.001 and 0.0002": partial(
            AdvEnt, loss=AdaDEM(), discriminator_width=4
        ),
    }
    for text, kind in texts.items():
        events, _ = run(kind, 1)
        assert notes(events)["loss"].startswith(text)
        assert "chosen on the target's test, for parity" in notes(events)["selection"]
    events, _ = run(partial(MinEnt, loss=EM()), 1)
    assert "loss" not in notes(events)
    assert "parameters, of which" in notes(events)["network"]


def test_tent_reports_the_network_before_and_after() -> None:
    plain, _ = run(SourceOnly)
    adapted, _ = run(partial(TentSeg, loss=EM(), lr=0.01))
    assert rows(adapted)["before adaptation", "iou"].value == rows(plain)["mean", "iou"].value
    assert rows(adapted)["mean", "iou"].value != rows(plain)["mean", "iou"].value
    assert ("mean", "iou_target_best") not in rows(adapted)


def test_pictures_are_of_the_images_asked_for() -> None:
    events, _ = run(SourceOnly, 2, pictures=2)
    (drawn,) = [e for e in events if isinstance(e, Artifact)]
    assert drawn.name == "predictions.png"
    assert drawn.content.startswith(b"\x89PNG")
    assert not any(isinstance(e, Artifact) for e in run(SourceOnly, 2)[0])


def test_training_that_diverges_is_flagged() -> None:
    events, _ = run(SourceOnly, 6, lr=1e30)
    flags = [e for e in events if isinstance(e, Flag)]
    assert "nan" in {flag.kind for flag in flags}
    assert "training ended after" in flags[0].message


def test_effective_classes_and_collapse_by_hand() -> None:
    assert effective_classes([5, 5, 5, 5]) == pytest.approx(4)
    assert effective_classes([9, 0, 0]) == pytest.approx(1)
    assert effective_classes([1, 3]) == pytest.approx(math.exp(0.25 * math.log(4) + 0.75 * math.log(4 / 3)))
    assert not list(collapse_flags([40, 30, 20, 10], [25, 25, 25, 25]))
    (one,) = collapse_flags([95, 5, 0, 0], [25, 25, 25, 25])
    assert "one class takes 95% of the pixels" in one.message
    (few,) = collapse_flags([80, 20, 0, 0], [25, 25, 25, 25])
    assert "1.6 effective classes, labels of 4.0" in few.message


def test_metrics_are_at_the_size_of_the_labels() -> None:
    """Labels of twice the images' size: logits are interpolated to them."""

    class Doubled(Blocks):
        @property
        def target_test(self) -> Any:
            pool = super().target_test.pool
            return PoolDataset(replace(pool, labels=pool.labels.repeat(2, 1).repeat(2, 2)))

    data = Doubled(2)
    seen: list[Any] = []

    class Watched(SegMetrics):
        def update(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
            seen.append((logits.shape, labels.shape))
            super().update(logits, labels)

    task = Segmentation(data, NET, Protocol(1, **FEW))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dembench.tasks.segmentation.trainer.SegMetrics", Watched)
        list(task.run(SourceOnly))
    assert ((1, 3, 64, 96), (1, 64, 96)) in seen


@pytest.mark.parametrize("name", options("method", "segmentation"))
def test_every_method_composes_and_leaves_a_record(name: str, tmp_path: Path) -> None:
    small = ["data.source_images=4", "data.target_images=4", "data.test_images=2", "data.size=[32,48]"]
    short = ["protocol=demo", "protocol.iterations=2", "protocol.eval_every=1", "protocol.batch_size=2"]
    words = ["task=segmentation", f"method={name}", "model.width=4", f"out={tmp_path}", *small, *short]
    words += ["method.discriminator_width=4"] if name == "adv_ent" else []
    prepared = experiment.prepare(compose(words))
    outcome = experiment.run(prepared)
    result = json.loads(outcome.path.read_text())
    assert result["task"] == "segmentation"
    assert {"iou", "iou_tail", "pixel_accuracy", "entropy"} <= {row["metric"] for row in result["rows"]}
    assert result["cost"]["backward_passes"] > 0
    assert (outcome.path.parent / "files" / "predictions.png").is_file()
    assert not (outcome.path.parent / "checkpoint.pt").exists()


@pytest.mark.parametrize("name", [n for n in options("model", "segmentation") if n != "mmseg_config"])
def test_every_model_composes(name: str) -> None:
    from hydra.utils import instantiate

    maker = instantiate(compose(["task=segmentation", f"model={name}"]).model)
    assert maker.build(7)["decode_head"]["num_classes"] == 7


@pytest.mark.parametrize("name", options("protocol", "segmentation"))
def test_every_protocol_composes(name: str) -> None:
    from hydra.utils import instantiate

    schedule = instantiate(compose(["task=segmentation", f"protocol={name}"]).protocol)
    if name == "advent":
        assert schedule == Protocol(120000, 1, 2.5e-4, 10.0, 1.0, False, 0.9, 5e-4, 0.9, 250000, 2000, 0, 3, 4, 1)


@pytest.mark.slow  # two processes that import mmsegmentation
def test_two_processes_with_the_same_images_learn_as_one_does() -> None:
    """With one image in each domain both halves of a batch are equal, so that the mean gradient is that of a half."""
    ends = []
    for devices in (1, 2):
        data = Blocks(1)
        task = Segmentation(data, NET, Protocol(2, batch_size=devices, lr=0.02, eval_every=1, devices=devices))
        method = partial(AdvEnt, loss=AdaDEM(), weight=0.3, adversarial=0.1, discriminator_width=4)
        events = list(task.run(method))
        curve = [value for e in events if isinstance(e, Scalars) for name, value in e.values.items() if name != "iou"]
        ends.append([*curve, rows(events)["mean", "entropy"].value])  # not of IoU, where near ties fall to either side
    assert ends[0] == pytest.approx(ends[1], rel=1e-4)


def test_errors_come_before_any_work(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "w.pth")
    words = ["task=segmentation", f"out={tmp_path}", "data.source_images=1", "data.target_images=1"]
    cases = {
        "does not fit the network: it lacks backbone.": ["data.test_images=1", f"model.weights={tmp_path / 'w.pth'}"],
        "model.weights: no file": ["model.weights=/none.pth"],
        "model.config_file: no file": ["model=mmseg_config", "model.config_file=/none.py"],
        "unknown model.depth '19'": ["model.depth=19"],
        "protocol.iterations: expected an integer >= 1": ["protocol.iterations=0"],
        "unknown method.unit 'watts'": ["method.unit=watts"],
    }
    for reason, wrong in cases.items():
        with pytest.raises(ConfigError, match=re.escape(reason)):
            experiment.prepare(compose([*words, *wrong]))

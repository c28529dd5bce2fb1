"""From the command line to the record: every method with every loss, resuming after a real kill, several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_models import Plain
from torch import nn

from dembench.core import EM, AdaDEM
from dembench.harness import experiment
from dembench.harness.compose import ConfigError, check_signatures, compose, options
from dembench.tasks.base import Artifact, Note, Row, Scalars
from dembench.tasks.semi.data import SemiData
from dembench.tasks.semi.methods.fixmatch import FixMatch
from dembench.tasks.semi.methods.freematch import FreeMatch
from dembench.tasks.semi.methods.mixmatch import MixMatch
from dembench.tasks.semi.nets import NetMaker
from dembench.tasks.semi.protocol import Protocol
from dembench.tasks.semi.sources import Digits, ImageFolders
from dembench.tasks.semi.task import SemiSupervised

METHODS = ("ent_min", "fixmatch", "flexmatch", "freematch", "mixmatch", "pseudo_label", "softmatch", "supervised")
METHODS += ("remixmatch", "uda", "vat")
TINY = ["model.width=4", "protocol.iterations=4", "protocol.eval_every=2", "protocol.batch_size=4"]


def run(words: list[str], out: Path) -> dict[str, Any]:
    return experiment.run(experiment.prepare(compose([*TINY, *words, f"out={out}"]))).result


def score(result: dict[str, Any], metric: str, slice: str = "mean") -> float:
    return next(row["value"] for row in result["rows"] if (row["slice"], row["metric"]) == (slice, metric))


def test_the_methods_are_these() -> None:
    known = sorted([*METHODS, "mixmatch_classic", "remixmatch_paper", "vat_usb"])
    assert options("method", "semi") == known
    assert options("method", "longtail") == sorted([*known, "abc", "abc_usb", "darp", "darp_cifar100"])
    ours, parity = (compose(["task=semi", f"method={name}"]).method for name in ("vat", "vat_usb"))
    assert {key for key in ours if ours[key] != parity[key]} == {"xi"}


@pytest.mark.parametrize("loss", ["none", "em", "dem", "adadem"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_with_every_loss(method: str, loss: str, tmp_path: Path) -> None:
    result = run(["task=semi", f"method={method}", f"loss={loss}"], tmp_path)
    assert result["status"] != "nan"  # four iterations may well end in one class
    assert result["data"] == "digits"
    assert 0 <= score(result, "accuracy") <= 1
    assert score(result, "accuracy") == pytest.approx(sum(score(result, "recall", str(c)) * n for c, n in enumerate(
        result["histograms"]["mean"]["label"])) / 896)  # fmt: skip
    curve = (tmp_path / result["id"] / "series.csv").read_text()
    assert ("entropy_term" in curve) == (method != "supervised" and loss != "none")
    assert result["cost"]["backward_passes"] == 4


def test_the_record_says_what_was_chosen(tmp_path: Path) -> None:
    result = run(["task=semi", "method=fixmatch", "loss=em"], tmp_path)
    folder = tmp_path / result["id"]
    assert sorted(p.name for p in (folder / "files").iterdir()) == ["labelled.csv", "validation.csv"]
    assert len((folder / "files" / "labelled.csv").read_text().splitlines()) == 1 + 20
    notes = {note["key"]: note["text"] for note in result["notes"]}
    assert "20 labelled, 851 unlabelled, 50 validation, 896 test" in notes["samples"]
    assert "weight 0.1, weak view, ramp 0" in notes["loss"]
    assert "choose" in notes["validation"]
    assert not (folder / "checkpoint.pt").exists()
    again = run(["task=semi", "method=fixmatch", "loss=em", "force=true"], tmp_path)
    assert again["rows"] == result["rows"]


def test_seeds_differ_and_selection_is_by_validation(tmp_path: Path) -> None:
    results = [run(["task=semi", "loss=em", f"seed={seed}"], tmp_path) for seed in (0, 1)]
    assert results[0]["rows"] != results[1]["rows"]
    for result in results:
        assert score(result, "accuracy_test_best") >= score(result, "accuracy_validation_selected")
    none = run(["task=semi", "loss=em", "data.validation_per_class=0"], tmp_path)
    assert not any(row["metric"] == "accuracy_validation_selected" for row in none["rows"])


def test_selection_takes_the_first_best_of_the_validation() -> None:
    task = SemiSupervised(SemiData(Digits()), NetMaker(nn.Identity), Protocol(1))
    history = [{"validation_accuracy": v, "accuracy": a} for v, a in ((0.4, 0.9), (0.6, 0.5), (0.6, 0.8), (0.5, 0.7))]
    from dembench.tasks.common.confusion import Confusion
    from dembench.tasks.common.metrics import StreamMetrics

    confusion, metrics = Confusion(10), StreamMetrics(10)
    confusion.update(torch.arange(10), torch.arange(10))
    metrics.update(torch.eye(10), torch.arange(10))
    rows = {r.metric: r.value for r in task.rows(confusion, metrics, history) if isinstance(r, Row)}
    assert rows["accuracy_validation_selected"] == 0.5
    assert rows["accuracy_test_best"] == 0.9
    assert rows["accuracy"] == 1.0


@pytest.mark.parametrize("task", ["semi", "longtail"])
def test_every_configuration_composes(task: str) -> None:
    for group in ("method", "model", "data", "protocol"):
        for name in options(group, task):
            cfg = compose([f"task={task}", f"{group}={name}"], complete=False)
            node = cfg[group]
            plain = {k: node[k] for k in node if not (k == "split_seed" or str(node._get_node(k)) == "???")}
            check_signatures({group: plain})


def test_missing_images_are_named_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="data.images.root=.*cifar-10-python.tar.gz"):
        compose(["task=semi", "data=cifar10"])
    with pytest.raises(ConfigError, match="unpack cifar-10-python.tar.gz"):
        experiment.prepare(compose(["task=semi", "data=cifar10", f"data.images.root={tmp_path}"]))


@pytest.mark.parametrize(("words", "message"), [
    (["protocol=usb"], "layer_decay=0.5: ConvNet has no blocks"),
    (["model=vit_tiny_patch2_32", "model.weights=null"], "model: no network for images of 16 x 16 .*32"),
    (["data.labels_per_class=null", "data.include_labelled=false"], "ent_min needs unlabelled samples"),
    (["method.loss_weight=-1"], "loss_weight: expected a number >= 0"),
])  # fmt: skip
def test_what_cannot_run_is_refused_before_there_is_a_run(words: list[str], message: str, tmp_path: Path) -> None:
    if "vit" in words[0]:  # of timm
        pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=message):
        experiment.run(experiment.prepare(compose(["task=semi", *words, f"out={tmp_path / 'runs'}"])))
    assert not (tmp_path / "runs").exists()


def test_images_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    def folder(name: str, side: int, *parts: str) -> Path:
        for part in parts:
            for kind in ("cat", "mean" if name == "named" else "dog"):
                (tmp_path / name / part / kind).mkdir(parents=True)
                for i in range(4):
                    Image.new("RGB", (side, side), (40 * i, 0, 0)).save(tmp_path / name / part / kind / f"{i}.png")
        return tmp_path / name

    for name, side, parts, message in (
        ("small", 4, ("train", "test"), "small: 4 x 4 pixels are too few to pad by 4"),
        ("untested", 8, ("train", "val"), "has train and validation but no test images"),
        ("named", 8, ("train", "test"), "a class cannot be named 'mean'"),
    ):
        images = ImageFolders(folder(name, side, *parts), name)
        with pytest.raises(ValueError, match=message):
            SemiData(images, 1).check()


def test_runs_without_validation_images_say_so(tmp_path: Path) -> None:
    result = run(["task=semi", "data.validation_per_class=0"], tmp_path)
    notes = {note["key"]: note["text"] for note in result["notes"]}
    assert "no validation images to select by (data.validation_per_class=N" in notes["selection"]
    assert "accuracy_validation_selected" not in {row["metric"] for row in result["rows"]}


def test_presets_are_the_published_ones() -> None:
    usb, classic = (compose(["task=semi", f"protocol={name}"]).protocol for name in ("usb", "classic"))
    assert (usb.iterations, usb.batch_size, usb.unlabelled_ratio, usb.optimizer) == (204800, 8, 1, "adamw")
    assert (usb.warmup, usb.warmup_from, usb.ema, usb.layer_decay) == (5120, 0, 0.0, 0.5)
    assert (classic.iterations, classic.batch_size, classic.unlabelled_ratio) == (2**20, 64, 7)
    assert (classic.lr, classic.weight_decay, classic.ema) == (0.03, 5e-4, 0.999)


@pytest.mark.parametrize(("name", "changes"), [
    ("usb_eurosat", {"lr": 5e-5, "layer_decay": 1.0}),
    ("usb_tissuemnist", {"lr": 5e-5, "layer_decay": 0.95}),
    ("usb_stl10", {"lr": 1e-4, "layer_decay": 0.65}),
    ("usb_semi_aves", {"lr": 1e-3, "layer_decay": 0.65}),
    ("classic_cifar100", {"weight_decay": 1e-3}),
    ("classic_equal", {"unlabelled_ratio": 1}),
])  # fmt: skip
def test_presets_of_a_dataset_change_its_rates_alone(name: str, changes: dict[str, float]) -> None:
    own, base = (compose(["task=semi", f"protocol={p}"]).protocol for p in (name, name.split("_")[0]))
    assert {key: own[key] for key in own if own[key] != base[key]} == changes


@pytest.mark.slow
def test_a_killed_run_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    words = ["task=semi", "method=freematch", "loss=adadem", "model.width=4", "protocol.batch_size=4",
             "protocol.iterations=60", "protocol.eval_every=20", "protocol.checkpoint_every=1"]  # fmt: skip
    ready = experiment.prepare(compose([*words, f"out={tmp_path / 'a'}"]))
    whole = experiment.run(ready).result

    out = tmp_path / "b"
    command = [sys.executable, "-m", "dembench.scripts.run", *words, f"out={out}", "progress=false"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    file = out / ready.id / "checkpoint.pt"
    end = time.monotonic() + 120
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert file.exists()
    assert not (out / ready.id / "result.json").exists()

    again = experiment.run(experiment.prepare(compose([*words, f"out={out}"]))).result
    assert again["rows"] == whole["rows"]
    for name in ("series.csv", "files/labelled.csv"):
        assert (out / ready.id / name).read_bytes() == (tmp_path / "a" / ready.id / name).read_bytes()
    assert again["cost"]["backward_passes"] == 60
    assert any(note["key"] == "resumed" for note in again["notes"])


@pytest.mark.slow
def test_two_processes_train_as_one() -> None:
    """The global batch is the same, so that gradients, FreeMatch's state and AdaDEM's table are, up to rounding."""
    found = []
    for devices in (1, 2):
        protocol = Protocol(4, 4, 2, lr=0.05, ema=0.9, eval_every=2, devices=devices)
        task = SemiSupervised(SemiData(Digits(), validation_per_class=1), NetMaker(Plain), protocol)
        # the fairness term is not linear in the samples
        events = list(task.run(lambda **kw: FreeMatch(AdaDEM(), fairness_weight=0.0, **kw)))
        found.append([e for e in events if isinstance(e, (Row, Scalars))])
        assert any(isinstance(e, Artifact) for e in events)
        assert any(isinstance(e, Note) and e.key == "devices" for e in events) == (devices == 2)
    assert len(found[0]) == len(found[1])
    for one, two in zip(*found, strict=True):
        if isinstance(one, Row):
            assert one.value == pytest.approx(two.value, rel=1e-3, abs=3e-3), one.metric
        else:
            assert one.values["accuracy"] == pytest.approx(two.values["accuracy"], abs=3e-3)
            assert one.values["entropy_term"] == pytest.approx(two.values["entropy_term"], rel=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("method", [FixMatch, FreeMatch, MixMatch])
def test_a_gpu_trains_as_the_cpu_does(method: type) -> None:
    values = []
    for device in ("cpu", "cuda"):
        task = SemiSupervised(SemiData(Digits()), NetMaker(Plain), Protocol(3, 4, 2, eval_every=3), device=device)
        events = list(task.run(lambda **kw: method(EM(), **kw)))
        values.append(next(e.values for e in events if isinstance(e, Scalars)))
    assert values[0]["supervised"] == pytest.approx(values[1]["supervised"], rel=1e-3)
    assert values[0]["entropy_term"] == pytest.approx(values[1]["entropy_term"], rel=1e-3)


def test_it_reads_back_as_json(tmp_path: Path) -> None:
    result = run(["task=semi", "loss=em"], tmp_path)
    assert json.loads((tmp_path / result["id"] / "result.json").read_text())["rows"] == result["rows"]

"""The whole path: events of the task, runs from a configuration, and models of open_clip with random weights."""

import json
import warnings
from functools import partial

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from tiny_clip import tiny_clip
from torch.testing import assert_close

from dembench import core
from dembench.harness import experiment
from dembench.harness.compose import ConfigError, compose, options
from dembench.tasks.base import Artifact, Histogram, Note, Point, Row
from dembench.tasks.prompt.data import Digits
from dembench.tasks.prompt.imagenet import ImageFolder
from dembench.tasks.prompt.methods.tpt import TPT
from dembench.tasks.prompt.methods.zero_shot import ZeroShot
from dembench.tasks.prompt.models import open_clip_model
from dembench.tasks.prompt.task import PromptTuning, Protocol
from dembench.tasks.prompt.views import Views

METHODS = ("coop", "ensemble", "marginal", "tda", "tpt", "tpt_coop", "zero", "zero_shot")
SMALL = {
    "task": "prompt", "data.num_images": 6, "model.steps": 2, "model.batch_size": 8, "protocol.views.count": 10,
    "protocol.block_size": 4, "data.corruptions": ["noise", "blobs"], "progress": False,
}  # fmt: skip


def task(tmp_path, **protocol):
    views = Views(count=10, scale=(0.5, 1.0), flip=0.0)
    return PromptTuning(
        Digits(num_images=9, corruptions=["noise", "blobs"]),
        tiny_clip(),
        Protocol(views=views, block_size=4, cache=tmp_path, template="a photo of {}.", **protocol),
    )


def events(task, make_method):
    found = {}
    for event in task.run(make_method):
        found.setdefault(type(event), []).append(event)
    return found


def values(found, metric="accuracy"):
    return {row.slice: row.value for row in found[Row] if row.metric == metric}


def test_events_of_a_run(tmp_path):
    whole = task(tmp_path)
    found = events(whole, partial(TPT, loss=core.EM(), lr=2e-2))
    points = found[Point]
    assert len(points) == len(whole) == 3 * 3
    assert [point.n for point in points] == [4, 4, 1] * 3
    assert [point.step for point in points] == list(range(9))
    assert [point.updated for point in points] == [4, 4, 1] * 3
    accuracy = values(found)
    assert list(accuracy) == ["clean", "noise", "blobs", "ood", "mean"]
    for name in ("clean", "noise", "blobs"):
        assert accuracy[name] == pytest.approx(sum(p.correct for p in points if p.slice == name) / 9)
    assert accuracy["mean"] == pytest.approx((accuracy["clean"] + accuracy["noise"] + accuracy["blobs"]) / 3)
    assert accuracy["ood"] == pytest.approx((accuracy["noise"] + accuracy["blobs"]) / 2)
    assert [sum(h.label) for h in found[Histogram]] == [9] * 3
    keys = [note.key for note in found[Note]]
    assert len(keys) == len(set(keys))
    assert {"digits", "template", "aggregate"} <= set(keys)
    (cost,) = found[Artifact]
    assert set(json.loads(cost.content)["sets"]) == {"clean", "noise", "blobs"}


def test_zero_shot_agrees_with_itself(tmp_path):
    found = events(task(tmp_path), ZeroShot)
    assert set(values(found, "agreement").values()) == {1.0}
    assert set(values(found, "mcnemar").values()) == {1.0}
    assert all(point.loss is None for point in found[Point])


def test_kept_features_give_the_same_rows(tmp_path):
    method = partial(TPT, loss=core.AdaDEM(), steps=2)
    first, second = (events(task(tmp_path), method) for _ in range(2))
    third = events(task(tmp_path, keep=False), method)
    assert first[Row] == second[Row] == third[Row]
    assert first[Point] == second[Point] == third[Point]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_from_a_configuration_and_repeats(tmp_path, monkeypatch, method):
    monkeypatch.setenv("DEMBENCH_CACHE", str(tmp_path / "cache"))
    assert options("method", "prompt") == list(METHODS)
    words = {**SMALL, "method": method, "loss": "adadem", "out": str(tmp_path / "runs")}
    if "coop" in method:
        words |= {"method.context.shots": 2, "method.context.epochs": 2}
    first = experiment.run(experiment.prepare(compose(words)))
    again = experiment.run(experiment.prepare(compose(words | {"force": True})))
    assert first.result["rows"] == again.result["rows"]
    assert first.result["id"] == again.result["id"]
    assert first.result["status"] in ("ok", "collapse")  # a CLIP of two steps may know one class only
    assert (first.path.parent / "files" / "cost.json").is_file()
    assert (first.path.parent / "files" / "coop.pt").is_file() == ("coop" in method)
    assert (first.result["cost"]["backward_passes"] > 0) == method.startswith("tpt")


@pytest.mark.parametrize(("loss", "aggregate"), [("em", "marginal"), ("dem", "per_view"), ("adadem", "per_view")])
def test_what_a_loss_is_applied_to_is_in_the_record(loss, aggregate):
    config = experiment.resolve(compose({"task": "prompt", "loss": loss}))
    assert config["method"]["aggregate"] == aggregate
    given = compose({"task": "prompt", "loss": loss, "method.aggregate": "mean_logits"})
    assert experiment.resolve(given)["method"]["aggregate"] == "mean_logits"


def test_wrong_settings_are_said_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"valid: .*marginal"):
        experiment.prepare(compose({**SMALL, "method.aggregate": "mean"}))
    with pytest.raises(ConfigError, match="unknown protocol.encoding 'pack'"):
        experiment.prepare(compose({**SMALL, "protocol.encoding": "pack"}))
    with pytest.raises(ValueError, match="unknown precision"):
        PromptTuning(Digits(num_images=1), tiny_clip(), Protocol(cache=tmp_path), precision="fp16")


# --- open_clip


def folder(root, classes=3, images=1):
    for number in range(classes):
        (root / f"class_{number}").mkdir(parents=True)
        for k in range(images):
            pixels = np.random.default_rng(10 * number + k).integers(0, 256, (60, 80, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"class_{number}" / f"{k}.png")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["RN50-quickgelu", "ViT-B-16-quickgelu"])
def test_random_weights_run_the_whole_path(tmp_path, arch):
    model = open_clip_model(arch, weights=None)
    data = ImageFolder(folder(tmp_path / "images"))
    protocol = Protocol(views=Views(count=10), block_size=2, cache=tmp_path)
    found = events(PromptTuning(data, model, protocol), partial(TPT, loss=core.AdaDEM(), lr=2e-2, steps=2))
    assert [point.n for point in found[Point]] == [2, 1]
    assert all(np.isfinite(row.value) for row in found[Row])
    assert len(TPT(PromptTuning(data, model, protocol).prompts(("cat", "dog")), core.EM()).context) == 4


def test_a_small_model_of_open_clip_runs_the_whole_path(tmp_path, monkeypatch):
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2},
    }
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny-test.json").write_text(json.dumps(config))
    (tmp_path / "models" / "tiny-custom.json").write_text(json.dumps({**config, "custom_text": True}))
    open_clip.add_model_config(tmp_path / "models")
    data = ImageFolder(folder(tmp_path / "images"))
    for arch in ("tiny-test", "tiny-custom"):
        model = open_clip_model(arch, weights=None)
        assert not model.model.training
        protocol = Protocol(views=Views(count=10), cache=tmp_path)
        found = events(PromptTuning(data, model, protocol), partial(TPT, loss=core.EM()))
        assert list(values(found)) == ["images", "mean"]
    path = tmp_path / "weights.pt"
    torch.save(open_clip_model("tiny-test", weights=None, seed=5).model.state_dict(), path)
    with pytest.raises(ValueError, match="which activation its weights were trained with"):
        open_clip_model("tiny-test", weights=path)
    loaded = open_clip_model("tiny-test", weights=path, quick_gelu=False)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    features = loaded.encode_images(images)
    assert torch.equal(features, open_clip_model("tiny-test", weights=None, seed=5).encode_images(images))
    assert not torch.equal(features, open_clip_model("tiny-test", path, quick_gelu=True).encode_images(images))
    torch.save({"other": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="does not fit tiny-test"):
        open_clip_model("tiny-test", weights=path, quick_gelu=False)

    # OpenAI's own files: TorchScript, half precision, with the numbers of the architecture
    original = open_clip_model("tiny-test", weights=None, seed=5).model
    original.register_buffer("input_resolution", torch.tensor(32))
    traced = torch.jit.trace(
        original, (torch.zeros(1, 3, 32, 32), torch.zeros(1, 24, dtype=torch.long)), check_trace=False, strict=False
    )
    traced.half().save(path)
    loaded = open_clip_model("tiny-test", weights=path, quick_gelu=False)
    expected = torch.jit.load(path).state_dict()
    assert all(torch.equal(value, expected[name].float()) for name, value in loaded.model.state_dict().items())
    assert_close(loaded.encode_images(images), features, atol=2e-3, rtol=0)
    with pytest.raises(ValueError, match="does not fit ViT-B-32-quickgelu: .* more tensors are others"):
        open_clip_model("ViT-B-32-quickgelu", weights=path, quick_gelu=True)


def test_names_and_activations_are_checked_before_anything_is_loaded(tmp_path):
    with pytest.raises(ValueError, match="unknown open_clip model 'ViT-B-17'; nearest"):
        open_clip_model("ViT-B-17")
    with pytest.raises(ValueError, match="unknown open_clip weights of RN50-quickgelu 'open'"):
        open_clip_model("RN50-quickgelu", weights="open")
    for arch in ("RN50", "ViT-B-16"):
        with pytest.raises(ValueError, match=f"trained with QuickGELU, {arch} has another activation: take"):
            open_clip_model(arch, weights="openai")
    with pytest.raises(ValueError, match="has QuickGELU"):
        open_clip_model("RN50-quickgelu", weights=None, quick_gelu=False)
    with pytest.raises(FileNotFoundError, match="no file"):
        open_clip_model("RN50-quickgelu", weights=tmp_path / "none.pt")
    with pytest.raises(ValueError, match="comes from Hugging Face"):
        open_clip_model("roberta-ViT-B-32", weights=None)


def test_without_a_network_the_message_says_what_to_do(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("Failed to download weights for tag 'openai': no network")

    monkeypatch.setattr(open_clip, "create_model", fail)
    with pytest.raises(FileNotFoundError, match="could not be downloaded.*give model.weights=PATH"):
        open_clip_model("RN50-quickgelu")


def test_a_quickgelu_warning_of_the_library_is_an_error(monkeypatch):
    def warn(*_, **__):
        warnings.warn("QuickGELU mismatch between final model config", UserWarning, stacklevel=2)

    monkeypatch.setattr(open_clip, "create_model", warn)
    with pytest.raises(ValueError, match="QuickGELU mismatch"):
        open_clip_model("RN50-quickgelu")

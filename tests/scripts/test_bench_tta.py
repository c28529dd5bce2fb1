import json

import pytest
from small_models import image_batches
from torch.testing import assert_close
from tta_models import FeatureNet

from dembench.scripts import bench
from dembench.scripts.bench import textbook_forward, tta
from dembench.scripts.bench.operations import count


def test_bench_prints_and_writes_every_method(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tta, "build_model", lambda name: (FeatureNet(), 12))
    file = tmp_path / "bench.json"
    arguments = ["--device", "cpu", "--seconds", "0.01", "--batch", "6", "--images", "3", "--json", str(file)]
    assert bench.main(["tta", *arguments]) == 0
    record = json.loads(file.read_text())
    assert [m["method"] for m in record["results"]] == list(tta.OURS)
    for m in record["results"]:
        assert m["batch"] == 6
        assert min(m["seconds"], m["textbook_seconds"], m["forward_seconds"]) > 0
        assert min(m["operations"], m["textbook_operations"], m["peak_bytes"], m["textbook_peak_bytes"]) > 0
    found = {m["method"]: m for m in record["results"]}
    assert [found[name]["waits"] for name in ("Tent", "ETA", "EATA", "SAR")] == [0, 0, 0, 0]
    assert [found[name]["textbook_waits"] for name in ("Tent", "ETA", "EATA", "SAR")] == [0, 2, 2, 3]
    assert found["EATA"]["operations"] <= 1.15 * found["ETA"]["operations"]
    assert len(record["corruption_seconds"]["cpu"]) == 15
    assert all(seconds > 0 for seconds in record["corruption_seconds"]["cpu"].values())
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in tta.OURS)
    assert "3 images 32 x 32, severity 5, on cpu" in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("loss", tta.LOSSES)
@pytest.mark.parametrize("name", tta.OURS)
def test_both_sides_do_the_same_work(name, loss):
    """Ours and the textbook loop return the same logits, and every image passes the gates of both."""
    shown = []

    class Seeing(FeatureNet):
        def features(self, x):
            shown.append(len(x))
            return super().features(x)

    ours, theirs = tta.both_sides(name, Seeing(), image_batches(1)[0], loss)
    for x in image_batches(3):
        shown.clear()
        logits = ours(x)
        passes = list(shown)
        shown.clear()
        assert_close(logits, theirs(x), rtol=1e-4, atol=1e-4)
        assert passes == shown
        assert set(shown) == {len(x)}


def test_one_method_on_a_real_model(tmp_path):
    file = tmp_path / "bench.json"
    arguments = ["--device", "cpu", "--method", "ETA", "--batch", "2", "--seconds", "0.01", "--images", "0"]
    assert bench.main(["tta", *arguments, "--loss", "adadem", "--json", str(file)]) == 0
    record = json.loads(file.read_text())
    assert (record["model"], record["loss"], record["corruption_seconds"]) == ("cifar_resnet20", "adadem", {})
    assert [m["method"] for m in record["results"]] == ["ETA"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--method", "Tant"], "unknown method 'Tant'; nearest: Tent"),
        (["--model", "resnet51"], "unknown torchvision model 'resnet51'; nearest: "),
        (["--batch", "1"], "--batch: expected at least 2, got 1"),
        (["--images", "-1"], "--images: expected at least 0, got -1"),
    ],
)
def test_wrong_options_end_before_any_work(wrong, message, capsys):
    assert bench.main(["tta", "--device", "cpu", *wrong]) == 2
    assert message in capsys.readouterr().err


def test_the_operations_of_a_pass_are_those_of_the_model():
    source, x = textbook_forward.Source(FeatureNet()), image_batches(1)[0]
    counts = count(lambda: source(x))
    assert counts.calls == {"convolution": 2, "native_batch_norm": 2, "relu": 2, "mean": 1, "addmm": 1}
    assert not counts.waits

import json

import pytest
import torch

from dembench.scripts import bench
from dembench.scripts.bench import segmentation


def test_the_bench_prints_and_writes_losses_and_steps(tmp_path, capsys):
    file = tmp_path / "seg.json"
    small = ["--logits", "1", "16", "32", "--step", "2", "32", "48", "--depth", "18"]
    assert bench.main(["segmentation", "--device", "cpu", "--seconds", "0.01", "--json", str(file), *small]) == 0
    record = json.loads(file.read_text())["cpu"]
    assert record["logits"] == [1, 19, 16, 32]
    assert set(record["losses"]) == set(record["step"]) == {"textbook entropy", "EM", "DEM(1.2, 0.8)", "AdaDEM"}
    assert record["losses"]["textbook entropy"]["ratio"] == 1
    assert record["step"]["textbook entropy"]["over"] == 0
    for m in record["step"].values():
        assert m["share"] == m["term"] / m["step"] > 0
    out = " ".join(capsys.readouterr().out.split())
    assert "(1, 19, 16, 32) float32 on cpu" in out
    assert "2 + 2 images of 48x32" in out


def test_adadem_holds_less_than_one_further_copy_of_the_logits():
    found = segmentation.losses((2, 19, 256, 512), "cpu", 0.01)
    assert 0 < found["AdaDEM"]["copies"] <= 1
    assert found["textbook entropy"]["copies"] > 2  # it keeps softmax, its logarithm and their product


def test_the_step_learns_by_the_textbook_entropy(monkeypatch):
    seen = []
    monkeypatch.setattr(segmentation, "textbook_entropy", lambda z: seen.append(z.shape) or (z.softmax(1) * z).sum(1))
    segmentation.training_step((2, 32, 48), 18, "cpu")()
    assert seen == [torch.Size((2, 19, 32, 48))] * 2  # both heads, at the images' size


def test_wrong_sizes_are_refused(capsys):
    assert bench.main(["segmentation", "--logits", "0", "16", "32"]) == 2
    assert "at least 1" in capsys.readouterr().err


@pytest.mark.gpu
def test_the_bench_runs_on_a_gpu():
    assert bench.main(["segmentation", "--device", "cuda", "--seconds", "0.1", "--logits", "1", "64", "128"]) == 0

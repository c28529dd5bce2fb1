import json

import pytest
import torch
from torch.testing import assert_close

from dembench import core
from dembench.core import functional as F
from dembench.scripts import bench
from dembench.scripts.bench import loss


def test_the_baselines_compute_what_they_stand_for():
    z = torch.randn(20, 7, requires_grad=True)
    assert_close(loss.textbook_entropy(z), F.em(z))
    assert_close(loss.textbook_by_exp(z), F.em(z))
    literal, ours = loss.LiteralAdaDEM(7, z.detach()), core.AdaDEM(7)
    for _ in range(3):
        z = torch.randn(20, 7, requires_grad=True)
        expected, value = literal(z), ours(z)
        assert_close(value, expected)
        assert_close(ours.table, literal.table)
        assert_close(torch.autograd.grad(value.sum(), z)[0], torch.autograd.grad(expected.sum(), z)[0])


def test_bench_prints_and_writes_every_loss(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loss, "SHAPES", [(8, 3), (2, 3, 4, 4)])
    file = tmp_path / "bench.json"
    assert bench.main(["loss", "--device", "cpu", "--seconds", "0.01", "--json", str(file)]) == 0
    record = json.loads(file.read_text())
    assert len(record["results"]) == 2 * 5
    assert {m["loss"] for m in record["results"]} >= {"textbook entropy", "EM", "AdaDEM", "AdaDEM, literal"}
    for m in record["results"]:
        assert m["seconds"] > 0
        assert m["bytes"] == 2 * 4 * torch.Size(m["shape"]).numel()
        assert m["peak_bytes"] > 0
        assert (m["ratio"] == 1) == (m["loss"] == "textbook entropy")
    assert "(2, 3, 4, 4) float32 on cpu" in capsys.readouterr().out


def test_bench_compares_numbers_of_threads(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loss, "THREAD_SHAPES", [(8, 3), (2, 3, 4, 4)])
    file, before = tmp_path / "bench.json", torch.get_num_threads()
    assert bench.main(["loss", "--threads", "1,2", "--seconds", "0.01", "--json", str(file)]) == 0
    assert torch.get_num_threads() == before
    record = json.loads(file.read_text())
    assert record["threads"] == [1, 2]
    found = [(tuple(row["shape"]), row["threads"], row["loss"]) for row in record["results"]]
    losses = ["textbook entropy", "EM", "DEM(1.2, 0.8)", "AdaDEM"]
    assert found == [(s, n, name) for s in [(8, 3), (2, 3, 4, 4)] for n in (1, 2) for name in losses]
    for row in record["results"]:
        assert row["seconds"] > 0
        assert (row["ratio"] == 1) == (row["loss"] == "textbook entropy")
    out = capsys.readouterr().out
    assert "1 thread;" in out
    assert "2 threads;" in out
    assert bench.main(["tta", "--threads", "1,2"]) == 2
    assert "--threads: expected one number" in capsys.readouterr().err


def test_peak_counts_what_is_held():
    z = torch.randn(1000, 100, requires_grad=True)

    def call():
        (z * 2).exp().sum().backward()

    size = 4 * z.numel()
    # two are held at once at most, forward (the product and its exponential) and backward; one of them is the gradient
    assert size <= loss._peak(call, z, "cpu") < 1.1 * size


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_asked_for_but_absent(capsys):
    assert bench.main(["loss", "--device", "cuda"]) == 2
    assert "no CUDA device" in capsys.readouterr().err

"""The bench runs at a tiny size, and its textbook loop trains what ours trains."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

import pytest
import torch
from rich.console import Console

from dembench.scripts.bench import main, semi


def test_it_measures_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser()
    semi.add_arguments(parser)
    options = parser.parse_args(["--batch", "2", "--ratio", "1", "--depth", "10", "--steps", "1", "--workers", "0"])
    options.devices, options.seconds = ["cpu"], 0.01
    found = semi.run(options, Console())
    assert found["augmentation"]["pillow"]["strong"] > found["augmentation"]["ours"]["strong"]
    assert found["cpu"]["speedup"] > 0
    assert found["cpu"]["ours_per_second"] == pytest.approx(4 / found["cpu"]["step"])
    assert "samples/s" in capsys.readouterr().out


def test_wrong_sizes_are_refused(tmp_path: Path) -> None:
    assert main(["semi", "--batch", "0", "--seconds", "0.01"]) == 2


def test_the_textbook_step_moves_weights_and_average() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 10))
    average = [p.detach().clone() for p in net.parameters()]
    start = [p.clone() for p in average]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    batch = [torch.randn(4, 3, 2, 2) for _ in range(3)] + [torch.arange(4)]
    semi.textbook_step(net, average, optimizer, batch)
    for p, mean, before in zip(net.parameters(), average, start, strict=True):
        torch.testing.assert_close(mean, 0.999 * before + 0.001 * p.detach())
        assert not torch.equal(p, before)

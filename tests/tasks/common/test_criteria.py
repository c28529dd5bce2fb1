"""Criteria without labels against SciPy's entropy and a loop, and that measuring them moves nothing else."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy

from dembench.harness import experiment
from dembench.harness.compose import compose
from dembench.tasks.common.criteria import Criteria, mean_rows, shifted


def logits(seed: int, n: int = 40, classes: int = 5) -> torch.Tensor:
    return 3 * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed))


def test_both_criteria_over_batches_are_those_of_scipy_and_a_loop():
    a, b = logits(0), logits(1)
    found = Criteria(5)
    for part in (slice(0, 7), slice(7, 40)):
        found.update(a[part], b[part])
    p, q = softmax(a.double().numpy(), 1), softmax(b.double().numpy(), 1)
    values = found.values()
    assert values["information"] == pytest.approx(entropy(p.mean(0)) - entropy(p, axis=1).mean())
    invariance = [math.sqrt(x.max() * y.max()) if x.argmax() == y.argmax() else 0 for x, y in zip(p, q, strict=True)]
    assert 0 < values["consistency"] == pytest.approx(np.mean(invariance))


def test_the_ends_of_the_scale():
    sure = 1e4 * torch.eye(4)
    found = Criteria(4)
    found.update(sure, sure)
    assert found.values() == pytest.approx({"information": math.log(4), "consistency": 1.0})
    for same in (torch.zeros(4, 4), 1e4 * torch.eye(4)[[0, 0, 0, 0]]):  # knows nothing; has collapsed
        found = Criteria(4)
        found.update(same)
        assert found.values() == pytest.approx({"information": 0.0}, abs=1e-9)


def test_positions_of_a_map_are_samples():
    maps, others = (x.view(2, 4, 5, 5).movedim(3, 1) for x in (logits(0), logits(1)))
    whole, flat = Criteria(5), Criteria(5)
    whole.update(maps, others)
    flat.update(logits(0), logits(1))
    assert whole.values() == pytest.approx(flat.values())
    assert whole.n == 40


def test_streams_count_alike_and_a_stream_without_copies_drops_consistency():
    streams = [Criteria(5), Criteria(5)]
    streams[0].update(logits(0, 10), logits(1, 10))
    streams[1].update(logits(2, 30), logits(3, 30))
    rows = {row.metric: row for row in mean_rows(streams)}
    for name, row in rows.items():
        assert row.value == pytest.approx(np.mean([stream.values()[name] for stream in streams]))
        assert (row.slice, row.n) == ("mean", 40)
    streams[1].update(logits(4))
    assert [row.metric for row in mean_rows(streams)] == ["information"]
    assert mean_rows([]) == []


def test_the_copy_is_moved_by_a_sixteenth_and_repeats_the_edge():
    x = torch.arange(32 * 32.0).view(1, 1, 32, 32)
    moved = shifted(x)
    assert torch.equal(moved[..., 2:, 2:], x[..., :-2, :-2])
    assert torch.equal(moved[..., :2, 2:], x[..., :1, :-2].expand(1, 1, 2, 30))
    assert torch.equal(shifted(x[..., :8, :8])[..., 1:, 1:], x[..., :7, :7])


@pytest.mark.parametrize("method", ["tent", "norm_ema", "eata", "ttc"])
def test_measuring_them_moves_no_number_of_the_run(method, tmp_path):
    words = {"method": method, "loss": "adadem", "protocol": "continual", "protocol.corruptions": ["fog", "contrast"],
             "data.num_images": 200, "protocol.batch_size": 10, "part": "search", "progress": False,
             "out": str(tmp_path), "method.lr": 0.01}  # fmt: skip
    if method == "norm_ema":
        del words["method.lr"]
    plain, measured = (
        experiment.run(experiment.prepare(compose({**words, "criteria": c}))).result for c in (False, True)
    )
    rows = {row["metric"]: row for row in measured["rows"] if row["metric"] in ("information", "consistency")}
    assert [row for row in measured["rows"] if row not in rows.values()] == plain["rows"]
    assert set(rows) == {"information", "consistency"}
    assert 0 < rows["information"]["value"] < math.log(10)
    assert 0 < rows["consistency"]["value"] < 1
    counts = ("forward_passes", "backward_passes", "updated")
    assert [measured["cost"][name] for name in counts] == [plain["cost"][name] for name in counts]
    assert measured["id"] != plain["id"]

"""Certain at chance is a collapse; a class that no sample shows has no number, is in no mean, and is named."""

from __future__ import annotations

import math

import pytest
import torch

from dembench.tasks.common.confusion import Confusion
from dembench.tasks.common.metrics import ClassMetrics, StreamMetrics, undefined

LABELS = torch.arange(100) % 5


@pytest.mark.parametrize(
    ("scale", "shift", "flags"),
    [(1e30, 1, 1), (1e30, 0, 0), (1.0, 1, 0)],
    ids=["certain and wrong", "certain and right", "unsure and wrong"],
)
def test_certain_of_everything_at_chance_is_a_collapse(scale: float, shift: int, flags: int) -> None:
    metrics = StreamMetrics(5)
    metrics.update(torch.eye(5)[(LABELS + shift) % 5] * scale, LABELS)
    found = list(metrics.collapse("fog/5", metrics.histogram("fog/5")))
    assert [flag.kind for flag in found] == ["collapse"] * flags
    assert all(
        "certain of 100% of the predictions, and 0% right, which is chance in fog/5" in flag.message for flag in found
    )


def test_a_class_that_no_sample_shows() -> None:
    labels = LABELS % 4
    confusion = Confusion(5)
    confusion.update(LABELS, labels)
    assert confusion.macro()["recall"] == pytest.approx(confusion.per_class()["recall"][:4].mean().item())
    (note,) = undefined(["a", "b", "c", "d", "fence"], confusion.label_counts.tolist())
    assert "no test sample shows fence" in note.text
    assert "(4 of 5 are shown)" in note.text
    assert not list(undefined(["a"], [1]))


def test_a_divergence_that_is_infinite_has_no_row() -> None:
    metrics = ClassMetrics(5)
    metrics.update(torch.eye(5)[LABELS], LABELS % 4)
    rows = metrics.rows("s")
    assert "bias_kl" not in {row.metric for row in rows}
    assert all(math.isfinite(row.value) for row in rows)

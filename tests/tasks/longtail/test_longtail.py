"""Long-tailed data and its task: counts, disjoint parts, what reaches the record, and that nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dembench.harness import experiment
from dembench.harness.compose import compose
from dembench.harness.judging import judge
from dembench.tasks.common.long_tail import long_tail_counts
from dembench.tasks.longtail.data import LongTailData
from dembench.tasks.semi.data import SemiData
from dembench.tasks.semi.sources import Digits

TINY = ["model.width=4", "protocol.iterations=4", "protocol.eval_every=2", "protocol.batch_size=4"]


def run(words: list[str], out: Path) -> dict[str, Any]:
    words = ["task=longtail", *TINY, *words, f"out={out}"]
    return experiment.run(experiment.prepare(compose(words))).result


def labels_of(data: LongTailData) -> dict[str, list[int]]:
    """Counts per class of each part."""
    labels = data.images.train.labels
    split = data.split
    parts = {"labelled": split.labelled, "unlabelled": split.unlabelled, "validation": split.validation}
    return {name: torch.bincount(labels[index], minlength=10).tolist() for name, index in parts.items()}


def test_parts_follow_their_profiles_and_are_disjoint() -> None:
    data = LongTailData(Digits(), 20, 40, rho=10, validation_per_class=3)
    data.check()
    counts = labels_of(data)
    assert counts["labelled"] == long_tail_counts(20, 10, 10)[0]
    assert counts["unlabelled"] == long_tail_counts(40, 10, 10)[0]
    assert counts["validation"] == [3] * 10
    split = data.split
    everything = torch.cat([split.labelled, split.unlabelled, split.validation])
    assert len(everything.unique()) == len(everything)
    assert data.name == "digits-lt"
    assert len(data.test.labels) == 896
    assert data.training_counts.tolist() == counts["labelled"]


def test_reverse_turns_the_unlabelled_profile_alone() -> None:
    counts = labels_of(LongTailData(Digits(), 20, 40, rho=10, rho_unlabelled=20, reverse=True))
    assert counts["labelled"] == long_tail_counts(20, 10, 10)[0]
    assert counts["unlabelled"] == long_tail_counts(40, 20, 10)[0][::-1]


def test_an_empty_tail_is_refused_or_clamped_and_noted() -> None:
    with pytest.raises(ValueError, match="data.tail=clamp"):
        LongTailData(Digits(), 20, 40, rho=30).check()
    data = LongTailData(Digits(), 20, 40, rho=30, tail="clamp")
    notes = {note.key: note.text for note in data.notes}
    assert notes["labelled_tail"].startswith("2 labelled classes")
    assert "unlabelled_tail" not in notes
    assert min(labels_of(data)["labelled"]) == 1


def test_a_stream_of_test_images_is_long_tailed_and_noted() -> None:
    data = LongTailData(Digits(), 20, 1, rho=10, unlabelled_from="test")
    head = int(torch.bincount(data.test.labels).min())
    assert len(data.unlabelled) == sum(long_tail_counts(head, 10, 10)[0])
    assert any(note.key == "transductive" for note in data.notes)
    assert len(data.split.unlabelled) == 0
    index = [int(line.split(",")[0]) for line in data.files()["unlabelled.csv"].splitlines()[1:]]
    assert torch.equal(data.test.images[index], data.unlabelled)
    labels = [int(line.split(",")[1]) for line in data.files()["unlabelled.csv"].splitlines()[1:]]
    assert data.test.labels[index].tolist() == labels


@pytest.mark.parametrize("loss", ["none", "em", "dem", "adadem"])
def test_it_runs_and_reports_thirds(loss: str, tmp_path: Path) -> None:
    result = run([f"loss={loss}"], tmp_path)
    rows = {row["metric"]: row["value"] for row in result["rows"] if row["slice"] == "mean"}
    assert {"geometric_mean", "recall_head", "recall_medium", "recall_tail", "bias_kl", "bias_tv", "f1"} <= set(rows)
    recall = [row["value"] for row in result["rows"] if row["metric"] == "recall" and row["slice"] != "mean"]
    assert rows["recall_head"] == pytest.approx(sum(recall[:3]) / 3)
    assert rows["recall_tail"] == pytest.approx(sum(recall[7:]) / 3)
    assert result["data"] == "digits-lt"
    assert (tmp_path / result["id"] / "files" / "unlabelled.csv").is_file()


@pytest.mark.parametrize(("method", "loss"), [
    ("fixmatch", "gce"), ("vat", "slr"), ("supervised", "em"), ("remixmatch", "renyi"), ("abc_usb", "tsallis"),
    ("darp_cifar100", "marginal_entropy"),
])  # fmt: skip
def test_methods_run(method: str, loss: str, tmp_path: Path) -> None:
    assert run([f"method={method}", f"loss={loss}"], tmp_path)["status"] != "nan"


def test_weights_with_two_heads_are_judged_again(tmp_path: Path) -> None:
    """ABC's second head is judged, at the end of the run and from the file alike."""
    result = run(["method=abc", "loss=im", "save=last"], tmp_path)
    _, found = judge(tmp_path / result["id"])
    assert [row["value"] for row in found["rows"]] == [
        row["value"] for row in result["rows"] if not row["metric"].startswith("accuracy_")
    ]


def test_imbalance_changes_nothing_but_the_data() -> None:
    semi, tail = (compose([f"task={task}"]) for task in ("semi", "longtail"))
    for group in ("method", "model", "protocol"):
        assert semi[group] == tail[group]
    for protocol in ("demo", "short", "usb"):
        semi, tail = (compose([f"task={task}", f"protocol={protocol}"]).protocol for task in ("semi", "longtail"))
        assert semi == tail
    assert compose(["task=longtail", "protocol=classic"]).protocol.schedule == "cosine"


def test_at_ratio_one_the_choice_is_that_of_balanced_data() -> None:
    tail = LongTailData(Digits(), 4, 30, rho=1, validation_per_class=5, split_seed=2)
    balanced = SemiData(Digits(), 4, 5, include_labelled=False, split_seed=2)
    assert torch.equal(tail.split.labelled, balanced.split.labelled)
    assert torch.equal(tail.split.validation, balanced.split.validation)
    assert set(tail.split.unlabelled.tolist()) < set(balanced.split.unlabelled.tolist())


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        LongTailData(Digits(), 0, 10)
    with pytest.raises(ValueError, match="at least 1"):
        LongTailData(Digits(), 5, 10, rho_unlabelled=0.5)
    with pytest.raises(ValueError, match="class 0 has"):
        LongTailData(Digits(), 60, 80, rho=2).check()

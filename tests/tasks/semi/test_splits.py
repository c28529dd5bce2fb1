"""Splits and profiles against published counts; per-class numbers against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from dembench.tasks.common.confusion import Confusion
from dembench.tasks.common.long_tail import long_tail_counts
from dembench.tasks.semi.splits import choose


def test_the_profile_of_cifar10_lt_is_the_published_one() -> None:
    assert long_tail_counts(5000, 100, 10) == ([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50], 0)


@pytest.mark.parametrize(
    ("head", "rho", "classes", "total", "tail"),
    [
        (500, 10, 100, 19573, 50),
        (500, 100, 100, 10847, 5),
        (1500, 100, 10, 3720, 15),
        (3000, 100, 10, 7443, 30),
        (150, 10, 100, 5835, 15),
        (300, 10, 100, 11720, 30),
        (1500, 1000, 10, None, 1),
    ],
)
def test_profiles_have_the_published_sizes(head: int, rho: float, classes: int, total: int | None, tail: int) -> None:
    counts, clamped = long_tail_counts(head, rho, classes)
    assert (counts[0], counts[-1], clamped) == (head, tail, 0)
    assert total is None or sum(counts) == total
    assert counts == sorted(counts, reverse=True)
    assert long_tail_counts(head, rho, classes, reverse=True)[0] == counts[::-1]


def test_a_tail_that_would_be_empty_is_refused_or_clamped() -> None:
    with pytest.raises(ValueError, match=r"classes would be empty .* data.tail=clamp"):
        long_tail_counts(150, 500, 100)
    counts, clamped = long_tail_counts(150, 500, 100, tail="clamp")
    assert min(counts) == 1
    assert clamped == sum(int(150 * 500 ** (-c / 99)) == 0 for c in range(100)) > 0
    assert long_tail_counts(40, 1, 4) == ([40] * 4, 0)
    with pytest.raises(ValueError, match="rho >= 1"):
        long_tail_counts(10, 0.5, 4)


def test_a_choice_is_disjoint_and_of_the_asked_sizes() -> None:
    labels = torch.arange(400) % 4
    split = choose(labels, [5, 4, 3, 2], [10, 20, 30, 40], validation=6, seed=3)
    parts = [part.tolist() for part in (split.labelled, split.unlabelled, split.validation)]
    assert len({i for part in parts for i in part}) == sum(map(len, parts))
    assert torch.bincount(labels[split.labelled]).tolist() == [5, 4, 3, 2]
    assert torch.bincount(labels[split.unlabelled]).tolist() == [10, 20, 30, 40]
    assert torch.bincount(labels[split.validation]).tolist() == [6] * 4
    assert split.labelled.equal(split.labelled.sort().values)


def test_the_rest_is_unlabelled_with_those_of_unknown_class() -> None:
    labels = torch.cat([torch.arange(40) % 4, torch.full((9,), -1)])
    split = choose(labels, [2] * 4, validation=1, seed=0)
    assert len(split.unlabelled) == 49 - 8 - 4
    assert (labels[split.unlabelled] < 0).sum() == 9
    both = choose(labels, [2] * 4, validation=1, include_labelled=True, seed=0)
    assert set(both.unlabelled.tolist()) == set(split.unlabelled.tolist()) | set(split.labelled.tolist())


def test_seeds_choose_differently_and_more_labels_contain_fewer() -> None:
    labels = torch.arange(400) % 4
    few, more, other = (choose(labels, [n] * 4, validation=5, seed=s) for n, s in ((4, 0), (25, 0), (4, 1)))
    assert set(few.labelled.tolist()) < set(more.labelled.tolist())
    assert few.validation.equal(more.validation)
    assert not few.labelled.equal(other.labelled)
    assert few.labelled.equal(choose(labels, [4] * 4, validation=5, seed=0).labelled)


def test_too_few_samples_are_an_error() -> None:
    with pytest.raises(ValueError, match="class 0 has 10 samples, 2 validation \\+ 9 labelled"):
        choose(torch.arange(40) % 4, [9] * 4, validation=2)
    with pytest.raises(ValueError, match="class 1 \\(dog\\) has 10 samples"):
        choose(torch.arange(40) % 4, [5] * 4, [5, 6, 5, 5], names=("cat", "dog", "cow", "pig"))


@pytest.mark.parametrize("seed", range(3))
def test_metrics_are_scikit_learns(seed: int) -> None:
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 7, 500)
    predicted = np.where(draw.random(500) < 0.5, labels, draw.integers(0, 5, 500))  # classes 5, 6: by luck or never
    confusion = Confusion(8)  # class 7 is nowhere
    for part in np.array_split(np.arange(500), 3):
        confusion.update(torch.from_numpy(predicted[part]), torch.from_numpy(labels[part]))
    options = {"labels": range(8), "zero_division": 0}
    expected = precision_recall_fscore_support(labels, predicted, average=None, **options)
    for name, values in zip(("precision", "recall", "f1"), expected, strict=False):
        np.testing.assert_allclose(confusion.per_class()[name].numpy(), values, rtol=1e-12)
    shown = {**options, "labels": range(7)}  # means are over the classes that labels show
    means = precision_recall_fscore_support(labels, predicted, average="macro", **shown)
    for name, value in zip(("precision", "recall", "f1"), means, strict=False):
        assert confusion.macro()[name] == pytest.approx(value, rel=1e-12)
    assert confusion.accuracy() == pytest.approx(accuracy_score(labels, predicted))
    assert confusion.label_counts.tolist() == np.bincount(labels, minlength=8).tolist()
    assert confusion.predicted_counts.tolist() == np.bincount(predicted, minlength=8).tolist()


def filled(counts: list[list[int]]) -> Confusion:
    confusion = Confusion(len(counts))
    confusion.counts += torch.tensor(counts)
    return confusion


def test_bias_is_the_distance_of_predictions_from_labels() -> None:
    confusion = filled([[8, 2, 0], [4, 6, 0], [5, 1, 4]])
    q, p = np.array([17, 9, 4]) / 30, np.full(3, 1 / 3)
    assert confusion.bias() == pytest.approx({"kl": entropy(q, p), "tv": np.abs(q - p).sum() / 2})
    assert filled([[3, 0], [0, 5]]).bias() == pytest.approx({"kl": 0, "tv": 0}, abs=1e-12)
    never = filled([[5, 5, 0], [5, 5, 0], [5, 5, 0]])
    assert never.bias()["kl"] == pytest.approx(np.log(3 / 2))


def test_geometric_mean_and_thirds() -> None:
    confusion = filled([[8, 2, 0, 0], [5, 5, 0, 0], [0, 8, 2, 0], [5, 0, 0, 5]])
    assert confusion.geometric_mean() == pytest.approx((0.8 * 0.5 * 0.2 * 0.5) ** 0.25)
    assert filled([[5, 0], [5, 0]]).geometric_mean() == 0
    thirds = confusion.thirds(torch.tensor([1, 50, 10, 100]))  # from most to least: 3, 1, 2, 0
    assert thirds == pytest.approx({"head": 0.5, "medium": (0.5 + 0.2) / 2, "tail": 0.8})
    two = filled([[3, 1], [4, 4]]).thirds(torch.tensor([2, 9]))
    assert two == {"head": 0.5, "tail": 0.75}  # nothing lies between two classes


def test_accuracy_is_exact() -> None:
    assert filled([[89, 400], [407, 0]]).accuracy() == 89 / 896

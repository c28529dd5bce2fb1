"""Which images of a dataset are used: balanced subsets, and numbers that are checked at once."""

import numpy as np
import pytest

from dembench.tasks.common.choice import balanced_subset, draw
from dembench.tasks.common.generated import GeneratedCIFAR10C
from dembench.tasks.tta.released import CIFAR10C


def test_a_subset_is_balanced_spaced_and_ascending():
    labels = np.repeat(np.arange(10), 100)
    assert balanced_subset(labels, None).tolist() == list(range(1000))
    chosen = balanced_subset(labels, 50)
    assert chosen.tolist() == [100 * c + 20 * k for c in range(10) for k in range(5)]
    chosen = balanced_subset(labels, 13)
    assert np.bincount(labels[chosen], minlength=10).tolist() == [2, 2, 2, 1, 1, 1, 1, 1, 1, 1]
    assert balanced_subset(labels, 1000).tolist() == list(range(1000))


def test_a_subset_of_mixed_labels_is_balanced():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 30))
    chosen = balanced_subset(labels, 70)
    assert np.bincount(labels[chosen]).tolist() == [7] * 10
    assert (np.diff(chosen) > 0).all()
    with pytest.raises(ValueError, match="expected at most 300, the images that there are, got 310"):
        balanced_subset(labels, 310)


@pytest.mark.parametrize(
    ("num_images", "counts"),
    [(1, [1, 0, 0]), (4, [2, 1, 1]), (6, [2, 2, 2]), (9, [4, 2, 3]), (11, [5, 2, 4]), (12, [5, 2, 5]), (14, [7, 2, 5])],
)
def test_a_class_that_has_fewer_gives_all(num_images, counts):
    labels = np.array([0] * 7 + [1] * 2 + [2] * 5)
    chosen = balanced_subset(labels, num_images)
    assert np.bincount(labels[chosen], minlength=3).tolist() == counts
    assert len(set(chosen.tolist())) == num_images


@pytest.mark.parametrize("number", [0, -3, 2.5, True, "10"])
def test_numbers_of_images_are_checked_at_once(number):
    for build in (lambda: CIFAR10C("none", number), lambda: GeneratedCIFAR10C("none", number)):
        with pytest.raises(ValueError, match="expected num_images to be a whole number > 0"):
            build()


def test_seeds_are_checked_at_once():
    with pytest.raises(ValueError, match="expected a whole number >= 0 as seed, got -1"):
        GeneratedCIFAR10C("none", seed=-1)


def test_a_draw_takes_each_once_and_follows_the_seed():
    assert sorted(draw(50, 50, 3).tolist()) == sorted(draw(50, 80, 3).tolist()) == list(range(50))
    assert draw(50, 20, 3).tolist() == draw(50, 50, 3)[:20].tolist()
    assert draw(50, 20, 4).tolist() != draw(50, 20, 3).tolist() != list(range(20))

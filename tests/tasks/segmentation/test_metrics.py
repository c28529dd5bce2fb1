"""Scores against scikit-learn's confusion matrix, mmsegmentation's metric and scipy's entropy."""

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy
from sklearn.metrics import accuracy_score, confusion_matrix, recall_score

from dembench.tasks.segmentation.metrics import SegMetrics

CLASSES = ("a", "b", "c", "d", "never")


def batches():
    generator = torch.Generator().manual_seed(0)
    for n in (1, 2, 1):
        labels = torch.randint(0, 4, (n, 7, 9), generator=generator)
        labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
        logits = 2 * torch.randn(n, 5, 7, 9, generator=generator)
        logits[:, 4] = -9  # neither true nor predicted
        logits[:, 1] += labels == 1
        yield logits, labels


@pytest.fixture
def scored():
    metrics = SegMetrics(CLASSES, ("c", "d"), subsets={"iou_13": ("a", "d")})
    for logits, labels in batches():
        metrics.update(logits, labels)
    z = torch.cat([logits.movedim(1, -1).flatten(0, 2) for logits, _ in batches()]).numpy()
    y = torch.cat([labels.flatten() for _, labels in batches()]).numpy()
    return metrics, z[y < 255], y[y < 255]


def test_scores_are_those_of_one_confusion_matrix_over_all_pixels(scored):
    metrics, z, y = scored
    counts = confusion_matrix(y, z.argmax(1), labels=range(5))
    hit = counts.diagonal()
    iou = hit[:4] / (counts.sum(0) + counts.sum(1) - hit)[:4]
    rows = {(row.slice, row.metric): row for row in metrics.rows()}
    for name, value in zip(CLASSES, iou, strict=False):
        assert rows[name, "iou"].value == pytest.approx(value)
        assert rows[name, "iou"].n == (y == CLASSES.index(name)).sum()
    assert rows["mean", "iou"].value == pytest.approx(iou.mean()) == pytest.approx(metrics.miou)
    assert rows["mean", "iou_tail"].value == pytest.approx(iou[2:].mean())
    assert rows["mean", "iou_13"].value == pytest.approx((iou[0] + iou[3]) / 2)
    assert rows["mean", "pixel_accuracy"].value == pytest.approx(accuracy_score(y, z.argmax(1)))
    assert rows["mean", "recall"].value == pytest.approx(recall_score(y, z.argmax(1), average="macro"))
    assert not {("never", "iou"), ("never", "recall")} & rows.keys()
    assert metrics.predicted_counts == np.bincount(z.argmax(1), minlength=5).tolist()
    assert metrics.label_counts == np.bincount(y, minlength=5).tolist()
    assert metrics.finite


def test_entropy_is_scipys_over_valid_pixels(scored):
    metrics, z, _ = scored
    rows = {(row.slice, row.metric): row for row in metrics.rows()}
    expected = entropy(softmax(z.astype(float), axis=1), axis=1).mean()
    assert rows["mean", "entropy"].value == pytest.approx(expected, rel=1e-5)
    assert rows["mean", "entropy_share"].value == pytest.approx(expected / math.log(5), rel=1e-5)


def test_rounded_it_is_what_mmsegmentation_reports(scored):
    from mmseg.evaluation import IoUMetric

    metrics, _, _ = scored
    theirs = IoUMetric(iou_metrics=["mIoU"])
    theirs.dataset_meta = {"classes": CLASSES}
    for logits, labels in batches():
        samples = [
            {"pred_sem_seg": {"data": z.argmax(0)[None]}, "gt_sem_seg": {"data": y[None]}}
            for z, y in zip(logits, labels, strict=True)
        ]
        theirs.process({}, samples)
    found = theirs.compute_metrics(theirs.results)
    rows = {row.metric: row.value for row in metrics.rows() if row.slice == "mean"}
    assert 100 * rows["iou"] == pytest.approx(found["mIoU"], abs=0.006)
    assert 100 * rows["recall"] == pytest.approx(found["mAcc"], abs=0.006)
    assert 100 * rows["pixel_accuracy"] == pytest.approx(found["aAcc"], abs=0.006)


def test_areas_beyond_float32_are_exact():
    metrics = SegMetrics(("a", "b"))
    pixel = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1), torch.zeros(1, 1, 1, dtype=torch.int64)
    metrics.update(*pixel)
    metrics._counts[0] += 2**24  # as after many images
    metrics.update(*pixel)
    assert metrics.label_counts == [2**24 + 2, 0]
    assert metrics.areas[:, 0].tolist() == [2**24 + 2] * 4


def test_no_pixels_give_no_number_and_nothing_finite_is_claimed_of_nan():
    metrics = SegMetrics(("a", "b"))
    metrics.update(torch.full((1, 2, 1, 1), math.nan), torch.full((1, 1, 1), 255))
    assert math.isnan(metrics.miou)
    assert not metrics.finite
    assert all(math.isnan(row.value) and row.n == 0 for row in metrics.rows())


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="z not among the classes a, b"):
        SegMetrics(("a", "b"), ("z",))
    with pytest.raises(ValueError, match=r"expected logits of \(1, 2, 4, 4\)"):
        SegMetrics(("a", "b")).update(torch.zeros(1, 2, 2, 2), torch.zeros(1, 4, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="label 2 is no class and not 255"):
        SegMetrics(("a", "b")).update(torch.zeros(1, 2, 1, 1), torch.full((1, 1, 1), 2))

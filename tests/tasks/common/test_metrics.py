"""Streaming metrics against torchmetrics, torch and scipy, in uneven batches; NaN must be seen."""

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from dembench.tasks.common.metrics import StreamMetrics, is_collapsed

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def stream(n, classes, scale, seed=0, dtype=torch.float32):
    """Logits and labels that agree with the argmax about half of the time."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=generator, dtype=torch.float64) * scale
    random = torch.randint(classes, (n,), generator=generator)
    labels = torch.where(torch.rand(n, generator=generator) < 0.5, logits.argmax(1), random)
    return logits.to(dtype), labels


def measured(logits, labels, batch, device="cpu"):
    metrics = StreamMetrics(logits.shape[1], device)
    for start in range(0, len(logits), batch):
        metrics.update(logits[start : start + batch].to(device), labels[start : start + batch].to(device))
    rows = metrics.rows("fog/5")
    assert {row.n for row in rows} == {len(logits)}
    assert {row.slice for row in rows} == {"fog/5"}
    return {row.metric: row.value for row in rows}, metrics


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.1, 3.0, 40.0], ids=["flat", "usual", "saturated"])
@pytest.mark.parametrize(("n", "classes", "batch"), [(1, 2, 1), (203, 10, 64), (1000, 100, 200)])
def test_values_equal_torchmetrics_torch_and_scipy(n, classes, batch, scale, dtype, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    logits, labels = stream(n, classes, scale, dtype=dtype)
    got, _ = measured(logits, labels, batch, device)
    accuracy = MulticlassAccuracy(classes, average="micro")(logits, labels)
    ece = MulticlassCalibrationError(classes, n_bins=15, norm="l1")(logits.softmax(1), labels)
    wide = logits.double()
    assert got["error"] == pytest.approx(1 - float(accuracy), abs=1e-6)
    assert got["ece"] == pytest.approx(float(ece), abs=2e-6)
    assert got["nll"] == pytest.approx(float(torch.nn.functional.cross_entropy(wide, labels)), rel=1e-12)
    assert got["entropy"] == pytest.approx(entropy(softmax(wide.numpy(), axis=1), axis=1).mean(), rel=1e-10)


def test_the_batches_do_not_matter():
    logits, labels = stream(500, 10, 3.0)
    whole, _ = measured(logits, labels, 500)
    for batch in (1, 7, 499):
        parts, _ = measured(logits, labels, batch)
        assert_close(torch.tensor(list(parts.values())), torch.tensor(list(whole.values())), rtol=1e-6, atol=1e-7)


def test_units_and_order():
    _, metrics = measured(*stream(20, 3, 1.0), 20)
    assert [(row.metric, row.unit) for row in metrics.rows("mean")] == [
        ("error", "fraction"), ("nll", "nats"), ("ece", "fraction"), ("entropy", "nats")
    ]  # fmt: skip


def test_histogram_counts_predictions_and_labels():
    logits, labels = stream(300, 7, 2.0)
    _, metrics = measured(logits, labels, 64)
    histogram = metrics.histogram("fog/5")
    assert histogram.predicted == tuple(np.bincount(logits.argmax(1).numpy(), minlength=7).tolist())
    assert histogram.label == tuple(np.bincount(labels.numpy(), minlength=7).tolist())
    assert histogram.slice == "fog/5"


def test_a_perfect_and_a_constant_model():
    labels = torch.arange(10).repeat(10)
    perfect, _ = measured(torch.eye(10)[labels] * 1000, labels, 30)
    assert perfect == {"error": 0, "nll": 0, "ece": 0, "entropy": 0}
    constant, _ = measured(torch.zeros(100, 10), labels, 30)
    assert constant["error"] == 0.9  # the first class wins a tie
    assert constant["ece"] == pytest.approx(0, abs=1e-7)  # ten percent sure, ten percent right
    assert constant["nll"] == pytest.approx(math.log(10))
    assert constant["entropy"] == pytest.approx(math.log(10))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_bad_logit_shows(bad):
    logits, labels = stream(50, 10, 1.0)
    logits[17, 3] = bad
    got, _ = measured(logits, labels, 20)
    assert math.isnan(got["nll"])
    assert math.isnan(got["entropy"])
    assert math.isnan(got["ece"])
    assert math.isfinite(got["error"])


def test_huge_logits_and_masked_classes_stay_finite():
    logits, labels = stream(50, 10, 1e4)
    got, _ = measured(logits, labels, 20)
    assert all(map(math.isfinite, got.values()))
    logits = torch.zeros(4, 3)
    logits[:, 2] = -math.inf  # probability zero: no share in the entropy
    got, _ = measured(logits, torch.zeros(4, dtype=torch.long), 4)
    assert got["entropy"] == pytest.approx(math.log(2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_summed_exactly(dtype):
    logits, labels = stream(400, 10, 2.0, dtype=dtype)
    got, _ = measured(logits, labels, 100)
    want, _ = measured(logits.double(), labels, 100)
    assert got["nll"] == want["nll"]
    assert got["error"] == want["error"]
    assert got["ece"] == pytest.approx(want["ece"], abs=1e-5)


class NoSync(TorchDispatchMode):
    """Refuses the operations that make the host wait for the device or that depend on what a mask holds."""

    refused = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "unique", "index.Tensor", "is_nonzero")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not any(name in str(func) for name in self.refused), str(func)
        return func(*args, **(kwargs or {}))


def test_update_never_asks_the_device():
    logits, labels = stream(50, 10, 1.0)
    metrics = StreamMetrics(10)
    with NoSync():
        metrics.update(logits, labels)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoSync():
        logits.sum().item()  # the guard can fail


@pytest.mark.gpu
def test_update_never_waits_for_cuda():
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    logits, labels = (part.cuda() for part in stream(50, 10, 1.0))
    metrics = StreamMetrics(10, "cuda")
    metrics.update(logits, labels)  # the first call may load kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        metrics.update(logits, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_graph_is_not_kept():
    logits, labels = stream(10, 3, 1.0)
    metrics = StreamMetrics(3)
    metrics.update(logits.requires_grad_(), labels)
    assert not metrics._sums.requires_grad


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(4, 3), torch.zeros(4, dtype=torch.long), r"shape \(N, 10\), got \(4, 3\)"),
        (torch.zeros(4, 10, dtype=torch.long), torch.zeros(4, dtype=torch.long), "expected floating logits"),
        (torch.zeros(4, 10, 1), torch.zeros(4, dtype=torch.long), r"got \(4, 10, 1\)"),
        (torch.zeros(4, 10), torch.zeros(3, dtype=torch.long), r"labels of shape \(4,\), got \(3,\)"),
        (torch.zeros(4, 10), torch.zeros(4), "expected integer labels"),
        (torch.zeros(4, 10), torch.zeros(4, dtype=torch.bool), "expected integer labels"),
    ],
)
def test_wrong_input_is_refused(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        StreamMetrics(10).update(logits, labels)


def test_nothing_measured_is_refused():
    with pytest.raises(ValueError, match="no samples in slice 'fog/5'"):
        StreamMetrics(10).rows("fog/5")
    with pytest.raises(ValueError, match="num_classes >= 2, got 1"):
        StreamMetrics(1)


@pytest.mark.parametrize(
    ("predicted", "label", "collapsed"),
    [
        ([100, 0, 0, 0], [25, 25, 25, 25], True),
        ([3, 92, 5, 0], [25, 25, 25, 25], True),
        ([10, 90, 0, 0], [25, 25, 25, 25], True),
        ([11, 89, 0, 0], [25, 25, 25, 25], False),
        ([25, 25, 25, 25], [25, 25, 25, 25], False),
        ([95, 5], [60, 40], False),  # the data is nearly so
        ([95, 5], [50, 50], True),
        ([9, 0], [0, 9], False),  # too few to say
        ([10, 0], [0, 10], True),
    ],
)
def test_collapse(predicted, label, collapsed):
    assert is_collapsed(predicted, label) is collapsed


def test_collapse_refuses_counts_that_do_not_match():
    with pytest.raises(ValueError, match="got 2 and 3 classes"):
        is_collapsed([1, 2], [1, 1, 1])
    with pytest.raises(ValueError, match="got 4 and 3"):
        is_collapsed([1, 2], [2, 2])

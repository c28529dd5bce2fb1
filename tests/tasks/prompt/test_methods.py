"""The methods without tuning, CoOp, and the metrics, against other libraries and by hand."""

import collections
import math
import pickle

import numpy as np
import open_clip
import pytest
import torch
from scipy import stats
from tiny_clip import NAMES, tiny_clip
from torch.nn import functional as F
from torch.testing import assert_close
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from dembench.harness.compose import compose
from dembench.tasks.prompt.coop import CoOp, read_context, write_context
from dembench.tasks.prompt.methods.base import confident
from dembench.tasks.prompt.methods.ensemble import Ensemble
from dembench.tasks.prompt.methods.marginal import Marginal, log_marginal
from dembench.tasks.prompt.methods.zero import Zero
from dembench.tasks.prompt.methods.zero_shot import ZeroShot
from dembench.tasks.prompt.metrics import Counts, PromptMetrics, mcnemar, mean_rows
from dembench.tasks.prompt.text import Prompts

TEMPLATE = "a photo of a {}."
TEMPLATES = ("a photo of a {}.", "a drawing of the {}.", "{} in the wild")


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


def views_with(method, wanted):
    """Features (1, V, E) whose logits are about the rows of ``wanted`` (V, C)."""
    solved = torch.linalg.pinv(method.text) @ (wanted / method.prompts.clip.scale).T
    return solved.T[None]


def test_zero_shot_and_ensemble_are_the_library_s_classifiers():
    clip = tiny_clip()
    views = unit(4, 3, 24)
    prompts = Prompts(clip, NAMES, TEMPLATE, TEMPLATES)
    for method, templates in ((ZeroShot(prompts), TEMPLATES[:1]), (Ensemble(prompts), TEMPLATES)):
        weights = open_clip.build_zero_shot_classifier(clip.model, clip.tokenizer, NAMES, templates)
        assert_close(method(views), clip.model.logit_scale.exp() * views[:, 0] @ weights, rtol=0, atol=2e-5)
        assert (method.backward_passes, method.updated) == (0, 0)
    assert Ensemble(prompts).forward_passes == 3


def test_the_confident_views_are_those_of_least_entropy():
    logits = torch.stack([torch.tensor([sharp, 0.0, 0.0]) for sharp in (1.0, 4.0, 0.0, 3.0, 2.0)])[None]
    assert confident(logits, 0.5).tolist() == [[1, 3]]
    assert confident(logits, 0.1).tolist() == [[1]]  # one at least
    assert confident(logits, 1.0).tolist() == [[1, 3, 4, 0, 2]]


def test_marginal_is_the_mean_of_the_confident_predictions():
    prompts = Prompts(tiny_clip(), NAMES, TEMPLATE)
    method = Marginal(prompts, selected=0.5)
    views = unit(3, 6, 24)
    for own, found in zip(views, method(views), strict=True):
        p = (prompts.clip.scale * own @ method.text.T).softmax(1)
        chosen = torch.special.entr(p).sum(1).argsort()[:3]
        assert_close(found.exp(), p[chosen].mean(0))
    assert_close(log_marginal(torch.randn(2, 4, 5)).exp().sum(1), torch.ones(2))


def vote(*rows, selected=0.5):
    """ZERO's logits on one image, whose views have one logit each: (class, its size)."""
    method = Zero(Prompts(tiny_clip(), NAMES, TEMPLATE), selected=selected)
    wanted = torch.zeros(len(rows), len(NAMES))
    for row, (label, size) in zip(wanted, rows, strict=True):
        row[label] = size
    logits = wanted[None]
    method.logits = lambda views, text: logits
    return method(torch.zeros(1, len(rows), 24))[0]


def test_zero_counts_votes_and_breaks_ties_by_the_next_confident_view():
    assert vote((1, 6), (2, 5), (2, 4), (3, 9), (1, 1), (1, 1), (1, 1), (1, 1)).argmax() == 2
    shares = vote((1, 6), (2, 5), (2, 4), (3, 9), (1, 1), (1, 1), (1, 1), (1, 1)).exp()
    assert_close(shares[[1, 2, 3, 4]], torch.tensor([0.25, 0.5, 0.25, 0.0]), rtol=0, atol=1e-4)
    assert vote((1, 6), (2, 5), (5, 1), (2, 2)).argmax() == 2  # a tie of 1 and 2; the next confident view is for 2
    assert vote((1, 6), (2, 5), (5, 2), (5, 1)).argmax() == 1  # none is for either: the marginal decides
    assert torch.isfinite(vote((1, 6), (1, 6))).all()


def authors_vote(logits, selected):
    """The predicted class by the authors' procedure, in plain words: the k views of least entropy vote; a tie goes to
    the first view, of all from number k on in the order in which they were made, that is for a tied class. Where there
    is none, ours: the tied class that is likeliest in the mean over the voters. With it, whether it came to that."""
    k = int(selected * len(logits))
    favourite = [row.argmax().item() for row in logits]
    entropies = stats.entropy(logits.softmax(1).numpy(), axis=1)
    voters = np.argsort(entropies, kind="stable")[:k]
    ballots = collections.Counter(favourite[view] for view in voters)
    tied = {label for label, votes in ballots.items() if votes == max(ballots.values())}
    if len(tied) == 1:
        return tied.pop(), False
    asked = [label for label in favourite[k:] if label in tied]
    likely = logits.softmax(1)[voters.tolist()].mean(0)
    return asked[0] if asked else max(tied, key=lambda label: likely[label]), not asked


def test_zero_breaks_ties_in_the_authors_order_where_asked():
    torch.manual_seed(0)
    clip = Prompts(tiny_clip(), NAMES, TEMPLATE)
    found = {ties: Zero(clip, selected=0.5, ties=ties) for ties in ("confidence", "authors")}
    differ = fell_back = 0
    for _ in range(400):
        logits = 3 * torch.randn(1, 6, len(NAMES))
        wanted, last = authors_vote(logits[0], 0.5)
        for method in found.values():
            method.logits = lambda views, text, logits=logits: logits
        ours, theirs = (method(torch.zeros(1, 6, 24))[0].argmax().item() for method in found.values())
        assert theirs == wanted
        fell_back += last
        differ += ours != theirs
    assert differ > 20
    assert fell_back > 0
    with pytest.raises(ValueError, match="expected ties 'confidence' or 'authors', got 'none'"):
        Zero(clip, ties="none")


# --- CoOp


def shots_of(prompts, labels, features):
    return lambda count: (prompts, features, labels)


def test_coop_learns_a_context_once_and_hands_it_on():
    clip = tiny_clip()
    prompts = Prompts(clip, NAMES, TEMPLATE)
    labels = torch.arange(len(NAMES)).repeat(4)
    own = unit(len(NAMES), 24)
    features = F.normalize(own[labels][:, None] + 0.05 * torch.randn(len(labels), 3, 24), dim=-1)
    coop = CoOp(shots=4, epochs=15, lr=0.2, batch_size=8)
    method = ZeroShot(prompts, context=coop, shots=shots_of(prompts, labels, features))
    before, after = (F.cross_entropy(m(features), labels) for m in (ZeroShot(prompts), method))
    assert after < 0.7 * before
    again = ZeroShot(prompts, context=coop, shots=shots_of(prompts, labels, features))
    assert torch.equal(again.context, method.context)
    (artifact,) = method.artifacts
    assert artifact.name == "coop.pt"


def test_coop_takes_the_steps_of_sgd(monkeypatch):
    """One epoch, one batch, one view: against a step written down; the first epoch warms up."""
    prompts = Prompts(tiny_clip(dtype=torch.float64), NAMES, TEMPLATE)
    features, labels = F.normalize(torch.randn(6, 1, 24, dtype=torch.float64), dim=-1), torch.arange(6)
    context = prompts.words().requires_grad_()
    loss = F.cross_entropy(prompts.clip.scale * features[:, 0] @ prompts(context).T, labels)
    (gradient,) = torch.autograd.grad(loss, context)
    found = CoOp(epochs=1).train(prompts.words(), prompts, features, labels)
    assert_close(found, context.detach() - 1e-5 * (gradient + 5e-4 * context.detach()), rtol=0, atol=1e-12)
    rates = [CoOp(epochs=50).rate(epoch) for epoch in range(50)]
    assert rates[0] == 1e-5
    assert rates[25] == pytest.approx(1e-3)
    assert rates[1:] == sorted(rates[1:], reverse=True)


@pytest.mark.parametrize("epochs", [5, 50])
def test_coop_s_rates_are_those_of_dassl(epochs):
    """A constant epoch, whose end does not advance the cosine, then torch's own cosine from its beginning."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=2e-3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, float(epochs))
    expected = [1e-5]
    for _ in range(epochs - 1):
        expected.append(cosine.get_last_lr()[0])
        optimizer.step()
        cosine.step()
    coop = CoOp(epochs=epochs, cosine_from=1)
    assert [coop.rate(epoch) for epoch in range(epochs)] == pytest.approx(expected, rel=1e-12)
    assert coop.rate(1) == 2e-3
    assert CoOp(epochs=epochs).rate(1) == pytest.approx(expected[2])  # records without the key: an epoch ahead
    assert compose({"task": "prompt", "method": "coop"}).method.context.cosine_from == 1
    with pytest.raises(ValueError, match="expected cosine_from 0 or 1, got 2"):
        CoOp(cosine_from=2)


def test_a_checkpoint_of_coop_s_code_is_read(tmp_path):
    context = torch.randn(4, 48)
    state = {"ctx": context.half(), "token_prefix": torch.zeros(6, 1, 48), "token_suffix": torch.zeros(6, 19, 48)}
    path = tmp_path / "model.pth.tar-50"
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=2e-3)
    schedule = {"successor": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50.0), "last_epoch": 1}
    torch.save({"state_dict": state, "epoch": 50, "optimizer": optimizer.state_dict(), "scheduler": schedule}, path)
    with pytest.raises(pickle.UnpicklingError):  # an object beside the tensors, as Dassl saves it
        torch.load(path, weights_only=True)
    method = ZeroShot(Prompts(tiny_clip(), NAMES, TEMPLATE), context=CoOp(file=path), shots=lambda count: None)
    assert_close(method.context, context.half().float())
    (tmp_path / "own.pt").write_bytes(write_context(context, "tiny", NAMES))
    assert torch.equal(read_context(tmp_path / "own.pt"), context)
    torch.save({"state_dict": {"ctx": torch.zeros(6, 4, 48)}}, path)
    with pytest.raises(ValueError, match=r"expected a tensor ctx \(n, D\), the same for all classes.*\(6, 4, 48\)"):
        read_context(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is no PyTorch file"):
        read_context(path)
    with pytest.raises(FileNotFoundError, match="file=null trains a context"):
        CoOp(file=tmp_path / "none.pt")
    with pytest.raises(ValueError, match="a learned context needs shots"):
        ZeroShot(Prompts(tiny_clip(), NAMES, TEMPLATE), context=CoOp())


# --- metrics


def test_accuracy_and_calibration_equal_torchmetrics():
    logits, other, labels = torch.randn(200, 9), torch.randn(200, 9), torch.randint(9, (200,))
    metrics = PromptMetrics(9)
    for part in torch.arange(200).split(64):
        metrics.update(logits[part], other[part], labels[part])
    found = {row.metric: row.value for row in metrics.rows("clean")}
    for name, top in (("accuracy", 1), ("top5", 5)):
        expected = MulticlassAccuracy(9, average="micro", top_k=top)(logits, labels)
        assert found[name] == pytest.approx(float(expected), abs=1e-6)
    assert found["ece"] == pytest.approx(float(MulticlassCalibrationError(9, 15)(logits, labels)), abs=1e-6)
    right, was = logits.argmax(1) == labels, other.argmax(1) == labels
    assert found["agreement"] == pytest.approx(float((logits.argmax(1) == other.argmax(1)).float().mean()))
    assert found["gained"] == pytest.approx(float((right & ~was).float().mean()))
    assert found["accuracy"] - float(was.float().mean()) == pytest.approx(found["gained"] - found["lost"])


def test_mcnemar_is_a_coin_that_is_tossed_once_for_each_difference():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar(9, 1) == mcnemar(1, 9)


def test_means_weigh_sets_alike_but_test_all_images_together():
    metrics = [PromptMetrics(6), PromptMetrics(6)]
    eye = 5 * torch.eye(6)
    metrics[0].update(eye, eye.roll(1, 1), torch.arange(6))
    metrics[1].update(eye[:2].roll(1, 1), eye[:2], torch.arange(2))
    rows = [row for number, m in enumerate(metrics) for row in m.rows(str(number))]
    found = {row.metric: row for row in mean_rows(rows, [m.counts for m in metrics], "mean")}
    assert found["accuracy"].value == 0.5
    assert found["accuracy"].n == 8
    assert found["mcnemar"].value == pytest.approx(2 * sum(math.comb(8, k) for k in range(3)) / 2**8)
    assert metrics[0].counts + metrics[1].counts == Counts(6, 2, 8)

"""Each method's objective against a plain re-derivation, sample by sample, and what the methods promise besides."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from scipy.stats import entropy
from torch import Tensor, nn
from torch.nn import functional as F

from dembench.core import DEM, EM, AdaDEM, family
from dembench.harness.compose import options
from dembench.tasks.common.heads import add_head
from dembench.tasks.semi.methods import base
from dembench.tasks.semi.methods.abc import ABC
from dembench.tasks.semi.methods.base import Batch
from dembench.tasks.semi.methods.darp import DARP, refine, without_noise
from dembench.tasks.semi.methods.ent_min import EntMin
from dembench.tasks.semi.methods.fixmatch import FixMatch
from dembench.tasks.semi.methods.flexmatch import FlexMatch
from dembench.tasks.semi.methods.freematch import FreeMatch
from dembench.tasks.semi.methods.mixmatch import MixMatch, sharpen
from dembench.tasks.semi.methods.pseudo_label import PseudoLabel
from dembench.tasks.semi.methods.remixmatch import ReMixMatch, turned
from dembench.tasks.semi.methods.softmatch import SoftMatch
from dembench.tasks.semi.methods.supervised import Supervised
from dembench.tasks.semi.methods.uda import UDA
from dembench.tasks.semi.methods.vat import VAT, kl, unit

C = 4
METHODS = (Supervised, PseudoLabel, EntMin, VAT, MixMatch, FixMatch, FreeMatch, SoftMatch, UDA, FlexMatch, ReMixMatch)
METHODS += (ABC, DARP)
LOSSES = {"em": EM(), "dem": DEM(1.2, 1.2), "adadem": AdaDEM(), "gce": family.GCE(), "slr": family.SLR(),
    "marginal_entropy": family.MarginalEntropy(), "im": family.InformationMaximisation(), "tsallis": family.Tsallis(),
    "renyi": family.Renyi()}  # fmt: skip
COUNTS = torch.tensor([8, 4, 2, 1])


def linear() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, C))
    with torch.no_grad():
        net[1].weight.mul_(6)
    return net


def with_batchnorm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, C))


def batch(progress: float = 0.2, b: int = 5, m: int = 12) -> Batch:
    views = {name: torch.randn(m, 3, 4, 4) for name in ("weak", "strong", "weak2", "strong2")}
    return Batch(torch.randn(b, 3, 4, 4), torch.arange(b) % C, views, progress, torch.arange(m))


def ready(method: base.SemiMethod, net: nn.Module) -> nn.Module:
    """The network with what the method adds to it, after the method was told of 12 unlabelled samples."""
    method.prepare(12, COUNTS)
    return method.equip(net)


def numbers(model: nn.Module, x: Tensor) -> np.ndarray:
    with torch.no_grad():
        return model(x).double().numpy()


def ce(logits: np.ndarray, targets: np.ndarray) -> float:
    return float(np.mean([-log_softmax(z)[t] for z, t in zip(logits, targets, strict=True)]))


def masked(logits: np.ndarray, weak: np.ndarray, keeps: Callable[[np.ndarray], bool]) -> float:
    """Mean over all samples of the cross entropy of those kept, to their pseudo label."""
    p = softmax(weak, axis=1)
    return sum(-log_softmax(z)[q.argmax()] for z, q in zip(logits, p, strict=True) if keeps(q)) / len(p)


def close(value: Tensor, expected: float) -> None:
    assert float(value.detach()) == pytest.approx(expected, rel=2e-4, abs=1e-6)


def test_supervised_is_cross_entropy() -> None:
    model, data = linear(), batch()
    terms = Supervised(EM()).terms(model, data)
    assert set(terms) == {"supervised"}
    close(terms["supervised"], ce(numbers(model, data.images), data.labels.numpy()))


def test_ent_min_adds_the_entropy_of_the_unlabelled() -> None:
    model, data = linear(), batch()
    terms = EntMin(EM()).terms(model, data)
    close(terms["supervised"], ce(numbers(model, data.images), data.labels.numpy()))
    close(
        terms["entropy_term"], 0.3 * float(entropy(softmax(numbers(model, data.views["weak"]), axis=1), axis=1).mean())
    )


def test_the_slot_takes_weight_view_and_ramp() -> None:
    model, data = linear(), batch(progress=0.1)
    method = EntMin(EM(), loss_weight=2.0, loss_view="strong", loss_ramp=0.4)
    assert method.needed_views == ("strong",)
    expected = 2.0 * 0.25 * entropy(softmax(numbers(model, data.views["strong"]), axis=1), axis=1).mean()
    close(method.terms(model, data)["entropy_term"], float(expected))


def test_pseudo_label() -> None:
    model, data = linear(), batch(progress=0.1)
    terms = PseudoLabel(None, threshold=0.9).terms(model, data)
    weak = numbers(model, data.views["weak"])
    expected = masked(weak, weak, lambda q: q.max() >= 0.9)
    assert expected > 0
    close(terms["pseudo_label"], 0.25 * expected)


def test_fixmatch() -> None:
    model, data = linear(), batch()
    method = FixMatch(EM(), threshold=0.8)
    terms = method.terms(model, data)
    weak, strong = (numbers(model, data.views[name]) for name in ("weak", "strong"))
    close(terms["consistency"], masked(strong, weak, lambda q: q.max() >= 0.8))
    close(terms["entropy_term"], 0.1 * float(entropy(softmax(weak, axis=1), axis=1).mean()))
    close(method.seen["mask"], float((softmax(weak, axis=1).max(1) >= 0.8).mean()))


def test_freematch_follows_its_recurrence_over_three_batches() -> None:
    model = linear()
    method = FreeMatch(None, num_classes=C, momentum=0.7)
    tau, marginal, histogram = 1 / C, np.full(C, 1 / C), np.full(C, 1 / C)
    for step in range(3):
        data = batch(step / 3)
        terms = method.terms(model, data)
        weak, strong = (numbers(model, data.views[name]) for name in ("weak", "strong"))
        p = softmax(weak, axis=1)
        counts = np.bincount(p.argmax(1), minlength=C) / len(p)
        tau = 0.7 * tau + 0.3 * p.max(1).mean()
        marginal, histogram = 0.7 * marginal + 0.3 * p.mean(0), 0.7 * histogram + 0.3 * counts
        threshold = tau * marginal / marginal.max()
        kept = [bool(q.max() >= threshold[q.argmax()]) for q in p]
        close(terms["consistency"], masked(strong, weak, lambda q, t=threshold: q.max() >= t[q.argmax()]))

        s = softmax(strong[kept], axis=1)
        mean, hist = s.mean(0), np.bincount(s.argmax(1), minlength=C) / len(s)
        running = marginal / histogram
        now = np.divide(mean, hist, out=np.zeros(C), where=hist > 0)
        running, now = running / running.sum(), now / now.sum()
        close(terms["fairness"], 1e-3 * float((running * np.log(now + 1e-12)).sum()))
    np.testing.assert_allclose(method.marginal.numpy(), marginal, rtol=1e-5)
    assert float(method.confidence) == pytest.approx(tau, rel=1e-5)


def test_freematch_fairness_is_zero_where_nothing_is_masked_in() -> None:
    method = FreeMatch(None, num_classes=C)
    logits = torch.randn(6, C, requires_grad=True)
    value = method.fairness(logits, torch.zeros(6))
    value.backward()
    assert float(value) == 0
    assert torch.isfinite(logits.grad).all()


def test_flexmatch_counts_what_is_learned_over_five_batches() -> None:
    model, n = linear(), 30
    method = FlexMatch(None, num_classes=C, threshold=0.7)
    method.prepare(n, COUNTS)
    learned, status, kept = [-1] * n, [0.0] * C, []
    for step in range(5):
        data = batch(step / 5)
        rows = torch.randperm(n)[:12]
        data = Batch(data.images, data.labels, data.views, data.progress, rows)
        terms = method.terms(model, data)
        weak, strong = (numbers(model, data.views[name]) for name in ("weak", "strong"))

        def keeps(q: np.ndarray, status: list[float] = status) -> bool:
            return q.max() >= 0.7 * status[q.argmax()] / (2 - status[q.argmax()])

        close(terms["consistency"], masked(strong, weak, keeps))
        kept.append(sum(keeps(q) for q in softmax(weak, axis=1)))
        for row, q in zip(rows.tolist(), softmax(weak, axis=1), strict=True):
            if q.max() >= 0.7:
                learned[row] = int(q.argmax())
        most = max(learned.count(value) for value in (-1, *range(C)))
        status = [learned.count(c) / most for c in range(C)] if most < n else status
    assert method.learned.tolist() == learned
    np.testing.assert_allclose(method.status.numpy(), status, rtol=1e-6)
    assert kept[0] == 12  # all thresholds begin at 0
    assert min(kept) < 12


def test_flexmatch_without_numbers_of_the_samples_says_so() -> None:
    with pytest.raises(ValueError, match="numbers of the unlabelled samples"):
        FlexMatch(None, num_classes=C).terms(linear(), replace(batch(), rows=None))
    with pytest.raises(ValueError, match="numbers of the unlabelled samples"):
        DARP(None, num_classes=C).terms(linear(), replace(batch(), rows=None))


@pytest.mark.parametrize("align", [True, False])
def test_softmatch_follows_its_recurrence_over_three_batches(align: bool) -> None:
    model = linear()
    method = SoftMatch(None, num_classes=C, momentum=0.2, align=align)
    mean, var, marginal = 1 / C, 1.0, None
    for step in range(3):
        data = batch(step / 3)
        terms = method.terms(model, data)
        weak, strong = (numbers(model, data.views[name]) for name in ("weak", "strong"))
        p = softmax(weak, axis=1)
        marginal = p.mean(0) if marginal is None else 0.2 * marginal + 0.8 * p.mean(0)
        q = p * (1 / C + 1e-6) / (marginal + 1e-6) if align else p
        sure = (q / q.sum(1, keepdims=True)).max(1)
        mean, var = 0.2 * mean + 0.8 * sure.mean(), 0.2 * var + 0.8 * sure.var(ddof=1)
        weight = [1.0 if c >= mean else math.exp(-2 * (c - mean) ** 2 / var) for c in sure]
        losses = [-log_softmax(z)[q.argmax()] for z, q in zip(strong, p, strict=True)]
        close(terms["consistency"], float(np.mean(np.multiply(weight, losses))))
    assert min(weight) < 0.95


@pytest.mark.parametrize("annealing", ["none", "linear", "log", "exp"])
@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_uda(annealing: str, temperature: float) -> None:
    model, data = linear(), batch(progress=0.3)
    method = UDA(None, threshold=0.6, temperature=temperature, annealing=annealing)
    terms = method.terms(model, data)
    weak, strong = (numbers(model, data.views[name]) for name in ("weak", "strong"))
    p, target = softmax(weak, axis=1), softmax(weak / temperature, axis=1)
    expected = [-(t * log_softmax(z)).sum() * (q.max() >= 0.6) for t, z, q in zip(target, strong, p, strict=True)]
    close(terms["consistency"], float(np.mean(expected)))
    assert 0 < sum(q.max() >= 0.6 for q in p) < len(p)
    risen = {"none": math.inf, "linear": 0.3, "log": 1 - math.exp(-1.5), "exp": math.exp(-3.5)}[annealing]
    own = numbers(model, data.images)
    losses = [
        -log_softmax(z)[y] * (softmax(z).max() <= risen * (1 - 1 / C) + 1 / C)
        for z, y in zip(own, data.labels.tolist(), strict=True)
    ]
    close(terms["supervised"], float(np.mean(losses)))


def test_mixmatch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = linear(), batch(progress=0.1)
    order = torch.randperm(5 + 24)
    monkeypatch.setattr(torch, "randperm", lambda n: order)
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda self: torch.tensor(0.3))
    terms = MixMatch(EM(), loss_view="mixed").terms(model, data)

    first, second = data.views["weak"], data.views["weak2"]
    guess = (softmax(numbers(model, first), axis=1) + softmax(numbers(model, second), axis=1)) / 2
    guess = guess**2 / (guess**2).sum(1, keepdims=True)
    x = torch.cat([data.images, first, second])
    y = np.concatenate([np.eye(C)[data.labels.numpy()], guess, guess])
    z = numbers(model, 0.7 * x + 0.3 * x[order])
    t = 0.7 * y + 0.3 * y[order.numpy()]
    close(terms["supervised"], float(np.mean([-(t[i] * log_softmax(z[i])).sum() for i in range(5)])))
    errors = [(softmax(z[i]) - t[i]) ** 2 for i in range(5, len(z))]
    close(terms["consistency"], 10 * 0.25 * float(np.mean(errors)))
    close(terms["entropy_term"], 0.1 * float(entropy(softmax(z[5:], axis=1), axis=1).mean()))


@pytest.mark.parametrize(("chunks", "sizes"), [("views", (4, 12, 12)), ("batch", (4, 4, 4, 4, 4, 4, 4))])
def test_mixmatch_normalises_the_mixed_rows_by_chunks(chunks: str, sizes: tuple[int, ...]) -> None:
    model, mixed = with_batchnorm(), torch.randn(28, 3, 4, 4) * torch.linspace(0.5, 3, 28).view(-1, 1, 1, 1)
    expected = []
    for x in mixed.split(sizes):
        y = F.conv2d(x, model[0].weight, model[0].bias)
        mean, var = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), unbiased=False, keepdim=True)
        expected.append(model[4](((y - mean) / (var + 1e-5).sqrt()).relu().flatten(1)))
        if len(expected) == 1:
            moved = 0.1 * mean.flatten()  # the running statistics are of the first alone
    found = MixMatch(None, chunks=chunks)._mixed_logits(model, mixed, 4)
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model[1].running_mean, moved.detach())


def test_mixmatch_guesses_by_the_statistics_of_each_view() -> None:
    """Two views of different contrast: each normalised by its own batch, as if it had passed alone."""
    model, data = with_batchnorm(), batch()
    data.views["weak2"].mul_(3).add_(1)
    with torch.no_grad():
        apart = [model(data.views[name]).softmax(1) for name in ("weak", "weak2")]
        together = model(torch.cat([data.views["weak"], data.views["weak2"]])).softmax(1).split(12)
    views = data.views["weak"], data.views["weak2"]
    found = MixMatch(None)._weak_logits(model, *views)
    for mine, own, mixed in zip(found.values(), apart, together, strict=True):
        torch.testing.assert_close(mine.softmax(1), own)
        assert not torch.allclose(mine.softmax(1), mixed, atol=1e-3)
    assert not found["weak"].requires_grad
    assert MixMatch(EM())._weak_logits(model, *views)["weak"].requires_grad


def test_sharpen() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2]])
    torch.testing.assert_close(sharpen(p, 0.5), torch.tensor([[0.25, 0.09, 0.04]]) / 0.38)


def test_remixmatch_over_three_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda self: torch.tensor(0.3))
    method = ReMixMatch(EM(), num_classes=C, ramp=0.4, momentum=0.7, loss_view="strong", loss_weight=0.3)
    plain = linear()
    body, first = plain[0], copy.deepcopy(plain[1])
    model = ready(method, plain)
    second, marginal = model[1].second, None
    assert method.needed_views == ("strong", "strong2", "weak")
    for _ in range(3):
        data, order = batch(progress=0.1), torch.randperm(5 + 36)
        turns = torch.randint(4, (12,))
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randperm", lambda n, order=order: order)
            patch.setattr(torch, "randint", lambda *_, turns=turns: turns)
            terms = method.terms(model, data)
        strong, strong2, weak = (data.views[name] for name in ("strong", "strong2", "weak"))
        p = softmax(numbers(first, body(weak)), axis=1)
        marginal = p.mean(0) if marginal is None else 0.7 * marginal + 0.3 * p.mean(0)
        guess = p * (COUNTS.numpy() / 15 + 1e-6) / (marginal + 1e-6)
        guess = (guess / guess.sum(1, keepdims=True)) ** 2
        guess = guess / guess.sum(1, keepdims=True)
        x = torch.cat([data.images, strong, strong2, weak])
        y = np.concatenate([np.eye(C)[data.labels.numpy()], guess, guess, guess])
        z, t = numbers(first, body(0.7 * x + 0.3 * x[order])), 0.7 * y + 0.3 * y[order.numpy()]
        losses = [-(t[i] * log_softmax(z[i])).sum() for i in range(len(z))]
        close(terms["supervised"], float(np.mean(losses[:5])))
        close(terms["consistency"], 1.5 * 0.25 * float(np.mean(losses[5:])))
        anchored = numbers(first, body(strong))
        expected = [-(g * log_softmax(row)).sum() for g, row in zip(guess, anchored, strict=True)]
        close(terms["anchor"], 0.5 * 0.25 * float(np.mean(expected)))
        quarters = [np.rot90(image.numpy(), k, (1, 2)).copy() for image, k in zip(strong, turns.tolist(), strict=True)]
        close(terms["rotation"], 0.5 * ce(numbers(second, body(torch.from_numpy(np.stack(quarters)))), turns.numpy()))
        close(terms["entropy_term"], 0.3 * float(entropy(softmax(anchored, axis=1), axis=1).mean()))


def test_remixmatch_without_rotation_has_one_head_and_turns_squares_alone() -> None:
    method = ReMixMatch(None, num_classes=C, rotation_weight=0.0)
    model = linear()
    assert ready(method, model) is model
    assert set(method.terms(model, batch())) == {"supervised", "consistency", "anchor"}
    with pytest.raises(ValueError, match="only square images can be turned, got 4 x 5; rotation_weight=0"):
        turned(torch.zeros(2, 3, 4, 5), torch.tensor([0, 1]))


@pytest.mark.parametrize(("hard", "views"), [(False, 2), (True, 1)])
def test_abc(hard: bool, views: int, monkeypatch: pytest.MonkeyPatch) -> None:
    method = ABC(
        EM(), num_classes=C, threshold=0.6, hard=hard, strong_views=views, balanced_weight=0.8, loss_weight=0.3
    )
    data = batch(progress=0.3)
    drawn = {5: torch.rand(5), 12: torch.rand(12)}
    monkeypatch.setattr(torch, "bernoulli", lambda p: (drawn[len(p)] < p).float())
    model = ready(method, linear())
    with torch.no_grad():
        model[1].second.weight.mul_(20)
    terms = method.terms(model, data)
    names = ["labelled", "weak", "strong", "strong2"][: 2 + views]
    inputs = {"labelled": data.images, **data.views}
    first, second = (
        {name: numbers(model, inputs[name])[:, part] for name in names} for part in (slice(4), slice(4, 8))
    )
    close(terms["supervised"], ce(first["labelled"], data.labels.numpy()))
    strong = [masked(first[name], first["weak"], lambda q: q.max() >= 0.6) for name in names[2:]]
    close(terms["consistency"], float(np.mean(strong)))
    rarity, total = 1 / COUNTS.numpy(), 0.0
    for z, y, u in zip(second["labelled"], data.labels.tolist(), drawn[5].tolist(), strict=True):
        total += -log_softmax(z)[y] / 5 * (u < rarity[y])
    kept = 0
    for i, p in enumerate(softmax(second["weak"], axis=1)):
        k = p.argmax()
        if p.max() >= 0.6 and float(drawn[12][i]) < 1 - 0.3 * (1 - rarity[k]):
            kept += 1
            target = np.eye(C)[k] if hard else p
            total += sum(-(target * log_softmax(second[name][i])).sum() / 12 for name in names[2:])
    assert 0 < kept < 12
    close(terms["balanced"], 0.8 * total)
    close(terms["entropy_term"], 0.3 * float(entropy(softmax(first["weak"], axis=1), axis=1).mean()))
    judged = model.eval()(data.images)
    np.testing.assert_allclose(judged.detach().numpy(), second["labelled"], rtol=1e-5, atol=1e-6)


def test_a_second_head_keeps_the_first_and_its_names() -> None:
    net, x = with_batchnorm(), torch.randn(3, 3, 4, 4)
    before, names = net.eval()(x), set(net.state_dict())
    both = add_head(net, C, 2)
    assert torch.equal(both(x), before)
    assert both.train()(x).shape == (3, C + 2)
    assert set(both.state_dict()) == {*names, "4.second.weight", "4.second.bias"}
    assert add_head(nn.Linear(5, C), C, C, judges_second=True).eval()(torch.zeros(1, 5)).shape == (1, C)
    with pytest.raises(ValueError, match="the last Linear layer has 7 outputs, not one for each of 4 classes"):
        add_head(nn.Linear(5, 7), C, 2)


def test_darp_finds_the_nearest_predictions_with_the_numbers() -> None:
    """Against SciPy's constrained minimiser of the paper's objective."""
    p = np.random.default_rng(0).dirichlet(np.ones(3), 8)
    wanted = np.array([4.0, 2.5, 1.5])
    weight = 1 / -(p * np.log(p)).sum(1)
    constraints = [
        {"type": "eq", "fun": lambda x: x.reshape(8, 3).sum(1) - 1},
        {"type": "eq", "fun": lambda x: x.reshape(8, 3).sum(0)[:2] - wanted[:2]},
    ]
    found = minimize(
        lambda x: (weight * (x.reshape(8, 3) * np.log(x.reshape(8, 3) / p)).sum(1)).sum(), p.ravel(),
        constraints=constraints, bounds=[(1e-9, 1)] * 24, options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    assert found.success
    np.testing.assert_allclose(refine(p, wanted, 500, 1e-10), found.x.reshape(8, 3), atol=1e-4)


def test_darp_refines_every_so_many_steps_after_its_start() -> None:
    model, n = linear(), 30
    method = DARP(None, num_classes=C, threshold=0.5, start=0.2, every=4, strong_views=1)
    method.prepare(n, COUNTS)
    wanted, predicted, refined = n * COUNTS.numpy() / 15, np.full((n, C), 1 / C), None
    for step in range(14):
        data, rows = batch(step / 14), torch.randperm(n)[:12]
        terms = method.terms(model, replace(data, rows=rows, step=step))
        weak, strong = (numbers(model, data.views[name]) for name in ("weak", "strong"))
        predicted[rows] = softmax(weak, axis=1)
        if step % 4 == 0 and step / 14 > 0.2:
            scaled = np.zeros((n, C))
            for c in range(C):
                best = sorted(range(n), key=lambda i, c=c: -predicted[i, c])[: int(2 * wanted[c])]
                for i in best:
                    scaled[i, c] = predicted[i, c] * (wanted[c] + 1e-6) / (sum(predicted[j, c] for j in best) + 1e-6)
            scaled = (scaled + 1e-6) / (scaled + 1e-6).sum(1, keepdims=True)
            np.testing.assert_allclose(without_noise(method.predicted.double().numpy(), wanted, 2.0), scaled, atol=1e-6)
            refined = refine(scaled, wanted, 10, 0.1)
            np.testing.assert_allclose(refined.sum(0), wanted, atol=0.5)
        q = predicted[rows] if refined is None else refined[rows]
        losses = [-log_softmax(z)[row.argmax()] * (row.max() >= 0.5) for z, row in zip(strong, q, strict=True)]
        close(terms["consistency"], float(np.mean(losses)))
    np.testing.assert_allclose(method.refined.numpy(), refined, atol=1e-5)


def test_vat_is_the_divergence_at_the_worst_neighbour() -> None:
    """For a linear network the direction of the first probe is known: the gradient of KL(p || q) at xi d."""
    model, data = linear(), batch(progress=0.4)
    method = VAT(EM(), eps=1.5, xi=1e-2)
    x = data.views["weak"]
    torch.manual_seed(7)
    terms = method.terms(model, data)

    torch.manual_seed(7)
    torch.randint(2**31, ())  # the seed of the noise
    d = torch.randn(x.shape).double().flatten(1).numpy()
    d = d / np.linalg.norm(d, axis=1, keepdims=True)
    weight = model[1].weight.detach().double().numpy()
    z = numbers(model, x)
    p = softmax(z, axis=1)
    gradient = (softmax(z + 1e-2 * d @ weight.T, axis=1) - p) @ weight
    shift = 1.5 * gradient / np.linalg.norm(gradient, axis=1, keepdims=True)
    q = softmax(z + shift @ weight.T, axis=1)
    close(terms["adversarial"], float(entropy(p, q, axis=1).mean()))
    close(terms["entropy_term"], 0.06 * float(entropy(p, axis=1).mean()))


def test_vat_finds_the_direction_that_float64_finds() -> None:
    """With xi = 1e-2 it is the right one; with 1e-6, as in other libraries, float32 leaves little of it."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, C))
    x = torch.randn(16, 3, 4, 4)

    def cosine(xi: float) -> float:
        with torch.no_grad():
            p = net(x).softmax(1)
        torch.manual_seed(3)
        mine = VAT(None, xi=xi).direction(net, x, p, seed=0).flatten(1).double()
        torch.manual_seed(3)
        d = unit(torch.randn_like(x)).double()
        probe = (1e-2 * d).requires_grad_()
        double = net.double()
        exact = torch.autograd.grad(kl(double(x.double()).softmax(1).detach(), double(x.double() + probe)), probe)[0]
        net.float()
        return float(F.cosine_similarity(mine, exact.flatten(1)).mean())

    assert cosine(1e-2) > 0.99
    assert cosine(1e-6) < 0.9


def test_vat_finds_the_same_direction_under_autocast() -> None:
    """The prediction at hand is one of bfloat16 then, next to which the probe would be lost."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, C))
    x = torch.randn(16, 3, 4, 4)
    found = []
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            with torch.no_grad():
                p = net(x).float().softmax(1)
            torch.manual_seed(3)
            found.append(VAT(None).direction(net, x, p, seed=0))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e-26, 1e-37])
def test_a_direction_has_length_one_however_flat_the_loss_is(scale: float) -> None:
    d = torch.randn(3, 3, 4, 4)
    torch.testing.assert_close(unit(d * scale), unit(d), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(unit(d).flatten(1).norm(dim=1), torch.ones(3))
    assert not unit(torch.zeros(2, 3, 4, 4)).any()


def test_vat_shares_dropout_between_its_passes() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(48, C))
    seen: list[Tensor] = []
    net[1].register_forward_hook(lambda module, inputs, output: seen.append(output == 0))
    VAT(EM()).terms(net, batch())
    _, clean, probe, moved = seen
    assert torch.equal(clean, probe)
    assert torch.equal(clean, moved)


def test_vat_puts_no_gradient_of_its_search_on_the_network() -> None:
    net, data = linear(), batch()
    VAT(None).direction(net, data.views["weak"], torch.full((12, C), 1 / C), seed=0)
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("net", [linear, with_batchnorm])
@pytest.mark.parametrize("kind", METHODS)
def test_weight_zero_is_the_base(kind: type[base.SemiMethod], net: Callable[[], nn.Module]) -> None:
    def gradient(loss: object, **slot: float) -> list[Tensor]:
        torch.manual_seed(0)
        model, data = net(), batch()
        options = {} if kind is Supervised else slot
        method = kind(loss, num_classes=C, **options)
        model = ready(method, model)
        sum(method.terms(model, data).values()).backward()
        return [p.grad for p in model.parameters()] + list(model.buffers())

    for mine, plain in zip(gradient(AdaDEM(), loss_weight=0.0), gradient(None), strict=True):
        assert torch.equal(mine, plain)


@pytest.mark.parametrize("kind", METHODS[1:])
def test_every_loss_and_view_of_every_method_has_a_gradient(kind: type[base.SemiMethod]) -> None:
    for loss in LOSSES.values():
        for view in kind.slot_views:
            method, data = kind(copy.deepcopy(loss), num_classes=C, loss_view=view), batch()
            model = ready(method, linear())
            term = method.terms(model, data)["entropy_term"]
            gradient = torch.autograd.grad(term, [*model.parameters()], allow_unused=True)[0]
            assert torch.isfinite(term)
            assert torch.isfinite(gradient).all()
            assert gradient.any()


def test_those_are_all_losses() -> None:
    assert {*LOSSES, "none", "dem_star"} == set(options("loss"))


@pytest.mark.parametrize("kind", [PseudoLabel, EntMin, VAT, MixMatch, FixMatch, FreeMatch, ReMixMatch, ABC, DARP])
def test_dem_of_one_and_one_is_em(kind: type[base.SemiMethod]) -> None:
    def gradient(loss: nn.Module) -> tuple[dict[str, Tensor], Tensor]:
        torch.manual_seed(0)
        model, data = linear(), batch()
        method = kind(loss, num_classes=C)
        terms = method.terms(ready(method, model), data)
        sum(terms.values()).backward()
        return {name: term.detach() for name, term in terms.items()}, model[1].weight.grad

    em, dem = gradient(EM()), gradient(DEM(1.0, 1.0))
    torch.testing.assert_close(em, dem, rtol=1e-4, atol=1e-6)
    assert "entropy_term" in em[0]


@pytest.mark.parametrize("kind", [FixMatch, FreeMatch])
@pytest.mark.parametrize("loss", [None, EM()])
def test_weak_rows_without_gradient_change_nothing(kind: type[base.SemiMethod], loss: nn.Module | None) -> None:
    """Without BatchNorm, one joint pass with gradients gives what two passes give."""

    def gradient(joint: bool, monkeypatch: pytest.MonkeyPatch) -> Tensor:
        torch.manual_seed(0)
        model, data = linear(), batch()
        if joint:
            monkeypatch.setattr(base, "couples_samples", lambda model: True)
        sum(kind(loss, num_classes=C).terms(model, data).values()).backward()
        return model[1].weight.grad

    with pytest.MonkeyPatch.context() as patch:
        apart, together = gradient(False, patch), gradient(True, patch)
    torch.testing.assert_close(apart, together, rtol=1e-5, atol=1e-7)


def test_weak_rows_are_in_no_graph_unless_the_loss_wants_them() -> None:
    def rows_with_gradient(method: base.SemiMethod) -> int:
        model, data, count = linear(), batch(), 0
        model.register_forward_hook(lambda module, inputs, output: rows.append(len(output) * output.requires_grad))
        rows: list[int] = []
        method.terms(model, data)
        count = sum(rows)
        return count

    assert rows_with_gradient(FixMatch(None)) == 5 + 12
    assert rows_with_gradient(FixMatch(EM())) == 5 + 12 + 12
    assert rows_with_gradient(FixMatch(EM(), loss_view="strong")) == 5 + 12


def test_batchnorm_sees_all_views_of_fixmatch_at_once() -> None:
    net, data = with_batchnorm(), batch()
    FixMatch(None).terms(net, data)
    features = net[0](torch.cat([data.images, data.views["weak"], data.views["strong"]]))
    torch.testing.assert_close(net[1].running_mean, 0.1 * features.mean((0, 2, 3)).detach())


@pytest.mark.parametrize("kind", [PseudoLabel, VAT])
def test_unlabelled_passes_leave_running_statistics_alone(kind: type[base.SemiMethod]) -> None:
    net, data = with_batchnorm(), batch()
    kind(EM()).terms(net, data)
    torch.testing.assert_close(net[1].running_mean, 0.1 * net[0](data.images).mean((0, 2, 3)).detach())
    assert net[1].momentum == 0.1


def test_running_statistics_survive_an_unlabelled_nan() -> None:
    net, data = with_batchnorm(), batch()
    data.views["weak"][0] = math.nan
    PseudoLabel(None).terms(net, data)
    assert torch.isfinite(net[1].running_mean).all()
    assert net[1].track_running_stats


def test_ent_min_without_a_loss_is_supervised() -> None:
    net, data = with_batchnorm(), batch()
    assert EntMin(None).needed_views == ()
    terms = EntMin(None).terms(net, data)
    assert set(terms) == {"supervised"}


def test_the_true_entropy_is_watched_whatever_the_loss() -> None:
    model, data = linear(), batch()
    method = FixMatch(AdaDEM())
    method.terms(model, data)
    expected = entropy(softmax(numbers(model, data.views["weak"]), axis=1), axis=1).mean()
    close(method.seen["entropy"], float(expected))


def test_state_holds_the_table_of_adadem_and_freematch() -> None:
    model, data = linear(), batch()
    method = FreeMatch(AdaDEM(), num_classes=C)
    method.terms(model, data)
    fresh = FreeMatch(AdaDEM(), num_classes=C)
    fresh.load_state_dict(method.state_dict())
    torch.testing.assert_close(fresh.slot.loss.table, method.slot.loss.table)
    assert not torch.equal(fresh.slot.loss.table, torch.full((C, C), 1 / C))
    assert torch.equal(fresh.marginal, method.marginal)


def test_rise() -> None:
    assert [base.rise(t, 0.4) for t in (0.0, 0.1, 0.4, 1.0)] == [0.0, 0.25, 1.0, 1.0]
    assert base.rise(0.0, 0.0) == 1.0
    assert math.isclose(base.rise(0.2, 0.4), 0.5)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="loss_view of pseudo_label 'strong'; valid: weak"):
        PseudoLabel(EM(), loss_view="strong")
    with pytest.raises(ValueError, match="nearest: mixed"):
        MixMatch(EM(), loss_view="mix")
    with pytest.raises(ValueError, match="unknown chunks of mixmatch 'rows'"):
        MixMatch(EM(), chunks="rows")
    with pytest.raises(ValueError, match="loss_weight"):
        EntMin(EM(), loss_weight=-1)
    with pytest.raises(ValueError, match="num_classes"):
        FreeMatch(EM())
    with pytest.raises(ValueError, match="xi"):
        VAT(EM(), xi=0)


@pytest.mark.parametrize(("kind", "name", "value"), [
    (FixMatch, "threshold", 1.5), (FixMatch, "unlabelled_weight", -1.0), (PseudoLabel, "threshold", -0.1),
    (PseudoLabel, "ramp", -3.0), (PseudoLabel, "unlabelled_weight", -1.0), (FreeMatch, "momentum", 2.0),
    (FreeMatch, "fairness_weight", -1.0), (FreeMatch, "unlabelled_weight", math.nan), (MixMatch, "ramp", 2.0),
    (MixMatch, "unlabelled_weight", -1.0), (VAT, "ramp", -1.0), (VAT, "unlabelled_weight", -1.0),
    (FixMatch, "strong_views", 0), (ReMixMatch, "strong_views", 0), (ReMixMatch, "anchor_weight", -1.0),
    (ABC, "balanced_weight", -1.0), (DARP, "surest", 0.5), (DARP, "start", 1.5),
])  # fmt: skip
def test_settings_out_of_range_are_refused(kind: type[base.SemiMethod], name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{kind.name}: expected {name} of at least [01].*, got {value}"):
        kind(None, num_classes=C, **{name: value})

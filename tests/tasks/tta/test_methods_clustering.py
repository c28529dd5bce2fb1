"""TTC's parts inside other methods, against loops written for the purpose; and looks that teach nothing."""

import pytest
import torch
from torch.testing import assert_close
from tta_made import LEARNERS, WITHOUT_GRADIENT, everything, make, same
from tta_models import FeatureNet
from tta_pairs import LN_C, LOSSES, drifting_batches, method_class, published_loss

from dembench.scripts.bench.textbook_tta import entropy

PARTS = {"robust": True, "similarity": 0.5, "select": True, "accumulate": 32}  # two batches of 16 an update


class Loop:
    """A network as TTC sees it, and momentum SGD on its norm layers."""

    def __init__(self, loss):
        self.net, self.loss = FeatureNet().double().train(), published_loss(loss)
        self.learned = [p for name, p in self.net.named_parameters() if name.startswith("norm")]
        self.optimizer = torch.optim.SGD(self.learned, lr=1e-2, momentum=0.9)

    def views(self, x):
        """Averaged logits, their entropies, and the constraint."""
        (z, g), (other, other_g) = self.net.both(x), self.net.both(x.flip(3))
        weight = torch.exp(-(g - other_g).square().sum(1) / (2 * 0.5**2)).detach()
        mean = (z + other) / 2
        return mean, entropy(mean.detach()), weight * (z - other).square().sum(1)


def fisher(loop, x):
    """The square of the gradient of one batch's mean loss."""
    z = loop.net(x)
    return [g**2 for g in torch.autograd.grad(torch.nn.functional.cross_entropy(z, z.argmax(1)), loop.learned)]


def eta_loop(loss, batches, margin, d, *, alpha=0.0, source=None):
    """ETA, or with alpha EATA, whose pull joins each batch that has a selected sample."""
    loop, mean, seen, some = Loop(loss), None, [], False
    weights = fisher(loop, source) if alpha else []
    start = [p.detach().clone() for p in loop.learned]
    for number, x in enumerate(batches, 1):
        z, h, constraint = loop.views(x)
        losses, p = loop.loss(z), z.detach().softmax(1)
        chosen = []
        for i in range(len(x)):
            if h[i] < margin * LN_C and h[i] <= h.mean():
                likeness = 0 if mean is None else (p[i] @ mean / (p[i].norm() * mean.norm())).item()
                if abs(likeness) < d:
                    chosen.append(i)
        if chosen:
            average = sum(p[i] for i in chosen) / len(chosen)
            mean = average if mean is None else 0.9 * mean + 0.1 * average
            total = sum(torch.exp(margin * LN_C - h[i]) * losses[i] + constraint[i] for i in chosen)
            objective = total / len(chosen)
            for p_now, f, p_start in zip(loop.learned, weights, start, strict=False):
                objective = objective + alpha * (f * (p_now - p_start) ** 2).sum()
            objective.backward()
        some = some or bool(chosen)
        if number % 2 == 0 and some:
            loop.optimizer.step()
        if number % 2 == 0:
            loop.optimizer.zero_grad()
            some = False
        seen.append(z.detach())
    return loop, seen


def sar_loop(loss, batches, margin, rho=0.05):
    loop, seen, kept = Loop(loss), [], None
    for number, x in enumerate(batches, 1):
        z, h, constraint = loop.views(x)
        losses = loop.loss(z)
        first = (h < margin * LN_C) & (h <= h.mean())
        gradients = torch.autograd.grad((losses + constraint)[first].mean(), loop.learned)
        norm = sum(g.square().sum() for g in gradients).sqrt()
        start = [p.detach().clone() for p in loop.learned]
        with torch.no_grad():
            for p, g in zip(loop.learned, gradients, strict=True):
                p += rho * g / (norm + 1e-12)
        second, h, constraint = loop.views(x)
        losses = loop.loss(second)
        still = first & (h < margin * LN_C)
        gradients = torch.autograd.grad((losses + constraint)[still].mean(), loop.learned)
        with torch.no_grad():
            for p, value in zip(loop.learned, start, strict=True):
                p.copy_(value)
        kept = gradients if kept is None else [a + b for a, b in zip(kept, gradients, strict=True)]
        if number % 2 == 0:
            for p, g in zip(loop.learned, kept, strict=True):
                p.grad = g
            loop.optimizer.step()
            kept = None
        seen.append(z.detach())
    return loop, seen


def agrees(method, net, batches, loop, seen):
    for x, expected in zip(batches, seen, strict=True):
        assert_close(method(x), expected, rtol=0, atol=1e-6)
    for (name, ours), (_, truth) in zip(net.named_parameters(), loop.net.named_parameters(), strict=True):
        assert_close(ours, truth, rtol=0, atol=1e-6)
        if name.startswith("norm"):
            assert (truth - FeatureNet().double().get_parameter(name)).abs().max() > 1e-4


@pytest.mark.parametrize("margin", [0.05, 0.5])
@pytest.mark.parametrize("loss", LOSSES)
def test_eta_with_all_parts_of_ttc(loss, margin):
    batches, net = drifting_batches(), FeatureNet().double()
    options = {"margin": margin, "d": 0.9, "optimizer": "momentum", "lr": 1e-2, "clustering": PARTS}
    method = method_class("ETA")(net, LOSSES[loss](), **options)
    agrees(method, net, batches, *eta_loop(loss, batches, margin, 0.9))


@pytest.mark.parametrize("margin", [0.05, 0.5])
def test_eata_with_all_parts_of_ttc(margin):
    batches, net, source = drifting_batches(), FeatureNet().double(), drifting_batches(1, last=16)[0]
    options = {"margin": margin, "d": 0.9, "optimizer": "momentum", "lr": 1e-2, "fisher_alpha": 50.0}
    method = method_class("EATA")(net, LOSSES["em"](), **options, clustering=PARTS)
    method.see_source(source)
    agrees(method, net, batches, *eta_loop("em", batches, margin, 0.9, alpha=50.0, source=source))


@pytest.mark.parametrize("loss", LOSSES)
def test_sar_with_all_parts_of_ttc(loss):
    batches, net = drifting_batches(last=16), FeatureNet().double()
    options = {"margin": 0.5, "reset_below": 0.0, "freeze": "none", "optimizer": "momentum", "lr": 1e-2}
    method = method_class("SAR")(net, LOSSES[loss](), **options, clustering=PARTS)
    agrees(method, net, batches, *sar_loop(loss, batches, 0.5))


@pytest.mark.parametrize("name", ["DeYO", "EATA", "TIPI"])
def test_every_other_method_takes_the_parts(name):
    plain, joined = make(name, "adadem"), make(name, "adadem", clustering=PARTS)
    for x in drifting_batches(4):
        assert (joined(x.float()) - plain(x.float())).abs().max() > 1e-4
    start, _ = everything(make(name))
    assert not same(everything(joined)[0], start)


ALL = [*LEARNERS, *WITHOUT_GRADIENT, "TTC noise"]


@pytest.mark.parametrize("name", ALL)
def test_a_look_teaches_nothing(name):
    """``peek`` leaves parameters, statistics, tables and random numbers as they were."""
    options = {"augment": "noise", "lr": 1e-2, "accumulate": 48} if name == "TTC noise" else {}
    looked, straight = (make(name, "adadem", **options) for _ in range(2))
    for x in drifting_batches(6):
        x = x.float()
        before = everything(looked)
        logits = looked.peek(x.flip(0))
        assert logits.shape == (len(x), 5)
        assert not logits.requires_grad
        if name != "Norm mixed":  # whose statistics are those of the latest batch
            assert same(everything(looked), before)
        assert torch.equal(looked(x), straight(x))
    assert same(everything(looked), everything(straight))

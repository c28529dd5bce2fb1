"""What the published code gets wrong about state: resets, empty selections, modes, and which logits come back."""

import math
from copy import deepcopy

import pytest
import torch
from small_models import CLASSES, image_batches
from torch import nn
from torch.testing import assert_close
from tta_made import FAST, LEARNERS, WITHOUT_GRADIENT, everything, make, same
from tta_models import FeatureNet
from tta_pairs import LOSSES, method_class

from dembench import core
from dembench.core.functional import em

GATED = {
    "ETA": {"margin": 0.4, "d": 0.9},
    "EATA": {"margin": 0.4, "d": 0.9, "fisher_alpha": 2.0},
    "SAR": {"freeze": "none"},
    "DeYO": {"freeze": "none", "plpd": 0.1, "destroy": "occ"},
}


def walk(method, batches):
    return torch.cat([method(x) for x in batches])


@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", LEARNERS)
def test_reset_starts_afresh_bit_for_bit_twice(name, loss, optimizer):
    batches = image_batches(8)
    method = make(name, loss, optimizer=optimizer)
    start, _ = everything(method)
    first = walk(method, batches)
    end = everything(method)
    assert not same(start, end[0])
    for seed in (7, 8):
        walk(method, image_batches(4, seed=seed))  # for TTC in the middle of an accumulation
        method.reset()
        assert same(everything(method)[0], start)
        assert torch.equal(walk(method, batches), first)  # left-over momentum, means, tables or draws would show
        assert same(everything(method), end)
        method.reset()


@pytest.mark.parametrize("name", WITHOUT_GRADIENT)
def test_reset_of_methods_without_gradient(name):
    batches = image_batches(5)
    method = make(name)
    start, _ = everything(method)
    first = walk(method, batches)
    method.reset()
    assert same(everything(method)[0], start)
    assert torch.equal(walk(method, batches), first)


@pytest.mark.parametrize("name", LEARNERS)
def test_episodic_is_a_fresh_method_for_each_batch(name):
    options = {"accumulate": None} if name == "TTC" else {}
    episodic = make(name, "adadem", episodic=True, **options)
    for x in image_batches(4):
        assert torch.equal(episodic(x), make(name, "adadem", **options)(x))


def unsure(model):
    """Makes the network unsure of every image, by a layer that does not learn; returns what it was."""
    linear = model.linear
    before = linear.weight.detach().clone(), linear.bias.detach().clone()
    with torch.no_grad():
        linear.weight *= 0.01
        linear.bias *= 0.01
    return before


def sure_again(model, before):
    with torch.no_grad():
        model.linear.weight.copy_(before[0])
        model.linear.bias.copy_(before[1])


@pytest.mark.parametrize("optimizer", ["adam", "momentum", "nesterov"])
@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("name", GATED)
def test_an_empty_selection_leaves_weights_and_optimizer_untouched(name, norm, optimizer):
    """The published SAR coasts on its momentum here."""
    options = {"optimizer": optimizer, "lr": 1e-2, **GATED[name]}
    batches = image_batches(8)
    crossed, straight = (make(name, net=FeatureNet(norm), **options) for _ in range(2))
    for x in batches[:4]:
        crossed(x), straight(x)
    updated = int(crossed.updated)
    before = everything(crossed)
    kept = unsure(crossed.model)
    logits = crossed(batches[4])
    assert em(logits).min() > 0.5 * math.log(CLASSES)
    sure_again(crossed.model, kept)
    assert same(everything(crossed), before)
    assert int(crossed.updated) == updated > 0
    for x in batches[5:]:  # nor is there anything left that shows later
        assert torch.equal(crossed(x), straight(x))
    assert same(everything(crossed), everything(straight))


def test_channels_last_images_before_a_group_norm():
    """PyTorch before 2.15 ends the process here without ``guard_group_norms``."""
    net = FeatureNet("group")
    plain = make("Tent", net=deepcopy(net))
    other = make("Tent", net=net.to(memory_format=torch.channels_last))
    for x in image_batches(3):
        assert_close(other(x.contiguous(memory_format=torch.channels_last)), plain(x))


@pytest.mark.parametrize("name", GATED)
def test_an_empty_first_batch_is_no_step(name):
    net = FeatureNet()
    method = make(name, net=net, **GATED[name])
    kept = unsure(net)
    start, _ = everything(method)
    method(image_batches(1)[0])
    assert same(everything(method)[0], start)
    sure_again(net, kept)
    fresh = make(name, **GATED[name])
    for x in image_batches(4, seed=3):
        assert torch.equal(method(x), fresh(x))


@pytest.mark.parametrize("name", ["Tent", "ETA", "EATA", "SAR", "DeYO", "TTC", "Norm"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_batch_statistics_outlive_a_call_of_eval_or_train(name, mode):
    called, left = make(name), make(name)
    source = make("Source")
    for x in image_batches(4):
        getattr(called.model, mode)()
        logits = called(x)
        assert torch.equal(logits, left(x))
        assert (logits - source(x)).abs().max() > 0.1


def in_training_mode(net, x):
    with torch.no_grad():
        return deepcopy(net).train()(x)


@pytest.mark.parametrize("name", ["Tent", "ETA", "EATA", "SAR", "DeYO"])
def test_logits_come_from_before_the_update(name):
    x = image_batches(1)[0]
    net = FeatureNet()
    before = in_training_mode(net, x)
    method = make(name, net=net, lr=0.5)
    assert_close(method(x), before, rtol=1e-5, atol=1e-5)
    assert (method(x) - before).abs().max() > 0.1


def test_ttc_returns_the_mean_of_both_views_from_before_the_update():
    x = image_batches(1)[0]
    net = FeatureNet()
    before = (in_training_mode(net, x) + in_training_mode(net, x.flip(3))) / 2
    method = make("TTC", net=net, lr=0.5, accumulate=None)
    assert_close(method(x), before, rtol=1e-5, atol=1e-5)
    assert (method(x) - before).abs().max() > 0.1


def test_tipi_returns_logits_from_after_the_update():
    x = image_batches(1)[0]
    net = FeatureNet()
    unadapted = deepcopy(net)
    method = make("TIPI", net=net, lr=5.0, predict="running")
    got = method(x)
    with torch.no_grad():
        assert_close(got, deepcopy(method.model).eval()(x), rtol=1e-5, atol=1e-5)
        unadapted.train()(x)  # its statistics have moved once, its weights have not
        assert (got - unadapted.eval()(x)).abs().max() > 0.01


def test_t3a_keeps_all_and_never_loses_a_template():
    """The published option for all drops the least sure support of every class at every batch."""
    net = FeatureNet()
    x = image_batches(1, size=1)[0]
    method = make("T3A", net=net, keep=-1)
    with torch.no_grad():
        features = net.eval().features(x)
        scores = net.linear(features)
        templates = nn.functional.normalize(net.linear.weight, dim=1)
        names = net.linear(net.linear.weight).argmax(1)
        expected = torch.zeros(1, CLASSES)
        for label in range(CLASSES):
            rows = [templates[i] for i in range(CLASSES) if names[i] == label]
            if scores.argmax() == label:
                rows.append(nn.functional.normalize(features[0], dim=0))
            if rows:
                expected[0, label] = features[0] @ nn.functional.normalize(sum(rows), dim=0)
    assert_close(method(x), expected, rtol=1e-5, atol=1e-5)
    for _ in range(30):
        last = method(x)
    held = [label for label in range(CLASSES) if (names == label).any()]
    assert (last[0, held] != 0).all()


@pytest.mark.parametrize(("threshold", "every"), [(0.0, False), (10.0, True)])
def test_sar_honours_its_threshold(threshold, every):
    method = make("SAR", reset_below=threshold)
    start, _ = everything(method)
    batches = image_batches(5)
    for x in batches:
        method(x)
        assert same(everything(method)[0], start) == every
        assert bool(method.ema.isnan()) == every
    assert int(method.resets) == (5 if every else 0)


def test_a_recovery_of_sar_forgets_momentum_and_table():
    """The published SAR keeps the momentum of its base optimizer through every reset."""
    batches = image_batches(6)
    recovering = make("SAR", "adadem", reset_below=10.0, lr=0.1)
    for x in batches:
        assert torch.equal(recovering(x), make("SAR", "adadem", reset_below=10.0, lr=0.1)(x))
    fresh = make("SAR", "adadem", reset_below=10.0, lr=0.1)
    fresh(batches[0])
    assert same(everything(recovering), everything(fresh))
    assert torch.equal(recovering.loss.table, torch.full((CLASSES, CLASSES), 1 / CLASSES))


@pytest.mark.parametrize("margin", [0.1, 0.4, 2.0])
def test_sar_and_eta_honour_their_margin(margin):
    x = image_batches(1)[0]
    low = int((em(in_training_mode(FeatureNet(), x)) < margin * math.log(CLASSES)).sum())
    eta = make("ETA", margin=margin)
    eta(x)
    assert int(eta.updated) == low
    sar = make("SAR", margin=margin, rho=0.0)
    sar(x)
    assert int(sar.updated) == low


def test_values_of_another_loss_never_reach_a_gate():
    """A constant added to the loss changes no gradient; a gate on the loss would close."""

    class Lifted(core.EM):
        def forward(self, logits, mask=None):
            return super().forward(logits, mask) + 100

    batches = image_batches(6)
    for name in ("ETA", "EATA", "SAR", "DeYO", "TTC"):
        torch.manual_seed(0)
        settings = {**FAST, **LEARNERS[name]}
        plain, lifted = (make(name), method_class(name)(FeatureNet(), Lifted(), **settings))
        if getattr(lifted, "source_images", 0):
            lifted.see_source(torch.cat(image_batches(4, seed=9)))
        for x in batches:
            assert_close(lifted(x), plain(x), rtol=1e-4, atol=1e-4)
        assert int(lifted.updated) == int(plain.updated)

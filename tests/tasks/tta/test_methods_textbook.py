"""Every method equals an independent textbook loop, batch by batch: returned logits and weights to 1e-6."""

import pytest
import torch
from torch.testing import assert_close
from tta_models import FeatureNet
from tta_pairs import LN_C, LOSSES, Pair, drifting_batches

from dembench import core
from dembench.core.adapt import use_batch_statistics
from dembench.core.functional import em
from dembench.tasks.tta.methods import base
from dembench.tasks.tta.methods.eta import ETA

TINY, USUAL = 0.05, 0.4  # of ln C: the first leaves most batches with no sample or one


def follows(pair, batches, *, moves=1e-3):
    """Walks both through the batches; logits and weights agree after each."""
    for x in batches:
        ours, textbook = pair.step(x)
        assert_close(ours, textbook, rtol=0, atol=1e-6)
        assert not ours.requires_grad
        assert_close(*pair.weights(), rtol=0, atol=1e-6)
    assert pair.moved() > moves  # far beyond the tolerance


@pytest.mark.parametrize("norm", ["batch", "group", "layer"])
@pytest.mark.parametrize("optimizer", ["adam", "momentum", "sgd"])
@pytest.mark.parametrize("loss", LOSSES)
def test_tent(loss, optimizer, norm):
    options = {"optimizer": optimizer, "lr": 1e-3 if optimizer == "adam" else 1e-2}
    follows(Pair("Tent", loss, norm=norm, options=options, textbook=options), drifting_batches())


@pytest.mark.parametrize("d", [0.4, 0.9])
@pytest.mark.parametrize("margin", [TINY, USUAL])
@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
@pytest.mark.parametrize("loss", LOSSES)
def test_eta(loss, optimizer, margin, d):
    options = {"optimizer": optimizer, "lr": 1e-3 if optimizer == "adam" else 1e-2, "d": d}
    pair = Pair("ETA", loss, options={**options, "margin": margin}, textbook={**options, "margin": margin * LN_C})
    chosen = []
    for x in drifting_batches():
        follows(pair, [x], moves=-1)
        chosen.append(pair.textbook.chosen)
        if pair.textbook.mean is not None:
            assert_close(pair.ours.moving_average, pair.textbook.mean, rtol=0, atol=1e-6)
    assert pair.moved() > 1e-3
    assert sum(chosen) > 0
    assert 0 in chosen or margin == USUAL
    assert int(pair.ours.updated) == sum(chosen)


def test_a_threshold_makes_much_of_rounding(monkeypatch):
    """The floor of what a comparison can tell: ETA against itself with the entropy in another order of operations."""

    def entropies(z):
        return em(z), z.logsumexp(1) - (z.softmax(1) * z).sum(1)

    def drift(dtype, e0):
        runs = []
        for form in (0, 1):
            monkeypatch.setattr(base, "em", lambda z, form=form: entropies(z)[form])
            method = ETA(FeatureNet().to(dtype), core.EM(), optimizer="momentum", lr=0.1, margin=e0 / LN_C)
            runs.append([method(x.to(dtype)) for x in batches])
        return max(float((one - other).abs().max()) for one, other in zip(*runs, strict=True))

    batches = drifting_batches(3)
    with torch.no_grad():
        one, other = entropies(use_batch_statistics(FeatureNet())(batches[0].float()))
    e0 = next(e0 for e0 in torch.maximum(one, other)[one != other].tolist() if drift(torch.float32, e0) > 1e-3)
    assert drift(torch.float64, e0) < 1e-9


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("loss", LOSSES)
def test_eta_without_batch_norm(loss, norm):
    options = {"optimizer": "momentum", "lr": 1e-2, "d": 0.9}
    follows(
        Pair("ETA", loss, norm=norm, options={**options, "margin": 0.5}, textbook={**options, "margin": 0.5 * LN_C}),
        drifting_batches(),
    )


@pytest.mark.parametrize("fisher", ["batch", "sample"])
@pytest.mark.parametrize("margin", [TINY, USUAL])
@pytest.mark.parametrize("loss", LOSSES)
def test_eata(loss, margin, fisher):
    source = torch.cat(drifting_batches(4, last=16))
    options = {"optimizer": "momentum", "lr": 1e-2, "d": 0.9}
    pair = Pair(
        "EATA",
        loss,
        options={**options, "margin": margin, "fisher_alpha": 3.0, "fisher": fisher, "fisher_batch": 16},
        textbook={
            **options,
            "margin": margin * LN_C,
            "alpha": 3.0,
            "per_sample": fisher == "sample",
            "images": source.split(16),
        },
    )
    pair.ours.see_source(source)
    for ours, truth in zip(pair.ours.fishers, pair.textbook.fisher, strict=True):
        assert_close(ours, truth, rtol=1e-6, atol=1e-9)
    follows(pair, drifting_batches())


@pytest.mark.parametrize("margin", [TINY, USUAL])
@pytest.mark.parametrize("loss", LOSSES)
def test_sar(loss, margin):
    options = {"optimizer": "momentum", "lr": 1e-2}
    pair = Pair(
        "SAR",
        loss,
        options={**options, "margin": margin, "reset_below": 0.0, "freeze": "none"},
        textbook={**options, "margin": margin * LN_C, "recover_below": 0.0},
    )
    follows(pair, drifting_batches())
    assert_close(pair.ours.ema.item(), pair.textbook.ema, rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("loss", LOSSES)
def test_sar_without_batch_norm(loss, norm):
    options = {"optimizer": "momentum", "lr": 1e-2}
    pair = Pair(
        "SAR",
        loss,
        norm=norm,
        options={**options, "margin": 0.5, "reset_below": 0.0, "freeze": "none"},
        textbook={**options, "margin": 0.5 * LN_C, "recover_below": 0.0},
    )
    follows(pair, drifting_batches())


@pytest.mark.parametrize("threshold", [0.25, 0.26])
@pytest.mark.parametrize("loss", LOSSES)
def test_sar_recovers_at_the_same_batches(loss, threshold):
    options = {"optimizer": "momentum", "lr": 0.1}
    pair = Pair(
        "SAR",
        loss,
        options={**options, "margin": USUAL, "reset_below": threshold, "freeze": "none"},
        textbook={**options, "margin": USUAL * LN_C, "recover_below": threshold},
    )
    for x in drifting_batches(20):
        follows(pair, [x], moves=-1)
        assert int(pair.ours.resets) == pair.textbook.recoveries
    assert 0 < pair.textbook.recoveries < 20


@pytest.mark.parametrize("destroy", ["patch", "pixel"])
@pytest.mark.parametrize(("below", "above"), [(0.5, 0.1), (0.5, 0.3), (TINY, 0.0)])
@pytest.mark.parametrize("loss", LOSSES)
def test_deyo(loss, below, above, destroy):
    options = {"optimizer": "momentum", "lr": 1e-2}
    pair = Pair(
        "DeYO",
        loss,
        options={**options, "margin": below, "plpd": above, "destroy": destroy, "patches": 4, "freeze": "none"},
        textbook={**options, "below": below * LN_C, "margin": 0.4 * LN_C, "above": above},
    )
    follows(pair, drifting_batches())


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("loss", LOSSES)
def test_deyo_without_batch_norm(loss, norm):
    options = {"optimizer": "momentum", "lr": 1e-2}
    pair = Pair(
        "DeYO",
        loss,
        norm=norm,
        options={**options, "margin": 0.6, "plpd": 0.0, "freeze": "none"},
        textbook={**options, "below": 0.6 * LN_C, "margin": 0.4 * LN_C, "above": 0.0},
    )
    follows(pair, drifting_batches())


@pytest.mark.parametrize("predict", ["running", "batch"])
@pytest.mark.parametrize("weight", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("loss", LOSSES)
def test_tipi(loss, weight, predict):
    size = 16 if predict == "running" else 66  # only large batches are normalised by themselves
    options = {"optimizer": "momentum"}
    pair = Pair(
        "TIPI",
        loss,
        options={
            **options,
            "lr": 0.5,
            "lr_batch": 200,
            "start": "random",
            "entropy_weight": weight,
            "eps": 0.02,
            "predict": predict,
        },
        textbook={
            **options,
            "lr_per_sample": 0.5 / 200,
            "eps": 0.02,
            "weight": weight,
            "predict_in_train": predict == "batch",
        },
    )
    for x in drifting_batches(10, size=size, last=size):
        follows(pair, [x], moves=-1)
        drawn = pair.watched.seen[1] - x
        assert 0.015 < drawn.abs().max() <= 0.02 + 1e-12
        assert abs(drawn.mean()) < 0.002
    assert pair.moved() > 1e-3


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_tipi_without_batch_norm(norm):
    pair = Pair(
        "TIPI",
        norm=norm,
        options={"optimizer": "adam", "lr": 2e-2, "start": "random", "entropy_weight": 1.0, "eps": 0.02},
        textbook={"optimizer": "adam", "lr_per_sample": 1e-4, "eps": 0.02, "weight": 1.0},
    )
    follows(pair, drifting_batches())


PARTS = {
    "all": {},
    "robust": {"similarity": None, "select": False, "accumulate": None},
    "similarity": {"robust": False, "select": False, "accumulate": None},
    "select": {"robust": False, "similarity": None, "accumulate": None},
    "accumulate": {"robust": False, "similarity": None, "select": False},
    "none": {"robust": False, "similarity": None, "select": False, "accumulate": None},
}


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("loss", LOSSES)
def test_ttc(loss, parts):
    chosen = {"robust": True, "similarity": 1.0, "select": True, "accumulate": 48, **PARTS[parts]}
    options = {"optimizer": "adam", "lr": 1e-3}
    pair = Pair(
        "TTC",
        loss,
        options={**options, **chosen},
        textbook={
            **options,
            "label_assignment": chosen["robust"],
            "constraint": chosen["similarity"] is not None,
            "selection": chosen["select"],
            "every": 3 if chosen["accumulate"] else 1,
        },
    )
    follows(pair, drifting_batches())


@pytest.mark.parametrize("norm", ["batch", "group", "layer"])
@pytest.mark.parametrize("name", ["Source", "Norm"])
def test_source_and_norm(name, norm):
    pair = Pair(name, norm=norm)
    follows(pair, drifting_batches(), moves=-1)
    assert pair.moved() == 0


@pytest.mark.parametrize("alpha", [0.1, 0.6])
def test_norm_mixed_with_the_source(alpha):
    pair = Pair(
        "Norm",
        options={"statistics": "mixed", "alpha": alpha},
        textbook={"alpha": alpha, "unbiased": True},
        beside="NormAlpha",
    )
    follows(pair, drifting_batches(last=1), moves=-1)


def test_norm_by_a_moving_average():
    pair = Pair("Norm", options={"statistics": "ema"}, beside="NormEMA")
    batches = drifting_batches()
    follows(pair, batches, moves=-1)
    for (name, ours), (_, truth) in zip(pair.watched.net.named_buffers(), pair.net.named_buffers(), strict=True):
        if name.endswith(("mean", "var")):
            assert_close(ours, truth, rtol=0, atol=1e-9)


@pytest.mark.parametrize("keep", [1, 3, 20, -1])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_t3a(norm, keep):
    pair = Pair("T3A", norm=norm, options={"keep": keep}, textbook={"kept": None if keep == -1 else keep})
    follows(pair, drifting_batches(), moves=-1)
    assert len(pair.textbook.supports) == 5 + 11 * 16 + 5 or keep != -1

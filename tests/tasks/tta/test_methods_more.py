"""RPL, SHOT-IM, LAME, MEMO, RDumb, RoTTA, CoTTA, ROID and CMF equal plain loops after their published code."""

from __future__ import annotations

import importlib
from contextlib import contextmanager
from copy import deepcopy

import pytest
import textbook_more as plain
import torch
from small_models import SmallNet, image_batches
from torch import nn
from torch.testing import assert_close
from tta_models import FeatureNet
from tta_pairs import LOSSES, drifting_batches, published_loss

from dembench import core
from dembench.tasks.tta.methods import views
from dembench.tasks.tta.methods.cmf import CMF
from dembench.tasks.tta.methods.cotta import CoTTA
from dembench.tasks.tta.methods.eta import ETA
from dembench.tasks.tta.methods.lame import LAME
from dembench.tasks.tta.methods.memo import MEMO
from dembench.tasks.tta.methods.rdumb import RDumb
from dembench.tasks.tta.methods.roid import ROID
from dembench.tasks.tta.methods.rotta import RoTTA
from dembench.tasks.tta.methods.rpl import RPL
from dembench.tasks.tta.methods.shot import SHOT

MODULES = ("cotta", "memo", "roid", "rotta")


@contextmanager
def free(generator):
    yield


@pytest.fixture
def global_draws(monkeypatch):
    """Methods draw from torch's global generator, as the loops do."""
    for name in MODULES:
        module = importlib.import_module(f"dembench.tasks.tta.methods.{name}")
        monkeypatch.setattr(module, "drawing_from", free)


def net():
    return FeatureNet("batch").double().eval()


def follows(ours, theirs, *, count=20, show=lambda z: z, moves=True):
    """Both are walked through 20 batches with the same draws; the logits agree after each."""
    torch.set_default_dtype(torch.float64)
    start = [p.detach().clone() for p in ours.model.parameters()]
    try:
        for number, x in enumerate(drifting_batches(count, last=16)):
            torch.manual_seed(number)
            found = ours(x)
            torch.manual_seed(number)
            assert_close(show(found), theirs(x).detach(), rtol=0, atol=1e-6)
            assert not found.requires_grad
    finally:
        torch.set_default_dtype(torch.float32)
    moved = max((p - q).abs().max() for p, q in zip(ours.model.parameters(), start, strict=True))
    assert (moved > 1e-3) == moves


@pytest.mark.parametrize("optimizer", ["adam", "nesterov"])
def test_rpl(optimizer):
    options = {"lr": 1e-2, "optimizer": optimizer, "q": 0.6}
    follows(RPL(net(), core.EM(), preset="mariodoebler", **options), plain.RPL(net(), **options))


@pytest.mark.parametrize("loss", LOSSES)
def test_shot(loss):
    pair = [net(), net()]
    with torch.no_grad():
        for own in pair:  # with the source's statistics the network is too sure to have a gradient
            own.linear.weight *= 0.05
    follows(SHOT(pair[0], LOSSES[loss](), lr=1e-3), plain.SHOT(pair[1], published_loss(loss), lr=1e-3))


@pytest.mark.parametrize(
    "options", [{}, {"affinity": "knn"}, {"affinity": "knn", "symmetric": True}, {"neighbours": 40}]
)
def test_lame(options):
    follows(LAME(net(), **options), plain.LAME(net(), **options), count=4, show=lambda z: z.softmax(1), moves=False)


def test_lame_with_inner_products():
    options = {"affinity": "linear"}
    follows(LAME(net(), **options), plain.LAME(net(), **options), count=4, show=lambda z: z.softmax(1), moves=False)


def test_rdumb_is_eta_that_starts_again():
    options = {"lr": 1e-2, "d": 0.9}
    ours, fresh = RDumb(net(), core.AdaDEM(), every=3, **options), None
    for number, x in enumerate(drifting_batches(8)):
        if number % 3 == 0:
            fresh = ETA(net(), core.AdaDEM(), **options)
        assert torch.equal(ours(x), fresh(x))
    assert ours.resets == 2


@pytest.mark.parametrize("loss", LOSSES)
def test_roid(loss, global_draws):
    follows(ROID(net(), LOSSES[loss](), lr=1e-2), plain.ROID(net(), published_loss(loss), lr=1e-2))


@pytest.mark.parametrize("q", [0.005, 2.5])  # with the larger one the gain is neither 1 nor at its limit
def test_cmf(q, global_draws):
    ours = CMF(net(), core.EM(), lr=1e-2, q=q)
    follows(ours, plain.ROID(net(), plain.entropy, lr=1e-2, filtered=(0.99, 0.99, q)))


def test_roid_of_equal_predictions_is_finite():
    still = net()
    nn.init.zeros_(still.linear.weight)
    method = ROID(still, core.EM(), lr=1e-2)
    for x in image_batches(2, dtype=torch.float64):
        assert torch.isfinite(method(x)).all()


@pytest.mark.parametrize("confidence", [0.0, 0.99])  # below, above the source's
@pytest.mark.parametrize("symmetric", [False, True])
def test_cotta(confidence, symmetric, global_draws):
    options = {
        "lr": 1e-2,
        "views": 3,
        "confidence": confidence,
        "restore": 0.0,
        "symmetric": symmetric,
        "momentum": 0.9,
    }
    follows(CoTTA(net(), **options), plain.CoTTA(net(), **options))


def test_cotta_puts_weights_back():
    drawn = torch.Generator()
    options = {"lr": 1e-2, "views": 1, "confidence": 0.0, "restore": 0.3}
    ours = CoTTA(net(), **options)
    theirs = plain.CoTTA(net(), **options, mask=lambda shape: torch.rand(shape, generator=drawn))
    for x in drifting_batches(6):
        drawn.set_state(ours.generator.get_state())
        assert_close(ours(x), theirs(x), rtol=0, atol=1e-6)
    for own, other, source in zip(ours.model.parameters(), theirs.net.parameters(), net().parameters(), strict=True):
        assert_close(own, other, rtol=0, atol=1e-6)
        assert 0 < (own == source).sum() < own.numel() or own.numel() < 12


@pytest.mark.parametrize(("every", "capacity"), [(24, 64), (16, 16), (7, 11)])
def test_rotta(every, capacity, global_draws):
    options = {"lr": 1e-2, "every": every, "capacity": capacity, "momentum": 0.9}
    ours, theirs = RoTTA(net(), **options), plain.RoTTA(net(), **options)
    follows(ours, theirs)
    kept = sorted(theirs.memory, key=lambda item: item["label"])
    assert [item.age for item in ours.memory.items] == [item["age"] for item in kept]
    assert len(kept) <= capacity


@pytest.mark.parametrize("loss", LOSSES)
def test_memo(loss):
    ours = MEMO(net(), LOSSES[loss](), lr=1e-2, views=6, prior=3)
    twin = deepcopy(ours)
    theirs = plain.MEMO(net(), published_loss(loss), lr=1e-2, views=twin.augmented, prior=3)
    batches = [x[:4] for x in drifting_batches(3)]
    for x in batches:
        assert_close(ours(x), theirs(x), rtol=0, atol=1e-6)  # views are float32
    assert ours.forward_passes == 2 * 12
    assert ours.updated == 12


def test_memos_views_are_crops_of_the_image():
    method = MEMO(SmallNet(), core.EM(), views=40)
    x = torch.zeros(1, 3, 12, 12)
    x[:, :, 5:7, 5:7] = 1
    seen = method.augmented(x)
    assert seen.shape == (40, 3, 12, 12)
    assert 0 <= seen.min() <= seen.max() <= 1 + 1e-6
    places = {tuple(view.mean(0).flatten().topk(1).indices.tolist()) for view in seen}
    assert len(places) > 4  # padded by one and cropped: nine places, and mirrored


@pytest.mark.parametrize(("padding", "blur"), [("edge", True), ("reflect", False)])
def test_the_shared_augmentation_is_torchvisions(padding, blur):
    x = image_batches(1, 5)[0]
    for seed in range(4):
        torch.manual_seed(seed)
        ours = views.jittered(x, padding=padding, blur=blur)
        torch.manual_seed(seed)
        assert_close(ours, plain.augment(x, padding, blur), rtol=0, atol=1e-6)
        assert (ours - x).abs().mean() > 0.01


MADE = {
    "rpl": lambda: RPL(SmallNet(), lr=1e-2),
    "shot": lambda: SHOT(SmallNet(), core.AdaDEM(), lr=1e-2),
    "lame": lambda: LAME(SmallNet()),
    "memo": lambda: MEMO(SmallNet(), core.AdaDEM(), lr=1e-2, views=3),
    "rdumb": lambda: RDumb(SmallNet(), core.AdaDEM(), lr=1e-2, every=2, margin=0.95, d=0.98),
    "rotta": lambda: RoTTA(SmallNet(), lr=1e-2, every=10, capacity=9),
    "cotta": lambda: CoTTA(SmallNet(), lr=1e-2, views=2, restore=0.1),
    "roid": lambda: ROID(SmallNet(), core.AdaDEM(), lr=1e-2),
    "cmf": lambda: CMF(SmallNet(), core.AdaDEM(), lr=1e-2, q=1.0),
}


@pytest.mark.parametrize("name", MADE)
def test_starts_afresh_bit_for_bit_and_peeks_without_a_trace(name):
    torch.manual_seed(3)
    method = MADE[name]()
    batches = image_batches(4)
    first = torch.stack([method(x) for x in batches])
    assert torch.isfinite(first).all()
    state = {key: value.clone() for key, value in method.model.state_dict().items()}
    assert torch.isfinite(method.peek(batches[0])).all()
    if name not in ("lame", "memo"):
        assert all(torch.equal(value, state[key]) for key, value in method.model.state_dict().items())
    again = method(batches[1])
    method.reset()
    assert torch.equal(torch.stack([method(x) for x in batches]), first)
    assert torch.equal(method(batches[1]), again)  # the peek changed nothing


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: RPL(SmallNet(), q=0), "0 < q <= 1"),
        (lambda: RDumb(SmallNet(), core.EM(), every=0), "every >= 1"),
        (lambda: LAME(SmallNet(), neighbours=0), "neighbours >= 1"),
        (lambda: LAME(SmallNet(), affinity="cosine"), "affinity"),
        (lambda: MEMO(SmallNet(), core.EM(), views=0), "views >= 1"),
        (lambda: CoTTA(SmallNet(), restore=2), "restore and momentum"),
        (lambda: RoTTA(SmallNet(), capacity=0), "capacity, every >= 1"),
        (lambda: ROID(SmallNet(), None), "lowers a loss"),
    ],
)
def test_what_cannot_be_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()

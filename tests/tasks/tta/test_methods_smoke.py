"""Every method with every loss on a small network: finite, its costs counted, and put back to the bit."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from small_models import CLASSES, SmallNet, image_batches
from torch import nn

from dembench import core
from dembench.tasks.tta.methods.deyo import DeYO
from dembench.tasks.tta.methods.eata import EATA
from dembench.tasks.tta.methods.eta import ETA
from dembench.tasks.tta.methods.norm import Norm
from dembench.tasks.tta.methods.sar import SAR
from dembench.tasks.tta.methods.source import Source
from dembench.tasks.tta.methods.t3a import T3A
from dembench.tasks.tta.methods.tent import Tent
from dembench.tasks.tta.methods.tipi import TIPI
from dembench.tasks.tta.methods.ttc import TTC

LOSSES = {"em": core.EM, "dem": partial(core.DEM, 1.2, 0.9), "adadem": core.AdaDEM}
OPEN = {"margin": 0.95, "lr": 1e-2}  # gates that let some samples through
FREE = {
    "source": Source,
    "norm": Norm,
    "mixed": partial(Norm, statistics="mixed"),
    "ema": partial(Norm, statistics="ema"),
    "t3a": partial(T3A, keep=3),
    "t3a_all": partial(T3A, keep=-1),
}
ENTROPY = {
    "tent": partial(Tent, lr=1e-2),
    "eta": partial(ETA, d=0.98, **OPEN),
    "eata": partial(EATA, d=0.98, source_images=20, fisher_batch=8, **OPEN),
    "eata_sample": partial(EATA, d=0.98, source_images=20, fisher_batch=8, fisher="sample", **OPEN),
    "sar": partial(SAR, freeze="none", reset_below=0.0, **OPEN),
    "deyo": partial(DeYO, plpd=0.0, **OPEN),
    "pixel": partial(DeYO, plpd=0.0, destroy="pixel", **OPEN),
    "occ": partial(DeYO, plpd=0.0, destroy="occ", freeze="names", **OPEN),
    "tipi": partial(TIPI, lr=1e-2, lr_batch=16),
    "tipi_official": partial(TIPI, lr=1e-2, start=None, entropy_weight=None, predict="batch"),
}
PARTS = {"robust": True, "similarity": 2.0, "select": True, "accumulate": 32}


def made(make, loss="em", **options):
    torch.manual_seed(3)
    method = make(SmallNet(), LOSSES[loss](), **options)
    if method.source_images:
        method.see_source(torch.cat(image_batches(2, seed=5))[:20])
    return method


def walk(method, batches):
    return torch.stack([method(x) for x in batches])


def state(method):
    tensors = {**dict(method.model.named_parameters()), **dict(method.model.named_buffers())}
    if isinstance(method.loss, nn.Module):
        tensors |= dict(method.loss.named_buffers())
    return {name: value.detach().clone() for name, value in tensors.items()}


def moved(before, after):
    return [name for name in after if name in before and not torch.equal(before[name], after[name])]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", [*FREE, *ENTROPY, "ttc"])
def test_runs_and_starts_afresh_bit_for_bit(name, loss):
    method = made({**FREE, **ENTROPY, "ttc": partial(TTC, lr=1e-2, accumulate=32)}[name], loss)
    method.reset()  # a table that the loss makes lazily is there from the second start on
    start, batches = state(method), image_batches(8)
    first = walk(method, batches)
    assert first.shape == (8, 16, CLASSES)
    assert torch.isfinite(first).all()
    assert not first.requires_grad
    learned = set(moved(start, state(method))) & set(method.adapted)
    assert learned == set(method.adapted)
    assert (method.last_loss is None) == (name in FREE)
    if name not in FREE:
        assert torch.isfinite(method.last_loss)
        assert 0 < int(method.updated) <= 8 * 16
        assert method.backward_passes >= 8
    walk(method, image_batches(3, seed=9))
    method.reset()
    assert not moved(start, state(method))
    assert torch.equal(walk(method, batches), first)


@pytest.mark.parametrize("name", ENTROPY)
def test_episodic_is_a_fresh_method_for_each_batch(name):
    episodic = made(ENTROPY[name], "adadem", episodic=True)
    for x in image_batches(3):
        assert torch.equal(episodic(x), made(ENTROPY[name], "adadem")(x))


@pytest.mark.parametrize("augment", ["hflip", "vflip", "rotation", "resized_crop", "noise"])
@pytest.mark.parametrize("name", ENTROPY)
def test_takes_all_parts_of_clustering(name, augment):
    method = made(ENTROPY[name], "adadem", clustering={"augment": augment, **PARTS})
    batches = image_batches(4)
    start = state(method)
    method(batches[0])
    assert not set(moved(start, state(method))) & set(method.adapted)  # two batches make an update
    method(batches[1])
    assert set(moved(start, state(method))) >= set(method.adapted)
    method.reset()
    first = walk(method, batches)
    assert torch.isfinite(first).all()
    method.reset()
    assert torch.equal(walk(method, batches), first)


@pytest.mark.parametrize("name", ENTROPY)
def test_no_loss_is_refused(name):
    with pytest.raises(ValueError, match="lowers a loss and was given none"):
        ENTROPY[name](SmallNet(), None)

"""The losses beside EM's family against NumPy and SciPy, their gradients against finite differences."""

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy
from torch.testing import assert_close

from dembench.core import EM, family

LOSSES = {
    "gce": (family.GCE, lambda p: (1 - p.max(1) ** 0.8) / 0.8),
    "gce_1": (lambda **options: family.GCE(1, **options), lambda p: 1 - p.max(1)),
    "slr": (family.SLR, lambda p: -(p.clip(max=0.99) * np.log(p.clip(max=0.99) / (1 - p.clip(max=0.99)))).sum(1)),
    "marginal": (family.MarginalEntropy, lambda p: -(p * np.log(p.mean(0))).sum(1)),
    "im": (family.InformationMaximisation, lambda p: -entropy(p, p.mean(0)[None], axis=1)),
    "tsallis": (family.Tsallis, lambda p: 1 - (p**2).sum(1)),
    "tsallis_half": (lambda **options: family.Tsallis(0.5, **options), lambda p: 2 * (np.sqrt(p).sum(1) - 1)),
    "renyi": (family.Renyi, lambda p: -np.log((p**2).sum(1))),
    "renyi_3": (lambda **options: family.Renyi(3, **options), lambda p: -np.log((p**3).sum(1)) / 2),
}
BATCH = ["marginal", "im"]
each = pytest.mark.parametrize("name", LOSSES)


def logits(*shape):
    return 2 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def truth(name, z):
    """(M,) from logits (M, C)."""
    return torch.from_numpy(LOSSES[name][1](softmax(z.numpy(), axis=1)))


@each
def test_values_of_rows_maps_and_masks(name):
    loss = LOSSES[name][0]()
    z = logits(3, 5, 2, 4)
    flat, mask = z.movedim(1, -1).reshape(-1, 5), torch.rand(3, 2, 4) > 0.4
    assert_close(loss(flat), truth(name, flat))
    assert_close(loss(z).flatten(), truth(name, flat))
    assert_close(loss(z.float()), loss(z).float(), rtol=1e-4, atol=1e-5)
    assert loss(z.bfloat16()).dtype == torch.float32
    chosen = truth(name, flat[mask.flatten()])
    z = z.masked_fill(~mask.unsqueeze(1), math.nan).requires_grad_()
    value = loss(z, mask)
    assert_close(value[mask].detach(), chosen)
    assert (value[~mask] == 0).all()
    value.sum().backward()
    assert (z.grad.movedim(1, -1)[~mask] == 0).all()
    assert z.grad.isfinite().all()
    assert_close(LOSSES[name][0](reduction="mean")(z.detach(), mask), chosen.mean())


@each
def test_gradients(name):
    loss, mask = LOSSES[name][0](), torch.tensor([[True, False], [True, True]])
    assert torch.autograd.gradcheck(loss, logits(4, 3).requires_grad_())
    assert torch.autograd.gradcheck(lambda z: loss(z, mask), logits(2, 3, 2).requires_grad_())


@each
def test_a_class_masked_out_takes_no_part_and_large_logits_are_finite(name):
    loss, z = LOSSES[name][0](), logits(4, 5)
    z[:, 2] = -math.inf
    z.requires_grad_()
    value = loss(z)
    rest = z.detach()[:, [0, 1, 3, 4]].requires_grad_()
    assert_close(value, loss(rest))
    value.sum().backward()
    loss(rest).sum().backward()
    assert (z.grad[:, 2] == 0).all()
    assert_close(z.grad[:, [0, 1, 3, 4]], rest.grad)
    hard = (1e4 * torch.eye(3)).requires_grad_()
    loss(hard).sum().backward()
    assert hard.grad.isfinite().all()


def test_identities():
    z, em = logits(6, 4), EM()
    marginal = float(entropy(softmax(z.numpy(), axis=1).mean(0)))
    assert_close(family.Tsallis(1)(z), em(z))
    assert_close(family.Renyi(1)(z), em(z))
    assert_close(family.Renyi(1 + 1e-6)(z), em(z), rtol=1e-4, atol=1e-4)
    assert float(family.MarginalEntropy(reduction="mean")(z)) == pytest.approx(marginal)
    mutual = marginal - float(em(z).mean())
    assert float(family.InformationMaximisation(reduction="mean")(z)) == pytest.approx(-mutual)
    assert_close(family.MarginalEntropy()(z[:1]), em(z[:1]))
    assert_close(family.InformationMaximisation()(z[:1]), torch.zeros(1, dtype=torch.float64))


@each
def test_who_says_that_it_needs_a_batch(name):
    loss, z = LOSSES[name][0](), logits(6, 4)
    assert loss.needs_batch == (name in BATCH)
    assert torch.allclose(loss(z)[:2], loss(z[:2])) != loss.needs_batch


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: family.GCE(0), "gce: expected 0 < q <= 1"),
        (lambda: family.SLR(1), "slr: expected 0 < clip < 1"),
        (lambda: family.Tsallis(0), "tsallis: expected a finite order > 0"),
        (lambda: family.Renyi(math.inf), "renyi: expected a finite order > 0"),
        (lambda: family.Renyi()(torch.zeros(3)), "Renyi: expected logits"),
    ],
)
def test_wrong_arguments(make, words):
    with pytest.raises(ValueError, match=words):
        make()

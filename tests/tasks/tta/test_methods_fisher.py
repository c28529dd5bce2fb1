"""EATA's Fisher information against hand computation, and its pull back to the source."""

import math

import pytest
import torch
from small_models import image_batches
from torch import nn
from torch.testing import assert_close

from dembench import core
from dembench.tasks.tta.methods.eata import EATA

CLASSES, WIDTH = 4, 3 * 12 * 12


class Flat(nn.Module):
    """A LayerNorm over the whole image, and a linear layer: its gradients fit on a line."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.norm = nn.LayerNorm(WIDTH)
        self.linear = nn.Linear(WIDTH, CLASSES)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
            self.norm.weight += 1

    def forward(self, x):
        return self.linear(self.norm(x.flatten(1)))


def by_hand(net, images):
    """Each sample's gradient of -log p[argmax p] for the LayerNorm's weight and bias, (N, WIDTH) each.

    With xhat the normalised image and r = W^T (p - onehot) the gradients are xhat * r and r.
    """
    with torch.no_grad():
        flat = images.flatten(1)
        variance, mean = torch.var_mean(flat, 1, correction=0, keepdim=True)
        normalised = (flat - mean) / (variance + net.norm.eps).sqrt()
        p = net.linear(normalised * net.norm.weight + net.norm.bias).softmax(1)
        error = p - nn.functional.one_hot(p.argmax(1), CLASSES)
        back = error @ net.linear.weight
        return normalised * back, back


def eata(net, images, **options):
    method = EATA(net, core.EM(), source_images=len(images), **options)
    method.see_source(images)
    return method


@pytest.mark.parametrize("size", [16, 64])
def test_fisher_of_a_batch_is_the_square_of_the_mean_gradient(size):
    """As published, so that it shrinks as batches grow."""
    net, images = Flat().double(), torch.cat(image_batches(4, dtype=torch.float64))
    weight, bias = by_hand(net, images)
    method = eata(net, images, fisher="batch", fisher_batch=size)
    for got, gradients in zip(method.fishers, (weight, bias), strict=True):
        expected = torch.stack([part.mean(0) ** 2 for part in gradients.split(size)]).mean(0)
        assert_close(got.flatten(), expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("size", [16, 64])
def test_fisher_of_samples_is_the_mean_of_squares_whatever_the_batch(size):
    net, images = Flat().double(), torch.cat(image_batches(4, dtype=torch.float64))
    method = eata(net, images, fisher="sample", fisher_batch=size)
    for got, gradients in zip(method.fishers, by_hand(net, images), strict=True):
        assert_close(got.flatten(), (gradients**2).mean(0), rtol=1e-9, atol=1e-15)


def test_fisher_of_a_batch_is_smaller_by_far():
    net, images = Flat().double(), torch.cat(image_batches(4, dtype=torch.float64))
    batch, sample = (sum(f.sum() for f in eata(net, images, fisher=kind).fishers) for kind in ("batch", "sample"))
    assert batch < 0.5 * sample


def test_fisher_leaves_no_gradient_and_no_update_behind():
    net, images = Flat(), torch.cat(image_batches(4))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    eata(net, images)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in net.parameters())


def test_images_as_bytes_count_as_their_fraction_of_255():
    images = torch.cat(image_batches(4)).mul(255).round()
    as_bytes, as_floats = (eata(Flat(), x) for x in (images.to(torch.uint8), images / 255))
    for one, other in zip(as_bytes.fishers, as_floats.fishers, strict=True):
        assert_close(one, other)


def test_a_strong_pull_keeps_the_weights_near_the_source():
    batches, images = image_batches(10), torch.cat(image_batches(4, seed=9))
    ways = {}
    for alpha in (0.0, 1.0, 100.0):
        net = Flat()
        start = net.norm.weight.detach().clone()
        options = {"margin": 1.0, "d": 1.1, "lr": 1e-3, "fisher": "sample", "fisher_alpha": alpha}
        method = EATA(net, core.EM(), **options)
        if alpha:
            method.see_source(images)
        assert bool(method.source_images) == bool(alpha)
        for x in batches:
            method(x)
        ways[alpha] = (net.norm.weight.detach() - start).norm().item()
        assert math.isfinite(ways[alpha])
    assert ways[100.0] < ways[1.0] < ways[0.0]

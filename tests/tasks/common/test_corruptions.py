"""The corruptions as one function: any batch, any seed, clear errors; the numbers drawn; the noises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from corruption_pictures import Replay, assert_near, last, pictures

from dembench.tasks.common.corruptions import CORRUPTIONS, corrupt, noise
from dembench.tasks.common.corruptions.draws import _GOLDEN, Draws, _signed, _text_key, mix, mix_int
from dembench.tasks.common.corruptions.recipes import CIFAR, IMAGENET, Recipe

DETERMINISTIC = ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
SEVERITIES = (1, 2, 3, 4, 5)
ALL = pytest.mark.parametrize("severity", SEVERITIES)


def test_names_and_order():
    assert len(CORRUPTIONS) == 15
    assert CORRUPTIONS[:3] == ("gaussian_noise", "shot_noise", "impulse_noise")
    assert CORRUPTIONS[-1] == "jpeg_compression"


@pytest.mark.parametrize("corruption", CORRUPTIONS)
@pytest.mark.parametrize("severity", [2, 5])
def test_an_image_is_the_same_in_any_batch(corruption: str, severity: int):
    images, index = pictures(75), torch.arange(75) * 131 + 7
    together = corrupt(images, corruption, severity, index)
    assert together.shape == images.shape
    assert together.dtype == torch.uint8
    order = torch.from_numpy(np.random.default_rng(1).permutation(75))
    assert torch.equal(corrupt(images[order], corruption, severity, index[order]), together[order])
    for one in (0, 1, 2, 3, 40, 74):
        alone = corrupt(images[one : one + 1], corruption, severity, index[one : one + 1])
        assert torch.equal(alone[0], together[one])
    assert torch.equal(corrupt(images[5:26], corruption, severity, index[5:26]), together[5:26])
    strided = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(corrupt(strided, corruption, severity, index), together)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
@pytest.mark.parametrize("side", [48, 75])
def test_an_image_of_another_size_is_the_same_in_any_batch(corruption: str, side: int):
    images, index = pictures(30, side), torch.arange(30) * 131 + 7
    together = corrupt(images, corruption, 5, index, recipe=IMAGENET)
    assert together.shape == images.shape
    for one in (0, 1, 2, 3, 29):
        alone = corrupt(images[one : one + 1], corruption, 5, index[one : one + 1], recipe=IMAGENET)
        assert torch.equal(alone[0], together[one])


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_noise_depends_on_seed_and_index_and_the_rest_does_not(corruption: str):
    images, index = pictures(), torch.arange(12)
    first = corrupt(images, corruption, 5, index)
    same = corruption in DETERMINISTIC
    assert torch.equal(corrupt(images, corruption, 5, index, seed=1), first) is same
    assert torch.equal(corrupt(images, corruption, 5, index, seed=-1), first) is same
    assert torch.equal(corrupt(images, corruption, 5, index + 12), first) is same
    assert torch.equal(corrupt(images, corruption, 5, index, seed=0), first)
    assert not torch.equal(first, images)


def test_input_is_left_alone_and_nothing_gives_nothing():
    images = pictures()
    before = images.clone()
    for corruption in CORRUPTIONS:
        corrupt(images, corruption, 5, torch.arange(12))
        assert torch.equal(images, before)
        assert corrupt(images[:0], corruption, 5, torch.arange(0)).shape == (0, 3, 32, 32)


def test_errors_say_what_was_expected():
    images, index = pictures(), torch.arange(12)
    with pytest.raises(ValueError, match="unknown corruption 'gausian_noise'; nearest: gaussian_noise.*valid: gauss"):
        corrupt(images, "gausian_noise", 1, index)
    for severity in (0, 6, -1, 2.5, True):
        with pytest.raises(ValueError, match="severity of 1 to 5"):
            corrupt(images, "fog", severity, index)
    with pytest.raises(ValueError, match=r"uint8 \(N, 3, 32, 32\), got float32 \(12, 3, 32, 32\)"):
        corrupt(images.float(), "fog", 1, index)
    with pytest.raises(ValueError, match=r"got uint8 \(12, 3, 16, 32\)"):
        corrupt(images[:, :, :16], "fog", 1, index)
    with pytest.raises(ValueError, match=r"uint8 \(N, 3, S, S\), got uint8 \(12, 3, 16, 16\)"):
        corrupt(images[..., :16, :16], "fog", 1, index, recipe=IMAGENET)
    with pytest.raises(ValueError, match=r"index int64 \(12,\), got int32 \(12,\)"):
        corrupt(images, "fog", 1, index.int())
    with pytest.raises(ValueError, match=r"index int64 \(12,\), got int64 \(11,\)"):
        corrupt(images, "fog", 1, index[1:])


@pytest.mark.gpu
@pytest.mark.parametrize("corruption", CORRUPTIONS)
@pytest.mark.parametrize(("recipe", "side"), [(CIFAR, 32), (IMAGENET, 224)], ids=["cifar", "imagenet"])
@ALL
def test_cuda_equals_cpu(corruption: str, severity: int, recipe: Recipe, side: int):
    images, index = pictures(200 if side == 32 else 20, side), torch.arange(200 if side == 32 else 20)
    expected = corrupt(images, corruption, severity, index, recipe=recipe)
    found = corrupt(images.cuda(), corruption, severity, index.cuda(), recipe=recipe)
    assert found.is_cuda
    assert torch.equal(found.cpu(), expected)


# The numbers drawn


def test_hashes_equal_published_values():
    # SplitMix64 from seed 0, as in Vigna's reference; FNV-1a 64 of its specification
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    counter = torch.arange(1, 4) * _signed(_GOLDEN)
    assert mix(counter).tolist() == [_signed(value) for value in published]
    assert [mix_int(step * _GOLDEN) for step in (1, 2, 3)] == published
    assert _text_key("a") == 0xAF63DC4C8601EC8C
    assert _text_key("foobar") == 0x85944171F73967E8


def test_draws_have_the_distributions_they_name():
    # over many seeds, the p-values of a right distribution are themselves uniform
    seeds, found = range(60), {"uniform": [], "norm": [], "counts": []}
    for seed in seeds:
        draws = Draws(seed, "fog", 3, torch.arange(100))
        uniform = draws.uniform("a", 501)
        assert uniform.min() >= 0
        assert uniform.max() < 1
        found["uniform"].append(scipy.stats.kstest(uniform.flatten().numpy(), "uniform").pvalue)
        found["norm"].append(scipy.stats.kstest(draws.normal("b", 501).flatten().numpy(), "norm").pvalue)
        counts = np.bincount(draws.below("c", 7, 501).flatten().numpy(), minlength=7)
        assert len(counts) == 7
        found["counts"].append(scipy.stats.chisquare(counts).pvalue)
    for name, pvalues in found.items():
        assert scipy.stats.kstest(pvalues, "uniform").pvalue > 1e-3, name
    bound = torch.arange(1, 101)
    below = draws.below("d", bound)
    assert (below >= 0).all()
    assert (below < bound).all()


def test_draws_are_independent_across_everything_that_keys_them():
    index = torch.arange(300)
    base = Draws(0, "fog", 3, index).normal("a", 600)
    others = [
        Draws(1, "fog", 3, index).normal("a", 600),
        Draws(0, "frost", 3, index).normal("a", 600),
        Draws(0, "fog", 4, index).normal("a", 600),
        Draws(0, "fog", 3, index + 1).normal("a", 600),
        Draws(0, "fog", 3, index).normal("b", 600),
        base.roll(1, 1),
        base.roll(1, 0),
        base.roll(300, 1),  # the two numbers of one Box-Muller pair
    ]
    for other in others:
        correlation = float((base * other).mean() * math.sqrt(base.numel()))
        assert abs(correlation) < 3.5  # standard normal under independence
        squares = float(((base**2 - 1) * (other**2 - 1)).mean() / 2 * math.sqrt(base.numel()))
        assert abs(squares) < 3.5


@pytest.mark.parametrize("photons", CIFAR.shot_noise)
def test_poisson_counts_are_scipys_quantiles(photons: int):
    rng = np.random.default_rng(2)
    uniform = np.floor(rng.uniform(size=(6, 3, 32, 32)) * 2**53) / 2**53
    grey = rng.integers(0, 256, size=uniform.shape).astype(np.uint8)
    grey[0, 0] = np.arange(1024).reshape(32, 32) % 256
    counts = noise.poisson_counts(torch.from_numpy(grey), torch.from_numpy(uniform), photons)
    expected = np.maximum(scipy.stats.poisson.ppf(uniform, grey / 255 * photons), 0)
    assert np.array_equal(counts.numpy(), expected)
    ends = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    low, high = noise.poisson_counts(torch.tensor([255, 255], dtype=torch.uint8), ends, photons).tolist()
    assert 0 <= low < photons < high < photons + 13 * photons**0.5 + 20


def test_impulse_hits_the_stated_share_of_channel_values():
    images = torch.full((60, 3, 32, 32), 100, dtype=torch.uint8)
    for severity in SEVERITIES:
        out = corrupt(images, "impulse_noise", severity, torch.arange(60))
        hit = out != 100
        assert set(out[hit].tolist()) == {0, 255}
        share = CIFAR.impulse_noise[severity - 1]
        assert scipy.stats.binomtest(int(hit.sum()), hit.numel(), share).pvalue > 0.01
        assert scipy.stats.binomtest(int((out == 255).sum()), int(hit.sum()), 0.5).pvalue > 0.01
        together = float((hit[:, 0] & hit[:, 1]).double().mean())
        assert together < 3 * share**2 + 1e-3  # by channel, not by pixel


@ALL
def test_gaussian_noise_is_truncated_not_rounded(severity: int):
    images, normals = pictures(), np.random.default_rng(3).normal(size=(12, 3, 32, 32))
    out = noise.gaussian_noise(images, severity, Replay(noise=normals))
    deviation = (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1]
    assert_near(out, last(images) + deviation * normals.transpose(0, 2, 3, 1))

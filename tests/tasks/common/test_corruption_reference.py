"""The corruptions against 100 images that the original script corrupted with its own libraries.

Deterministic corruptions are compared value by value, and so are random ones whose NumPy numbers can be drawn again
(generator seeded with 0 before each corruption). All random ones are then compared as distributions: each statistic
is an average over the same 100 images, so its sampling deviation follows from how it varies per image over seeds.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from corruption_pictures import Replay
from numpy.typing import NDArray
from torch import Tensor

from dembench.tasks.common.corruptions import CORRUPTIONS, blur, corrupt, digital, ice, noise, weather
from dembench.tasks.common.corruptions.pixels import to_uint8
from dembench.tasks.common.corruptions.recipes import CIFAR

pytestmark = pytest.mark.data

SEVERITIES = (1, 2, 3, 4, 5)
EXACT = ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
SAMPLED = ("gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "fog")
SAMPLED += ("elastic_transform",)  # frost apart: without photos it is another texture
BANDS = (0.5, 1.5, 2.5, 4.5, 8.5, 23)  # cycles per 32 pixels
SEEDS = 4
ERROR = 1 + len(BANDS)  # place of the error rate: after mean, deviation and one band less than bounds
# one chance in a thousand that any statistic of any severity of any corruption fails by luck (Bonferroni): 4.7
LIMIT = float(scipy.stats.norm.isf(0.001 / 2 / (len(SAMPLED) * len(SEVERITIES) * (ERROR + 1))))


class Reference:
    """The reference images as uint8 (100, 3, 32, 32) per corruption and severity."""

    def __init__(self, folder: Path) -> None:
        with np.load(folder / "data" / "cifar10c-reference.npz") as arrays:
            self.arrays = {name: arrays[name] for name in arrays.files}
        self.clean = first(self.arrays["clean"])
        self.index = torch.from_numpy(self.arrays["index"])
        self.labels = torch.from_numpy(self.arrays["labels"][:100].astype(np.int64))

    def images(self, corruption: str, severity: int) -> Tensor:
        return first(self.arrays[corruption][100 * (severity - 1) : 100 * severity])


def first(images: NDArray) -> Tensor:
    """(N, 32, 32, 3) to (N, 3, 32, 32)."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


@pytest.fixture(scope="module")
def reference(data_folder: Path) -> Reference:
    return Reference(data_folder)


@pytest.mark.parametrize("corruption", EXACT)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_deterministic_corruptions_equal_the_original(reference: Reference, corruption: str, severity: int):
    found = corrupt(reference.clean, corruption, severity, reference.index)
    difference = (found.int() - reference.images(corruption, severity).int()).abs()
    if corruption == "zoom_blur":  # its float32 sums there, float64 sums here: even areas fall by one grey level
        assert difference.max() <= 1
        assert difference.double().mean() < 0.002
    elif corruption == "jpeg_compression":  # codecs of other versions may round otherwise
        assert difference.double().mean() < 0.5
    else:
        assert difference.max() == 0


# The random corruptions on NumPy's numbers


def replay_gaussian_noise(rng: np.random.RandomState, clean: Tensor, severity: int) -> Tensor:
    scale = CIFAR.gaussian_noise[severity - 1]
    normals = rng.normal(scale=scale, size=(100, 32, 32, 3)) / scale
    return noise.gaussian_noise(clean, severity, Replay(noise=normals.transpose(0, 3, 1, 2)))


def replay_shot_noise(rng: np.random.RandomState, clean: Tensor, severity: int) -> Tensor:
    photons = CIFAR.shot_noise[severity - 1]
    counts = rng.poisson(clean.permute(0, 2, 3, 1).numpy() / 255.0 * photons)
    return to_uint8(first(counts).double() / photons)


def replay_glass_blur(rng: np.random.RandomState, clean: Tensor, severity: int) -> Tensor:
    passes = CIFAR.glass_blur[severity - 1][2]
    drawn = rng.randint(-1, 1, size=(100, passes, 30, 30, 2)) + 1  # rows and columns from 31 down to 2; x before y
    offsets = np.zeros((100, passes, 2, 32, 32), np.int64)
    offsets[..., 2:, 2:] = drawn[:, :, ::-1, ::-1, ::-1].transpose(0, 1, 4, 2, 3)
    return blur.glass_blur(clean, severity, Replay(offsets=offsets))


def replay_motion_blur(rng: np.random.RandomState, clean: Tensor, severity: int) -> Tensor:
    return blur.motion_blur(clean, severity, Replay(angle=rng.uniform(size=100)))


def replay_snow(rng: np.random.RandomState, clean: Tensor, severity: int) -> Tensor:
    drawn = [(rng.normal(size=(1, 32, 32)), rng.uniform()) for _ in range(100)]
    flakes, angle = zip(*drawn, strict=True)
    return weather.snow(clean, severity, Replay(flakes=flakes, angle=angle))


def replay_fog(rng: np.random.RandomState, clean: Tensor, severity: int) -> Tensor:
    return weather.fog(clean, severity, Replay(heights=rng.uniform(size=(100, 1023))))


def replay_elastic_transform(rng: np.random.RandomState, clean: Tensor, severity: int) -> Tensor:
    drawn = [(rng.uniform(size=(3, 2)), *rng.uniform(size=(2, 32, 32))) for _ in range(100)]
    moves, right, down = zip(*drawn, strict=True)
    return digital.elastic_transform(clean, severity, Replay(moves=moves, right=right, down=down))


REPLAYS = {name.removeprefix("replay_"): made for name, made in list(globals().items()) if name.startswith("replay_")}


@pytest.mark.parametrize("corruption", REPLAYS)
def test_random_corruptions_equal_the_original_on_the_same_numbers(reference: Reference, corruption: str):
    rng = np.random.RandomState(0)
    for severity in SEVERITIES:
        found = REPLAYS[corruption](rng, reference.clean, severity)
        difference = (found.int() - reference.images(corruption, severity).int()).abs()
        assert difference.max() <= 1, severity
        assert (difference > 0).double().mean() < 5e-4, severity


# The random corruptions as distributions


@cache
def band_masks() -> Tensor:
    """(bands, 32, 17) float32, each summing to 1: averages over a half-plane spectrum."""
    down, right = np.meshgrid(np.fft.fftfreq(32) * 32, np.fft.rfftfreq(32) * 32, indexing="ij")
    radius = np.hypot(down, right)
    masks = [(radius >= low) & (radius < high) for low, high in zip(BANDS, BANDS[1:], strict=False)]
    return torch.tensor(np.stack([mask / mask.sum() for mask in masks]))


def statistics(images: Tensor, clean: Tensor, labels: Tensor, classifier: torch.nn.Module) -> Tensor:
    """(N, 8) float64 per image: mean, deviation, mean power of the change in five bands of frequency, error."""
    values = images.double()
    power = torch.fft.rfft2(values - clean).abs().square().mean(1) / 1024
    bands = torch.einsum("nhw,bhw->nb", power, band_masks())
    with torch.inference_mode():
        wrong = classifier(images.float() / 255).argmax(1) != labels
    return torch.cat([values.mean((1, 2, 3))[:, None], values.std((1, 2, 3))[:, None], bands, wrong[:, None]], 1)


@pytest.fixture(scope="module")
def classifier(data_folder: Path) -> torch.nn.Module:
    from dembench.tasks.tta.models import cifar_resnet

    model = cifar_resnet(20, weights=data_folder / "weights" / "resnet20-12fca82f.th")
    return model.eval().to(memory_format=torch.channels_last)


def deviations(
    reference: Reference,
    corruption: str,
    classifier: torch.nn.Module,
    seed: int = 0,
    against: tuple[int, ...] = SEVERITIES,
) -> Tensor:
    """(5, 8): (reference - ours) / its standard error, per severity and statistic.

    Each of S seeds gives every image a value; the variance of the reference's average of 100 images is the mean of
    the images' variances over 100, that of our average is 1 / S of it. An error rate that varies less than one image
    in a hundred is taken to vary by one. ``against`` names the reference's severity for each of ours.
    """
    clean, labels = reference.clean, reference.labels
    found = []
    for severity, other in zip(SEVERITIES, against, strict=True):
        theirs = statistics(reference.images(corruption, other), clean, labels, classifier)
        ours = torch.stack(
            [
                statistics(corrupt(clean, corruption, severity, reference.index, seed=s), clean, labels, classifier)
                for s in range(seed, seed + SEEDS)
            ]
        )
        variance = ours.var(0).mean(0) / len(clean)
        variance[ERROR] = variance[ERROR].clamp(min=1e-4)
        found.append((theirs.mean(0) - ours.mean((0, 1))) / (variance * (1 + 1 / SEEDS)).sqrt())
    return torch.stack(found)


@pytest.mark.parametrize("corruption", SAMPLED)
def test_random_corruptions_have_the_originals_statistics(
    reference: Reference, classifier: torch.nn.Module, corruption: str
):
    found = deviations(reference, corruption, classifier)
    assert found.shape == (5, ERROR + 1)
    assert found.abs().max() < LIMIT, found


def test_statistics_tell_a_wrong_severity_apart(reference: Reference, classifier: torch.nn.Module):
    """The comparison can fail: noise of 0.10 instead of 0.09 is seen."""
    found = deviations(reference, "gaussian_noise", classifier, against=(1, 2, 3, 5, 4))
    assert found[:3].abs().max() < LIMIT
    assert (found[3:, 1:ERROR].abs() > LIMIT).all()


def test_impulse_noise_of_the_original_is_ours_in_kind(reference: Reference):
    """scikit-image's generator is its own, so no replay: share of values hit, of salt, and nothing else touched."""
    for severity in SEVERITIES:
        clean, theirs = reference.clean, reference.images("impulse_noise", severity)
        hit = theirs != clean
        assert set(theirs[hit].tolist()) == {0, 255}
        between = (clean > 0) & (clean < 255)  # a hit on 0 or 255 may not show
        test = scipy.stats.binomtest(int(hit[between].sum()), int(between.sum()), CIFAR.impulse_noise[severity - 1])
        assert test.pvalue > 0.001


def test_frost_with_the_photos_is_the_originals(reference: Reference, data_folder: Path):
    photos = ice.load_photos(data_folder / "data" / "frost")
    rng = np.random.RandomState(0)
    for severity in SEVERITIES:
        drawn = []
        for _ in range(100):
            which = rng.randint(5)
            drawn.append((which, *(rng.randint(0, size - 32) for size in photos[which].shape[1:])))
        which, top, left = np.array(drawn).T
        replay = Replay(photo=which, top=top, left=left)
        found = weather.frost(reference.clean, severity, replay, photos=photos)
        difference = (found.int() - reference.images("frost", severity).int()).abs()
        assert difference.max() <= 1, severity
        assert (difference > 0).double().mean() < 5e-4, severity


def test_made_frost_is_near_the_originals_statistics(reference: Reference, classifier: torch.nn.Module):
    """Only near: the layer is a made texture, not the original's photos, so the limits are set by hand."""
    clean, labels = reference.clean, reference.labels
    for severity in SEVERITIES:
        theirs = statistics(reference.images("frost", severity), clean, labels, classifier).mean(0)
        ours = torch.stack(
            [
                statistics(corrupt(clean, "frost", severity, reference.index, seed=seed), clean, labels, classifier)
                for seed in range(SEEDS)
            ]
        ).mean((0, 1))
        assert abs(ours[0] - theirs[0]) < 4  # grey levels; 1.8 of sampling at severity 5
        assert abs(ours[1] / theirs[1] - 1) < 0.1
        assert (ours[2:ERROR] / theirs[2:ERROR]).log().abs().max() < np.log(1.6)
        assert abs(ours[ERROR] - theirs[ERROR]) < 0.1  # 3 to 4 points of sampling


def test_every_corruption_is_compared_here():
    assert set(EXACT) | set(SAMPLED) | {"frost"} == set(CORRUPTIONS)
    assert set(REPLAYS) | {"impulse_noise"} == set(SAMPLED)

"""The corruptions at 224 pixels against images that the original functions made, and against slow transcriptions.

The reference holds four images at severities 3 and 5, made by the functions of imagecorruptions 1.1.2 with NumPy's
generator seeded with 0 before each image. Given those numbers, the random corruptions are compared value by value.
"""

from __future__ import annotations

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
from dembench.tasks.common.corruptions.recipes import IMAGECORRUPTIONS, IMAGENET

DETERMINISTIC = ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
SIDE = 224
both = pytest.mark.parametrize("severity", [3, 5])


@pytest.fixture(scope="module")
def reference(data_folder: Path) -> dict[str, NDArray]:
    with np.load(data_folder / "data" / "imagenetc-reference.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def first(images: NDArray) -> Tensor:
    """(N, 224, 224, 3) to (N, 3, 224, 224)."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def difference(found: Tensor, reference: dict[str, NDArray], corruption: str, severity: int) -> Tensor:
    return (found.int() - first(reference[f"{corruption}_{severity}"]).int()).abs()


@pytest.mark.data
@both
@pytest.mark.parametrize("corruption", DETERMINISTIC)
@pytest.mark.parametrize("recipe", [IMAGENET, IMAGECORRUPTIONS], ids=lambda recipe: recipe.name)
def test_deterministic_corruptions_equal_the_original(reference, corruption, severity, recipe):
    found = corrupt(first(reference["clean"]), corruption, severity, torch.arange(4), recipe=recipe)
    off = difference(found, reference, corruption, severity)
    if corruption == "zoom_blur":  # its float32 sums there, float64 sums here
        assert off.max() <= 1
        assert (off > 0).double().mean() < 1e-3
    elif corruption == "jpeg_compression":  # codecs of other versions may round otherwise
        assert off.double().mean() < 0.5
    else:
        assert off.max() == 0


# The random corruptions on NumPy's numbers, drawn again for each image; each function takes the generator, the clean
# image and the severity, and returns the numbers


def replay_gaussian_noise(rng: np.random.RandomState, clean: NDArray, severity: int) -> dict:
    scale = IMAGENET.gaussian_noise[severity - 1]
    return {"noise": (rng.normal(scale=scale, size=clean.shape) / scale).transpose(2, 0, 1)}


def replay_glass_blur(rng: np.random.RandomState, clean: NDArray, severity: int) -> dict:
    _, reach, passes = IMAGENET.glass_blur[severity - 1]
    inside = SIDE - 2 * reach
    drawn = rng.randint(-reach, reach, size=(passes, inside, inside, 2)) + reach  # from high to low; x before y
    offsets = np.zeros((passes, 2, SIDE, SIDE), np.int64)
    place = slice(reach + 1, SIDE - reach + 1)
    offsets[:, :, place, place] = drawn[:, ::-1, ::-1, ::-1].transpose(0, 3, 1, 2)
    return {"offsets": offsets}


def replay_motion_blur(rng: np.random.RandomState, clean: NDArray, severity: int) -> dict:
    return {"angle": rng.uniform()}


def replay_snow(rng: np.random.RandomState, clean: NDArray, severity: int) -> dict:
    return {"flakes": rng.normal(size=(1, SIDE, SIDE)), "angle": rng.uniform()}


def replay_fog(rng: np.random.RandomState, clean: NDArray, severity: int) -> dict:
    return {"heights": rng.uniform(size=256 * 256 - 1)}


def replay_elastic_transform(rng: np.random.RandomState, clean: NDArray, severity: int) -> dict:
    right, down = rng.uniform(size=(2, SIDE, SIDE))
    return {"moves": np.full((3, 2), 0.5), "right": right, "down": down}


REPLAYS = {name.removeprefix("replay_"): made for name, made in list(globals().items()) if name.startswith("replay_")}
APPLY = {
    "gaussian_noise": noise.gaussian_noise,
    "glass_blur": blur.glass_blur,
    "motion_blur": blur.motion_blur,
    "snow": weather.snow,
    "fog": weather.fog,
    "elastic_transform": digital.elastic_transform,
}


@pytest.mark.data
@both
@pytest.mark.parametrize("corruption", REPLAYS)
def test_random_corruptions_equal_the_original_on_the_same_numbers(reference, corruption, severity):
    numbers = [REPLAYS[corruption](np.random.RandomState(0), image, severity) for image in reference["clean"]]
    replay = Replay(**{name: np.stack([own[name] for own in numbers]) for name in numbers[0]})
    found = APPLY[corruption](first(reference["clean"]), severity, replay, IMAGECORRUPTIONS)
    off = difference(found, reference, corruption, severity)
    assert off.max() <= 1
    assert (off > 0).double().mean() < 0.005


@pytest.mark.data
@both
def test_shot_noise_is_the_originals_counts_over_the_photons(reference, severity):
    photons = IMAGENET.shot_noise[severity - 1]
    counts = [np.random.RandomState(0).poisson(image / 255.0 * photons) for image in reference["clean"]]
    assert (
        difference(to_uint8(first(np.stack(counts)).double() / photons), reference, "shot_noise", severity).max() == 0
    )
    ours = corrupt(first(reference["clean"]), "shot_noise", severity, torch.arange(4), recipe=IMAGENET)
    theirs = first(reference[f"shot_noise_{severity}"])
    clean = first(reference["clean"])
    for grey in (60, 128, 200):  # how many of each count: the same distribution at the same grey level
        near = clean == grey
        levels = np.union1d(ours[near], theirs[near])
        table = [[int((part[near] == level).sum()) for level in levels] for part in (ours, theirs)]
        table = np.array(table)[:, np.sum(table, 0) >= 10]
        assert scipy.stats.chi2_contingency(table).pvalue > 1e-3


@pytest.mark.data
@both
def test_impulse_noise_of_the_original_is_ours_in_kind(reference, severity):
    clean, theirs = first(reference["clean"]), first(reference[f"impulse_noise_{severity}"])
    ours = corrupt(clean, "impulse_noise", severity, torch.arange(4), recipe=IMAGENET)
    between = (clean > 0) & (clean < 255)
    for found in (ours, theirs):
        hit = found != clean
        assert set(found[hit].tolist()) == {0, 255}
        share = IMAGENET.impulse_noise[severity - 1]
        assert scipy.stats.binomtest(int(hit[between].sum()), int(between.sum()), share).pvalue > 1e-3


@pytest.mark.data
@both
def test_frost_of_the_original_photos_is_the_originals(reference, data_folder, severity):
    photos = ice.load_photos(data_folder / "data" / "frost", IMAGECORRUPTIONS, SIDE)
    numbers = []
    for _ in range(4):
        rng = np.random.RandomState(0)
        which = rng.randint(5)
        numbers.append((which, *(rng.randint(0, size - SIDE) for size in photos[which].shape[1:])))
    which, top, left = np.array(numbers).T
    replay = Replay(photo=which, top=top, left=left)
    found = weather.frost(first(reference["clean"]), severity, replay, IMAGECORRUPTIONS, photos=photos)
    off = difference(found, reference, "frost", severity)
    assert off.max() <= 1  # the cubic resize of OpenCV rounds its weights
    assert (off > 0).double().mean() < 0.2


def test_every_corruption_is_compared_here():
    assert {*DETERMINISTIC, *REPLAYS, "shot_noise", "impulse_noise", "frost"} == set(CORRUPTIONS)
    assert set(APPLY) == set(REPLAYS)

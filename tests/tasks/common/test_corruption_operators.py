"""Each corruption against a slow transcription or another library: scipy, scikit-image, Pillow."""

from __future__ import annotations

import math
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import skimage.color
import skimage.filters
import torch
from corruption_pictures import Replay, assert_near, last, pictures
from numpy.typing import NDArray
from PIL import Image

from dembench.tasks.common.corruptions import blur, corrupt, digital, ice, weather
from dembench.tasks.common.corruptions.pixels import gaussian_weights
from dembench.tasks.common.corruptions.recipes import CIFAR, IMAGENET, Recipe

ALL = pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])

# Blurs


@pytest.mark.parametrize("sigma", [0.25, 0.4, 0.7, 1.5])
def test_weights_of_a_gaussian_are_added_one_after_the_other(sigma: float):
    """To the last bit, in every version of Python: glass blur cuts what comes of them off to whole grey levels."""
    radius = int(4 * sigma + 0.5)
    weights = np.array([math.exp(-0.5 * (place / sigma) ** 2) for place in range(-radius, radius + 1)])
    assert gaussian_weights(sigma, 4.0) == (weights / weights.cumsum()[-1]).tolist()


@ALL
@pytest.mark.parametrize(("recipe", "side", "skip"), [(CIFAR, 32, 0), (IMAGENET, 40, 4)], ids=["cifar", "imagenet"])
def test_glass_blur_is_a_sequential_loop_of_copies(severity: int, recipe: Recipe, side: int, skip: int):
    images = pictures(9, side)[skip:]  # of wide blurs even areas end at either of two grey levels, twice
    sigma, reach, passes = recipe.glass_blur[severity - 1]
    offsets = np.random.default_rng(4).integers(0, 2 * reach, size=(len(images), passes, 2, side, side))
    expected = []
    for image, offset in zip(last(images), offsets - reach, strict=True):
        grey = (skimage.filters.gaussian(image, sigma=sigma, channel_axis=-1) * 255).astype(np.uint8)
        for number in range(passes):
            for row in range(side - reach, reach, -1):
                for column in range(side - reach, reach, -1):
                    down, right = offset[number, :, row, column]
                    grey[row, column] = grey[row + down, column + right]
        expected.append(skimage.filters.gaussian(grey / 255.0, sigma=sigma, channel_axis=-1))
    assert_near(blur.glass_blur(images, severity, Replay(offsets=offsets), recipe), np.stack(expected), share=1e-3)


def motion_loop(image: NDArray, degrees: float, radius: int, sigma: float) -> NDArray:
    """ImageMagick's motion blur of one (32, 32) uint8 channel, pixel by pixel."""
    width = 2 * radius + 1
    kernel = [math.exp(-(step**2) / (2 * sigma**2)) for step in range(width)]
    out = np.zeros((32, 32), np.uint8)
    for row in range(32):
        for column in range(32):
            total = 0.0
            for step in range(width):
                right = math.ceil(step * math.cos(math.radians(degrees)) - 0.5)
                down = math.ceil(step * math.sin(math.radians(degrees)) - 0.5)
                near = image[min(max(row + down, 0), 31), min(max(column + right, 0), 31)]
                total += kernel[step] / sum(kernel) * float(near) * 257
            out[row, column] = int(total + 0.5) // 257
    return out


@pytest.mark.parametrize("degrees", [-45.0, -17.3, 0.0, 31.0, 45.0, -90.0, -120.0])
def test_motion_is_imagemagicks_loop(degrees: float):
    images = pictures()[:2, :1]
    images[1] = torch.from_numpy(np.random.default_rng(5).integers(0, 256, (1, 32, 32)).astype(np.uint8))
    out = blur.eight_bit(blur.motion(images, torch.full((2,), degrees, dtype=torch.float64), 6, 1.5))
    for found, image in zip(out, images, strict=True):
        assert np.array_equal(found[0].numpy(), motion_loop(image[0].numpy(), degrees, 6, 1.5))


def test_motion_blur_draws_angles_within_45_degrees():
    images = torch.zeros(400, 3, 32, 32, dtype=torch.uint8)
    images[..., 16, 16] = 255  # the dot is smeared to the left, up or down by at most as much
    smear = corrupt(images, "motion_blur", 5, torch.arange(400))[:, 0].double().mean(0)
    assert smear[:, 17:].max() == 0
    assert smear[:16].sum() > 0
    assert smear[17:].sum() > 0
    assert smear[:14, 15].max() == 0


@ALL
def test_zoom_blur_averages_scipys_zooms(severity: int):
    images = pictures()
    factors = np.arange(1, (1.06, 1.11, 1.16, 1.21, 1.26)[severity - 1], 0.01)
    assert len(factors) == CIFAR.zoom_blur[severity - 1][0]
    total = last(images).copy()
    for factor in factors:
        size = math.ceil(32 / factor)
        top = (32 - size) // 2
        crop = last(images)[:, top : top + size, top : top + size]
        large = scipy.ndimage.zoom(crop, (1, factor, factor, 1), order=1)
        trim = (large.shape[1] - 32) // 2
        total += large[:, trim : trim + 32, trim : trim + 32]
    found = blur.zoom_blur(images, severity)
    assert_near(found, total / (len(factors) + 1), share=0.2)  # even areas end at whole grey levels
    assert_near(found, total / (len(factors) + 1) + 1e-6 / 255, share=0)


@ALL
def test_defocus_is_a_smoothed_disc_with_mirrored_borders(severity: int):
    radius, sigma = CIFAR.defocus_blur[severity - 1]
    reach = np.arange(-8, 9)
    disc = (reach[:, None] ** 2 + reach**2 <= radius**2).astype(float)
    smooth = np.exp(-np.array([1, 0, 1]) / (2 * sigma**2))
    smooth = np.outer(smooth, smooth)
    disc = scipy.ndimage.correlate(disc / disc.sum(), smooth / smooth.sum(), mode="constant")
    images = pictures()
    expected = scipy.ndimage.correlate(last(images), disc[None, :, :, None], mode="mirror")
    # five equal weights often sum to a whole grey level, which float32 weights miss by 1e-6
    assert_near(blur.defocus_blur(images, severity), expected + 1e-6 / 255, share=5e-3 if severity == 4 else 0)


# Weather


def plasma_loop(numbers: NDArray, decay: float) -> NDArray:
    """Diamond-square on a 32 x 32 torus, point by point, the numbers taken in order."""
    size, heights, numbers = 32, np.zeros((32, 32)), iter(numbers)
    step, wibble = size, 100.0

    def value(points: list[tuple[int, int]]) -> float:
        mean = sum(heights[row % size, column % size] for row, column in points) / 4
        return mean + wibble * (next(numbers) * 2 * wibble - wibble)

    while step >= 2:
        half, ends = step // 2, range(0, size, step)
        for row in ends:
            for column in ends:
                corners = [(row, column), (row + step, column), (row, column + step), (row + step, column + step)]
                heights[row + half, column + half] = value(corners)
        for down, right in ((0, half), (half, 0)):
            for row in ends:
                for column in ends:
                    r, c = row + down, column + right
                    heights[r, c] = value([(r - half, c), (r + half, c), (r, c - half), (r, c + half)])
        step, wibble = half, wibble / decay
    heights -= heights.min()
    return heights / heights.max()


@ALL
def test_fog_is_a_plasma_fractal(severity: int):
    images, numbers = pictures(), np.random.default_rng(6).uniform(size=(12, 1023))
    amount, decay = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))[severity - 1]
    fractal = np.stack([plasma_loop(one, decay) for one in numbers])
    np.testing.assert_allclose(weather.plasma(torch.from_numpy(numbers), decay).numpy(), fractal, atol=1e-9)
    x = last(images)
    most = x.max(axis=(1, 2, 3), keepdims=True)
    expected = (x + amount * fractal[..., None]) * most / (most + amount)
    assert_near(weather.fog(images, severity, Replay(heights=numbers)), expected, share=1e-3)


@ALL
def test_snow_is_its_transcription(severity: int):
    rng = np.random.default_rng(7)
    images = pictures()[2:5]
    normals, turn = rng.normal(size=(3, 1, 32, 32)), rng.uniform(size=3)
    mean, deviation, zoom, threshold, radius, sigma, keep = CIFAR.snow[severity - 1]
    expected = []
    for image, normal, angle in zip(last(images).astype(np.float32), normals[:, 0], turn, strict=True):
        size = math.ceil(32 / zoom)
        top = (32 - size) // 2
        flakes = (normal * deviation + mean)[top : top + size, top : top + size]
        flakes = scipy.ndimage.zoom(flakes, zoom, order=1)
        trim = (len(flakes) - 32) // 2
        flakes = flakes[trim : trim + 32, trim : trim + 32]
        flakes = (np.clip(np.where(flakes < threshold, 0, flakes), 0, 1) * 255).astype(np.uint8)
        flakes = motion_loop(flakes, angle * 90 - 135, radius, sigma)[..., None] / 255
        grey = image[..., 0] * 0.299 + image[..., 1] * 0.587 + image[..., 2] * 0.114
        white = np.maximum(image, grey[..., None] * 1.5 + 0.5)
        expected.append(keep * image + (1 - keep) * white + flakes + np.rot90(flakes, 2))
    assert_near(weather.snow(images, severity, Replay(flakes=normals, angle=turn)), np.stack(expected), share=1e-3)


@ALL
def test_brightness_adds_to_scikit_images_value(severity: int):
    rng = np.random.default_rng(8)
    images = torch.cat([pictures(), torch.from_numpy(rng.integers(0, 256, (20, 3, 32, 32)).astype(np.uint8))])
    hsv = skimage.color.rgb2hsv(last(images))
    hsv[..., 2] = np.clip(hsv[..., 2] + (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1], 0, 1)
    assert_near(weather.brightness(images, severity), skimage.color.hsv2rgb(hsv))


# Frost


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(9)
    for number, (suffix, size) in enumerate(
        [("png", (180, 200)), ("png", (203, 176)), ("bmp", (167, 188)), ("png", (169, 174)), ("png", (200, 165))], 1
    ):
        Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8)).save(tmp_path / f"frost{number}.{suffix}")
    return tmp_path


def shrink(photo: NDArray) -> NDArray:
    """Bilinear resize by 1 / 5 with pixel centres at half steps, written out; (H, W, 3) uint8."""
    out = photo.astype(float)
    for axis in (0, 1):
        size = round(photo.shape[axis] * 0.2)
        position = (np.arange(size) + 0.5) / 0.2 - 0.5
        low = np.floor(position).astype(int)
        part = (position - low).reshape([-1 if axis == other else 1 for other in range(3)])
        high = np.minimum(low + 1, photo.shape[axis] - 1)
        out = out.take(low, axis) * (1 - part) + out.take(high, axis) * part
    return np.rint(out).astype(np.uint8)


@ALL
def test_frost_photos_are_shrunk_cropped_and_added(photos: Path, severity: int):
    images = pictures()
    rng = np.random.default_rng(10)
    shrunk = [shrink(np.array(Image.open(sorted(photos.glob(f"frost{n}.*"))[0]))) for n in range(1, 6)]
    loaded = ice.load_photos(photos)
    for found, expected in zip(loaded, shrunk, strict=True):
        assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)
    which = rng.integers(0, 5, 12)
    top = np.array([rng.integers(0, shrunk[one].shape[0] - 32) for one in which])
    left = np.array([rng.integers(0, shrunk[one].shape[1] - 32) for one in which])
    keep, amount = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))[severity - 1]
    crops = np.stack(
        [shrunk[one][row : row + 32, column : column + 32] for one, row, column in zip(which, top, left, strict=True)]
    )
    expected = np.clip(keep * images.permute(0, 2, 3, 1).numpy() + amount * crops, 0, 255).astype(np.uint8)
    out = weather.frost(images, severity, Replay(photo=which, top=top, left=left), photos=loaded)
    assert np.array_equal(out.permute(0, 2, 3, 1).numpy(), expected)


def test_frost_uses_each_photo_and_every_place(photos: Path):
    for number in range(1, 6):
        path = sorted(photos.glob(f"frost{number}.*"))[0]
        height, width = np.array(Image.open(path)).shape[:2]
        ramp = np.zeros((height, width, 3), np.uint8)  # what was cropped can be read off the result
        ramp[..., 0] = number * 40
        ramp[..., 1] = np.arange(height)[:, None]
        ramp[..., 2] = np.arange(width)
        Image.fromarray(ramp).save(path)
    black = torch.zeros(2000, 3, 32, 32, dtype=torch.uint8)
    out = corrupt(black, "frost", 5, torch.arange(2000), frost=photos).double() / 0.45
    which = (out[:, 0, 0, 0] / 40).round().long()
    counts = np.bincount(which.numpy(), minlength=6)
    assert counts[0] == 0
    assert scipy.stats.chisquare(counts[1:]).pvalue > 0.01
    tops = (out[which == 1, 1, 0, 0] / 5).floor().long().unique().tolist()
    assert tops == list(range(36 - 32))  # the end is excluded, as numpy.random.randint
    assert torch.equal(
        corrupt(black[:9], "frost", 5, torch.arange(9), frost=str(photos)),
        corrupt(black, "frost", 5, torch.arange(2000), frost=photos)[:9],
    )


def test_frost_folder_errors_come_before_work(photos: Path):
    images, index = pictures(), torch.arange(12)
    with pytest.raises(FileNotFoundError, match=r"no folder .*hendrycks/robustness.*say made"):
        corrupt(images, "frost", 1, index, frost=photos / "none")
    (photos / "frost2.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"frost2.png' cannot be read as an image"):
        corrupt(images, "frost", 1, index, frost=photos)
    Image.new("RGB", (400, 162)).save(photos / "frost2.png")
    with pytest.raises(ValueError, match=r"at least 163 pixels a side, got 400 x 162"):
        corrupt(images, "frost", 1, index, frost=photos)
    (photos / "frost2.png").unlink()
    (photos / "frost5.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks frost2, frost5 \(any image extension\)"):
        corrupt(images, "frost", 1, index, frost=photos)


def test_made_frost_has_the_stated_colours_and_fine_structure():
    for texture, (means, deviations, *_) in zip(ice.made_textures(), ice.TEXTURES, strict=True):
        assert texture.dtype == torch.uint8
        values = texture.double()
        np.testing.assert_allclose(values.mean((1, 2)), means, atol=1)
        np.testing.assert_allclose(values.std((1, 2)), deviations, atol=2)
        power = torch.fft.fft2(values.mean(0)).abs() ** 2
        assert power[1:4, 0].mean() > 5 * power[40:60, 0].mean()  # cloudy
    first, second = ice.made_textures()[1:3]
    assert not torch.equal(first, second)


# Digital


@ALL
def test_contrast_scales_about_each_channels_mean(severity: int):
    x = last(pictures())
    mean = x.mean(axis=(1, 2), keepdims=True)
    expected = (x - mean) * (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1] + mean
    assert_near(digital.contrast(pictures(), severity), expected, share=0.2)
    assert_near(digital.contrast(pictures()[4:], severity), expected[4:], share=1e-4)  # without the even ones


ELASTIC_32 = ((0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96))
ELASTIC_224 = ((488, 170.8, 24.4), (488, 19.52, 48.8), (12.2, 2.44, 4.88), (17.08, 2.44, 4.88), (29.28, 2.44, 4.88))


@ALL
@pytest.mark.parametrize(
    ("recipe", "side", "low", "high", "constants"),
    [(CIFAR, 32, 6, 26, ELASTIC_32), (IMAGENET, 224, 38, 186, ELASTIC_224)],
    ids=["cifar", "imagenet"],
)
def test_elastic_is_scipys_two_interpolations(severity, recipe, side, low, high, constants):
    count = 12 if side == 32 else 5
    images, rng = pictures(count, side), np.random.default_rng(11)
    moves, right, down = rng.uniform(size=(count, 3, 2)), *rng.uniform(size=(2, count, side, side))
    size, sigma, reach = constants[severity - 1]
    points = np.array([[high, high, 1.0], [high, low, 1], [low, low, 1]])
    rows, columns = np.mgrid[:side, :side]
    expected = []
    for image, move, one, two in zip(last(images), moves * 2 * reach - reach, right, down, strict=True):
        matrix = np.linalg.solve(points, points[:, :2] + move).T  # output x, y of input x, y, 1
        source = np.linalg.inv(np.vstack([matrix, [0, 0, 1]])) @ np.stack(
            [columns.ravel(), rows.ravel(), np.ones(side * side)]
        )
        places = source[1].reshape(side, side), source[0].reshape(side, side)
        if size:
            one, two = (
                size * skimage.filters.gaussian(part * 2 - 1, sigma, mode="reflect", truncate=3) for part in (one, two)
            )
        warped = []
        for channel in range(3):
            first = scipy.ndimage.map_coordinates(image[..., channel], places, order=1, mode="mirror")
            if size:
                first = scipy.ndimage.map_coordinates(first, (rows + two, columns + one), order=1, mode="reflect")
            warped.append(first)
        expected.append(np.stack(warped, -1))
    out = digital.elastic_transform(images, severity, Replay(moves=moves, right=right, down=down), recipe)
    assert_near(out, np.stack(expected) + 1e-6, share=1e-3)


@ALL
def test_pixelate_equals_pillows_box_filter(severity: int):
    rng = np.random.default_rng(12)
    images = torch.cat([pictures(), torch.from_numpy(rng.integers(0, 256, (40, 3, 32, 32)).astype(np.uint8))])
    size = int(32 * (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1])
    expected = []
    for image in images.permute(0, 2, 3, 1).numpy():
        small = Image.fromarray(np.ascontiguousarray(image)).resize((size, size), Image.Resampling.BOX)
        expected.append(np.array(small.resize((32, 32), Image.Resampling.BOX)))
    assert np.array_equal(digital.pixelate(images, severity).permute(0, 2, 3, 1).numpy(), np.stack(expected))


@ALL
def test_jpeg_is_one_round_trip_at_the_stated_quality(severity: int):
    images = pictures()
    out = digital.jpeg_compression(images, severity)
    for found, image in zip(out, images, strict=True):
        file = BytesIO()
        picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
        picture.save(file, "JPEG", quality=(80, 65, 58, 50, 40)[severity - 1])
        assert np.array_equal(found.permute(1, 2, 0).numpy(), np.array(Image.open(file)))

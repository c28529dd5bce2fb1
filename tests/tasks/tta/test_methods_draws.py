"""What the methods draw: DeYO's destroyed images, TTC's second views, TIPI's first shift."""

import pytest
import torch
from small_models import SmallNet, image_batches
from torch.testing import assert_close
from tta_models import FeatureNet, Watched

from dembench import core
from dembench.tasks.common.digits_nets import Normalized
from dembench.tasks.tta.methods.deyo import DeYO
from dembench.tasks.tta.methods.tipi import TIPI
from dembench.tasks.tta.methods.ttc import TTC


def shown(method_class, x, **options):
    """The second images that the network sees in the first step on x, and in that after a reset."""
    torch.manual_seed(0)
    watched = Watched(FeatureNet())
    method = method_class(watched, core.EM(), lr=1e-3, **options)
    method(x)
    first = watched.seen[1]
    method(x)
    method.reset()
    watched.seen = []
    method(x)
    assert torch.equal(watched.seen[1], first)  # a reset starts the draws again
    return first


def patches(image, grid=4):
    side = image.shape[-1] // grid
    cut = image.unfold(1, side, side).unfold(2, side, side)  # (3, grid, grid, side, side)
    return [tuple(patch.flatten().tolist()) for patch in cut.permute(1, 2, 0, 3, 4).flatten(0, 1)]


DEYO = {"margin": None, "freeze": "none"}  # no entropy gate: all images are destroyed


def test_deyo_shuffles_the_patches_of_each_image_in_its_own_way():
    x = image_batches(1)[0]
    destroyed = shown(DeYO, x, destroy="patch", patches=4, **DEYO)
    orders = []
    for image, broken in zip(x, destroyed, strict=True):
        before, after = patches(image), patches(broken)
        assert sorted(before) == sorted(after)
        orders.append(tuple(before.index(patch) for patch in after))
    assert len(set(orders)) == len(orders)
    starts = torch.tensor(orders).float()
    assert 3 < starts.mean(0).mean() < 12  # positions are drawn from all over the image


def test_deyo_shuffles_pixels_alike_in_all_images():
    x = image_batches(1)[0]
    destroyed = shown(DeYO, x, destroy="pixel", **DEYO)
    pixels = {tuple(pixel.tolist()): place for place, pixel in enumerate(x[0].flatten(1).t())}
    order = [pixels[tuple(pixel.tolist())] for pixel in destroyed[0].flatten(1).t()]
    assert sorted(order) == list(range(144))
    assert order != list(range(144))
    assert torch.equal(destroyed.flatten(2), x.flatten(2)[:, :, order])


def test_deyo_covers_the_centre_with_the_mean_of_the_image():
    x = image_batches(1)[0]
    destroyed = shown(DeYO, x, destroy="occ", **DEYO)
    inside = torch.zeros(12, 12, dtype=torch.bool)
    inside[3:9, 3:9] = True  # 112 of 224 pixels from 56, to scale
    assert torch.equal(destroyed[:, :, ~inside], x[:, :, ~inside])
    assert_close(destroyed[:, :, inside], x.mean((2, 3))[:, :, None].expand(-1, -1, 36))


@pytest.mark.parametrize("size", [10, 13, 15])
def test_deyo_takes_sizes_that_its_grid_does_not_divide(size):
    x = torch.rand(6, 3, size, size)
    destroyed = shown(DeYO, x, destroy="patch", **DEYO)
    assert destroyed.shape == x.shape
    assert 0 <= destroyed.min() <= destroyed.max() <= 1 + 1e-6


def test_deyo_shows_only_images_that_pass_the_first_gate():
    net = FeatureNet()
    x = image_batches(1)[0]
    with torch.no_grad():
        z = FeatureNet().train()(x)
    low = int((core.EM()(z) < 0.5 * torch.tensor(5.0).log()).sum())
    watched = Watched(net)
    DeYO(watched, core.EM(), margin=0.5, freeze="none")(x)
    assert 0 < len(watched.seen[1]) == low < len(x)


VIEWS = {
    "hflip": lambda x: x.flip(3),
    "vflip": lambda x: x.flip(2),
}


@pytest.mark.parametrize("augment", VIEWS)
def test_ttc_flips(augment):
    x = image_batches(1)[0]
    assert torch.equal(shown(TTC, x, augment=augment, accumulate=None), VIEWS[augment](x))


@pytest.mark.parametrize("augment", ["rotation", "resized_crop", "noise"])
def test_ttc_draws_a_view_of_every_image_anew(augment):
    x = image_batches(1)[0][:1].repeat(16, 1, 1, 1)
    view = shown(TTC, x, augment=augment, accumulate=None)
    assert view.shape == x.shape
    assert view.isfinite().all()
    different = {tuple(image.flatten().tolist()) for image in view}
    assert len(different) == 16
    assert all((image - x[0]).abs().max() > 0 for image in view)


def test_tipi_starts_anywhere_within_eps_and_steps_to_its_edge():
    x = image_batches(1)[0]
    watched = Watched(FeatureNet())
    method = TIPI(watched, core.EM(), start="random", eps=0.02, lr=1e-3)
    method(x)
    clean, start, shifted, last = watched.seen
    assert torch.equal(clean, x)
    assert torch.equal(last, x)
    drawn = start - x
    assert drawn.abs().max() <= 0.02 + 1e-6
    assert_close(drawn.std().item(), 0.02 / 3**0.5, rtol=0.05, atol=0)  # uniform
    moved = shifted - x
    assert moved.abs().max() <= 0.02 + 1e-6
    assert (moved.abs() > 0.02 - 1e-5).float().mean() > 0.3  # sign steps of eps, clipped
    assert (method.forward_passes, method.backward_passes) == (4, 2)


def test_tipi_from_zero_needs_one_pass_less():
    watched = Watched(FeatureNet())
    method = TIPI(watched, core.EM(), start="zero", eps=0.02, lr=1e-3)
    logits = method(image_batches(1)[0])
    assert logits.isfinite().all()
    assert (method.forward_passes, method.backward_passes) == (3, 2)
    assert (watched.seen[1] - watched.seen[0]).abs().max() <= 0.02 + 1e-6


def test_tipi_shifts_in_the_space_that_the_network_sees():
    std = (0.1, 0.2, 0.4)
    watched = Watched(SmallNet())
    method = TIPI(
        Normalized((0.5,) * 3, std, watched, num_classes=5, weights_id="none"), core.EM(), start="random", eps=0.02
    )
    method(image_batches(1)[0])
    clean, start, shifted, _ = watched.seen
    for moved in (start - clean, shifted - clean):
        reach = moved.abs().amax((0, 2, 3))
        assert (reach > 0.019).all()
        assert (reach < 0.02 + 1e-5).all()

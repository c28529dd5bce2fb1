"""The embedded street scenes: labels exact, styles apart, seeds firm."""

import numpy as np
import pytest
import torch

from dembench.tasks.segmentation import scenes
from dembench.tasks.segmentation.data import NORMALISATIONS, Pool, check_ids, pack
from dembench.tasks.segmentation.scenes import Style
from dembench.tasks.segmentation.street import Street

HAZY = Style(paint=0.3, light=0.9, haze=0.35, blur=0.7, noise=0.04)


def small(**changes):
    return Street(Style(), HAZY, **({"source_images": 4, "target_images": 3, "test_images": 2} | changes))


def test_the_same_seed_draws_the_same_bits_and_more_images_change_none():
    one, again, more = small(), small(), small(source_images=6)
    assert one.pools["source_train"].digest() == again.pools["source_train"].digest()
    np.testing.assert_array_equal(one.pools["source_train"].images, more.pools["source_train"].images[:4])
    assert not np.array_equal(one.pools["source_train"].images, small(seed=1).pools["source_train"].images)


def test_the_global_generator_is_neither_used_nor_moved():
    np.random.seed(0)
    first = small().pools["target_test"].digest()
    drawn = np.random.rand()
    np.random.seed(1)
    assert small().pools["target_test"].digest() == first
    np.random.seed(0)
    assert drawn == np.random.rand()


def test_both_tests_are_the_same_scenes_in_different_styles():
    pools = small().pools
    np.testing.assert_array_equal(pools["source_test"].labels, pools["target_test"].labels)
    assert np.abs(pools["source_test"].images.astype(int) - pools["target_test"].images).mean() > 10
    assert not np.array_equal(pools["source_train"].labels[:2], pools["target_train"].labels[:2])
    judged = small(validation=True)
    assert not np.array_equal(judged.pools["target_test"].labels, pools["target_test"].labels)
    assert {note.key for note in judged.notes} == {"street", "validation"}


def test_labels_are_exact():
    """Painted with one flat colour per class and nothing else, every pixel has the colour of its label."""
    layout = scenes.draw_layout(np.random.default_rng(0), 64, 96)
    flat = Style(texture=0, blur=0, noise=0)
    spread, scenes.SPREAD = scenes.SPREAD, np.zeros(9)
    try:
        picture = scenes.paint(layout, flat, np.random.default_rng(1))
    finally:
        scenes.SPREAD = spread
    plain = (layout.label != scenes.VOID) & (layout.label != scenes.BUILDING)  # houses have windows
    expected = (scenes.DAY * 255).round()[np.where(plain, layout.label, 0)]
    np.testing.assert_allclose(picture[plain], expected[plain], atol=1)
    assert (picture[layout.label == scenes.VOID] == round(0.12 * 255)).all()


def test_every_class_occurs_and_the_tail_is_rare():
    pool = Street(Style(), HAZY, 60, 1, 1).pools["source_train"]
    share = np.bincount(pool.labels.ravel(), minlength=256) / pool.labels.size
    named = dict(zip(scenes.CLASSES, share, strict=False))
    assert min(named.values()) > 0.004
    assert all(named[name] < 0.03 for name in scenes.TAIL)
    assert min(share for name, share in named.items() if name not in scenes.TAIL) > 0.03
    assert set(np.flatnonzero(share)) == {*range(9), 255}


def test_each_part_of_a_style_does_what_it_says():
    layout = scenes.draw_layout(np.random.default_rng(0), 64, 96)

    def look(**style):
        return scenes.paint(layout, Style(**style), np.random.default_rng(1)).astype(float)

    plain = look()
    assert look(light=0.7).mean() < 0.8 * plain.mean()
    assert look(gamma=1.5).mean() < plain.mean()
    grey = look(saturation=0, noise=0, blur=0)
    assert np.ptp(grey, axis=-1).max() <= 1
    warm = look(cast=(1.2, 1.0, 0.8)).mean((0, 1)) / plain.mean((0, 1))
    assert warm[0] > 1.05
    assert warm[2] < 0.9
    rough = [np.abs(np.diff(look(blur=blur), axis=1)).mean() for blur in (0.3, 1.5)]
    assert rough[1] < 0.7 * rough[0]
    assert np.abs(look(noise=0.1) - look(noise=0)).std() > 5
    sides = look(glow=0.5) / np.maximum(look(), 1)
    assert abs(sides[:, :20].mean() - sides[:, -20:].mean()) > 0.4
    far = (layout.distance > 0.9) & (layout.label != scenes.SKY)
    assert look(haze=1.0, noise=0, texture=0)[far].std() < look(noise=0, texture=0)[far].std() / 2


def test_datasets_hand_out_what_mmsegmentation_expects_and_target_labels_only_where_asked():
    data = small()
    data.check()
    sample = data.source_train[1]
    assert sample["inputs"].dtype == torch.uint8
    assert sample["inputs"].shape == (3, 64, 96)
    truth = sample["data_samples"].gt_sem_seg.data
    assert truth.dtype == torch.int64
    assert truth.shape == (1, 64, 96)
    assert sample["data_samples"].metainfo["ori_shape"] == (64, 96)
    assert "gt_sem_seg" not in data.target_train[0]["data_samples"]
    assert "gt_sem_seg" in data.target_train_labelled[0]["data_samples"]
    assert len(data.target_train) == 3
    assert len(data.target_test) == 2
    assert data.source_train[1]["data_samples"] is not data.source_train[1]["data_samples"]


def test_packing_is_that_of_mmsegmentation():
    from mmseg.datasets.transforms import PackSegInputs

    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (6, 8, 3), np.uint8), rng.integers(0, 3, (12, 16), np.uint8)
    keys = ("img_path", "ori_shape", "img_shape", "pad_shape")
    info = {"img": image, "gt_seg_map": label, "seg_fields": ["gt_seg_map"], "img_path": "a", "ori_shape": (12, 16)}
    theirs = PackSegInputs(meta_keys=keys)(info | {"img_shape": (6, 8), "pad_shape": (6, 8)})
    mine = pack(image, label, "a")
    assert torch.equal(mine["inputs"], theirs["inputs"])
    assert torch.equal(mine["data_samples"].gt_sem_seg.data, theirs["data_samples"].gt_sem_seg.data)
    assert mine["data_samples"].metainfo == theirs["data_samples"].metainfo


def test_the_preprocessor_normalises_as_each_preset_says():
    from mmseg.models import SegDataPreProcessor

    image = torch.tensor([10.0, 100.0, 200.0]).view(3, 1, 1).expand(3, 4, 4).to(torch.uint8)
    for name, expected in (
        ("imagenet", [(10 - 123.675) / 58.395, (100 - 116.28) / 57.12, (200 - 103.53) / 57.375]),
        ("advent", [200 - 104.00698793, 100 - 116.66876762, 10 - 122.67891434]),  # blue, green, red
    ):
        data = small()
        data.normalisation = name
        batch = {"inputs": [image], "data_samples": [pack(np.zeros((4, 4, 3), np.uint8), None, "a")["data_samples"]]}
        made = SegDataPreProcessor(**data.preprocessor())(batch)["inputs"][0, :, 0, 0]
        torch.testing.assert_close(made, torch.tensor(expected), rtol=1e-4, atol=1e-4)
    assert set(NORMALISATIONS) == {"imagenet", "advent"}


def test_fingerprints_tell_settings_apart():
    found = [small(), small(seed=1), small(size=(32, 48)), small(validation=True), small(test_images=3)]
    assert len({data.fingerprint for data in found}) == len(found)
    assert small().fingerprint == small().fingerprint


def test_wrong_settings_and_labels_are_refused():
    with pytest.raises(ValueError, match="haze between 0 and 1, got 2"):
        Style(haze=2)
    with pytest.raises(ValueError, match="32 pixels or more"):
        small(size=(16, 96))
    with pytest.raises(ValueError, match="at least one image"):
        small(test_images=0)
    with pytest.raises(ValueError, match=r"part/1: unknown label id 7; expected 0 to 1 or 255"):
        check_ids(Pool(np.zeros((1, 2, 2, 3)), np.array([[[0, 7], [255, 1]]]), ("part/1",)), ("a", "b"))

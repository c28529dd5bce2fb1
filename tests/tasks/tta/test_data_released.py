"""CIFAR-10-C and CIFAR-100-C as released: layout, subsets, and files that are something else."""

import numpy as np
import pytest
import torch
from cifar_files import as_folder, expected, files, pixels, released
from torch.testing import assert_close

from dembench.tasks.common.corruptions import CORRUPTIONS
from dembench.tasks.tta.released import CIFAR10C, CIFAR100C


@pytest.mark.parametrize("long_labels", [True, False])
def test_released_files_are_read_severity_first(long_labels, tmp_path):
    root = released(tmp_path / "CIFAR-10-C", long_labels=long_labels)
    for given in (root, tmp_path, str(root)):
        ready = CIFAR10C(given)
        ready.check()
        assert (ready.name, ready.num_images, ready.num_classes, ready.notes) == ("cifar10-c", 6, 10, ())
        images, labels = ready.domain("snow", 4)
        start = 1000 * CORRUPTIONS.index("snow") + 3 * 6
        assert_close(images, expected(range(start, start + 6)), rtol=0, atol=0)
        assert labels.tolist() == [0, 1, 2, 3, 4, 5]
        assert (labels.dtype, images.dtype) == (torch.int64, torch.uint8)


def test_files_of_one_severity_are_not_cut_into_five(tmp_path):
    root = released(tmp_path / "CIFAR-10-C", long_labels=True)
    labels = np.arange(30) % 10
    np.save(root / "labels.npy", labels)
    with pytest.raises(ValueError, match=r"blocks of labels.npy differ, .* say which: \+data.severity=5"):
        CIFAR10C(root).check()
    alone = CIFAR10C(root, severity=3)
    alone.check()
    assert (alone.num_images, alone.severities) == (30, (3,))
    images, own = alone.domain("snow", 3)
    start = 1000 * CORRUPTIONS.index("snow")
    assert_close(images, expected(range(start, start + 30)), rtol=0, atol=0)
    assert own.tolist() == labels.tolist()
    assert CIFAR10C(root, num_images=7, severity=3).domain("fog", 3)[1].tolist() == labels[:7].tolist()
    with pytest.raises(ValueError, match="the files are of severity 3, not 5"):
        alone.require([("snow", 5)])
    assert alone.fingerprint != CIFAR10C(root, severity=4).fingerprint
    with pytest.raises(ValueError, match="severity"):
        CIFAR10C(root, severity=6)


def test_the_first_images_of_a_severity_are_a_subset(tmp_path):
    root = released(tmp_path / "c")
    images, labels = CIFAR10C(root, num_images=2).domain("fog", 2)
    whole, _ = CIFAR10C(root).domain("fog", 2)
    assert_close(images, whole[:2], rtol=0, atol=0)
    assert labels.tolist() == [0, 1]
    assert CIFAR10C(root, num_images=2).fingerprint != CIFAR10C(root).fingerprint
    with pytest.raises(ValueError, match="num_images of at most 6, got 7"):
        CIFAR10C(root, num_images=7).check()


def test_released_fingerprint_follows_the_content(tmp_path):
    one, two = released(tmp_path / "one"), released(tmp_path / "two")
    assert CIFAR10C(one).fingerprint == CIFAR10C(two).fingerprint
    np.save(two / "labels.npy", np.tile(np.arange(6)[::-1], 5))
    assert CIFAR10C(one).fingerprint != CIFAR10C(two).fingerprint
    three = released(tmp_path / "three")
    images = np.load(three / "fog.npy")
    images[7, 3, 2, 1] ^= 1
    np.save(three / "fog.npy", images)
    assert CIFAR10C(one).fingerprint != CIFAR10C(three).fingerprint
    clean = [as_folder(tmp_path / name, files("test/", suffix)) for name, suffix in (("a", "png"), ("b", "jpg"))]
    assert len({CIFAR10C(one, source=source).fingerprint for source in (None, *clean)}) == 3


def test_a_missing_release_tells_where_to_get_it(tmp_path):
    where = r"dembench data fetch cifar10c.*zenodo.org/records/2535967 .*labels.npy"
    with pytest.raises(FileNotFoundError, match=f"no folder .*; .*{where}"):
        CIFAR10C(tmp_path / "absent").check()
    root = released(tmp_path / "c")
    (root / "fog.npy").unlink()
    (root / "labels.npy").unlink()
    with pytest.raises(FileNotFoundError, match=rf"lacks labels, fog \(.npy\); .*{where}"):
        CIFAR10C(root).check()


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("fog", np.zeros((30, 32, 32, 3), np.float32), r"expected uint8 \(5N, 32, 32, 3\) in fog.npy, got float32"),
        ("fog", np.zeros((30, 3, 32, 32), np.uint8), r"in fog.npy, got uint8 \(30, 3, 32, 32\)"),
        ("fog", np.zeros((25, 32, 32, 3), np.uint8), "fog.npy has 25 images, gaussian_noise.npy has 30"),
        ("labels", np.zeros(29, np.uint8), r"expected 6 or 30 integers in labels.npy, got uint8 \(29,\)"),
        ("labels", np.zeros(30, np.float32), "expected 6 or 30 integers in labels.npy, got float32"),
        ("labels", np.full(30, 10), "expected labels 0 to 9, got 10 to 10"),
        ("fog", np.array([{}], dtype=object), "no complete .npy file"),  # holds a pickle, which is never loaded
    ],
)
def test_released_files_that_are_something_else(name, array, message, tmp_path):
    root = released(tmp_path / "c")
    np.save(root / f"{name}.npy", array)
    with pytest.raises(ValueError, match=message):
        CIFAR10C(root).check()


def test_a_cut_off_release_is_refused(tmp_path):
    root = released(tmp_path / "c")
    whole = (root / "fog.npy").read_bytes()
    for size in (0, 64, len(whole) - 1000):
        (root / "fog.npy").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"fog.npy is no complete .npy file"):
            CIFAR10C(root).check()


def test_unknown_released_domains_are_refused(tmp_path):
    ready = CIFAR10C(released(tmp_path / "c"))
    with pytest.raises(ValueError, match="unknown corruption 'speckle'"):
        ready.domain("speckle", 5)
    with pytest.raises(ValueError, match="severity of 1 to 5, got 0"):
        ready.domain("fog", 0)


def test_cifar_100_c_is_laid_out_likewise(tmp_path):
    ready = CIFAR100C(released(tmp_path / "CIFAR-100-C", rows=100, classes=100).parent)
    ready.check()
    images, labels = ready.domain("snow", 2)
    start = 1000 * CORRUPTIONS.index("snow") + 100
    assert_close(images, expected(range(start, start + 100)), rtol=0, atol=0)
    assert labels.tolist() == list(range(100))
    assert (ready.name, ready.num_classes, ready.class_names[99]) == ("cifar100-c", 100, "worm")
    with pytest.raises(ValueError, match="CIFAR-10-C: expected labels 0 to 9, got 0 to 99"):
        CIFAR10C(tmp_path / "CIFAR-100-C").check()
    with pytest.raises(FileNotFoundError, match="CIFAR-100-C: no folder .*data fetch cifar100c.*records/3555552"):
        CIFAR100C(tmp_path / "absent").check()


def test_the_held_out_corruptions_can_be_asked_for_where_they_are(tmp_path):
    root = released(tmp_path / "c")
    ready = CIFAR10C(root)
    assert "saturate" not in ready.corruptions
    with pytest.raises(FileNotFoundError, match=r"lacks saturate \(.npy\)"):
        ready.require([("fog", 5), ("saturate", 5)])
    np.save(root / "saturate.npy", np.stack([pixels(77 + row) for row in range(30)]))
    ready.require([("saturate", 5)])
    assert_close(ready.domain("saturate", 5)[0], expected(range(77 + 24, 77 + 30)), rtol=0, atol=0)


def test_clean_images_come_from_the_source_that_is_given(tmp_path):
    root = released(tmp_path / "c")
    with pytest.raises(ValueError, match="clean images are needed; give data.source=PATH: expected torchvision's"):
        CIFAR10C(root).clean(5, 0)
    ready = CIFAR10C(root, source=as_folder(tmp_path / "tree", files()))
    images, note = ready.clean(5, 0)
    assert images.shape == (5, 3, 32, 32)
    whole = expected(range(40))
    assert all((whole == image).flatten(1).all(1).sum() == 1 for image in images)
    assert (ready.clean(5, 0)[0] == images).all()
    assert (ready.clean(5, 1)[0] != images).any()
    assert (note.key, "5 clean test images" in note.text) == ("clean", True)

"""CIFAR-10-C, released and made here: layouts, order, subsets, caching, and refusals that tell what to do."""

import io
import json
import os
import pickle
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from tasks.tta import data
from tasks.tta.choice import balanced_subset
from tasks.tta.corruptions import CORRUPTIONS, corrupt
from tasks.tta.data import GeneratedCIFAR10C
from tasks.tta.models import cifar_resnet
from tasks.tta.released import CIFAR10C
from tasks.tta.sources import CIFAR10_CLASSES

PER_CLASS = 4


def pixels(row):
    """A noise image that is this row's own, (32, 32, 3)."""
    return np.random.default_rng(row).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def encoded(row, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels(row)).save(file, kind)
    return file.getvalue()


def files(prefix="test/", suffix="png", classes=CIFAR10_CLASSES):
    """Forty images: path to bytes."""
    kind = {"png": "PNG", "jpg": "JPEG"}[suffix]
    return {
        f"{prefix}{name}/{k:04d}.{suffix}": encoded(row * PER_CLASS + k, kind)
        for row, name in enumerate(classes)
        for k in range(PER_CLASS)
    }


def as_folder(root, content):
    for name, blob in content.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(blob)
    return root


def as_archive(path, content, mode="w:gz", more=()):
    with tarfile.open(path, mode) as archive:
        for name, blob in reversed(content.items()):  # the order in the archive must not matter
            member = tarfile.TarInfo(name)
            member.size = len(blob)
            archive.addfile(member, io.BytesIO(blob))
        for member in more:
            archive.addfile(member)
    return path


def expected(rows):
    return torch.from_numpy(np.stack([pixels(row) for row in rows]).transpose(0, 3, 1, 2))


@pytest.fixture
def kept(monkeypatch):
    """Replaces the generator by one that returns its input and notes its arguments."""
    calls = []

    def fake(images, corruption, severity, index, *, seed=0, frost=None):
        calls.append((corruption, severity, index.tolist(), seed, frost))
        return images.clone()

    monkeypatch.setattr(data, "corrupt", fake)
    return calls


# --- subsets


def test_a_subset_is_balanced_spaced_and_ascending():
    labels = np.repeat(np.arange(10), 100)
    assert balanced_subset(labels, None).tolist() == list(range(1000))
    chosen = balanced_subset(labels, 50)
    assert chosen.tolist() == [100 * c + 20 * k for c in range(10) for k in range(5)]
    chosen = balanced_subset(labels, 13)
    assert np.bincount(labels[chosen], minlength=10).tolist() == [2, 2, 2, 1, 1, 1, 1, 1, 1, 1]
    assert balanced_subset(labels, 1000).tolist() == list(range(1000))


def test_a_subset_of_mixed_labels_is_balanced():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 30))
    chosen = balanced_subset(labels, 70)
    assert np.bincount(labels[chosen]).tolist() == [7] * 10
    assert (np.diff(chosen) > 0).all()
    with pytest.raises(ValueError, match="expected at most 300, the images that there are, got 310"):
        balanced_subset(labels, 310)


@pytest.mark.parametrize(
    ("num_images", "counts"),
    [(1, [1, 0, 0]), (4, [2, 1, 1]), (6, [2, 2, 2]), (9, [4, 2, 3]), (11, [5, 2, 4]), (12, [5, 2, 5]), (14, [7, 2, 5])],
)
def test_a_class_that_has_fewer_gives_all(num_images, counts):
    labels = np.array([0] * 7 + [1] * 2 + [2] * 5)
    chosen = balanced_subset(labels, num_images)
    assert np.bincount(labels[chosen], minlength=3).tolist() == counts
    assert len(set(chosen.tolist())) == num_images


@pytest.mark.parametrize("number", [0, -3, 2.5, True, "10"])
def test_numbers_of_images_are_checked_at_once(number):
    for build in (lambda: CIFAR10C("none", number), lambda: GeneratedCIFAR10C("none", number)):
        with pytest.raises(ValueError, match="expected num_images to be a whole number > 0"):
            build()


def test_seeds_are_checked_at_once():
    with pytest.raises(ValueError, match="expected a whole number >= 0 as seed, got -1"):
        GeneratedCIFAR10C("none", seed=-1)


# --- made here: sources


@pytest.mark.parametrize("prefix", ["test/", "", "cifar/test/"])
@pytest.mark.parametrize("kind", ["folder", "w:gz", "w", "w:xz"])
def test_class_folders_and_archives_hold_the_same(prefix, kind, tmp_path, kept):
    content = files(prefix)
    if kind == "folder":
        source = as_folder(tmp_path / "tree", content)
        source = source / "cifar" if prefix.startswith("cifar") else source
    else:
        source = as_archive(tmp_path / "images.tar", content, kind)
    made = GeneratedCIFAR10C(source, cache=tmp_path / "cache")
    made.check()
    images, labels = made.domain("fog", 3)
    assert_close(images, expected(range(40)), rtol=0, atol=0)
    assert_close(labels, torch.arange(10).repeat_interleave(PER_CLASS))
    assert kept == [("fog", 3, list(range(40)), 0, None)]
    assert (made.name, made.num_images, made.num_classes) == ("cifar10-generated", 40, 10)
    assert made.class_names == CIFAR10_CLASSES


@pytest.mark.parametrize("archive", [False, True])
def test_training_images_are_left_out(archive, tmp_path, kept):
    content = files("test/") | {f"train/{name}/0000.png": encoded(999) for name in CIFAR10_CLASSES}
    content |= {"README.md": b"about", "test/cat/._0000.png": b"", "test/cat/notes.txt": b"x"}
    source = as_archive(tmp_path / "a.tar.gz", content) if archive else as_folder(tmp_path / "tree", content)
    images, _ = GeneratedCIFAR10C(source, cache=tmp_path / "cache").domain("fog", 1)
    assert_close(images, expected(range(40)), rtol=0, atol=0)


def test_jpeg_copies_are_called_so(tmp_path):
    source = as_archive(tmp_path / "a.tar.gz", files("test/", "jpg"))
    made = GeneratedCIFAR10C(source, cache=tmp_path / "cache")
    assert made.name == "cifar10-jpeg"
    assert [note.key for note in made.notes] == ["data", "jpeg", "frost"]
    lossless = GeneratedCIFAR10C(as_folder(tmp_path / "tree", files()), cache=tmp_path / "cache")
    assert [note.key for note in lossless.notes] == ["data", "frost"]


def test_torchvision_folder(tmp_path, kept, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)  # the files are made up here
    rows = [7, 3, 11]
    batch = {"data": np.stack([pixels(row).transpose(2, 0, 1).ravel() for row in rows]), "labels": [5, 0, 9]}
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "test_batch").write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CIFAR10_CLASSES)}))
    for source in (tmp_path, folder):
        made = GeneratedCIFAR10C(source, cache=tmp_path / "cache")
        images, labels = made.domain("fog", 2)
        assert_close(images, expected(rows), rtol=0, atol=0)
        assert labels.tolist() == [5, 0, 9]
        assert made.name == "cifar10-generated"


def test_a_damaged_torchvision_folder_is_refused(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(ValueError, match="cifar-10-batches-py lacks files or has damaged ones"):
        GeneratedCIFAR10C(tmp_path, cache=tmp_path / "cache").check()


def test_what_is_missing_or_something_else_is_explained(tmp_path):
    def check(source):
        GeneratedCIFAR10C(source, cache=tmp_path / "cache").check()

    with pytest.raises(FileNotFoundError, match=r"nothing at .*absent; expected torchvision's folder .*<image>"):
        check(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no test images in .*empty; expected torchvision's folder"):
        check(tmp_path / "empty")
    (tmp_path / "page.tar.gz").write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=r"page.tar.gz is no readable tar archive"):
        check(tmp_path / "page.tar.gz")
    whole = as_archive(tmp_path / "whole.tar.gz", files()).read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut.tar.gz is no readable tar archive"):
        check(tmp_path / "cut.tar.gz")
    with pytest.raises(ValueError, match="no test images"):
        check(as_archive(tmp_path / "train.tar.gz", files("train/")))
    with pytest.raises(ValueError, match="unpack it and give the folder"):
        check(as_archive(tmp_path / "tv.tar.gz", {"cifar-10-batches-py/test_batch": b"x"}))
    with pytest.raises(ValueError, match="expected the class folders airplane, .* got a, b"):
        check(as_folder(tmp_path / "two", files("", classes=("a", "b"))))
    with pytest.raises(ValueError, match="class folders in several places: v1, v2"):
        check(as_archive(tmp_path / "two.tar", files("v1/") | files("v2/"), "w"))
    content = files()
    content["test/cat/0000.png"] = b"no image"
    with pytest.raises(ValueError, match=r"cat/0000.png cannot be read as an image"):
        check(as_archive(tmp_path / "bad.tar.gz", content))
    file = io.BytesIO()
    Image.new("RGB", (33, 32)).save(file, "PNG")
    with pytest.raises(ValueError, match=r"expected 32x32 pixels, got \(33, 32\) in cat/0000.png"):
        check(as_archive(tmp_path / "large.tar.gz", content | {"test/cat/0000.png": file.getvalue()}))
    with pytest.raises(ValueError, match="1048577 bytes, no 32x32 image"):
        check(as_archive(tmp_path / "huge.tar.gz", content | {"test/cat/0000.png": bytes((1 << 20) + 1)}))


@pytest.mark.parametrize("name", ["/etc/cat/0000.png", "../cat/0000.png", "test/../../cat/0.png", "..\\cat\\0.png"])
def test_archives_that_lead_out_are_refused(name, tmp_path):
    source = as_archive(tmp_path / "a.tar.gz", files() | {name: encoded(0)})
    with pytest.raises(ValueError, match="leads out of the archive"):
        GeneratedCIFAR10C(source, cache=tmp_path / "cache").check()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_archives_with_links_or_devices_are_refused(kind, tmp_path):
    member = tarfile.TarInfo("test/cat/9999.png")
    member.type, member.linkname = kind, "/etc/passwd"
    source = as_archive(tmp_path / "a.tar.gz", files(), more=[member])
    with pytest.raises(ValueError, match="'test/cat/9999.png' is no regular file"):
        GeneratedCIFAR10C(source, cache=tmp_path / "cache").check()


def test_nothing_is_written_beside_the_source(tmp_path, kept):
    (tmp_path / "in").mkdir()
    source = as_archive(tmp_path / "in" / "a.tar.gz", files())
    GeneratedCIFAR10C(source, cache=tmp_path / "cache").domain("fog", 1)
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["a.tar.gz"]


def test_a_cache_that_cannot_be_written_is_named_before_work(tmp_path):
    (tmp_path / "file").write_text("")
    made = GeneratedCIFAR10C(as_folder(tmp_path / "tree", files()), cache=tmp_path / "file" / "cache")
    with pytest.raises(PermissionError, match="set DEMBENCH_CACHE"):
        made.check()


# --- made here: domains


@pytest.fixture
def tree(tmp_path):
    return as_folder(tmp_path / "tree", files())


def test_a_subset_has_the_noise_of_the_whole(tree, tmp_path):
    whole, labels = GeneratedCIFAR10C(tree, cache=tmp_path / "a").domain("gaussian_noise", 5)
    part = GeneratedCIFAR10C(tree, num_images=20, cache=tmp_path / "b")
    images, some = part.domain("gaussian_noise", 5)
    chosen = balanced_subset(labels.numpy(), 20)
    assert_close(images, whole[chosen], rtol=0, atol=0)
    assert_close(some, labels[chosen])
    assert (whole != expected(range(40))).any()
    assert_close(whole, corrupt(expected(range(40)), "gaussian_noise", 5, torch.arange(40)), rtol=0, atol=0)


def test_a_domain_is_generated_once_and_read_back(tree, tmp_path, kept):
    made = GeneratedCIFAR10C(tree, cache=tmp_path / "cache")
    first, _ = made.domain("fog", 5)
    again, _ = GeneratedCIFAR10C(tree, cache=tmp_path / "cache").domain("fog", 5)
    assert_close(first, again, rtol=0, atol=0)
    assert len(kept) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.add_(1)  # it is the caller's own
    made.domain("fog", 4)
    made.domain("snow", 5)
    assert len(kept) == 3
    for other in ({"seed": 1}, {"num_images": 10}):
        GeneratedCIFAR10C(tree, cache=tmp_path / "cache", **other).domain("fog", 5)
    assert len(kept) == 5
    assert kept[3] == ("fog", 5, list(range(40)), 1, None)


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY\x01\x00", None])
def test_a_damaged_cache_is_made_again(damage, tree, tmp_path, kept):
    made = GeneratedCIFAR10C(tree, cache=tmp_path / "cache")
    first, _ = made.domain("fog", 5)
    (path,) = (tmp_path / "cache").rglob("fog-5.npy")
    if damage is None:
        np.save(path, np.zeros((3, 3)))
    else:
        path.write_bytes(damage)
    again, _ = made.domain("fog", 5)
    assert_close(first, again, rtol=0, atol=0)
    assert len(kept) == 2
    assert [item.name for item in path.parent.iterdir()] == ["fog-5.npy"]  # no half-written neighbours


def test_a_damaged_cache_of_the_archive_is_made_again(tmp_path, kept):
    source = as_archive(tmp_path / "a.tar.gz", files())
    GeneratedCIFAR10C(source, cache=tmp_path / "cache").check()
    for path in (tmp_path / "cache" / "originals").rglob("*.*"):
        before = path.read_bytes() if path.is_file() else b""
        if before:
            path.write_bytes(before[: len(before) // 2])
            images, _ = GeneratedCIFAR10C(source, cache=tmp_path / f"domains-{path.name}").domain("fog", 1)
            GeneratedCIFAR10C(source, cache=tmp_path / "cache").check()
            assert path.read_bytes() == before
            assert_close(images, expected(range(40)), rtol=0, atol=0)


def test_the_archive_is_decoded_once(tmp_path, monkeypatch, kept):
    source = as_archive(tmp_path / "a.tar.gz", files())
    first = GeneratedCIFAR10C(source, cache=tmp_path / "cache").domain("fog", 1)[0]
    monkeypatch.setattr("tasks.tta.sources._decode", None)
    again = GeneratedCIFAR10C(source, cache=tmp_path / "cache").domain("snow", 1)[0]
    assert_close(first, again, rtol=0, atol=0)
    done = json.loads(next((tmp_path / "cache").rglob("done.json")).read_text())
    assert done == {"lossy": False}


def test_fingerprints_follow_content_and_not_places(tmp_path):
    one, two = as_folder(tmp_path / "one", files()), as_folder(tmp_path / "two", files())
    first = GeneratedCIFAR10C(one, cache=tmp_path / "a").fingerprint
    assert first == GeneratedCIFAR10C(two, cache=tmp_path / "b").fingerprint
    assert first == GeneratedCIFAR10C(two, num_images=40, cache=tmp_path / "b").fingerprint
    assert first != GeneratedCIFAR10C(two, num_images=30, cache=tmp_path / "b").fingerprint
    assert first != GeneratedCIFAR10C(two, seed=1, cache=tmp_path / "b").fingerprint
    (two / "test" / "cat" / "0001.png").write_bytes(encoded(1234))
    assert first != GeneratedCIFAR10C(two, cache=tmp_path / "b").fingerprint


def test_frost_photos_change_frost_and_the_fingerprint(tree, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for k in range(1, 6):
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (200, 220, 3), dtype=np.uint8)).save(
            photos / f"frost{k}.png"
        )
    made = GeneratedCIFAR10C(tree, cache=tmp_path / "cache")
    real = GeneratedCIFAR10C(tree, frost=photos, cache=tmp_path / "cache")
    assert made.fingerprint != real.fingerprint
    assert (made.domain("frost", 5)[0] != real.domain("frost", 5)[0]).any()
    assert_close(made.domain("fog", 5)[0], real.domain("fog", 5)[0], rtol=0, atol=0)
    assert "frost" not in [note.key for note in real.notes]
    with pytest.raises(FileNotFoundError, match="frost: no folder"):
        GeneratedCIFAR10C(tree, frost=tmp_path / "absent", cache=tmp_path / "cache").check()


def test_unknown_domains_are_refused(tree, tmp_path):
    made = GeneratedCIFAR10C(tree, cache=tmp_path / "cache")
    with pytest.raises(ValueError, match="unknown corruption 'fogg'; nearest: fog"):
        made.domain("fogg", 5)
    for severity in (0, 6, True, None):
        with pytest.raises(ValueError, match="expected a severity of 1 to 5"):
            made.domain("fog", severity)


# --- the released files


def released(root, rows=6, long_labels=True):
    """A CIFAR-10-C of ``rows`` images a severity: each pixel of a file holds the row's number plus the file's."""
    root.mkdir(parents=True)
    labels = np.arange(rows) % 10
    np.save(root / "labels.npy", np.tile(labels, 5) if long_labels else labels)
    for number, name in enumerate(CORRUPTIONS):
        images = np.stack([pixels(1000 * number + row) for row in range(5 * rows)])
        np.save(root / f"{name}.npy", images)
    return root


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
    np.save(three / "fog.npy", np.load(three / "snow.npy"))
    assert CIFAR10C(one).fingerprint != CIFAR10C(three).fingerprint


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


# --- real images


@pytest.fixture(scope="module")
def real():
    root = Path(os.environ["DEMBENCH_DATA"])
    return root, GeneratedCIFAR10C(root / "data" / "cifar10-jpeg.tar.gz", num_images=2000)


@pytest.mark.data
def test_the_real_images_are_those_of_the_reference(real):
    root, made = real
    made.check()
    assert (made.name, made.num_images) == ("cifar10-jpeg", 2000)
    reference = np.load(root / "data" / "cifar10c-reference.npz")
    images = made._originals.images[reference["index"]].transpose(0, 2, 3, 1)
    assert (images == reference["clean"]).all()
    assert (made._originals.labels[reference["index"]] == reference["labels"][:100]).all()


@pytest.mark.data
@pytest.mark.parametrize(
    ("file", "depth", "accuracy"), [("resnet20-12fca82f", 20, 0.810), ("resnet32-d509ac18", 32, 0.826)]
)
def test_the_real_accuracy_of_the_shared_weights(real, file, depth, accuracy):
    """Measured by others over all 10,000 test copies; here over 2,000, so within three standard deviations."""
    root, made = real
    model = cifar_resnet(depth, root / "weights" / f"{file}.th")
    images, labels = (torch.from_numpy(part[made._index]) for part in (made._originals.images, made._originals.labels))
    with torch.inference_mode():
        correct = sum(
            (model(x.float() / 255).argmax(1) == y).sum().item()
            for x, y in zip(images.split(200), labels.split(200), strict=True)
        )
    assert abs(correct / 2000 - accuracy) < 3 * (accuracy * (1 - accuracy) / 2000) ** 0.5

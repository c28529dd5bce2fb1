"""CIFAR images as somebody has them: layouts, archives that are refused, and what says what is missing."""

import io
import pickle
import tarfile

import numpy as np
import pytest
import torch
from cifar_files import PER_CLASS, as_archive, as_folder, encoded, expected, files, pixels
from PIL import Image
from torch.testing import assert_close

from dembench.tasks.common.generated import GeneratedCIFAR10C, GeneratedCIFAR100C
from dembench.tasks.common.originals import CIFAR10, CIFAR10_CLASSES, CIFAR100_CLASSES, read_originals


@pytest.fixture
def kept(monkeypatch):
    """Replaces the generator by one that returns its input and notes its arguments."""
    calls = []

    def fake(images, corruption, severity, index, *, seed=0, frost=None):
        calls.append((corruption, severity, index.tolist(), seed, frost))
        return images.clone()

    monkeypatch.setattr("dembench.tasks.common.generated.corrupt", fake)
    return calls


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
    with pytest.raises(ValueError, match="expected the class folders airplane, .* got v1, v2"):
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


def test_cifar_100_lies_as_cifar_10_does(tmp_path, kept):
    content = files("test/", classes=CIFAR100_CLASSES, per_class=1)
    made = GeneratedCIFAR100C(as_folder(tmp_path / "tree", content), cache=tmp_path / "cache")
    images, labels = made.domain("fog", 3)
    assert_close(images, expected(range(100)), rtol=0, atol=0)
    assert labels.tolist() == list(range(100))
    assert (made.name, made.num_classes, made.class_names[:2]) == (
        "cifar100-generated",
        100,
        ("apple", "aquarium_fish"),
    )
    numbers = files("test/", classes=tuple(map(str, range(100))), per_class=1)  # as text, 10 comes before 2
    same = GeneratedCIFAR100C(as_archive(tmp_path / "a.tar.gz", numbers), cache=tmp_path / "cache").domain("fog", 3)
    by_label = same[0][same[1].argsort()]
    assert_close(by_label, images, rtol=0, atol=0)
    with pytest.raises(ValueError, match="expected the class folders apple, .* got airplane"):
        GeneratedCIFAR100C(as_folder(tmp_path / "ten", files()), cache=tmp_path / "cache").check()


def test_cifar_100_in_torchvisions_folder(tmp_path, kept, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)  # the files are made up here
    rows = [7, 3]
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    batch = {"data": np.stack([pixels(row).transpose(2, 0, 1).ravel() for row in rows]), "fine_labels": [99, 4]}
    (folder / "test").write_bytes(pickle.dumps(batch))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": list(CIFAR100_CLASSES)}))
    images, labels = GeneratedCIFAR100C(tmp_path, cache=tmp_path / "cache").domain("fog", 2)
    assert_close(images, expected(rows), rtol=0, atol=0)
    assert labels.tolist() == [99, 4]


@pytest.mark.parametrize("archive", [False, True])
def test_the_training_images_can_be_read_by_themselves(archive, tmp_path):
    content = files("test/") | {f"train/{name}/{k}.png": encoded(500 + k) for name in CIFAR10_CLASSES for k in (0, 1)}
    source = as_archive(tmp_path / "a.tar.gz", content) if archive else as_folder(tmp_path / "tree", content)
    for _ in range(2):  # decoded, then from the cache
        found = read_originals(source, tmp_path / "cache", CIFAR10, "train")
        assert found.labels.tolist() == [c for c in range(10) for _ in range(2)]
        assert_close(torch.from_numpy(found.images), expected([500, 501] * 10), rtol=0, atol=0)
        assert len(read_originals(source, tmp_path / "cache").images) == 40
    only_tests = as_archive(tmp_path / "b.tar.gz", files("test/"))
    with pytest.raises(ValueError, match="no train images in"):
        read_originals(only_tests, tmp_path / "cache", CIFAR10, "train")

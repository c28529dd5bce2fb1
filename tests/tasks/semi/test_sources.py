"""Every native layout, as a few files on disk; the embedded digits; and what is said where something is missing."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from dembench.tasks.semi.data import SemiData
from dembench.tasks.semi.published import CIFAR, STL10, EuroSAT, MedMNIST, SemiAves
from dembench.tasks.semi.sources import Digits, ImageFolders, prefix_rows


def picture(value: int, size: int = 8) -> Image.Image:
    return Image.fromarray(np.full((size, size, 3), value, np.uint8))


def class_folders(root: Path, counts: dict[str, int], size: int = 8, suffix: str = ".png") -> Path:
    """``counts`` images per class folder; the value of all pixels is 10 * class + number."""
    for c, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture(10 * c + i, size).save(root / name / f"{name.split('/')[-1]}_{i}{suffix}")
    return root


def packed(folder: Path, file: Path) -> Path:
    with tarfile.open(file, "w:gz") as archive:
        archive.add(folder, arcname=".")
    return file


def test_digits_are_a_stratified_half() -> None:
    images = Digits()
    assert images.train.images.shape == (901, 3, 16, 16)
    assert images.test.images.shape == (896, 3, 16, 16)
    assert images.train.images.dtype == torch.uint8
    assert torch.bincount(images.train.labels).min() >= 87
    assert not images.recipe.hflip


def test_folders_and_their_archive_are_the_same(tmp_path: Path) -> None:
    root = tmp_path / "images"
    class_folders(root / "train", {"ant": 3, "bee": 2})
    class_folders(root / "test", {"ant": 1, "bee": 1})
    class_folders(root / "val", {"ant": 1, "bee": 2})
    (root / "train" / "ant" / ".hidden.png").write_bytes(b"")
    (root / "train" / "notes.txt").write_text("no image")
    archive = packed(root, tmp_path / "images.tar.gz")
    fingerprints = set()
    for source in (root, archive, archive):  # the second time from the cache
        images = ImageFolders(source, cache=tmp_path / "cache")
        assert images.class_names == ("ant", "bee")
        assert images.train.labels.tolist() == [0, 0, 0, 1, 1]
        assert images.train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 10, 11]
        assert images.test.images[:, 1, 3, 2].tolist() == [0, 10]
        assert images.validation is not None
        assert images.validation.labels.tolist() == [0, 1, 1]
        fingerprints.add(images.fingerprint)
    assert len(fingerprints) == 1
    picture(200).save(root / "train" / "ant" / "ant_0.png")
    assert ImageFolders(root).fingerprint not in fingerprints


def test_folders_without_a_test_are_divided_by_name(tmp_path: Path) -> None:
    images = ImageFolders(class_folders(tmp_path, {"ant": 5, "bee": 10}), size=4)
    assert images.train.images.shape == (12, 3, 4, 4)
    assert images.test.images[:, 0, 0, 0].tolist() == [4, 18, 19]
    assert prefix_rows(torch.tensor([1, 0, 1, 1, 0]), 0.5, first=True).tolist() == [0, 1]


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no images at .*expected train/<class>"):
        _ = ImageFolders(tmp_path / "none").train
    class_folders(tmp_path / "a" / "train", {"ant": 1, "bee": 1})
    with pytest.raises(ValueError, match="has train but no test images"):
        _ = ImageFolders(tmp_path / "a").test
    class_folders(tmp_path / "b", {"ant": 1})
    with pytest.raises(ValueError, match="images of 1 classes"):
        _ = ImageFolders(tmp_path / "b").train
    class_folders(tmp_path / "c", {"ant": 1, "bee": 1})
    picture(0, 9).save(tmp_path / "c" / "bee" / "z.png")
    with pytest.raises(ValueError, match="2 different sizes"):
        _ = ImageFolders(tmp_path / "c").train
    (tmp_path / "c" / "bee" / "z.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="bee/z.png cannot be read"):
        _ = ImageFolders(tmp_path / "c", size=8).train
    (tmp_path / "d.tar.gz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no readable tar"):
        _ = ImageFolders(tmp_path / "d.tar.gz", cache=tmp_path / "cache").train


@pytest.mark.parametrize("kind", ["link", "outside"])
def test_archives_that_lead_elsewhere_are_refused(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "evil.tar"
    with tarfile.open(file, "w") as archive:
        member = tarfile.TarInfo("../evil/a.png" if kind == "outside" else "train/ant/a.png")
        if kind == "link":
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member, io.BytesIO(b""))
    with pytest.raises(ValueError, match="leads out of the archive|no regular file"):
        _ = ImageFolders(file, cache=tmp_path / "cache").train


def test_eurosat_is_divided_as_in_usb(tmp_path: Path) -> None:
    counts = {name: 10 if name == "Forest" else 5 for name in EuroSAT.classes}
    class_folders(tmp_path / "2750", counts, size=64, suffix=".jpg")
    images = EuroSAT(tmp_path)
    assert images.train.images.shape == (8 + 9 * 4, 3, 32, 32)
    assert torch.bincount(images.test.labels).tolist() == [1, 2, *[1] * 8]
    assert images.recipe.vflip
    (note,) = images.notes
    assert note.key == "split"
    assert note.text.endswith("55 images are here, 27000 are all")


def test_eurosat_says_where_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="eurosat: no images at .*EuroSAT.zip of .*2750/<Class>/"):
        EuroSAT(tmp_path / "absent").train  # noqa: B018
    class_folders(tmp_path, {"Forest": 2, "Lake": 2})
    with pytest.raises(ValueError, match=r"has other classes than EuroSAT \(AnnualCrop, .*EuroSAT.zip"):
        EuroSAT(tmp_path).train  # noqa: B018


def test_medmnist_reads_its_file(tmp_path: Path) -> None:
    parts = {}
    for part, n in (("train", 9), ("val", 4), ("test", 5)):
        parts[f"{part}_images"] = np.full((n, 28, 28), 40, np.uint8)
        parts[f"{part}_labels"] = (np.arange(n) % 3).astype(np.uint8)[:, None]
    np.savez(tmp_path / "tissuemnist.npz", **parts)
    images = MedMNIST(tmp_path, classes=3)
    assert images.train.images.shape == (9, 3, 32, 32)
    assert images.train.images.unique().tolist() == [40]
    assert images.train.labels.tolist() == [0, 1, 2] * 3
    data = SemiData(images, labels_per_class=1)
    assert len(data.validation.labels) == 4  # the official one
    assert len(SemiData(images, 1, validation_per_class=1).validation.labels) == 3
    with pytest.raises(ValueError, match="expected uint8 images of 2 classes"):
        _ = MedMNIST(tmp_path, classes=2).train
    with pytest.raises(FileNotFoundError, match="zenodo.org/records/10519652"):
        _ = MedMNIST(tmp_path / "none").train


def write_cifar(root: Path, classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of two images each with torchvision's names, and their checksums in torchvision's tables."""
    kind = torchvision.datasets.CIFAR10 if classes == 10 else torchvision.datasets.CIFAR100
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    key = "labels" if classes == 10 else "fine_labels"

    def write(name: str, content: Any) -> str:
        raw = pickle.dumps(content)
        (folder / name).write_bytes(raw)
        return hashlib.md5(raw).hexdigest()

    for table in ("train_list", "test_list"):
        rows = []
        for number, (name, _) in enumerate(getattr(kind, table)):
            pixels = np.zeros((2, 3, 32, 32), np.uint8)
            pixels[:, 0, 0, 1] = number + 1  # red of the second pixel of the first row
            rows.append([name, write(name, {"data": pixels.reshape(2, -1), key: [0, classes - 1]})])
        monkeypatch.setattr(kind, table, rows)
    names = {kind.meta["key"]: [f"class{c}" for c in range(classes)]}
    meta = {**kind.meta, "md5": write(kind.meta["filename"], names)}
    monkeypatch.setattr(kind, "meta", meta)


@pytest.mark.parametrize(("classes", "train"), [(10, 10), (100, 2)])
def test_cifar_in_torchvisions_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: int, train: int
) -> None:
    write_cifar(tmp_path, classes, monkeypatch)
    images = CIFAR(tmp_path, classes)
    assert images.train.images.shape == (train, 3, 32, 32)
    assert images.train.images[0, :, 0, 1].tolist() == [1, 0, 0]
    assert images.test.labels.tolist() == [0, classes - 1]
    assert len(images.class_names) == classes
    assert images.name == f"cifar{classes}"
    inner = CIFAR(tmp_path / ("cifar-10-batches-py" if classes == 10 else "cifar-100-python"), classes)
    assert inner.fingerprint == images.fingerprint
    with pytest.raises(FileNotFoundError, match=f"cifar-{classes}-python.tar.gz"):
        _ = CIFAR(tmp_path / "none", classes).train


def test_stl10_in_torchvisions_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    for name, n in (("train", 3), ("test", 2), ("unlabeled", 4)):
        pixels = np.zeros((n, 3, 96, 96), np.uint8)
        pixels[:, 2, 5, 7] = 9  # blue, column 5, row 7: the file is column-major
        (folder / f"{name}_X.bin").write_bytes(pixels.tobytes())
        if name != "unlabeled":
            (folder / f"{name}_y.bin").write_bytes(np.array([1, 10, 2][:n], np.uint8).tobytes())
    (folder / "class_names.txt").write_text("\n".join(f"class{c}" for c in range(10)))
    monkeypatch.setattr(torchvision.datasets.STL10, "_check_integrity", lambda self: True)
    images = STL10(tmp_path)
    assert images.train.labels.tolist() == [0, 9, 1, -1, -1, -1, -1]
    assert images.test.labels.tolist() == [0, 9]
    assert images.test.images[0, :, 7, 5].tolist() == [0, 0, 9]
    assert len(images.class_names) == 10
    with pytest.raises(FileNotFoundError, match="stl10_binary.tar.gz"):
        _ = STL10(tmp_path / "none").train


def test_semi_aves_after_its_lists(tmp_path: Path) -> None:
    root = tmp_path / "semi_aves"
    lists = {"l_train_val": ("trainval_images/3", 3), "u_train_in": ("u_train_in", -1), "test": ("test", 7)}
    for number, (name, (folder, label)) in enumerate(lists.items()):
        (root / folder).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(np.full((30, 40, 3), 50 * number, np.uint8)).save(root / folder / f"{i}.png")
        (root / f"{name}.txt").write_text("".join(f"{folder}/{i}.png {label}\n" for i in range(2)))
    images = SemiAves(tmp_path)
    assert images.train.images.shape == (4, 3, 256, 256)
    assert images.train.labels.tolist() == [3, 3, -1, -1]
    assert images.test.labels.tolist() == [7, 7]
    assert any("5,959" in note.text for note in images.notes)
    assert any("squashed to 256x256" in note.text for note in images.notes)
    assert images.recipe.strong_scale == (0.08, 1.0)
    (root / "test" / "0.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 images are missing"):
        _ = SemiAves(tmp_path).test
    with pytest.raises(FileNotFoundError, match="l_train_val.txt"):
        _ = SemiAves(tmp_path / "none").train


def test_data_has_disjoint_parts_and_writes_them_down() -> None:
    data = SemiData(Digits(), labels_per_class=3, validation_per_class=2, include_labelled=False)
    data.check()
    assert (len(data.labelled.labels), len(data.validation.labels), len(data.unlabelled)) == (30, 20, 851)
    assert torch.bincount(data.labelled.labels).tolist() == [3] * 10
    text = data.files()["labelled.csv"].splitlines()
    assert text[0] == "index,label"
    index = [int(line.split(",")[0]) for line in text[1:]]
    assert torch.equal(data.images.train.labels[index], data.labelled.labels)
    assert torch.equal(data.images.train.images[index], data.labelled.images)
    everything = SemiData(Digits(), labels_per_class=None, validation_per_class=2)
    assert len(everything.labelled.labels) == 901 - 20
    with pytest.raises(ValueError, match="labels_per_class >= 1"):
        SemiData(Digits(), labels_per_class=0)


@pytest.mark.data
def test_cifar10_jpeg(data_folder: Path) -> None:
    images = ImageFolders(data_folder / "data" / "cifar10-jpeg.tar.gz", "cifar10-jpeg", 32)
    assert images.train.images.shape == (50000, 3, 32, 32)
    assert torch.bincount(images.train.labels).tolist() == [5000] * 10
    assert torch.bincount(images.test.labels).tolist() == [1000] * 10
    assert images.class_names[0] == "airplane"

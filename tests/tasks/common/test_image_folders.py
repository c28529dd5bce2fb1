"""Folders of images that once went wrong are right in every task; made ones, and those that were found."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from image_cases import CLASSES, classes, make_cases
from PIL import Image
from torch import nn

from dembench.harness import experiment
from dembench.harness.compose import ConfigError, compose
from dembench.tasks.common.digits_nets import Normalized
from dembench.tasks.common.image_folders import arrange, list_images
from dembench.tasks.common.images import Preprocess
from dembench.tasks.prompt.imagenet import ImageFolder
from dembench.tasks.semi.data import SemiData
from dembench.tasks.semi.sources import ImageFolders as SemiFolders
from dembench.tasks.tta.folders import ImageFolders
from dembench.tasks.tta.methods.source import Source
from dembench.tasks.tta.streams import Protocol
from dembench.tasks.tta.task import CorruptionTTA

SIDE = 8


@pytest.fixture(scope="module", params=["made", pytest.param("found", marks=pytest.mark.data)])
def cases(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the cases."""
    root = tmp_path_factory.mktemp("cases")
    if request.param == "made":
        return make_cases(root)
    found = Path(os.environ.get("DEMBENCH_DATA", "")) / "cases" / "folders.tar.gz"
    if not found.is_file():
        pytest.skip("DEMBENCH_DATA has no cases/folders.tar.gz")
    with tarfile.open(found) as archive:
        archive.extractall(root, filter="data")
    return root


@dataclass
class Read:
    """What a task makes of a folder: uint8 (N, 3, SIDE, SIDE), labels (N,), the text of the note on files, an id."""

    names: tuple[str, ...]
    images: torch.Tensor
    labels: torch.Tensor
    note: str
    fingerprint: str


def note_of(data: object) -> str:
    return next((note.text for note in data.notes if note.key == "files"), "")  # type: ignore[attr-defined]


def by_tta(root: Path) -> Read:
    data = ImageFolders(root)
    data.use(Preprocess(SIDE, SIDE, squash=True))
    data.check()
    images, labels = data.domain("image-folder", None)
    return Read(data.class_names, images.tensor(), labels, note_of(data), data.fingerprint)


def by_prompt(root: Path) -> Read:
    data = ImageFolder(root)
    data.check()
    (own,) = data.sets()
    images = [np.asarray(own.image(k).resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for k in range(len(own))]
    return Read(
        own.class_names, torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), own.labels, note_of(data),
        data.fingerprint,
    )  # fmt: skip


def by_semi(root: Path) -> Read:
    """Training and test images together; where folders split them, the test images."""
    data = SemiData(SemiFolders(root, size=SIDE), labels_per_class=1)
    data.check()
    train, test = data.images.train, data.images.test
    if "all" not in data.images._read.parts:
        return Read(data.class_names, test.images, test.labels, note_of(data), data.fingerprint)
    images, labels = torch.cat([train.images, test.images]), torch.cat([train.labels, test.labels])
    order = labels.argsort(stable=True)
    return Read(data.class_names, images[order], labels[order], note_of(data), data.fingerprint)


every_task = pytest.mark.parametrize("read", [by_tta, by_prompt, by_semi])
Reader = Callable[[Path], Read]


@every_task
def test_plain_folders_are_read_as_torchvision_reads_them(cases: Path, read: Reader) -> None:
    found, truth = read(cases / "plain"), torchvision.datasets.ImageFolder(str(cases / "plain"))
    assert found.names == tuple(truth.classes) == CLASSES
    assert found.labels.tolist() == truth.targets
    for image, (path, _) in zip(found.images, truth.imgs, strict=True):
        with Image.open(path) as file:
            wanted = np.asarray(file.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        assert (image.permute(1, 2, 0).numpy() == wanted).all()
    assert found.note == ""


@every_task
def test_split_folders_are_known_whatever_the_case_of_their_letters(cases: Path, read: Reader) -> None:
    found = read(cases / "capital")
    alone = by_tta(cases / "capital" / "Test")
    assert found.names == CLASSES
    assert found.labels.tolist() == alone.labels.tolist()
    assert torch.equal(found.images, alone.images)
    used = len(list((cases / "capital" / "Test").rglob("*.png")))
    if read is not by_semi:
        assert f"{used} of {2 * used} files used; left out: {used} in Train (" in found.note
        return
    train = SemiFolders(cases / "capital", size=SIDE).train.images
    assert len(train) == used
    assert not any((image == test).all() for image in train for test in alone.images)


@every_task
def test_links_to_folders_are_classes(cases: Path, read: Reader) -> None:
    found, real = read(cases / "links" / "flat"), read(cases / "links" / "real")
    assert found.names == CLASSES
    assert torch.equal(found.images, real.images)
    assert found.fingerprint == real.fingerprint


@every_task
def test_deep_pictures_are_scaled(cases: Path, read: Reader) -> None:
    found = read(cases / "deep16")
    for c, name in enumerate(CLASSES):
        path = sorted((cases / "deep16" / name).iterdir())[0]
        deep = np.asarray(Image.open(path)).astype(np.int64)
        grey = found.images[found.labels == c][0].float().mean()
        assert abs(float(grey) - deep.mean() / 257) < 2
        assert float(grey) < 250


@every_task
def test_what_macos_leaves_behind_is_no_class_and_no_picture(cases: Path, read: Reader) -> None:
    found = read(cases / "macosx")
    assert found.names == CLASSES
    assert len(found.images) == 24
    total = sum(len(names) for _, _, names in os.walk(cases / "macosx"))
    assert found.note.startswith(f"24 of {total} files used; left out: ")
    assert f"{total - 26} hidden or in __MACOSX (" in found.note
    assert "2 of other types (" in found.note
    assert "Thumbs.db" in found.note


@every_task
def test_nested_pictures_are_the_classs(cases: Path, read: Reader) -> None:
    found, truth = read(cases / "nested"), torchvision.datasets.ImageFolder(str(cases / "nested"))
    assert found.names == CLASSES
    assert found.labels.tolist() == truth.targets == [0] * 16 + [1] * 8 + [2] * 8
    assert found.note == ""


@every_task
def test_a_cut_off_picture_is_named_in_one_line(cases: Path, read: Reader) -> None:
    with pytest.raises(ConfigError, match=r"^[^\n]*truncated[/: ]+dog/005\.jpg cannot be read as an image: [^\n]*$"):
        read(cases / "truncated")


@every_task
def test_the_id_is_the_content(cases: Path, read: Reader, tmp_path: Path) -> None:
    one, other = read(cases / "bmp"), read(cases / "bmp_other")
    assert one.fingerprint != other.fingerprint
    assert one.fingerprint == read(shutil.copytree(cases / "bmp", tmp_path / "copy")).fingerprint


@pytest.mark.parametrize(
    "words",
    [
        ["task=tta", "data=image_folder", "model=torchvision", "model.arch=resnet18", "model.weights=null",
         "model.num_classes=3"],
        ["task=prompt", "data=image_folder", "model=open_clip", "model.arch=RN50", "model.weights=null"],
        ["task=semi", "data=folders", "data.images.size=32", "data.labels_per_class=2"],
    ],
)  # fmt: skip
def test_equal_names_and_sizes_but_other_bytes_are_two_runs(cases: Path, words: list[str]) -> None:
    key = "data.images.root" if "task=semi" in words else "data.root"
    ids = [experiment.prepare(compose([*words, f"{key}={cases / name}"])).id for name in ("bmp", "bmp_other", "bmp")]
    assert ids[0] == ids[2] != ids[1]


def stream(root: Path, *domains: str, **options: int) -> list[object]:
    model = Normalized((0,) * 3, (1,) * 3, nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), num_classes=3,
                       weights_id="made", preprocess=Preprocess(SIDE, SIDE))  # fmt: skip
    data = ImageFolders(root, list(domains), **options)
    task = CorruptionTTA(data, model, Protocol(reset=True, batch_size=5))
    data.check()
    return list(task.run(Source))


def test_domains_that_do_not_fit_are_refused_in_one_line_before_the_run(cases: Path) -> None:
    root = cases / "domains"
    rows = [event for event in stream(root, "a", "b") if getattr(event, "metric", "") == "error"]
    assert [row.n for row in rows] == [24, 24, 48]
    for domains, options, message in (
        (("a", "less"), {"num_images": 24}, r"domains/less: num_images: expected at most 9"),
        (("a", "empty"), {}, r"no images in \S*domains/empty"),
        (("a", "other"), {}, r"domains/other has other class folders than the first domain: cow, hen"),
        (("a", "mean"), {}, "a domain cannot be named 'mean'"),
        (("a", "none"), {}, r"no folder \S*domains/none"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=rf"^[^\n]*{message}[^\n]*$"):
            stream(root, *domains, **options)
    sizes = [event.text for event in stream(root, "a", "less") if getattr(event, "key", "") == "sizes"]
    assert sizes == ["domains of different sizes, which count alike in the mean; images: a 24, less 9"]


# --- the rules, on names alone


def listed(*names: str, wrapped: bool = False) -> dict[str, dict[str, list[str]]]:
    return arrange(names, where="here", wrapped=wrapped).parts


def test_archives_may_wrap_their_folders() -> None:
    flat = {"all": {"ant": ["ant/1.png"], "bee": ["bee/2.png"]}}
    assert listed("ant/1.png", "bee/2.png") == flat
    assert listed("a/b/ant/1.png", "a/b/bee/2.png", wrapped=True) == flat
    split = listed("x/train/ant/1.png", "x/VALID/ant/2.png", "x/README.md", wrapped=True)
    assert split == {"train": {"ant": ["ant/1.png"]}, "validation": {"ant": ["ant/2.png"]}}
    assert listed("train/1.png", "car/2.png") == {"all": {"car": ["car/2.png"], "train": ["train/1.png"]}}  # a class


def test_what_is_ambiguous_is_refused_by_name() -> None:
    for names, message in (
        (["train/ant/1.png", "Train/ant/1.png"], "several folders for one split: Train, train"),
        (["val/ant/1.png", "valid/ant/1.png"], "several folders for one split: val, valid"),
        (["a/train/ant/1.png", "b/test/ant/1.png"], "split folders in several places: a/train, b/test"),
        (["ant/train/1.png", "bee/test/2.png"], "ant/train/1.png: a split inside a class"),
        (["x/train/1.png", "x/Test/2.png"], "pictures in x/Test, x/train themselves; expected <split>/<class>/<image>"),
    ):
        with pytest.raises(ConfigError, match=message):
            listed(*names, wrapped=True)


def test_every_file_is_used_or_left_out_for_a_reason() -> None:
    names = ["1.png", "train/ant/1.png", "train/2.png", "other/ant/3.png", ".x/ant/1.png", "train/ant/notes.txt"]
    found = arrange(names, where="here", wrapped=False)
    assert found.parts == {"train": {"ant": ["ant/1.png"]}}
    assert sorted(name for own in found.left_out.values() for name in own) == sorted(set(names) - {"train/ant/1.png"})


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    classes(tmp_path / "images")
    os.symlink("..", tmp_path / "images" / "cat" / "up")
    with pytest.raises(ConfigError, match="cat/up: a link leads back to a folder above it"):
        list_images(tmp_path / "images", "images", "")


def test_links_to_nothing_and_pipes_are_left_out(tmp_path: Path) -> None:
    root = classes(tmp_path / "images")
    os.symlink("absent.png", root / "cat" / "broken.png")
    os.mkfifo(root / "cat" / "pipe.png")
    assert by_tta(root).note == (
        "24 of 26 files used; left out: 2 that are no regular files (image-folder/cat/broken.png, "
        "image-folder/cat/pipe.png)"
    )


def test_shots_come_from_the_training_folder(cases: Path) -> None:
    data = ImageFolder(cases / "capital", train=cases / "capital")
    (test,), shots = data.sets(), data.shots(2, 0)
    train = {np.asarray(Image.open(path)).tobytes() for path in (cases / "capital" / "Train").rglob("*.png")}
    assert {np.asarray(shots.image(k)).tobytes() for k in range(6)} <= train
    assert not {np.asarray(test.image(k)).tobytes() for k in range(len(test))} & train

"""ImageNet-C made here: archives and folders, noise that belongs to its image, caching, frost photos, accuracy."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dembench.tasks.common.choice import balanced_subset
from dembench.tasks.common.corruptions import CORRUPTIONS, corrupt
from dembench.tasks.common.corruptions.recipes import IMAGECORRUPTIONS, IMAGENET
from dembench.tasks.common.generated import GeneratedCIFAR10C
from dembench.tasks.common.images import Preprocess
from dembench.tasks.common.wnids import imagenet_wnids
from dembench.tasks.tta import photographs
from dembench.tasks.tta.photographs import GeneratedImageNetC, Photographs

SMALL = Preprocess(40, 36, "bicubic")
CLASSES = ("n01440764", "n01443537", "n15075141")  # 0, 1 and 999
PER_CLASS = 4


def picture(number: int) -> Image.Image:
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (48, 60, 3), dtype=np.uint8))


def names() -> list[str]:
    return [f"{wnid}/{k}.png" for wnid in CLASSES for k in range(PER_CLASS)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(names()):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    return tmp_path / "images"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """The same images in an archive, out of order and with ./ before their names."""
    with tarfile.open(tmp_path / "images.tar", "w") as file:
        for number, name in reversed(list(enumerate(names()))):
            content = io.BytesIO()
            picture(number).save(content, "PNG")
            member = tarfile.TarInfo(f"./{name}")
            member.size = content.tell()
            content.seek(0)
            file.addfile(member, content)
    return tmp_path / "images.tar"


def expected() -> torch.Tensor:
    images = [np.array(SMALL(picture(number))) for number in range(len(names()))]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def made(root: Path, cache: Path, **options) -> GeneratedImageNetC:
    data = GeneratedImageNetC(root, "made-c", cache=cache, **{"frost": "made", **options})
    data.use(SMALL)
    return data


def test_a_folder_and_an_archive_give_the_same_images(folder: Path, archive: Path, tmp_path: Path):
    for root in (folder, archive):
        data = Photographs(root, "made", cache=tmp_path / "cache")
        data.use(SMALL)
        data.check()
        images, labels = data.domain("made", None)
        assert torch.equal(images, expected())
        assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert (data.num_classes, data.num_images, data.class_index) == (3, 12, (0, 1, 999))
        assert (data.corruptions, data.severities) == (("made",), ())
    assert {note.key for note in data.notes} == {"classes", "input"}


def test_without_a_crop_images_are_resized_whole(folder: Path, tmp_path: Path):
    data = Photographs(folder, "made", whole=True, cache=tmp_path / "cache")
    data.use(SMALL)
    own = np.array(Preprocess(36, 36, "bicubic")(picture(0)))
    assert np.array_equal(data.domain("made", None)[0][0].permute(1, 2, 0).numpy(), own)


@pytest.mark.parametrize(("recipe", "constants"), [("imagenet", IMAGENET), ("imagecorruptions", IMAGECORRUPTIONS)])
def test_domains_are_the_corruptions_at_the_models_size(folder: Path, tmp_path: Path, recipe, constants):
    data = made(folder, tmp_path / "cache", recipe=recipe, seed=3)
    assert (data.corruptions, data.known) == (CORRUPTIONS, CORRUPTIONS)
    for corruption in ("snow", "frost", "elastic_transform"):
        images, labels = data.domain(corruption, 4)
        own = corrupt(expected(), corruption, 4, torch.arange(12), seed=3, recipe=constants)
        assert torch.equal(images, own)
        assert torch.equal(labels, data.labels(corruption, 4))


def test_a_subset_has_the_noise_of_the_whole(folder: Path, tmp_path: Path):
    whole, labels = made(folder, tmp_path / "a").domain("gaussian_noise", 5)
    part, some = made(folder, tmp_path / "b", num_images=5).domain("gaussian_noise", 5)
    chosen = balanced_subset(labels.numpy(), 5)
    assert torch.equal(part, whole[chosen])
    assert torch.equal(some, labels[chosen])


def test_a_domain_is_made_once_and_what_is_written_to_it_stays_private(folder: Path, tmp_path: Path, monkeypatch):
    calls = []

    def counted(images, corruption, *args, **options):
        calls.append(corruption)
        return corrupt(images, corruption, *args, **options)

    monkeypatch.setattr(photographs, "corrupt", counted)
    first, _ = made(folder, tmp_path / "cache").domain("fog", 5)
    before = first.clone()
    again, _ = made(folder, tmp_path / "cache").domain("fog", 5)
    again.add_(1)
    third, _ = made(folder, tmp_path / "cache").domain("fog", 5)
    assert torch.equal(third, before)
    assert calls == ["fog"]
    (path,) = (tmp_path / "cache" / "domains").rglob("fog-5.npy")
    path.write_bytes(path.read_bytes()[:200])
    assert torch.equal(made(folder, tmp_path / "cache").domain("fog", 5)[0], before)
    for other in ({"seed": 1}, {"recipe": "imagecorruptions"}, {"num_images": 6}):
        made(folder, tmp_path / "cache", **other).domain("fog", 5)
    assert calls == ["fog"] * 5


@pytest.mark.gpu
def test_a_gpu_makes_the_same_domains_and_keeps_them(folder: Path, tmp_path: Path):
    for corruption in ("gaussian_noise", "glass_blur", "frost", "jpeg_compression"):
        here, _ = made(folder, tmp_path / "a").domain(corruption, 5)
        there = made(folder, tmp_path / "b")
        there.place(torch.device("cuda"))
        found, _ = there.domain(corruption, 5)
        assert found.is_cuda
        assert torch.equal(found.cpu(), here)
        assert there.domain(corruption, 5)[0] is found
    assert not (tmp_path / "b" / "domains").exists()


def test_fingerprints_follow_content_and_size(folder: Path, tmp_path: Path):
    own = made(folder, tmp_path).fingerprint
    assert made(folder, tmp_path / "other").fingerprint == own
    for other in ({"seed": 1}, {"recipe": "imagecorruptions"}, {"num_images": 6}):
        assert made(folder, tmp_path, **other).fingerprint != own
    larger = made(folder, tmp_path)
    larger.use(Preprocess(48, 40, "bicubic"))
    assert larger.fingerprint != own
    picture(99).save(folder / names()[0])
    assert made(folder, tmp_path).fingerprint != own


def test_refusals_come_before_work(folder: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"made-c: nothing at .*absent; expected <class>/<image>"):
        made(tmp_path / "absent", tmp_path).require([("fog", 5)])
    with pytest.raises(ValueError, match="unknown recipe 'imagenett'; nearest: imagenet"):
        made(folder, tmp_path, recipe="imagenett")
    with pytest.raises(ValueError, match="unknown corruption 'fogg'; nearest: fog"):
        made(folder, tmp_path).domain("fogg", 5)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no images in class folders"):
        made(tmp_path / "empty", tmp_path).check()


def frost_photos(root: Path) -> Path:
    root.mkdir(parents=True)
    for k in range(1, 6):
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (200, 220, 3), dtype=np.uint8)).save(
            root / f"frost{k}.png"
        )
    return root


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package imagecorruptions that has the photos and cannot be imported, as where its own needs are missing."""
    photos = frost_photos(tmp_path / "site" / "imagecorruptions" / "frost")
    (photos.parent / "__init__.py").write_text("raise ImportError('not to be imported')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return photos


def test_frost_photos_of_the_installed_package_are_found(folder: Path, tmp_path: Path, package: Path, monkeypatch):
    monkeypatch.setenv("DEMBENCH_DATA", str(tmp_path / "nothing"))
    found, given, texture = (made(folder, tmp_path / "cache", frost=frost) for frost in (None, package, "made"))
    assert found.fingerprint == given.fingerprint != texture.fingerprint
    assert torch.equal(found.domain("frost", 5)[0], given.domain("frost", 5)[0])
    assert not torch.equal(found.domain("frost", 5)[0], texture.domain("frost", 5)[0])
    assert [note.key for note in found.notes if note.key == "frost"] == []
    assert "pip install --no-deps imagecorruptions" in next(n.text for n in texture.notes if n.key == "frost")


def test_frost_photos_of_the_data_folder_are_found(folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("DEMBENCH_DATA", str(tmp_path))
    texture = made(folder, tmp_path / "cache").fingerprint
    assert made(folder, tmp_path / "cache", frost=None).fingerprint == texture
    photos = frost_photos(tmp_path / "data" / "frost")
    own = made(folder, tmp_path / "cache", frost=photos).fingerprint
    assert made(folder, tmp_path / "cache", frost=None).fingerprint == own != texture


def test_cifars_frost_is_the_packages_too(tmp_path: Path, package: Path):
    found, given, texture = (GeneratedCIFAR10C(tmp_path, frost=frost)._frost for frost in (None, package, "made"))
    assert found == given == package
    assert texture is None


@pytest.mark.data
def test_the_sample_has_a_thousand_classes_in_imagenets_order(data_folder: Path, tmp_path: Path):
    data = Photographs(data_folder / "data" / "imagenet-sample.tar", "imagenet-sample", cache=tmp_path)
    assert data.class_names == imagenet_wnids(None)
    assert (data.class_index, data.num_images) == (None, 1000)
    assert data.labels("imagenet-sample", None).tolist() == list(range(1000))
    tiny = Photographs(data_folder / "data" / "tiny-imagenet-val.tar", "tiny-imagenet", cache=tmp_path)
    assert (tiny.num_classes, tiny.num_images, len(set(tiny.class_index))) == (200, 10_000, 200)
    assert torch.bincount(tiny.labels("tiny-imagenet", None)).tolist() == [50] * 200


@pytest.mark.data
@pytest.mark.slow
def test_the_real_accuracy_of_the_shared_weights(data_folder: Path, tmp_path: Path):
    """Measured by others on 250 of the images: 88 %; here on the first 250, within three standard deviations."""
    from dembench.tasks.tta.models import timm_model

    model = timm_model("tf_efficientnet_lite0", data_folder / "weights" / "tf_efficientnet_lite0-imagenet.safetensors")
    data = Photographs(data_folder / "data" / "imagenet-sample.tar", "imagenet-sample", num_images=250, cache=tmp_path)
    data.use(model.preprocess)
    images, labels = data.domain("imagenet-sample", None)
    with torch.inference_mode():
        found = torch.cat([model(part.float() / 255).argmax(1) for part in images.split(50)])
    assert abs((found == labels).double().mean() - 0.88) < 3 * (0.88 * 0.12 / 250) ** 0.5
    clean = images[:1]
    with np.load(data_folder / "data" / "imagenetc-reference.npz") as reference:
        assert reference["files"][0].startswith("n01440764")
        assert np.array_equal(clean[0].permute(1, 2, 0).numpy(), reference["clean"][0])

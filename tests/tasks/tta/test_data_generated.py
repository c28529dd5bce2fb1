"""CIFAR-10-C made here: noise that belongs to its image, caching, fingerprints, and the real images."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from cifar_files import as_archive, as_folder, encoded, expected, files
from PIL import Image
from torch.testing import assert_close

from dembench.tasks.common import generated
from dembench.tasks.common.cache import load_json
from dembench.tasks.common.choice import balanced_subset
from dembench.tasks.common.corruptions import corrupt
from dembench.tasks.common.digits import digits
from dembench.tasks.common.generated import GeneratedCIFAR10C
from dembench.tasks.tta.data import DigitsC
from dembench.tasks.tta.models import cifar_resnet


@pytest.fixture
def kept(monkeypatch):
    """Replaces the generator by one that returns its input and notes its arguments."""
    calls = []

    def fake(images, corruption, severity, index, *, seed=0, frost=None):
        calls.append((corruption, severity, index.tolist(), seed, frost))
        return images.clone()

    monkeypatch.setattr(generated, "corrupt", fake)
    return calls


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
    monkeypatch.setattr("dembench.tasks.common.originals._decode", None)
    again = GeneratedCIFAR10C(source, cache=tmp_path / "cache").domain("snow", 1)[0]
    assert_close(first, again, rtol=0, atol=0)
    done = load_json(next((tmp_path / "cache").rglob("done.json")))
    assert done == {"lossy": False, "notes": []}


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


def test_clean_images_are_those_before_corruption(tree, tmp_path):
    made = GeneratedCIFAR10C(tree, num_images=10, cache=tmp_path / "cache")
    images, note = made.clean(15, 2)  # of all 40, not of the subset
    whole = expected(range(40))
    found = [(whole == image).flatten(1).all(1).nonzero().item() for image in images]
    assert len(set(found)) == 15
    assert "15 clean test images" in note.text
    assert torch.equal(made.clean(15, 2)[0], images)


def test_clean_digits_are_not_in_the_stream():
    images, note = DigitsC().clean(2000, 0)
    assert len(images) == 901  # all of the train split
    seen = {image.numpy().tobytes() for image in digits("test")[0]}
    assert sum(image.numpy().tobytes() in seen for image in images) < 5  # two people may write alike
    assert "901 clean digits of the train split" in note.text

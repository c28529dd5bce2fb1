"""Views, features on disk, digits, and folders of images."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_sample_image
from tiny_clip import tiny_clip
from torch.testing import assert_close
from torchvision.transforms import functional as F
from torchvision.transforms import v2

from dembench.harness.compose import compose
from dembench.tasks.common import augmix as augmix_module
from dembench.tasks.prompt import imagenet as module
from dembench.tasks.prompt.captions import WordTokenizer
from dembench.tasks.prompt.data import Digits, ImageSet
from dembench.tasks.prompt.digits import CORRUPTIONS, STYLES, corrupt, digits, style_templates, stylise
from dembench.tasks.prompt.features import STRETCH, ViewFeatures
from dembench.tasks.prompt.imagenet import FAMILY, ImageFolder, ImageNetFamily, classes_of, subset
from dembench.tasks.prompt.tiny import digits_clip, tokenizer
from dembench.tasks.prompt.views import Views


def picture(height=40, width=52, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


# --- views


def test_the_first_view_is_the_middle_of_the_image():
    image = picture()
    expected = F.center_crop(F.resize(image, 32, F.InterpolationMode.BICUBIC), [32, 32])
    assert torch.equal(Views(count=3)(image, 0, 32)[0], F.pil_to_tensor(expected))
    whole = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    assert torch.equal(Views(count=1)(whole, 0, 32), whole[None])


def test_the_views_of_an_image_are_its_own():
    views, image = Views(count=5), picture()
    first = views(image, 7, 16)
    torch.rand(3)  # other draws in between
    assert torch.equal(views(image, 7, 16), first)
    assert not torch.equal(views(image, 8, 16)[1:], first[1:])
    assert not torch.equal(Views(count=5, seed=1)(image, 7, 16)[1:], first[1:])
    assert torch.equal(Views(count=3)(image, 7, 16), first[:3])
    before = torch.get_rng_state()
    views(image, 9, 16)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_view_is_a_part_of_the_image_of_the_size_that_was_asked_for():
    ramp = torch.arange(64).repeat(64, 1).to(torch.uint8).expand(3, -1, -1) * 3
    narrow = Views(count=30, scale=(0.05, 0.06), flip=0.0)(ramp, 0, 64)[1:].float()
    wide = Views(count=30, scale=(0.9, 1.0), flip=0.0)(ramp, 0, 64)[1:].float()
    assert (narrow.amax((1, 2, 3)) - narrow.amin((1, 2, 3))).max() < 0.4 * 189
    assert (wide.amax((1, 2, 3)) - wide.amin((1, 2, 3))).min() > 0.7 * 189
    assert (wide[:, 0, 0, 0] < wide[:, 0, 0, -1]).all()
    assert (
        Views(count=30, flip=1.0)(ramp, 0, 64)[1:, 0, 0, 0] > Views(count=30, flip=1.0)(ramp, 0, 64)[1:, 0, 0, -1]
    ).all()
    mixed = Views(count=3, augmix=True)(ramp, 0, 64)
    assert not torch.equal(mixed[1], Views(count=3)(ramp, 0, 64)[1])


@pytest.mark.parametrize("wrong", [{"count": 0}, {"scale": (0.5, 0.2)}, {"flip": 2.0}, {"seed": -1}])
def test_views_without_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="views: expected"):
        Views(**wrong)


# --- features


def image_set(n=5, key="made"):
    images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageSet("made", ("a", "b"), torch.zeros(n, dtype=torch.long), images.__getitem__, key)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_kept_features_are_those_that_were_computed(tmp_path, dtype):
    clip, images, views = tiny_clip(), image_set(), Views(count=4)
    fresh = ViewFeatures(clip, views, dtype=dtype, keep=False).all(images)
    first = ViewFeatures(clip, views, dtype=dtype, cache=tmp_path)
    assert torch.equal(first.all(images), fresh)
    assert first.encoded_images == 5
    again = ViewFeatures(clip, views, dtype=dtype, cache=tmp_path)
    assert torch.equal(again.all(images), fresh)
    assert again.encoded_images == 0
    blocks = list(again(images, 2))
    assert [start for start, _ in blocks] == [0, 2, 4]
    assert len(blocks) == again.blocks(images, 2)
    assert torch.equal(torch.cat([part for _, part in blocks]), fresh)
    expected = torch.stack([clip.encode_images(views(images.image(k), k, 32)) for k in range(5)])
    assert_close(fresh, expected, rtol=0, atol=1e-6 if dtype == "float32" else 1e-3)


def test_a_broken_file_is_made_again_and_other_settings_have_other_files(tmp_path):
    clip, images = tiny_clip(), image_set()
    features = ViewFeatures(clip, Views(count=4), cache=tmp_path)
    wanted = features.all(images)
    path = features.path(images, 0)
    path.write_bytes(path.read_bytes()[:-20])
    assert torch.equal(features.all(images), wanted)
    assert features.encoded_images == 10
    others = {
        features.path(image_set(key="other"), 0),
        ViewFeatures(clip, Views(count=5), cache=tmp_path).path(images, 0),
        ViewFeatures(clip, Views(count=4, seed=1), cache=tmp_path).path(images, 0),
        ViewFeatures(clip, Views(count=4), dtype="float32", cache=tmp_path).path(images, 0),
        ViewFeatures(tiny_clip(seed=1), Views(count=4), cache=tmp_path).path(images, 0),
    }
    assert path not in others
    assert len(others) == 5
    with pytest.raises(ValueError, match="unknown dtype 'half'"):
        ViewFeatures(clip, Views(), dtype="half", cache=tmp_path)


def test_blocks_are_counted_over_stretches():
    features = ViewFeatures(tiny_clip(), Views(count=1), keep=False)
    for n in (1, STRETCH, STRETCH + 1, 2 * STRETCH + 50):
        images = ImageSet("x", ("a",), torch.zeros(n), lambda k: None, "x")
        features._stretch = lambda images, start, stop: torch.zeros(stop - start, 1, 2)
        for block in (1, 48, 1000):
            assert len(list(features(images, block))) == features.blocks(images, block)


# --- digits


def test_the_split_is_disjoint_and_complete():
    (train, train_labels), (test, test_labels) = digits("train"), digits("test")
    assert (len(train), len(test)) == (1007, 790)
    assert len(train) + len(test) == 1797
    assert set(train_labels.tolist()) == set(test_labels.tolist()) == set(range(10))
    assert 0 <= float(test.min()) < float(test.max()) <= 1
    with pytest.raises(ValueError, match="split train or test"):
        digits("valid")


def test_styles_and_corruptions_change_images_within_bounds():
    images, _ = digits("test")
    generator = torch.Generator().manual_seed(0)
    for style in STYLES:
        styled = stylise(images[:8], style, generator)
        assert styled.shape == (8, 1, 32, 32)
        assert 0 <= float(styled.min()) <= float(styled.max()) <= 1
        assert torch.equal(styled, images[:8]) == (style == "plain")
    for corruption in CORRUPTIONS:
        changed = corrupt(images[:8], corruption, 0)
        assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
        assert (changed - images[:8]).abs().mean() > 0.02
        assert torch.equal(corrupt(images[:8], corruption, 0), changed)
    for function in (lambda: corrupt(images, "fog", 0), lambda: stylise(images, "fog", generator)):
        with pytest.raises(ValueError, match="unknown .* 'fog'; valid"):
            function()


def test_a_subset_keeps_images_views_and_corruption_of_the_whole():
    few, whole = Digits(num_images=10, corruptions=["noise"]), Digits(corruptions=["noise"])
    for small, large in zip(few.sets(), whole.sets(), strict=True):
        for k in range(10):
            position = int(small.numbers[k])
            assert torch.equal(small.image(k), large.image(position))
            assert small.number(k) == large.number(position)
            assert small.labels[k] == large.labels[position]
    assert [images.name for images in few.sets()] == ["clean", "noise"]
    assert [images.shifted for images in few.sets()] == [False, True]
    assert few.fingerprint != whole.fingerprint
    shots = whole.shots(3, 0)
    assert shots.labels.bincount().tolist() == [3] * 10
    assert not torch.equal(whole.shots(3, 1).numbers, shots.numbers)
    with pytest.raises(ValueError, match="num_images of 1 to 790"):
        Digits(num_images=791)
    with pytest.raises(ValueError, match="unknown corruption 'fog'"):
        Digits(corruptions=["fog"])


def test_the_word_tokenizer_is_a_tokenizer():
    words = tokenizer()
    ids = words(["a photo of the digit zero.", "zero"])
    assert ids.shape == (2, 12)
    assert ids[0, 0] == words.sot_token_id
    assert ids.argmax(1).tolist() == [8, 2]
    assert len(words.encode("a photo of the digit")) == 5
    assert words(["zero " * 30], context_length=5)[0].tolist()[-1] == words.eot_token_id
    longest = max(len(words.encode(template.replace("{}", "zero"))) for template in style_templates())
    assert longest + 2 <= 12
    with pytest.raises(ValueError, match="does not know the word 'cat'"):
        words(["a photo of a cat."])
    assert WordTokenizer(["b a"]).vocab_size == 5


def test_the_digits_clip_is_trained_once_and_repeatably(tmp_path):
    first = digits_clip(seed=3, steps=2, batch_size=8, cache=tmp_path)
    assert list(tmp_path.rglob("*.pt")) == []  # planning a grid trains nothing
    before = torch.get_rng_state()
    first.load()
    assert torch.equal(torch.get_rng_state(), before)
    (file,) = tmp_path.rglob("*.pt")
    stamp = file.stat().st_mtime_ns
    second = digits_clip(seed=3, steps=2, batch_size=8, cache=tmp_path).load()
    assert file.stat().st_mtime_ns == stamp
    third = digits_clip(seed=3, steps=2, batch_size=8, cache=tmp_path / "other").load()
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name])
        assert torch.equal(value, third.model.state_dict()[name])
    other = digits_clip(seed=4, steps=2, batch_size=8, cache=tmp_path)
    assert other.weights_id == first.weights_id  # a block of the report has all seeds
    assert other.features_id != first.features_id
    with pytest.raises(ValueError, match="expected steps to be a whole number >= 1"):
        digits_clip(steps=0)


# --- folders


def tree(root, folders, images=2):
    for number, name in enumerate(folders):
        (root / name).mkdir(parents=True)
        for k in range(images):
            picture(seed=10 * number + k).save(root / name / f"{k}.png")
    return root


def test_classes_are_found_by_name_and_not_by_order(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "classes_of", lambda name: {str(k): f"class {k}" for k in range(12)})
    tree(tmp_path / "imagenetv2-matched-frequency-format-val", [str(k) for k in range(12)], images=1)
    data = ImageNetFamily(tmp_path, sets=["imagenet_v2"])
    data.check()
    (images,) = data.sets()
    assert images.labels.tolist() == list(range(12))
    assert images.class_names[10] == "class 10"
    assert images.image(10).tobytes() == picture(seed=100).tobytes()
    assert images.shifted
    assert [note.key for note in data.notes] == ["imagenet_v2"]


def test_missing_and_unknown_folders_are_said_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "classes_of", lambda name: {"n1": "one", "n2": "two"})
    with pytest.raises(FileNotFoundError, match="imagenet_a: no folder .*imagenet-a"):
        ImageNetFamily(tmp_path, sets=["imagenet_a"]).check()
    tree(tmp_path / "imagenet-a", ["n1"])
    with pytest.raises(FileNotFoundError, match="lacks 1 of 2 classes, such as n2"):
        ImageNetFamily(tmp_path, sets=["imagenet_a"]).check()
    tree(tmp_path / "imagenet-a", ["n2", "n3"])
    with pytest.raises(ValueError, match="has 1 folders that are none of its classes, such as n3"):
        ImageNetFamily(tmp_path, sets=["imagenet_a"]).check()
    with pytest.raises(ValueError, match="unknown set of the ImageNet family 'imagenet_b'"):
        ImageNetFamily(tmp_path, sets=["imagenet_b"])
    with pytest.raises(ValueError, match="each once"):
        ImageNetFamily(tmp_path, sets=["imagenet_a", "imagenet_a"])


def test_the_lists_of_the_family_are_the_published_ones():
    import open_clip

    whole = classes_of("imagenet")
    assert len(whole) == 1000
    assert whole["n01440764"] == "tench"
    assert list(whole) == sorted(whole)
    assert list(whole.values()) == list(open_clip.IMAGENET_CLASSNAMES)
    a, r = (classes_of(name) for name in ("imagenet_a", "imagenet_r"))
    assert len(a) == len(r) == 200
    assert len(set(a) & set(r)) == 86
    assert subset("imagenet-a")[:3] == [6, 11, 13]
    assert a["n01498041"] == "stingray"
    assert list(classes_of("imagenet_v2")) == [str(k) for k in range(1000)]
    assert sum(member.images for member in FAMILY.values()) == 148_389
    assert len(ImageFolder("nowhere").templates) == 80


def test_any_folder_with_names_from_a_file(tmp_path):
    tree(tmp_path / "test", ["b_b", "a"], images=3)
    data = ImageFolder(tmp_path / "test", train=tmp_path / "test")
    (images,) = data.sets()
    assert images.class_names == ("a", "b b")
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    names = tmp_path / "names.csv"
    names.write_text("b_b,a blue bird\na,an ape\n")
    named = ImageFolder(tmp_path / "test", class_names=names, num_images=4)
    (images,) = named.sets()
    assert images.class_names == ("a blue bird", "an ape")
    assert images.labels.tolist() == [0, 0, 1, 1]
    assert named.fingerprint != data.fingerprint
    assert data.shots(2, 0).labels.tolist() == [0, 0, 1, 1]
    with pytest.raises(FileNotFoundError, match="give data.train=DIR"):
        named.shots(2, 0)
    names.write_text("b_b\n")
    with pytest.raises(ValueError, match="as <folder>,<class name>, got 'b_b'"):
        ImageFolder(tmp_path / "test", class_names=names).check()


# --- AugMix


def reference_operation(name, x, level, sign=1):
    """An operation at a level, on uint8 (H, W, 3), by its definition in NumPy; bilinear where pixels move."""
    if name == "autocontrast":
        low, high = x.min((0, 1)).astype(float), x.max((0, 1)).astype(float)
        return (x - low) * 255 / (high - low)
    if name == "equalize":
        out = np.zeros(x.shape)
        for c in range(3):
            counts = np.bincount(x[..., c].ravel(), minlength=256)
            step = (counts.sum() - counts[counts > 0][-1]) // 255
            table = (step // 2 + np.concatenate([[0], counts.cumsum()[:-1]])) // step
            out[..., c] = np.clip(table, 0, 255)[x[..., c]]
        return out
    if name == "posterize":
        return x & (0xF0 if level < 2.5 else 0xE0)
    if name == "solarize":
        return np.where(x < 256 - int(25.6 * level), x, 255 - x)
    h, w = x.shape[:2]
    rows, columns = np.mgrid[:h, :w].astype(float)
    if name == "rotate":
        turn = -np.deg2rad(int(3 * level) * sign)
        u, v = columns - (w - 1) / 2, rows - (h - 1) / 2
        columns, rows = np.cos(turn) * u + np.sin(turn) * v, -np.sin(turn) * u + np.cos(turn) * v
        columns, rows = columns + (w - 1) / 2, rows + (h - 1) / 2
    elif name == "shear_x":
        columns = columns + 0.03 * level * sign * (rows + 0.5)
    elif name == "shear_y":
        rows = rows + 0.03 * level * sign * (columns + 0.5)
    elif name == "translate_x":
        columns = columns + int(level * w / 30) * sign
    elif name == "translate_y":
        rows = rows + int(level * h / 30) * sign
    inside = (columns > -0.5) & (columns < w - 0.5) & (rows > -0.5) & (rows < h - 0.5)
    moved = np.stack(
        [ndimage.map_coordinates(x[..., c].astype(float), [rows, columns], order=1, mode="nearest") for c in range(3)],
        -1,
    )
    return moved * inside[..., None]


OPERATIONS = (
    "autocontrast", "equalize", "posterize", "rotate", "solarize", "shear_x", "shear_y", "translate_x", "translate_y",
)  # fmt: skip


@pytest.mark.parametrize("number", range(9), ids=OPERATIONS)
@pytest.mark.parametrize("drawn", [0.0, 0.4, 0.97])
def test_operations_of_augmix_are_their_definitions(number, drawn, monkeypatch):
    """At TPT's severity 1 a level lies between 0.1 and 1; of the sign, a second number above a half means minus."""
    smooth = ndimage.gaussian_filter(np.random.default_rng(number).uniform(0, 255, (90, 90, 3)), (2, 2, 0))
    x = np.clip((smooth - 127) * 5 + 127, 3, 250).astype(np.uint8)
    for sign, second in ((1, 0.2), (-1, 0.8)):
        numbers = iter([drawn, second])
        monkeypatch.setattr(augmix_module, "_drawn", lambda numbers=numbers: next(numbers))
        found = np.asarray(augmix_module.OPERATIONS[number](Image.fromarray(x), None)).astype(float)
        expected = reference_operation(OPERATIONS[number], x, 0.1 + 0.9 * drawn, sign)
        off = np.abs(found - np.floor(expected))
        assert (off <= 1).mean() > 0.98, off.max()  # edges and rounding
        assert off.mean() < 0.8


def test_augmix_mixes_chains_with_weights_that_add_up(monkeypatch):
    """On operations that add grey levels, a view says how much of which chain it holds."""
    draws = []

    def darker(image, fill):
        draws[-1] += 1
        return Image.fromarray(np.asarray(image) // 2)

    monkeypatch.setattr(augmix_module, "OPERATIONS", (darker,) * 9)
    white = Image.fromarray(np.full((4, 4, 3), 240, np.uint8))
    torch.manual_seed(0)
    shares, lengths = [], []
    for _ in range(3000):
        draws.append(0)
        grey = augmix_module.augmix(white)
        assert np.ptp(grey) == 0
        assert 30 <= grey[0, 0, 0] <= 240  # between three halvings of everything and the image itself
        lengths.append(draws[-1])
        shares.append((240 - grey[0, 0, 0]) / 240)
    assert set(lengths) == set(range(3, 10))
    assert np.mean(lengths) == pytest.approx(6, abs=0.1)  # three chains of 1, 2 or 3
    # E[(1 - m)] E[1 - 2^-n] with m uniform and n of 1, 2, 3; the weights of the chains add up to 1
    assert np.mean(shares) == pytest.approx(0.5 * (1 / 2 + 3 / 4 + 7 / 8) / 3, abs=0.01)


def test_tpts_augmix_changes_images_more_than_torchvisions():
    """On a photograph: 9.2 grey levels in the mean against 3.0."""
    image = Image.fromarray(load_sample_image("china.jpg")).resize((160, 160))
    torch.manual_seed(0)
    change = {
        make: np.mean([np.abs(np.asarray(make(image), float) - np.asarray(image, float)).mean() for _ in range(200)])
        for make in (augmix_module.augmix, v2.AugMix(severity=1, all_ops=False))
    }
    ours, theirs = change.values()
    assert ours > 2 * theirs


def test_the_fine_grained_preset_is_tpts_with_its_augmix():
    fine, plain = (
        OmegaConf.to_container(compose({"task": "prompt", "protocol": name}).protocol)
        for name in ("fine_grained", "episodic")
    )
    assert fine["views"] == {**plain["views"], "augmix": True, "augmix_of": "tpt"}
    assert {**fine, "views": None} == {**plain, "views": None}


def test_views_with_augmix_are_the_crops_mixed():
    image, size = picture(60, 60), 32
    crops, mixed = Views(count=6)(image, 1, size), Views(count=6, augmix=True, augmix_of="tpt")(image, 1, size)
    assert torch.equal(crops[:1], mixed[:1])  # the plain view stays
    assert not torch.equal(crops[1], mixed[1])
    again = Views(count=6, augmix=True, augmix_of="tpt")(F.pil_to_tensor(image), 1, size)
    assert (again.float() - mixed.float()).abs().mean() < 3  # of a tensor, but for how it is resized
    assert Views().identity == Views(augmix_of="tpt").identity != Views(augmix=True).identity
    assert Views(augmix=True).identity != Views(augmix=True, augmix_of="tpt").identity
    with pytest.raises(ValueError, match="expected augmix_of torchvision or tpt, got 'usb'"):
        Views(augmix_of="usb")

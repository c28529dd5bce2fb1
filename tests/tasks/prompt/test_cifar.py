"""CIFAR-10 with captions, and the small CLIP that learns from it, against the archive's own files and closed forms."""

import hashlib
import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torch.testing import assert_close

from dembench.harness import experiment
from dembench.harness.compose import ConfigError, compose, options
from dembench.harness.sweeps import expand, read_sweep
from dembench.tasks.common.cache import save_state
from dembench.tasks.common.corruptions import CORRUPTIONS, corrupt
from dembench.tasks.prompt import tiny
from dembench.tasks.prompt.cifar import CAPTIONS, STYLES, TEMPLATE, WORDS, Cifar10, stylise
from dembench.tasks.prompt.digits import RENDERING
from dembench.tasks.prompt.models import cifar_clip
from dembench.tasks.prompt.training import contrast

PER_CLASS = {"train": 12, "test": 4}
TORCHVISION = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture(scope="module")
def few(data_folder, tmp_path_factory):
    """A folder with the first files of each class of the archive, and their bytes by (split, class, file name)."""
    root, found, counts = tmp_path_factory.mktemp("few"), {}, {}
    with tarfile.open(data_folder / "data" / "cifar10-jpeg.tar.gz", "r|gz") as archive:
        for member in archive:
            split, name, file = ("", "", *member.name.split("/"))[-3:]
            if member.isreg() and counts.setdefault((split, name), 0) < PER_CLASS.get(split, 0):
                counts[split, name] += 1
                found[split, name, file] = archive.extractfile(member).read()
                (root / split / name).mkdir(parents=True, exist_ok=True)
                (root / split / name / file).write_bytes(found[split, name, file])
    return root, found


def pixels(content):
    return torch.from_numpy(np.array(Image.open(io.BytesIO(content)).convert("RGB"))).permute(2, 0, 1)


def made(root, split="train", count=1):
    """PNG files of one colour for each class."""
    for number, name in enumerate(TORCHVISION):
        (root / split / name).mkdir(parents=True)
        for k in range(count):
            Image.new("RGB", (32, 32), (20 * number, 5 * k, 90)).save(root / split / name / f"{k}.png")
    return root


# --- images and captions


@pytest.mark.data
def test_sets_are_the_files_of_the_archive_and_their_corruptions(few, tmp_path):
    root, found = few
    data = Cifar10(root, corruptions=["fog", "gaussian_noise"], severity=3, cache=tmp_path)
    data.check()
    clean, fog, noise = data.sets()
    files = sorted(key for key in found if key[0] == "test")
    assert len(clean) == len(files) == 40
    assert clean.class_names == TORCHVISION
    for k, key in enumerate(files):
        assert TORCHVISION[clean.labels[k]] == key[1]
        assert torch.equal(clean.image(k), pixels(found[key]))
    whole = torch.stack([clean.image(k) for k in range(40)])
    for images in (fog, noise):
        expected = corrupt(whole, images.name, 3, torch.arange(40), seed=0)
        assert torch.equal(torch.stack([images.image(k) for k in range(40)]), expected)
        assert torch.equal(images.labels, clean.labels)
    assert [images.shifted for images in data.sets()] == [False, True, True]
    assert {note.key for note in data.notes} == {"data", "jpeg"}  # no frost, no note on it
    assert data.name == "cifar10-jpeg"


@pytest.mark.data
def test_a_subset_keeps_images_and_views_and_shots_are_of_the_training_images(few, tmp_path):
    root, found = few
    small, large = (Cifar10(root, n, ["frost"], cache=tmp_path) for n in (20, None))
    assert small.fingerprint != large.fingerprint
    assert "frost" in {note.key for note in small.notes}
    for part, whole in zip(small.sets(), large.sets(), strict=True):
        assert part.labels.bincount().tolist() == [2] * 10
        for k in range(20):
            assert torch.equal(part.image(k), whole.image(part.number(k)))
            assert part.number(k) == whole.number(part.number(k))
    shots = small.shots(3, 0)
    assert shots.labels.bincount().tolist() == [3] * 10
    own = {name: [pixels(v) for k, v in found.items() if k[:2] == ("train", name)] for name in TORCHVISION}
    for k in range(30):
        assert any(torch.equal(shots.image(k), image) for image in own[TORCHVISION[shots.labels[k]]])


@pytest.mark.data
def test_the_archive_is_read_whole(data_folder, cache_folder):
    data = Cifar10(data_folder / "data" / "cifar10-jpeg.tar.gz", corruptions=[], cache=cache_folder)
    (clean,) = data.sets()
    assert clean.labels.bincount().tolist() == [1000] * 10


def test_wrong_settings_and_missing_images_are_said(tmp_path):
    with pytest.raises(ValueError, match="unknown corruption 'fogg'; nearest: fog"):
        Cifar10(tmp_path, corruptions=["fogg"])
    with pytest.raises(ValueError, match="severity of 1 to 5"):
        Cifar10(tmp_path, severity=6)
    with pytest.raises(FileNotFoundError, match="CIFAR-10 images: nothing at"):
        Cifar10(tmp_path / "none", cache=tmp_path).check()
    with pytest.raises(ValueError, match="no train images in .*only"):
        cifar_clip(made(tmp_path / "only", "test"), steps=1, cache=tmp_path)


def test_styles_by_hand():
    images = torch.tensor([0.2, 0.6, 0.4]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    grey = 0.299 * 0.2 + 0.587 * 0.6 + 0.114 * 0.4
    expected = {
        "plain": (0.2, 0.6, 0.4),
        "grey": (grey,) * 3,
        "negative": (0.8, 0.4, 0.6),
        "dark": (0.08, 0.24, 0.16),
        "sepia": (1.07 * grey, 0.84 * grey, 0.61 * grey),
        "posterized": (1 / 3, 2 / 3, 1 / 3),
    }
    assert list(expected) == list(STYLES)
    for style, colour in expected.items():
        assert_close(stylise(images, style), torch.tensor(colour).view(1, 3, 1, 1).expand(2, 3, 4, 4))
    assert float(stylise(torch.ones(1, 3, 1, 1), "sepia").max()) == 1
    with pytest.raises(ValueError, match="unknown style 'blue'"):
        stylise(images, "blue")
    assert not set(STYLES) & set(CORRUPTIONS)


def test_crops_are_those_of_resizing():
    images = torch.rand(3, 3, 32, 32)
    ones = torch.ones(3)
    still, mirrored = torch.zeros(3, 2), torch.tensor([False, False, True])
    whole = tiny.crop(images, ones, still, mirrored, 64)
    larger = F.interpolate(images, size=[64, 64], mode="bilinear", align_corners=False)
    assert_close(whole[:2], larger[:2], atol=1e-5, rtol=0)
    assert_close(whole[2], larger[2].flip(-1), atol=1e-5, rtol=0)
    corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
    quarters = tiny.crop(images, ones / 2, corners, mirrored, 16)
    assert_close(quarters[0], images[0, :, :16, :16], atol=1e-5, rtol=0)
    assert_close(quarters[1], images[1, :, :16, 16:], atol=1e-5, rtol=0)
    assert_close(quarters[2], images[2, :, 16:, :16].flip(-1), atol=1e-5, rtol=0)


def test_contrast_by_counting():
    similarity, target = torch.randn(5, 4), torch.tensor([1, 0, 1, 3, 1])
    to_captions = -sum(similarity[k].log_softmax(0)[target[k]] for k in range(5)) / 5
    columns = []
    for caption in (0, 1, 3):  # caption 2 has no image
        own = (target == caption).nonzero()[:, 0]
        columns.append(-similarity[:, caption].log_softmax(0)[own].mean())
    assert_close(contrast(similarity, target), (to_captions + sum(columns) / 3) / 2)


# --- the CLIP


def test_a_batch_has_the_caption_of_each_image(tmp_path):
    root = made(tmp_path / "images")
    images = tiny.cifar.originals(root, "train", tmp_path)
    x, target = tiny._cifar(images, "cpu")(64, torch.Generator().manual_seed(0))
    assert x.shape == (64, 3, 64, 64)
    assert len(set((target // 10).tolist())) == len(STYLES)
    for k in range(64):  # each image is of one colour, of which the style makes another
        colour = torch.tensor([20 * int(target[k] % 10), 0, 90]).div(255).view(1, 3, 1, 1)
        expected = 2 * stylise(colour, STYLES[target[k] // 10]) - 1
        assert_close(x[k : k + 1], expected.expand(1, 3, 64, 64), atol=1e-5, rtol=0)


def test_captions_fit_and_the_template_is_one_of_them(tmp_path):
    words = tiny.CIFAR.tokenizer()
    assert TEMPLATE.replace("{}", "{0}") in [text.replace("{1}", "") for text in CAPTIONS]
    texts = [t.replace("{}", word) for t in Cifar10.templates for word in WORDS]
    assert len(set(texts)) == len(CAPTIONS) * len(STYLES) * 10
    ids = words(texts)
    assert (ids == words.eot_token_id).sum(1).tolist() == [1] * len(texts)
    assert len({tuple(row) for row in ids.tolist()}) == len(texts)  # nothing is cut off
    with pytest.raises(ValueError, match="the CIFAR CLIP does not know the word 'seven'"):
        words("a photo of a seven.")


def test_a_cpu_does_not_train_for_hours_unasked(tmp_path, monkeypatch):
    root = made(tmp_path / "images")
    with pytest.raises(ValueError, match=r"half a day: run it on a GPU \(device=cuda\), or give model.steps"):
        cifar_clip(root, device="cpu", cache=tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA device here to train them"):
        cifar_clip(root, device="cuda", cache=tmp_path)
    with pytest.raises(ValueError, match="expected steps to be a whole number >= 1"):
        cifar_clip(root, steps=0, cache=tmp_path)
    monkeypatch.setattr(tiny, "CIFAR_STEPS", 2)  # weights that a GPU has trained are used on a CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    there = cifar_clip(root, device="cuda", cache=tmp_path)
    path = tiny.CIFAR.path(there.weights_id, 0, tmp_path)
    save_state(path, there.model.state_dict())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    here = cifar_clip(root, device="cuda", cache=tmp_path).load()
    assert all(torch.equal(v, there.model.state_dict()[k]) for k, v in here.model.state_dict().items())


@pytest.mark.data
def test_training_learns_and_is_kept(few, tmp_path):
    root, found = few
    steps, size = 12, 24
    clip = cifar_clip(root, seed=1, steps=steps, batch_size=size, device="cpu", cache=tmp_path)
    assert not list(tmp_path.rglob("*.pt"))  # planning trains nothing

    def loss():
        """Cross-entropy of the whole training images over the classes, by the library's towers in eval mode."""
        files = sorted(key for key in found if key[0] == "train")
        x = torch.stack([pixels(found[key]) for key in files]).float().div(127.5).sub(1)
        x = F.interpolate(x, size=[64, 64], mode="bilinear", align_corners=False)
        text = clip.model.encode_text(clip.tokenizer([TEMPLATE.replace("{}", word) for word in TORCHVISION]), True)
        with torch.no_grad():
            logits = clip.model.logit_scale.exp() * clip.model.encode_image(x, True) @ text.T
        return float(F.cross_entropy(logits, torch.tensor([TORCHVISION.index(key[1]) for key in files])))

    torch.manual_seed(1)
    clip.model.load_state_dict(tiny.CIFAR.build().state_dict())  # what training starts from
    before = loss()
    state = torch.get_rng_state()
    clip.load()
    assert torch.equal(torch.get_rng_state(), state)
    assert loss() < before
    (file,) = tmp_path.rglob("*.pt")
    stamp = file.stat().st_mtime_ns
    again = cifar_clip(root, seed=1, steps=steps, batch_size=size, device="cpu", cache=tmp_path).load()
    assert file.stat().st_mtime_ns == stamp
    assert all(torch.equal(v, again.model.state_dict()[k]) for k, v in clip.model.state_dict().items())
    others = [
        cifar_clip(root, seed=1, steps=steps + 1, batch_size=size, device="cpu", cache=tmp_path),
        cifar_clip(made(tmp_path / "other"), seed=1, steps=steps, batch_size=size, device="cpu", cache=tmp_path),
    ]
    assert len({clip.weights_id, *(other.weights_id for other in others)}) == 3


@pytest.mark.data
def test_the_whole_path_from_a_configuration(few, tmp_path, monkeypatch):
    monkeypatch.setenv("DEMBENCH_CACHE", str(tmp_path / "cache"))
    words = {
        "task": "prompt", "data": "cifar10_jpeg", "model": "cifar_clip", "protocol": "cifar", "method": "tpt",
        "data.source": str(few[0]), "data.num_images": 10, "data.corruptions": ["fog"], "model.steps": 2,
        "model.batch_size": 8, "protocol.views.count": 10, "device": "cpu", "out": str(tmp_path), "progress": False,
    }  # fmt: skip
    result = experiment.run(experiment.prepare(compose(words))).result
    assert {row["slice"] for row in result["rows"]} >= {"clean", "fog", "mean"}
    assert result["data"] == "cifar10-jpeg"
    assert "2 steps of 8, on cpu" in str(result["notes"])
    with pytest.raises(ConfigError, match="give model.steps"):
        experiment.prepare(compose({**words, "model.steps": None}))


def test_the_study_composes():
    assert {"cifar10_jpeg"} <= set(options("data", "prompt"))
    runs = expand(read_sweep("study=prompt_cifar10_jpeg"))
    assert len(runs) == 3 * (1 + 8 + 4 + 4 + 4)
    for words in runs[::8]:
        cfg = compose(words)
        assert (cfg.choices.data, cfg.choices.model, cfg.choices.protocol) == ("cifar10_jpeg", "cifar_clip", "cifar")


def test_the_digits_clip_is_named_as_ever(tmp_path):
    """The kind of weights that stands in earlier results does not change with what is shared with other CLIPs."""
    clip = tiny.digits_clip(seed=0, steps=4, batch_size=16, cache=tmp_path)
    recipe = {"version": 1, "lr": 1e-3, "weight_decay": 0.05, "turn": 12, "zoom": 0.12, "shift": 0.1}
    architecture = {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 32, "layers": (1, 1, 1, 1), "width": 16, "head_width": 32},
        "text_cfg": {"context_length": 12, "width": 64, "heads": 4, "layers": 3},
    }
    recipe |= {"steps": 4, "batch_size": 16}
    parts = (RENDERING, architecture, recipe, tiny.CAPTIONS, tiny.STYLES, torch.__version__)
    assert clip.weights_id == f"digits_clip:{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"

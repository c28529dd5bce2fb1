"""Digits: the split, the drawing, and the two networks, which are accurate on clean digits and hurt by corruptions."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.testing import assert_close

from dembench.tasks.common import digits as module
from dembench.tasks.common.corruptions import CORRUPTIONS, corrupt
from dembench.tasks.common.digits import digits, digits_convnet, digits_transformer, train, trained
from dembench.tasks.tta.data import DigitsC

BUILDERS = {"digits_convnet": digits_convnet, "digits_transformer": digits_transformer}


@torch.no_grad()
def error(model, images, labels, batch=100):
    batches = zip(images.split(batch), labels.split(batch), strict=True)
    wrong = sum((model(x.float() / 255).argmax(1) != y).sum() for x, y in batches)
    return float(wrong) / len(labels)


def batch_statistics(model):
    """Puts BatchNorm, and nothing else, on the statistics of the batch; the affine parameters stay."""
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.train()
            part.track_running_stats, part.running_mean, part.running_var = False, None, None
    return model


# --- images


def test_the_split_is_disjoint_complete_and_stratified():
    source = load_digits()
    parts = {split: digits(split) for split in ("train", "test")}
    for images, labels in parts.values():
        assert images.dtype == torch.uint8
        assert images.shape == (len(labels), 3, 32, 32)
        assert labels.dtype == torch.int64
    train_counts, test_counts = (parts[split][1].bincount() for split in ("train", "test"))
    assert (train_counts + test_counts).tolist() == np.bincount(source.target).tolist()
    assert (train_counts - test_counts).abs().max() <= 1
    assert (len(parts["train"][1]), len(parts["test"][1])) == (901, 896)
    seen = {image.numpy().tobytes() for image in parts["train"][0]}
    assert not any(image.numpy().tobytes() in seen for image in parts["test"][0])


def test_each_class_alternates_between_the_splits():
    source = load_digits()
    own = source.images[source.target == 7]
    for split, start in (("train", 0), ("test", 1)):
        images, labels = digits(split)
        shrunk = images[labels == 7].float().mean(1).unflatten(2, (8, 4)).unflatten(1, (8, 4)).mean((2, 4))
        for row, image in enumerate(own[start::2]):
            assert np.corrcoef(shrunk[row].ravel(), image.ravel())[0, 1] > 0.9


def test_the_drawing_is_gray_with_the_stated_contrast():
    images, _ = digits("test")
    assert (images == images[:, :1]).all()
    assert (images.min(), images.max()) == (51, 204)  # 0.2 and 0.2 + 0.6, times 255
    with pytest.raises(ValueError, match="split train or test, got 'valid'"):
        digits("valid")


# --- networks


@pytest.mark.parametrize(("name", "least"), [("digits_convnet", 0.96), ("digits_transformer", 0.93)])
def test_the_network_is_accurate_on_clean_digits(name, least):
    model = BUILDERS[name]()
    assert 1 - error(model, *digits("test")) >= least
    assert not model.training
    assert model.num_classes == 10
    assert model.weights_id.startswith(f"{name}:")


@pytest.fixture(scope="module")
def domains():
    ready = DigitsC()
    return {name: ready.domain(name, 5) for name in CORRUPTIONS}


@pytest.mark.parametrize("name", BUILDERS)
def test_corruptions_hurt_and_leave_room(name, domains):
    model = BUILDERS[name]()
    mean = sum(error(model, *domain) for domain in domains.values()) / len(domains)
    assert 0.25 <= mean <= 0.60


def test_batch_statistics_help_the_convnet(domains):
    source = sum(error(digits_convnet(), *domain) for domain in domains.values()) / len(domains)
    model = batch_statistics(digits_convnet())
    adapted = sum(error(model, *domain) for domain in domains.values()) / len(domains)
    assert adapted < 0.6 * source


def test_the_norms_are_those_that_the_methods_look_for():
    kinds = {name: {type(part) for part in BUILDERS[name]().modules()} for name in BUILDERS}
    assert torch.nn.BatchNorm2d in kinds["digits_convnet"]
    assert torch.nn.LayerNorm not in kinds["digits_convnet"]
    assert torch.nn.LayerNorm in kinds["digits_transformer"]
    assert torch.nn.BatchNorm2d not in kinds["digits_transformer"]


@pytest.fixture
def short(monkeypatch):
    """Training in a blink: what is tested is not how well."""
    for name, recipe in module.RECIPES.items():
        monkeypatch.setitem(module.RECIPES, name, {**recipe, "epochs": 1, "batch_size": 300})


@pytest.mark.parametrize("name", BUILDERS)
def test_training_is_repeatable_and_leaves_the_generator_alone(name, short):
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    before = torch.get_rng_state()
    first = train(name, 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    torch.manual_seed(6)
    with torch.no_grad():
        again = train(name, 0)
    other = train(name, 1)
    for key, value in first.items():
        assert torch.equal(value, again[key]), key
    assert any(not torch.equal(value, other[key]) for key, value in first.items())


def test_a_network_is_trained_once_and_read_back(tmp_path, monkeypatch, short):
    first = trained("digits_convnet", 0, tmp_path)
    calls = []
    monkeypatch.setattr(module, "train", lambda *args: calls.append(args))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    again = trained("digits_convnet", 0, tmp_path)
    assert calls == []
    assert torch.equal(torch.get_rng_state(), before)
    assert again.weights_id == first.weights_id
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_the_default_cache_is_the_folder_of_the_environment(tmp_path, monkeypatch, short):
    monkeypatch.setenv("DEMBENCH_CACHE", str(tmp_path))
    digits_convnet()
    assert [path.parent.name for path in tmp_path.rglob("*.pt")] == ["models"]


def test_the_key_holds_seed_recipe_and_torch_version(tmp_path, monkeypatch, short):
    ids = [trained("digits_convnet", seed, tmp_path).weights_id for seed in (0, 1)]
    monkeypatch.setitem(module.RECIPES, "digits_convnet", {**module.RECIPES["digits_convnet"], "version": 99})
    ids.append(trained("digits_convnet", 0, tmp_path).weights_id)
    monkeypatch.setattr(torch, "__version__", "0.0")
    ids.append(trained("digits_convnet", 0, tmp_path).weights_id)
    assert len(set(ids)) == 4


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 half"])
def test_a_damaged_file_is_made_again(damage, tmp_path, short):
    first = trained("digits_convnet", 0, tmp_path)
    (path,) = tmp_path.rglob("*.pt")
    path.write_bytes(damage)
    again = trained("digits_convnet", 0, tmp_path)
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    assert [item.name for item in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("seed", [-1, 1.5, True, None])
def test_seeds_are_checked(seed):
    with pytest.raises(ValueError, match="digits_convnet: expected an integer seed >= 0"):
        digits_convnet(seed)


# --- digits-c


def test_digits_c_is_the_generator_on_the_test_split():
    ready = DigitsC(seed=3)
    ready.check()
    assert (ready.name, ready.num_images, ready.num_classes, ready.corruptions) == ("digits-c", 896, 10, CORRUPTIONS)
    assert [note.key for note in ready.notes] == ["frost"]
    images, labels = ready.domain("gaussian_noise", 5)
    clean, want = digits("test")
    assert_close(images, corrupt(clean, "gaussian_noise", 5, torch.arange(896), seed=3), rtol=0, atol=0)
    assert_close(labels, want)
    spread = (images.float() - clean.float()).div(255).std()
    assert spread == pytest.approx(0.10, abs=0.005)  # the published constant of severity 5


def test_a_subset_of_digits_c_has_the_noise_of_the_whole():
    whole, labels = DigitsC().domain("snow", 3)
    ready = DigitsC(num_images=50)
    images, some = ready.domain("snow", 3)
    assert some.bincount().tolist() == [5] * 10
    rows = [int((whole == image).flatten(1).all(1).nonzero()[0]) for image in images]
    assert rows == sorted(rows)
    assert_close(labels[rows], some)


def test_digits_c_fingerprints():
    kinds = [DigitsC(), DigitsC(seed=1), DigitsC(num_images=50)]
    assert len({ready.fingerprint for ready in kinds}) == 3
    assert DigitsC(num_images=896).fingerprint == DigitsC().fingerprint


def test_digits_c_refuses():
    with pytest.raises(ValueError, match="num_images to be a whole number > 0"):
        DigitsC(num_images=0)
    with pytest.raises(ValueError, match="expected at most 896, .* got 1000"):
        DigitsC(num_images=1000)
    with pytest.raises(ValueError, match="unknown corruption 'foq'; nearest: fog"):
        DigitsC().domain("foq", 1)
    with pytest.raises(ValueError, match="severity of 1 to 5"):
        DigitsC().domain("fog", 6)

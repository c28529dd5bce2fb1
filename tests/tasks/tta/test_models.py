"""Source models: structure, weights and refusals of files that do not fit; accuracy on real images where they are."""

import hashlib
import os
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import timm
import torch
import torchvision
from torch.testing import assert_close

from dembench.tasks.common import zoo
from dembench.tasks.common.digits_nets import CIFARResNet, Normalized
from dembench.tasks.tta import models
from dembench.tasks.tta.models import cifar_resnet, timm_model, torchvision_model

PARAMETERS = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018}  # the paper: 0.27, 0.46, 0.66 and 0.85 million
FILES = {20: "resnet20-12fca82f", 32: "resnet32-d509ac18", 44: "resnet44-014dd654", 56: "resnet56-4bfd9763"}


@pytest.fixture
def checkpoint(tmp_path):
    """A ResNet-20 checkpoint as the shared files are: under state_dict, module. before each name, no counters."""
    torch.manual_seed(3)
    state = {f"module.{key}": value for key, value in CIFARResNet(20).state_dict().items() if "num_batches" not in key}
    path = tmp_path / "net.th"
    torch.save({"state_dict": state, "best_prec1": 91.7}, path)
    return path


@pytest.mark.parametrize("depth", PARAMETERS)
def test_cifar_resnet_has_the_parameters_of_the_paper(depth):
    model = cifar_resnet(depth)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[depth]
    assert sum(isinstance(module, torch.nn.Conv2d | torch.nn.Linear) for module in model.modules()) == depth
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert (model.num_classes, model.weights_id, model.training) == (10, "untrained", False)


def test_the_shortcut_is_every_second_pixel_and_zero_channels():
    block = CIFARResNet(20).layer2[0].eval()
    for parameter in block.parameters():
        torch.nn.init.zeros_(parameter)  # what is left is the shortcut
    x = torch.rand(2, 16, 32, 32)
    want = torch.zeros(2, 32, 16, 16)
    want[:, 8:24] = x[:, :, ::2, ::2]
    assert_close(block(x), want, rtol=0, atol=0)


def test_a_checkpoint_is_loaded_whole(checkpoint):
    model = cifar_resnet(20, checkpoint)
    stored = torch.load(checkpoint, weights_only=True)["state_dict"]
    for key, value in stored.items():
        assert_close(model.model.state_dict()[key.removeprefix("module.")], value, rtol=0, atol=0)
    assert hashlib.sha256(checkpoint.read_bytes()).hexdigest().startswith(model.weights_id)
    assert len(model.weights_id) >= 12


def test_weights_id_follows_the_bytes_and_not_the_path(checkpoint, tmp_path):
    copy = tmp_path / "copy.th"
    copy.write_bytes(checkpoint.read_bytes())
    assert cifar_resnet(20, str(copy)).weights_id == cifar_resnet(20, checkpoint).weights_id
    torch.manual_seed(4)
    torch.save(CIFARResNet(20).state_dict(), copy)
    assert cifar_resnet(20, copy).weights_id != cifar_resnet(20, checkpoint).weights_id


def test_wrong_files_are_refused(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="expected a depth of 20, 32, 44, 56, got 18"):
        cifar_resnet(18)
    with pytest.raises(FileNotFoundError, match="no file .*absent.th; .*model.weights=PATH .*dembench list model"):
        cifar_resnet(20, tmp_path / "absent.th")
    with pytest.raises(ValueError, match="holds a ResNet-20, but depth=56 was asked for"):
        cifar_resnet(56, checkpoint)
    with pytest.raises(ValueError, match="has 10 classes, but num_classes=100"):
        cifar_resnet(20, checkpoint, num_classes=100)
    other = tmp_path / "other.th"
    torch.save({"a": torch.zeros(1)}, other)
    with pytest.raises(ValueError, match="holds no CIFAR ResNet: its first names are a"):
        cifar_resnet(20, other)
    torch.save([1, 2], other)
    with pytest.raises(ValueError, match="holds no state dict"):
        cifar_resnet(20, other)
    other.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="no PyTorch checkpoint that loads as weights only"):
        cifar_resnet(20, other)


def test_a_lacking_and_a_foreign_tensor_are_refused(checkpoint, tmp_path):
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    state["extra"] = state.pop("module.bn1.running_var")
    path = tmp_path / "other.th"
    torch.save(state, path)
    with pytest.raises(ValueError, match="lacks bn1.running_var and has extra"):
        cifar_resnet(20, path)
    state["module.bn1.running_var"] = torch.ones(17)
    del state["extra"]
    torch.save(state, path)
    with pytest.raises(ValueError, match="does not fit the model: .*bn1.running_var"):
        cifar_resnet(20, path)


class Payload:
    def __reduce__(self):
        return os.mkdir, ("payload-was-run",)


def test_a_file_with_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Payload()}, "evil.th")
    with pytest.raises(ValueError, match="weights only"):
        cifar_resnet(20, "evil.th")
    assert not Path("payload-was-run").exists()


def test_normalisation_is_inside():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    model = Normalized(mean, std, torch.nn.Identity(), num_classes=2, weights_id="none")
    x = torch.rand(4, 3, 5, 5)
    assert_close(model(x), torchvision.transforms.functional.normalize(x, mean, std))
    with pytest.raises(ValueError, match="three means"):
        Normalized([0.1], std, torch.nn.Identity(), num_classes=2, weights_id="none")
    with pytest.raises(ValueError, match="stds > 0"):
        Normalized(mean, (1, 1, 0), torch.nn.Identity(), num_classes=2, weights_id="none")


def test_networks_for_small_images_show_them_at_their_native_size():
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    for made in (cifar_resnet(20), models.wide_resnet(10, 1), models.cifar_resnext(11, 1, 4)):
        assert made.preprocess is not None
        assert np.array_equal(made.preprocess(image), np.asarray(image))
        assert made.preprocess(image.resize((64, 96))).shape == (32, 32, 3)


def test_torchvision_normalisation_is_that_of_the_weights():
    preset = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    model = torchvision_model("resnet18", weights=None, num_classes=7)
    assert_close(model.mean.flatten(), torch.tensor(preset.mean))
    assert_close(model.std.flatten(), torch.tensor(preset.std))
    assert (model.num_classes, model.weights_id, model.training) == (7, "untrained", False)
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 7)


def test_torchvision_weights_by_path_and_by_name(tmp_path, monkeypatch):
    torch.manual_seed(0)
    state = torchvision.models.resnet18().state_dict()
    path = tmp_path / "net.pt"
    torch.save(state, path)
    by_path = torchvision_model("resnet18", path)
    monkeypatch.setattr(zoo, "_download", lambda weights: state)
    by_name = torchvision_model("resnet18", "IMAGENET1K_V1")
    assert by_name.weights_id == "torchvision:ResNet18_Weights.IMAGENET1K_V1"
    assert hashlib.sha256(path.read_bytes()).hexdigest().startswith(by_path.weights_id)
    x = torch.rand(2, 3, 64, 64)
    assert_close(by_path(x), by_name(x), rtol=0, atol=0)


def test_torchvision_names_and_downloads_are_explained(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="unknown torchvision model 'resnet51'; nearest: resnet"):
        torchvision_model("resnet51")
    with pytest.raises(ValueError, match="unknown torchvision model 'googlenet'"):
        torchvision_model("googlenet")
    with pytest.raises(ValueError, match="unknown weights of resnet50 'IMAGENET1K_V3'; .*valid: DEFAULT, IMAGE"):
        torchvision_model("resnet50", "IMAGENET1K_V3")
    with pytest.raises(ValueError, match="has 1000 classes, but num_classes=10"):
        torchvision_model("resnet50", num_classes=10)

    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no route to host\); put https://\S+ into \S+checkpoints, or give"):
        torchvision_model("resnet18")


def test_densenet_files_have_older_names(monkeypatch):
    modern = torchvision.models.densenet121().state_dict()
    old = {}
    for key, value in modern.items():
        for part in ("norm1", "norm2", "conv1", "conv2"):
            if "denselayer" in key:
                key = key.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.")
        old[key] = value
    assert old.keys() != modern.keys()
    weights = torchvision.models.DenseNet121_Weights.DEFAULT
    monkeypatch.setattr(type(weights), "get_state_dict", lambda *args, **kwargs: old)
    assert zoo.torchvision_weights("densenet121", "DEFAULT").state.keys() == modern.keys()


def test_timm_normalisation_is_that_of_its_configuration(tmp_path):
    model = timm_model("vit_tiny_patch16_224", weights=None, num_classes=5)
    assert_close(model.mean.flatten(), torch.full((3,), 0.5))  # not ImageNet's
    assert_close(model.std.flatten(), torch.full((3,), 0.5))
    assert model(torch.rand(1, 3, 224, 224)).shape == (1, 5)
    path = tmp_path / "net.pt"
    torch.save(model.model.state_dict(), path)
    loaded = timm_model("vit_tiny_patch16_224", path, num_classes=5)
    x = torch.rand(1, 3, 224, 224)
    assert_close(loaded(x), model(x), rtol=0, atol=0)
    assert hashlib.sha256(path.read_bytes()).hexdigest().startswith(loaded.weights_id)


def test_timm_names_tags_and_downloads_are_explained(monkeypatch):
    with pytest.raises(ValueError, match="unknown timm model 'resnet5o'; nearest: resnet50"):
        timm_model("resnet5o")
    with pytest.raises(ValueError, match="unknown timm weights of resnet50 'a9_in1k'; nearest: .*valid: a1_in1k"):
        timm_model("resnet50.a9_in1k")

    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(FileNotFoundError, match=r"resnet50.a1_in1k .* \(no route to host\); .*weights=PATH"):
        timm_model("resnet50.a1_in1k", "default")


def test_a_missing_timm_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install dembench\[timm\]"):
        timm_model("resnet50")


@pytest.mark.data
@pytest.mark.parametrize("depth", FILES)
def test_the_shared_weights_load(depth):
    path = Path(os.environ["DEMBENCH_DATA"]) / "weights" / f"{FILES[depth]}.th"
    assert cifar_resnet(depth, path).weights_id.startswith(FILES[depth].split("-")[1])  # their names end in the sha256

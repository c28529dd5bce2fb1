"""Networks by dotted name and folders as data: what is built, what the record says, which run ids are equal."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import own_things
import pytest
import torch
from image_cases import classes
from own_things import Fixed, Net, save
from torch import Tensor, nn

import dembench
from dembench.harness import experiment
from dembench.harness.compose import ConfigError, compose
from dembench.scripts.cli import main
from dembench.tasks.common import own, trust
from dembench.tasks.common.images import Preprocess

QUICK = {"protocol.batch_size": 8, "device": "cpu"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three classes, and a current folder without anything else in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(trust.ALLOWED, "own_things")
    return classes(tmp_path / "my_folder", each=3)


def ready(words: dict[str, Any]) -> experiment.Prepared:
    return experiment.prepare(compose({**QUICK, **words}))


def test_a_class_and_a_folder_are_one_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The prediction of the record is that of the network, with the transform that it asks for."""
    torch.manual_seed(1)
    net = Net()
    weights = save(net, folder.parent / "net.pt")
    words = ["run", "method=source", "model=own_things.Net", f"model.weights={weights}", "data=my_folder"]
    assert main([*words, "--allow-target", "own_things", "progress=false"]) == 0
    record = json.loads(Path(capsys.readouterr().out.strip()).read_text())
    assert (record["model"], record["data"], record["config"]["data"]["root"]) == (
        "own_things.Net",
        "image-folder",
        "my_folder",
    )
    images, labels = [], []
    transform = Preprocess(14, 12)
    from PIL import Image

    for c, name in enumerate(sorted(path.name for path in folder.iterdir())):
        for file in sorted((folder / name).iterdir()):
            images.append(torch.from_numpy(transform(Image.open(file)).copy()).permute(2, 0, 1))
            labels.append(c)
    x = torch.stack(images).float() / 255
    mean, std = (torch.tensor(Net.preprocess[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        wrong = (net.eval()((x - mean) / std).argmax(1) != torch.tensor(labels)).float().mean()
    (row,) = [row for row in record["rows"] if (row["slice"], row["metric"]) == ("mean", "error")]
    assert row["value"] == pytest.approx(float(wrong))
    notes = {note["key"]: note["text"] for note in record["notes"]}
    size = sum(p.numel() for p in net.parameters())
    assert notes["weights"] == f"own_things.Net: {size} parameters, {record['fingerprints']['weights']}"


def test_without_leave_it_is_refused_with_the_words_to_add(folder, monkeypatch, capsys) -> None:
    monkeypatch.delenv(trust.ALLOWED)
    assert main(["run", "model=own_things.Net", "data=my_folder"]) == 2
    assert capsys.readouterr().err.endswith("if you trust it, say --allow-target own_things\n")


def test_the_id_is_of_the_tensors_and_the_class_not_of_the_file(folder: Path) -> None:
    torch.manual_seed(1)
    net = Net()
    first, second = save(net, folder.parent / "a.pt"), folder.parent / "b.pt"
    torch.save({"state_dict": net.state_dict()}, second)
    with torch.no_grad():
        net.conv.bias[0] += 1e-3
    third = save(net, folder.parent / "c.pt")
    base = {"data": "my_folder", "model": "own_things.Net"}
    a, b, c = (ready({**base, "model.weights": str(path)}).id for path in (first, second, third))
    assert a == b != c
    assert ready({**base, "model": "own_things.Fixed"}).id != ready({**base, "model": "own_things.Loose"}).id
    wide = ready({**base, "+model.network.width": 8})
    assert wide.id != ready(base).id
    assert wide.task.model.model.conv.out_channels == 8


def test_a_random_network_has_one_fingerprint_and_follows_the_seed(folder: Path) -> None:
    runs = [ready({"data": "my_folder", "model": "own_things.Net", "seed": seed}) for seed in (0, 1)]
    assert runs[0].fingerprints == runs[1].fingerprints
    nets = [run.task.model.model for run in runs]
    assert not torch.equal(nets[0].conv.weight, nets[1].conv.weight)
    assert all("some of them are random and follow the seed" in run.notes[0].text for run in runs)
    fixed = ready({"data": "my_folder", "model": "own_things.Fixed"})
    assert "random" not in fixed.notes[0].text


def test_a_folder_is_the_data_of_its_task(folder: Path) -> None:
    short = ready({"data": "my_folder", "model": "own_things.Fixed"})
    long = ready({"data": "image_folder", "data.root": str(folder), "model": "own_things.Fixed"})
    assert short.id == long.id
    cfg = compose({"task": "semi", "data": "my_folder"})
    assert (cfg.choices.data, cfg.data.images.root) == ("folders", "my_folder")
    (folder.parent / "digits").mkdir()
    assert compose({"data": "digits"}).choices.data == "digits"  # a name of data comes first
    assert compose({"data": "./digits"}).data.root == "./digits"


def test_semi_supervised_learning_trains_a_network_of_ones_own(folder: Path) -> None:
    words = {"task": "semi", "protocol.iterations": 2}
    named = ready({**words, "model": "own_things.Net"})
    assert isinstance(named.task.model(num_classes=4), Net)
    assert named.task.model(num_classes=4).linear.out_features == 4
    net = Net(num_classes=10)
    kept = [value.clone() for value in net.state_dict().values()]
    done = dembench.run(words, model=net, data="digits", out="runs", progress=False)
    assert done.record["model"] == "own_things.Net"
    assert "given as an object in Python: it starts from own:" in done.notes["weights"]
    assert all(map(torch.equal, net.state_dict().values(), kept))


def test_an_object_counts_by_its_class_and_its_tensors(folder: Path) -> None:
    def go(net: nn.Module) -> dembench.scripts.api.Result:  # type: ignore[name-defined]
        return dembench.run(QUICK, model=net, data=folder, method="tent", out=folder.parent / "runs", progress=False)

    net = Fixed()
    first, again = go(net), go(Fixed())
    assert (first.ran, again.ran) == (True, False)
    assert first.id == again.id
    assert first.record["model"] == "own_things.Fixed"
    assert "own_things.Fixed, given as an object in Python" in first.notes["weights"]
    assert first.record["command"].startswith("dembench.run({")
    other = Net()
    other.load_state_dict(net.state_dict())
    assert go(other).id != first.id  # another class
    with torch.no_grad():
        net.norm.weight[0] = 2
    assert go(net).id != first.id  # other tensors
    assert not own._given  # nothing is kept in memory


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"data": "./nowhere"}, "data=./nowhere: no such folder, archive or name of data"),
        ({"task": "minigrid"}, "task=minigrid reads no class folders; tta, prompt, semi, longtail do"),
        ({"data": "my.tar"}, "task=tta reads folders and no archives; unpack it"),
        ({"task": "segmentation", "data": "street", "model": "own_things.Net"}, "task=segmentation needs more"),
        ({"model": "own"}, "model=own needs a value: model.network._target_=..."),
        ({"model": "own_things.Nett"}, "Nett"),
        ({"model": "own_things.Net", "+model.network.widht": 3}, "nearest: width"),
        ({"model": "own_things.save"}, "missing 2 required"),
        ({"model": "python:own_things.Net own:0"}, "given as an object to another process"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(folder: Path, words: dict[str, Any], message: str) -> None:
    (folder.parent / "my.tar").touch()
    with pytest.raises(ConfigError) as caught:
        ready({"data": "my_folder", **words})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_preprocess_is_read_in_each_of_its_forms() -> None:
    net = Net()
    assert own.transform_of(net) == (Preprocess(14, 12), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    net.preprocess = {"crop": 20}  # type: ignore[assignment]
    assert own.transform_of(net) == (Preprocess(20, 20), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    net.preprocess = Preprocess(9, 8)  # type: ignore[assignment]
    assert own.transform_of(net)[0] == Preprocess(9, 8)
    from torchvision.models import ResNet18_Weights

    net.preprocess = ResNet18_Weights.DEFAULT.transforms()  # type: ignore[assignment]
    assert own.transform_of(net) == (Preprocess(256, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    net = Net()
    for wrong, message in (({"crp": 3}, "nearest: crop"), ({"resize": 3}, "expected crop"), (3, "got int")):
        net.preprocess = wrong  # type: ignore[assignment]
        with pytest.raises(ValueError, match=message):
            own.transform_of(net)


def test_a_network_of_timm_needs_no_preprocess() -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model("resnet18", pretrained=False, num_classes=3)
    source = own.as_source(net, own.fingerprint(net))
    config = timm.data.resolve_data_config(model=net)
    x = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    assert source.num_classes == 3
    assert source.preprocess == Preprocess(int(224 / config["crop_pct"]), 224, config["interpolation"])
    with torch.no_grad():
        torch.testing.assert_close(source(x), net.eval()((x - mean) / std))


def test_the_fingerprint_is_of_names_shapes_types_and_values() -> None:
    """Against a hash that is written out here."""
    net = nn.Linear(2, 1)
    digest = hashlib.sha256()
    for name in ("bias", "weight"):
        value: Tensor = net.state_dict()[name]
        digest.update(f"{name} torch.float32 {tuple(value.shape)}".encode() + value.numpy().tobytes())
    assert own.fingerprint(net) == f"own:{digest.hexdigest()[:16]}"
    assert own.fingerprint(net.double()) != own.fingerprint(nn.Linear(2, 1).double())
    assert own_things.Fixed.__module__ == "own_things"

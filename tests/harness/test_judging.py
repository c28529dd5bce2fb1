"""Weights that runs keep: what is in the files, and that judging them again gives the numbers of the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dembench.harness import experiment, runs
from dembench.harness.compose import ConfigError, compose
from dembench.harness.judging import judge
from dembench.scripts import evaluate
from dembench.tasks.prompt.coop import CoOp

SEMI = [
    *("task=semi", "method=fixmatch", "loss=em", "model.width=4", "protocol.iterations=12", "protocol.eval_every=4"),
    *("protocol.batch_size=4", "protocol.ema=0.5", "device=cpu", "progress=false"),
]


def run(words: list[str], out: Path) -> tuple[Path, dict[str, Any]]:
    outcome = experiment.run(experiment.prepare(compose([*words, f"out={out}"])))
    return outcome.path.parent, outcome.result


def numbers(result: dict[str, Any]) -> dict[tuple[str, str], float]:
    return {(row["slice"], row["metric"]): row["value"] for row in result["rows"]}


def note(result: dict[str, Any], key: str) -> str:
    return next(note["text"] for note in result["notes"] if note["key"] == key)


def test_kept_weights_are_judged_as_the_run_judged_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, _ = run(SEMI, tmp_path / "plain")
    directory, result = run([*SEMI, "save=last"], tmp_path / "kept")
    assert directory.name == plain.name  # keeping weights changes no number
    assert not list(plain.glob("files/*.safetensors"))
    files = {path.stem: load_file(path) for path in directory.glob("files/*.safetensors")}
    assert files.keys() == {"weights", "average"}
    assert not torch.equal(files["weights"]["linear.weight"], files["average"]["linear.weight"])
    assert torch.equal(files["weights"]["features.1.running_mean"], files["average"]["features.1.running_mean"])

    path, again = judge(directory)
    own = numbers(result)
    assert numbers(again) == {key: value for key, value in own.items() if key in numbers(again)}
    assert {metric for _, metric in own.keys() - numbers(again).keys()} == {
        "accuracy_test_best", "accuracy_validation_selected",
    }  # fmt: skip
    assert again["histograms"] == result["histograms"]
    assert json.loads(path.read_text()) == again
    assert evaluate.main([str(directory), "--weights", "weights"]) == 0
    said = capsys.readouterr()
    assert said.out.strip().endswith(f"weights-{directory.name}.json")
    assert said.err.startswith("mean: accuracy ")
    last = json.loads(Path(said.out.strip()).read_text())
    assert numbers(last)["mean", "nll"] != own["mean", "nll"]


def test_the_best_weights_are_those_that_the_validation_images_choose(tmp_path: Path) -> None:
    directory, result = run([*SEMI, "save=best_validation", "protocol.lr=0.03"], tmp_path)
    assert "of the evaluation that the validation images choose" in note(result, "weights")
    _, again = judge(directory)
    assert numbers(again)["mean", "accuracy"] == numbers(result)["mean", "accuracy_validation_selected"]


def test_other_data_of_the_same_classes(tmp_path: Path) -> None:
    directory, result = run([*SEMI, "save=last"], tmp_path)
    _, same = judge(directory, ["data.validation_per_class=0"])
    assert numbers(same)["mean", "accuracy"] == numbers(result)["mean", "accuracy"]
    assert same["id"] != result["id"]
    for words, message in (
        (["method=vat"], "evaluate: method is that of the run"),
        (["seed=1"], "evaluate: seed is that of the run"),
        (["data=digit"], "unknown data 'digit'; nearest: digits"),
        (["data.labels=3"], "unknown argument of data 'labels'"),
    ):
        with pytest.raises(ConfigError, match=message):
            judge(directory, words)


@pytest.mark.parametrize("name", ["tent", "sar"])
def test_an_adapted_model_is_judged_without_learning(name: str, tmp_path: Path) -> None:
    words = [
        "task=tta",
        f"method={name}",
        "loss=em",
        "method.lr=0.05",
        "protocol=continual",
        "protocol.severity=5",
        "protocol.batch_size=1000",
    ]
    words += ["protocol.corruptions=[gaussian_noise,contrast]", "device=cpu", "progress=false"]
    directory, result = run([*words, "save=last"], tmp_path)
    assert "holds the model after contrast/5" in note(result, "weights")
    _, again = judge(directory)
    assert note(again, "weights") == "weights that were kept; nothing adapts"
    assert not any(row["metric"] == "updated" for row in again["rows"])
    tensors = load_file(directory / "files" / "weights.safetensors")
    task: Any = experiment.build_task(result["config"])
    net = task.model.train() if name == "tent" else task.model
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
            module.num_batches_tracked = None
    net.load_state_dict(tensors)
    images, labels = task.data.domain("contrast", 5)  # one batch: batch statistics do not depend on the order
    with torch.no_grad():
        right = int((net(images.float() / 255).argmax(1) == labels).sum())
    errors = {slice: value for (slice, metric), value in numbers(again).items() if metric == "error"}
    assert errors["contrast/5"] == pytest.approx(1 - right / len(labels), abs=2e-3)


SMALL = {
    "segmentation": ["data=street", "model=deeplabv2_small", "protocol=demo", "method=source_only", "loss=none"],
    "minigrid": [
        "data.steps=512",
        "method=ppo",
        "method.n_envs=2",
        "data.n_steps=128",
        "loss=em",
        "protocol.episodes=10",
    ],
}
SMALL["segmentation"] += ["protocol.iterations=2", "protocol.eval_every=2"]


@pytest.mark.parametrize("task", SMALL)
def test_networks_and_agents_are_judged_as_their_runs_judged_them(task: str, tmp_path: Path) -> None:
    pytest.importorskip("mmseg" if task == "segmentation" else "stable_baselines3")
    directory, result = run([f"task={task}", *SMALL[task], "device=cpu", "progress=false", "save=last"], tmp_path)
    _, again = judge(directory)
    own = numbers(result)
    assert numbers(again) == {key: value for key, value in own.items() if key in numbers(again)}
    assert {("mean", "iou"), ("mean", "return")} & numbers(again).keys()


def test_a_learned_context_is_judged_without_learning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("open_clip")
    monkeypatch.setenv("DEMBENCH_CACHE", str(tmp_path / "cache"))
    words = [
        *("task=prompt", "method=coop", "method.context.shots=2", "method.context.epochs=2", "method.context.lr=2.0"),
        *("data.num_images=6", "data.corruptions=[noise]", "model.steps=2", "model.batch_size=8"),
        *("protocol.views.count=4", "device=cpu", "progress=false"),
    ]
    directory, result = run([*words, "save=last"], tmp_path)
    context = torch.load(directory / "files" / "coop.pt", weights_only=True)["ctx"]
    assert torch.equal(load_file(directory / "files" / "weights.safetensors")["ctx"], context)
    monkeypatch.setattr(CoOp, "train", lambda *_: pytest.fail("learned again"))
    _, again = judge(directory)
    assert numbers(again) == numbers(result)
    _, other = judge(directory, ["data.corruptions=[blobs]"])
    assert {slice for slice, _ in numbers(other)} == {"clean", "blobs", "ood", "mean"}, numbers(other).keys()
    assert numbers(other)["clean", "ece"] == numbers(result)["clean", "ece"]
    with pytest.raises(ConfigError, match="save=last: only a context that CoOp learned outlives an image"):
        experiment.run(experiment.prepare(compose(["task=prompt", "method=tpt", "save=last", f"out={tmp_path}"])))


def test_what_cannot_be_judged_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no finished run"):
        judge(tmp_path)
    directory, _ = run(SEMI, tmp_path)
    with pytest.raises(ConfigError, match="kept no weights; run it with save=last force=true"):
        judge(directory)
    (directory / "files").mkdir(exist_ok=True)
    (directory / "files" / "weights.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ConfigError, match="is no safetensors file"):
        judge(directory)
    with pytest.raises(ConfigError, match="kept no average; it has weights"):
        judge(directory, (), "average")
    with pytest.raises(ConfigError, match="save=best_validation: task=tta keeps last"):
        experiment.prepare(compose(["save=best_validation"]))
    with pytest.raises(ConfigError, match="save=last: T3A keeps what it learns outside of the model"):
        experiment.run(experiment.prepare(compose(["method=t3a", "save=last", f"out={tmp_path}"])))


def test_curves_are_on_the_disk_while_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "CURVES_EVERY", 0.0)
    prepared = experiment.prepare(compose([*SEMI, f"out={tmp_path}"]))
    found: list[int] = []

    def watch(event: object, total: int) -> None:
        path = tmp_path / prepared.id / "series.csv"
        found.append(len(path.read_text().splitlines()) if path.exists() else 0)

    experiment.run(prepared, watch=watch)
    assert found == sorted(found)
    assert len(set(found)) == 4  # nothing, then a block of lines for each of the three evaluations
    assert runs.read_result(tmp_path / prepared.id) is not None


def test_a_forged_record_builds_nothing_but_what_its_names_say(tmp_path: Path) -> None:
    directory, _ = run([*SEMI, "save=last"], tmp_path)
    record = json.loads((directory / "result.json").read_text())
    for group, target in (
        ("method", "dembench.tasks.semi.methods.vat.VAT"),
        ("loss", "dembench.core.DEM"),
        ("model", "dembench.tasks.tta.models.torchvision_model"),
        ("data", "os.system"),
        ("task", "dembench.tasks.tta.task.CorruptionTTA"),
    ):
        forged = json.loads(json.dumps(record))
        forged["config"][group]["_target_"] = target
        (directory / "result.json").write_text(json.dumps(forged))
        with pytest.raises(ConfigError, match=f"^the record's {group} is not that of {group}="):
            judge(directory)
    forged = json.loads(json.dumps(record))
    forged["config"]["loss"]["other"] = [{"_target_": "os.system", "command": "touch marker"}]
    (directory / "result.json").write_text(json.dumps(forged))
    with pytest.raises(ConfigError, match="^the record's loss is not that of loss=em"):
        judge(directory)
    forged = json.loads(json.dumps(record))
    forged["config"]["task"]["data"] = {"_target_": "os.system"}  # what the group says counts
    forged["config"]["choices"]["loss"] = "../x"
    (directory / "result.json").write_text(json.dumps(forged))
    with pytest.raises(ConfigError, match="unknown loss"):
        judge(directory)
    forged["config"]["choices"]["loss"] = "em"
    (directory / "result.json").write_text(json.dumps(forged))
    assert numbers(judge(directory)[1])["mean", "accuracy"] == numbers(record)["mean", "accuracy"]

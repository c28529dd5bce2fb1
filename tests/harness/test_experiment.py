"""One run with a stub task: what is written, when, under which name, and what happens when it goes wrong."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from dembench.core import AdaDEM
from dembench.harness import experiment, runs, sweeps
from dembench.harness.compose import ConfigError, compose


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    data = tmp_path / "data.txt"
    data.write_text("images")
    return ["task=stub", f"data.root={data}", f"out={tmp_path / 'runs'}"]


def prepared(words: list[str], configs: Path) -> experiment.Prepared:
    return experiment.prepare(compose(words, configs))


def test_a_run_writes_everything_and_the_result_says_it(words: list[str], stub_configs: Path) -> None:
    ready = prepared([*words, "seed=3", "protocol.mode=collapse"], stub_configs)
    outcome = experiment.run(ready, command="dembench run x")
    assert outcome.ran
    assert outcome.path.parent.name == ready.id
    assert sorted(p.name for p in outcome.path.parent.iterdir() if not p.name.startswith(".")) == [
        "config.yaml",
        "curve.csv",
        "environment.json",
        "result.json",
    ]
    result = json.loads(outcome.path.read_text())
    names = {key: result[key] for key in ("schema", "task", "method", "loss", "model", "data", "protocol", "seed")}
    assert names == {
        "schema": 1,
        "task": "stub",
        "method": "walk",
        "loss": "plain",
        "model": "none",
        "data": "stub-data",
        "protocol": "short",
        "seed": 3,
    }
    assert result["id"] == ready.id
    assert result["status"] == "collapse"
    assert [flag["slice"] for flag in result["flags"]] == ["fog/5", "snow/5"]
    assert [(row["slice"], row["value"], row["n"]) for row in result["rows"]] == [
        ("fog/5", 0.25, 12),
        ("snow/5", 0.25, 12),
        ("mean", 0.25, 24),
    ]
    assert result["histograms"]["fog/5"] == {"predicted": [4, 0], "label": [2, 2]}
    cost = result["cost"]
    assert (cost["forward_passes"], cost["backward_passes"], cost["updated"]) == (6, 6, 24)
    assert cost["wall_seconds"] >= 0
    assert result["command"] == "dembench run x"
    assert result["config"]["device"] == result["environment"]["device"] == "cpu" or torch.cuda.is_available()
    on_disk = OmegaConf.to_container(OmegaConf.load(outcome.path.with_name("config.yaml")))
    assert on_disk == result["config"]
    lines = list(csv.DictReader(outcome.path.with_name("curve.csv").open()))
    assert [line["step"] for line in lines] == list("012345")


def test_numbers_that_are_not_finite_make_a_valid_result(words: list[str], stub_configs: Path) -> None:
    outcome = experiment.run(prepared([*words, "protocol.mode=notfinite"], stub_configs))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    result = json.loads(outcome.path.read_text(), parse_constant=refuse)
    assert result["status"] == "nan"
    assert result["rows"][0]["value"] is None
    assert {flag["slice"] for flag in result["flags"]} == {"fog/5", "snow/5"}


def test_a_finished_run_is_not_run_again_unless_forced(words: list[str], stub_configs: Path, log: Path) -> None:
    first = experiment.run(prepared(words, stub_configs))
    again = experiment.run(prepared(words, stub_configs))
    assert (first.ran, again.ran) == (True, False)
    assert first.path == again.path
    assert again.result == json.loads(first.path.read_text())
    assert log.read_text() == "0\n"
    forced = experiment.run(prepared([*words, "force=true"], stub_configs))
    assert forced.ran
    assert forced.path == first.path
    assert log.read_text() == "0\n0\n"


def test_a_run_is_repeatable(words: list[str], stub_configs: Path, tmp_path: Path) -> None:
    curves = []
    for place in ("a", "b"):
        torch.rand(7)  # whatever happened before
        outcome = experiment.run(prepared([*words[:2], f"out={tmp_path / place}", "protocol.mode=slow"], stub_configs))
        curves.append(outcome.path.with_name("curve.csv").read_bytes())
    assert curves[0] == curves[1]


def test_id_follows_what_files_hold_not_where_they_lie(stub_configs: Path, tmp_path: Path) -> None:
    ids = {}
    for place, text in (("a", "images"), ("b", "images"), ("c", "other images")):
        (tmp_path / place).write_text(text)
        ids[place] = prepared(
            ["task=stub", f"data.root={tmp_path / place}", f"out={tmp_path}/{place}s"], stub_configs
        ).id
    assert ids["a"] == ids["b"] != ids["c"]
    for place, text in (("v", "weights"), ("w", "weights"), ("x", "other weights")):
        (tmp_path / place).write_text(text)
        more = ["task=stub", f"data.root={tmp_path / 'a'}", f"model.weights={tmp_path / place}"]
        ids[place] = prepared(more, stub_configs).id
    assert len({ids["a"], ids["v"], ids["w"], ids["x"]}) == 3
    assert ids["v"] == ids["w"]


def test_id_changes_with_each_setting_and_not_with_where_results_go(words: list[str], stub_configs: Path) -> None:
    settings = ["seed=1", "precision=bf16", "threads=2", "loss.scale=2", "method.lr=0.2", "method.speed=slow"]
    settings += ["protocol.batches=4", "protocol.mode=collapse", "loss=em"]
    base = prepared(words, stub_configs).id
    try:
        ids = {prepared([*words, setting], stub_configs).id for setting in settings}
    finally:
        torch.set_num_threads(1)
    assert len(ids | {base}) == len(settings) + 1
    assert prepared([*words, "progress=false", "force=true", "device=cpu"], stub_configs).id == base or (
        torch.cuda.is_available()
    )


def test_device_auto_is_the_kind_that_is_used(words: list[str], stub_configs: Path) -> None:
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    assert prepared(words, stub_configs).id == prepared([*words, f"device={kind}"], stub_configs).id
    assert prepared(words, stub_configs).task.device == kind


def test_auto_is_decided_per_task(words: list[str], stub_configs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert experiment.resolve(compose({"task": "minigrid"}))["device"] == "cpu"
    assert experiment.resolve(compose({"task": "tta"}))["device"] == "cuda"
    assert experiment.resolve(compose({"task": "minigrid", "device": "cuda"}))["device"] == "cuda"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none_is_refused(words: list[str], stub_configs: Path) -> None:
    with pytest.raises(ConfigError, match="device=cuda: PyTorch finds no CUDA device here; use device=cpu"):
        prepared([*words, "device=cuda"], stub_configs)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("data.root=/no/such/file", "no data at /no/such/file; write a file there"),
        ("loss.scale=-1", r"Loss: expected scale > 0, got -1.0"),
        ("model.weights=/no/weights", "No such file or directory: '/no/weights'"),
        ("method.speed=medium", "unknown method.speed 'medium'; .*valid: slow, fast"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    word: str, message: str, words: list[str], stub_configs: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        prepared([*words, word], stub_configs)
    assert not (tmp_path / "runs").exists()


def test_a_setting_that_only_the_method_can_judge_is_a_users_error_too(words: list[str], stub_configs: Path) -> None:
    with pytest.raises(ConfigError, match="Method: expected lr <= 1, got 3.0"):
        prepared([*words, "method.lr=3"], stub_configs)


def test_a_crash_leaves_no_result_and_its_own_traceback(words: list[str], stub_configs: Path, tmp_path: Path) -> None:
    ready = prepared([*words, "protocol.mode=crash"], stub_configs)
    with pytest.raises(RuntimeError, match="the stub broke"):
        experiment.run(ready)
    directory = tmp_path / "runs" / ready.id
    assert (directory / "config.yaml").exists()
    assert runs.read_result(directory) is None
    assert not (directory / "curve.csv").exists()


def test_a_run_that_is_killed_is_run_again_from_the_start(words: list[str], stub_configs: Path, log: Path) -> None:
    words = [*words, "protocol.mode=sleep", "protocol.batches=2"]
    command = [sys.executable, "-m", "dembench.scripts.run", "--config-dir", str(stub_configs), *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not log.read_text() and time.monotonic() < until:
        time.sleep(0.02)
    process.kill()
    process.wait()
    ready = prepared(words, stub_configs)
    directory = Path(ready.config["out"]) / ready.id
    assert directory.exists()
    assert runs.read_result(directory) is None
    (directory / ".result.json.abc.tmp").write_text("half a resu")
    assert experiment.run(ready).ran
    assert log.read_text() == "0\n0\n"
    assert not list(directory.glob("*.tmp")) + list(directory.glob(".*.tmp"))


def test_a_run_that_another_process_writes_is_left_alone(words: list[str], stub_configs: Path) -> None:
    ready = prepared(words, stub_configs)
    directory = Path(ready.config["out"]) / ready.id
    with runs.lock(directory), pytest.raises(runs.RunBusy):
        experiment.run(ready)


def test_watchers_see_every_event(words: list[str], stub_configs: Path) -> None:
    seen = []
    experiment.run(prepared(words, stub_configs), watch=lambda event, total: seen.append((type(event).__name__, total)))
    assert [name for name, _ in seen] == ["Note", *2 * ["Point", "Point", "Point", "Histogram", "Row"], "Row"]
    assert {total for _, total in seen} == {6}


def test_seeds_reach_every_generator() -> None:
    def draw() -> tuple[float, float, float]:
        experiment.seed_all(5)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    assert draw() == draw()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["source", "norm", "tent"])
def test_real_runs_are_repeatable_and_count_what_they_cost(
    method: str, precision: str, device: str, tmp_path: Path
) -> None:
    def go(place: str) -> experiment.Outcome:
        words = {"method": method, "loss": "adadem", "protocol": "continual", "device": device, "precision": precision}
        words |= {"data.num_images": 100, "protocol.corruptions": ["brightness", "fog"], "protocol.batch_size": 64}
        return experiment.run(experiment.prepare(compose({**words, "out": str(tmp_path / place)})))

    first, second = go("a"), go("b")
    assert first.path.parent.name == second.path.parent.name
    assert first.result["rows"] == second.result["rows"]
    assert first.path.with_name("curve.csv").read_bytes() == second.path.with_name("curve.csv").read_bytes()
    result = first.result
    updates = 4 if method == "tent" else 0  # two corruptions of 64 + 36 images
    cost = result["cost"]
    assert (cost["forward_passes"], cost["backward_passes"], cost["updated"]) == (4, updates, 50 * updates)
    errors = {row["slice"]: row for row in result["rows"] if row["metric"] == "error"}
    assert list(errors) == ["brightness/5", "fog/5", "mean"]
    assert errors["mean"]["value"] == pytest.approx((errors["brightness/5"]["value"] + errors["fog/5"]["value"]) / 2)
    lines = list(csv.DictReader(first.path.with_name("curve.csv").open()))
    wrong = sum(int(line["n"]) - int(line["correct"]) for line in lines if line["slice"] == "fog/5")
    assert errors["fog/5"]["value"] == pytest.approx(wrong / 100)
    assert [line["loss"] == "" for line in lines] == [method != "tent"] * 4
    assert result["data"] == "digits-c"
    # what digits-c says of frost belongs to frost
    assert [note["key"] for note in result["notes"]] == (["adapts"] if method == "tent" else [])


def test_a_record_says_how_often_a_method_started_again_by_itself(tmp_path: Path) -> None:
    words = {"protocol": "continual", "data.num_images": 100, "protocol.corruptions": ["brightness", "fog"]}
    words |= {"protocol.batch_size": 50, "progress": False, "out": str(tmp_path)}
    for method, resets in (("rdumb", 3), ("sar", 4), ("tent", None)):
        own = {"rdumb": {"method.every": 1}, "sar": {"method.reset_below": 2.3, "method.margin": 1.0}}.get(method, {})
        result = experiment.run(experiment.prepare(compose({**words, **own, "method": method}))).result
        assert result["cost"].get("resets") == resets, method  # of four batches


def test_single_domain_and_continual_runs_have_the_same_slices(tmp_path: Path) -> None:
    rows = []
    for protocol in ("single_domain", "continual"):
        words = {"protocol": protocol, "data.num_images": 50, "protocol.corruptions": ["fog", "snow"]}
        outcome = experiment.run(experiment.prepare(compose({**words, "out": str(tmp_path)})))
        rows.append([(row["slice"], row["metric"], row["n"]) for row in outcome.result["rows"]])
    assert rows[0] == rows[1]


def test_a_wrong_argument_of_a_real_method_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown .*optimizer 'adm'.*adam, ") as caught:
        experiment.run(experiment.prepare(compose({"method.optimizer": "adm", "out": str(tmp_path)})))
    assert "\n" not in str(caught.value)


LOSSES = """
import torch

class Base(torch.nn.Module):
    def forward(self, logits):
        return self.value(logits)

class PerClass(Base):
    value = staticmethod(lambda logits: logits.softmax(1))

class Scalar(Base):
    value = staticmethod(lambda logits: logits.mean())

class Whole(Base):
    value = staticmethod(lambda logits: logits.argmax(1))

class Number(Base):
    value = staticmethod(lambda logits: 1.0)

class Ten(Base):  # which takes ten classes only, and says so where it is used
    value = staticmethod(lambda logits: logits.view(-1, 10).sum(1))
"""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["loss=em", "+loss.reduction=mean"], r"\(3,\) for logits \(3, 5\), got \(\) torch.float32"),
        (["loss=dem", "+loss.reduction=sum"], r"got \(\) torch.float32"),
        (["loss=adadem", "+loss.reduction=mean"], r"got \(\) torch.float32"),
        (["loss=scalar"], r"got \(\) torch.float32"),
        (["loss=perclass"], r"got \(3, 5\) torch.float32"),
        (["loss=whole"], r"got \(3,\) torch.int64"),
        (["loss=number"], "got float"),
    ],
)
def test_a_loss_gives_a_number_per_sample(words: list[str], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    (folder / "loss").mkdir(parents=True)
    module = f"losses_{tmp_path.name}"
    (folder / f"{module}.py").write_text(LOSSES)
    for name in ("PerClass", "Scalar", "Whole", "Number", "Ten"):
        (folder / "loss" / f"{name.lower()}.yaml").write_text(f"_target_: {module}.{name}\n")
    for task in ([], ["task=semi", "method=ent_min"]):
        with pytest.raises(ConfigError, match=f"^loss: expected a floating value a sample.*{message}"):
            experiment.prepare(compose([*task, *words, f"out={tmp_path / 'runs'}"], folder))
    with pytest.raises(ConfigError, match="loss: expected a floating value a sample"):
        sweeps.plan([{"loss": words[0][5:], **dict(word.split("=") for word in words[1:])}], folder)
    assert experiment.prepare(compose(["loss=ten"], folder)).id


def test_looking_at_a_loss_leaves_it_and_the_random_numbers_as_they_were() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    loss = experiment.build_loss({"loss": {"_target_": "dembench.core.AdaDEM"}})
    assert torch.equal(torch.get_rng_state(), before)
    found, fresh = loss.state_dict(), AdaDEM().state_dict()
    assert {name: value.tolist() for name, value in found.items()} == {k: v.tolist() for k, v in fresh.items()}
    assert experiment.build_loss({"loss": {"_target_": "dembench.tasks.common.noloss.no_loss"}}) is None


def test_a_run_in_which_nothing_ever_counted_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    (folder / "loss").mkdir(parents=True)
    module = f"nan_{tmp_path.name}"
    (folder / f"{module}.py").write_text(
        "import torch\n\nclass Broken(torch.nn.Module):\n"
        "    def forward(self, logits):\n        return logits.sum(1) * float('nan')\n"
    )
    (folder / "loss" / "broken.yaml").write_text(f"_target_: {module}.Broken\n")
    words = ["method=sar", "data.num_images=100", "protocol.corruptions=[fog]", "protocol.batch_size=50"]
    found = {}
    for loss in ("broken", "em"):
        cfg = compose([f"loss={loss}", *words, f"out={tmp_path / 'runs'}"], folder)
        found[loss] = experiment.run(experiment.prepare(cfg)).result
    assert found["em"]["status"] == "ok"
    assert found["em"]["cost"]["updated"] > 0
    assert found["broken"]["status"] == "unlearned"
    assert "nothing was learned" in found["broken"]["flags"][0]["message"]


@pytest.mark.parametrize("rate", ["1e3", "1e30"])
def test_a_run_whose_rate_throws_the_model_off_is_not_ok(rate: str, tmp_path: Path) -> None:
    words = ["method=tent", "loss=em", f"method.lr={rate}", "data.num_images=400", "protocol.corruptions=[fog]"]
    cfg = compose([*words, "protocol.batch_size=20", f"out={tmp_path / 'runs'}"])
    assert experiment.run(experiment.prepare(cfg)).result["status"] in ("collapse", "nan")

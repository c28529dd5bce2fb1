"""Loggers of other tools: what they are told, read back from their own files; a run does not depend on them."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest

from dembench.harness import experiment, loggers
from dembench.harness.compose import ConfigError, compose
from dembench.tasks.base import Flag, Note, Point, Row, Scalars


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    data = tmp_path / "data.txt"
    data.write_text("images")
    return ["task=stub", f"data.root={data}", f"out={tmp_path / 'runs'}"]


def run(words: list[str], configs: Path) -> experiment.Outcome:
    return experiment.run(experiment.prepare(compose(words, configs)))


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads from a folder: tag -> (step, value)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def hyperparameters(folder: Path) -> dict[str, Any]:
    """The session's hyperparameters as TensorBoard's plugin stores them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    events = EventAccumulator(str(folder))
    events.Reload()
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    data = plugin_data_pb2.HParamsPluginData.FromString(content)
    values = data.session_start_info.hparams
    return {key: getattr(value, value.WhichOneof("kind")) for key, value in values.items()}


def test_tensorboard_reads_back_what_the_record_has(words: list[str], stub_configs: Path) -> None:
    outcome = run([*words, "logger=tensorboard", "protocol.mode=collapse", "seed=5"], stub_configs)
    folder = outcome.path.parent / "tensorboard"
    found = scalars(folder)
    assert found["result/error/fog/5"] == [(3, 0.25)]
    assert found["result/error/mean"] == [(6, 0.25)]
    lines = [line.split(",") for line in (outcome.path.parent / "curve.csv").read_text().splitlines()[1:]]
    assert found["batch/entropy"] == [(i, pytest.approx(float(line[4]))) for i, line in enumerate(lines, 1)]
    assert found["batch/loss"] == [(i, 0.5) for i in range(1, 7)]
    assert found["batch/error"] == [(i, 0.25) for i in range(1, 7)]
    given = hyperparameters(folder)
    assert found["finished"] == [(0, 0.0), (6, 1.0)]
    assert given["seed"] == 5
    assert given["method/lr"] == pytest.approx(0.1)
    assert given["id"] == outcome.path.parent.name
    assert "out" not in given


def test_a_logger_moves_neither_the_id_nor_a_number(words: list[str], stub_configs: Path, tmp_path: Path) -> None:
    without = run(words, stub_configs)
    logged = run([*words, "logger=[tensorboard]", f"out={tmp_path / 'logged'}"], stub_configs)
    assert logged.path.parent.name == without.path.parent.name
    assert logged.result["rows"] == without.result["rows"]
    curve = without.path.parent / "curve.csv"
    assert (logged.path.parent / "curve.csv").read_bytes() == curve.read_bytes()
    assert not (without.path.parent / "tensorboard").exists()


def test_a_second_attempt_begins_a_new_log(words: list[str], stub_configs: Path) -> None:
    ready = [*words, "logger=tensorboard"]
    prepared = experiment.prepare(compose(ready, stub_configs))
    prepared.config["protocol"]["mode"] = "crash"
    prepared.task.protocol.mode = "crash"
    with pytest.raises(RuntimeError, match="broke"):
        experiment.run(prepared)
    folder = Path(prepared.config["out"]) / prepared.id / "tensorboard"
    assert len(list(folder.iterdir())) > 0
    assert scalars(folder) == {"finished": [(0, 0.0)]}
    run(ready, stub_configs)
    assert [step for step, _ in scalars(folder)["batch/entropy"]] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("tensorbord", "unknown logger 'tensorbord'; nearest: tensorboard; valid: tensorboard, wandb, mlflow"),
        ("[tensorboard,3]", "logger: expected tensorboard, wandb, mlflow or a list of these"),
        ("mlflow", "logger=mlflow needs mlflow: pip install mlflow"),
    ],
)
def test_a_logger_that_cannot_be_used_is_one_line_before_the_run(
    words: list[str], stub_configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    there = loggers.find_spec
    monkeypatch.setattr(loggers, "find_spec", lambda name: None if name == "mlflow" else there(name))
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        run([*words, f"logger={value}"], stub_configs)
    assert not (tmp_path / "runs").exists()


class Fake:
    """Stands for any logger: keeps what the four calls of Fabric's interface give it."""

    def __init__(self) -> None:
        self.metrics: list[tuple[int, dict[str, float]]] = []
        self.parameters: dict[str, Any] = {}
        self.ended: list[str] = []
        self.broken_from: int | None = None
        self.experiment = types.SimpleNamespace(finish=lambda exit_code: self.ended.append(f"exit {exit_code}"))

    def log_hyperparams(self, parameters: dict[str, Any]) -> None:
        self.parameters = parameters

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        if self.broken_from is not None and step >= self.broken_from:
            raise OSError("the server has gone")
        self.metrics.append((step, metrics))

    def finalize(self, status: str) -> None:
        self.ended.append(status)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """In place of W&B's logger; the names, steps and ends are tested, not W&B."""
    made = Fake()
    monkeypatch.setattr(loggers, "find_spec", lambda name: True)
    monkeypatch.setitem(loggers.MAKERS, "wandb", lambda config, id, directory: made)
    return made


def test_names_and_steps_of_every_event(fake: Fake, tmp_path: Path) -> None:
    config = {"logger": "wandb", "seed": 0, "out": "x"}
    events = [
        Note("a", "text"),
        Scalars(128, "train", {"return": 0.5, "entropy": 1.0}),
        Scalars(256, "", {"return": 0.75}),
        Point(0, "fog/5", 4, 1, 0.3, None, 4),
        Flag("nan", "fog/5", "text"),
        Row("class é", "f1 @ 5", 0.5, "fraction", 4),
    ]
    with loggers.opened(config, "abc", tmp_path) as log:
        for event in events:
            log(event)
    assert fake.metrics == [
        (128, {"curve/train/return": 0.5, "curve/train/entropy": 1.0}),
        (256, {"curve/return": 0.75}),
        (1, {"batch/error": 0.75, "batch/entropy": 0.3}),
        (256, {"result/f1 _ 5/class _": 0.5}),
    ]
    assert fake.parameters == {"id": "abc", "seed": 0}
    assert fake.ended == ["success", "exit 0"]


def test_a_failed_run_ends_its_log_as_failed(words: list[str], stub_configs: Path, fake: Fake) -> None:
    with pytest.raises(RuntimeError, match="broke"):
        run([*words, "logger=wandb", "protocol.mode=crash"], stub_configs)
    assert fake.ended == ["failed", "exit 1"]


def test_a_logger_that_breaks_does_not_end_the_run(words: list[str], stub_configs: Path, fake: Fake) -> None:
    fake.broken_from = 4
    with pytest.warns(UserWarning, match="logger wandb stopped, the run goes on without it: the server has gone"):
        outcome = run([*words, "logger=wandb"], stub_configs)
    assert [step for step, _ in fake.metrics] == [1, 2, 3, 3]  # three batches and the row of their slice
    assert len(outcome.result["rows"]) == 3


def test_a_logger_that_cannot_open_is_an_error_of_one_line(
    words: list[str], stub_configs: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no\nkey")

    monkeypatch.setitem(loggers.MAKERS, "wandb", refuse)
    with pytest.raises(ConfigError, match="^logger=wandb: no key$"):
        run([*words, "logger=wandb"], stub_configs)


def test_wandb_offline_writes_its_file(
    words: list[str], stub_configs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run([*words, "logger=wandb"], stub_configs)
    assert len(list((tmp_path / "runs" / "wandb").glob("offline-run-*/run-*.wandb"))) == 1


def test_mlflow_has_the_numbers_in_its_store(
    words: list[str], stub_configs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mlflow = pytest.importorskip("mlflow")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    outcome = run([*words, "logger=mlflow"], stub_configs)
    client = mlflow.MlflowClient(f"file:{tmp_path / 'runs' / 'mlruns'}")
    (experiment_of_all,) = [e for e in client.search_experiments() if e.name == "dembench"]
    (found,) = client.search_runs([experiment_of_all.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["id"] == outcome.path.parent.name
    assert found.data.metrics["result/error/mean"] == 0.25
    assert [m.step for m in client.get_metric_history(found.info.run_id, "batch/entropy")] == [1, 2, 3, 4, 5, 6]

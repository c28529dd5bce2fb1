"""Sweeps: what a file expands to, what is refused before the first run, and what survives failures and interrupts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from scripts.sweep import main
from tasks import runs
from tasks.compose import ConfigError, choose, compose
from tasks.sweeps import Words, estimate, expand, fit, plan, read_overrides, read_sweep, to_arguments
from tasks.workers import Progress, execute


@pytest.fixture
def base(tmp_path: Path) -> Words:
    (tmp_path / "data.txt").write_text("images")
    return {"task": "stub", "data.root": str(tmp_path / "data.txt"), "out": str(tmp_path / "runs")}


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEMBENCH_STUB_LOG", str(tmp_path / "log"))
    (tmp_path / "log").touch()
    return tmp_path / "log"


@pytest.fixture(autouse=True)
def _restore_torch() -> object:
    yield
    torch.use_deterministic_algorithms(False)


def sweep_file(tmp_path: Path, text: str) -> str:
    (tmp_path / "grid.yaml").write_text(text)
    return str(tmp_path / "grid.yaml")


def test_grids_multiply_inside_and_add_up(tmp_path: Path) -> None:
    text = """
    base: {task: tta, method.lr: [1e-3, 1e-2]}
    grids:
      - {loss: [em, adadem], seed: [0, 1]}
      - {loss: dem, loss.tau: 1.1, protocol.corruptions: [[fog, snow]]}
      - {loss: em, seed: 0}
    """
    words = expand(read_sweep(sweep_file(tmp_path, text)))
    assert len(words) == 2 * 2 * 2 + 2  # the last grid repeats runs of the first
    assert words[0] == {"task": "tta", "method.lr": 1e-3, "loss": "em", "seed": 0}
    assert words[-1]["protocol.corruptions"] == ["fog", "snow"]
    assert all(isinstance(w["method.lr"], float) for w in words)


def test_overrides_replace_a_key_in_all_grids() -> None:
    sweep = {"base": {"seed": [0, 1, 2]}, "grids": [{"loss": ["em", "dem"]}, {"loss": "adadem", "seed": 7}]}
    words = expand(sweep, read_overrides(["seed=4,5", "protocol.corruptions=[fog,snow]", "data.frost=null"]))
    assert [(w["seed"], w["loss"]) for w in words] == [
        (4, "em"),
        (4, "dem"),
        (5, "em"),
        (5, "dem"),
        (4, "adadem"),
        (5, "adadem"),
    ]
    assert words[0]["protocol.corruptions"] == ["fog", "snow"]
    assert words[0]["data.frost"] is None


def test_an_option_that_a_method_has_not_is_left_out_of_its_runs_and_named() -> None:
    overrides = read_overrides(["method.lr=1e-2,1e-3", "method.optimizer=momentum", "seed=3"])
    grids = [{"method": ["source", "norm"], "loss": "em"}, {"method": "tent", "loss": "em"}]
    words, left = fit(expand({"base": {}, "grids": grids}, overrides), overrides)
    assert left == {"method.lr": ["source", "norm"], "method.optimizer": ["source", "norm"]}
    assert [(w["method"], w.get("method.lr"), w.get("method.optimizer"), w["seed"]) for w in words] == [
        ("source", None, None, 3),
        ("norm", None, None, 3),
        ("tent", 1e-2, "momentum", 3),
        ("tent", 1e-3, "momentum", 3),
    ]


def test_an_option_that_no_method_has_stays_and_is_refused() -> None:
    overrides = read_overrides(["method.lrr=1"])
    words, left = fit(expand({"base": {}, "grids": [{"method": ["source", "tent"]}]}, overrides), overrides)
    assert not left
    with pytest.raises(ConfigError, match=r"method\.lrr"):
        plan(words)


def test_an_option_of_a_loss_goes_to_the_runs_of_that_loss() -> None:
    overrides = read_overrides(["loss.tau=1.2", "method.clustering.robust=true"])
    words, left = fit(expand({"base": {"method": "tent"}, "grids": [{"loss": ["em", "dem"]}]}, overrides), overrides)
    assert left == {"loss.tau": ["em"]}
    assert [w.get("loss.tau") for w in words] == [None, 1.2]
    assert all(w["method.clustering.robust"] for w in words)


def test_overrides_of_several_values_keep_their_kinds() -> None:
    assert read_overrides(["a=1,2.5,x,null,true,[1,2]"]) == {"a": [1, 2.5, "x", None, True, [1, 2]]}


@pytest.mark.parametrize(
    "value",
    [1, 1e-4, 0.0, -2, True, None, "adam", "a b", "it's", "back\\slash'quote", "1", "null", "a,b", "x=y", "[z]", "${q}"]
    + ["/tmp/a (1)/é.tar.gz", "C:\\x\\", "", ["fog", "a b"], [1, [2, "3"]], {"k": "v w"}],
)
def test_arguments_read_back_as_the_same_value(value: object) -> None:
    key = "data.root"
    assert choose(to_arguments({key: value})).values == {key: value}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid: []", "unknown key of sweep .*; nearest: grids; valid: base, grids"),
        ("grids: {a: 1}", "grids a list of mappings"),
        ("[1, 2]", "expected the keys base and grids"),
        ("base: [", "sweep .*grid.yaml: "),
    ],
)
def test_files_that_are_no_sweeps(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_sweep(sweep_file(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_names_and_paths_that_are_not_there() -> None:
    with pytest.raises(ConfigError, match="unknown sweep 'dmo'; nearest: demo"):
        read_sweep("dmo")
    with pytest.raises(ConfigError, match="no sweep file nowhere/grid.yaml"):
        read_sweep("nowhere/grid.yaml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"loss.scale": -1}, r"Loss: expected scale > 0, got -1.0 \(in task=stub .*loss.scale=-1\)"),
        ({"loss": "plane"}, r"unknown loss 'plane'; nearest: plain.* \(in "),
        ({"method.speed": "medium"}, "unknown method.speed 'medium'"),
        ({"data.root": "/no/such"}, "no data at /no/such"),
        ({"model.weights": "/no/weights"}, "No such file"),
    ],
)
def test_one_run_that_cannot_work_stops_the_plan(words: Words, message: str, base: Words, stub_configs: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        plan([base, {**base, **words}], stub_configs)


def test_plan_and_single_run_agree_on_the_id_and_two_words_for_one_run_are_one(base: Words, stub_configs: Path) -> None:
    from tasks.experiment import prepare

    many = [{**base, "seed": 1}, {**base, "seed": 1, "method.lr": 0.1}, {**base, "seed": 2, "loss.scale": 2}]
    planned = plan(many, stub_configs)
    assert len(planned) == 2
    assert [run.id for run in planned] == [prepare(compose(many[i], stub_configs)).id for i in (0, 2)]


def test_failures_are_recorded_and_the_others_run(base: Words, stub_configs: Path, tmp_path: Path, log: Path) -> None:
    words = [{**base, "protocol.mode": "crash-on-2", "seed": seed} for seed in (1, 2, 3)]
    words.append({**base, "protocol.mode": "die"})
    told: list[Progress] = []
    summary = execute(plan(words, stub_configs), 2, stub_configs, told.append)
    assert (summary.ran, summary.found, len(summary.failed)) == (2, 0, 2)
    texts = sorted(path.read_text() for path in summary.failed.values())
    assert {path.parent for path in summary.failed.values()} == {tmp_path / "runs" / "failed"}
    died, crashed = sorted(texts, key=lambda text: "Traceback" in text)
    assert "exit code 9" in died
    assert "RuntimeError: the stub broke" in crashed
    assert crashed.startswith("dembench run --config-dir ")
    assert "seed=2" in crashed.splitlines()[0]
    assert sorted(progress.kind for progress in told if progress.kind != "step") == sorted(
        ["start"] * 4 + ["done"] * 2 + ["failed"] * 2
    )
    # Started again, it tries only what failed.
    log.write_text("")
    again = execute(plan(words[:3], stub_configs), 0, stub_configs)
    assert (again.ran, again.found, len(again.failed)) == (0, 2, 1)
    assert log.read_text().split() == ["2"]


def test_a_failure_note_goes_when_the_run_succeeds(base: Words, stub_configs: Path) -> None:
    planned = plan([base], stub_configs)
    note = planned[0].directory.parent / "failed" / f"{planned[0].id}.txt"
    runs.write_atomic(note, "failed yesterday")
    assert execute(planned, 0, stub_configs).ran == 1
    assert not note.exists()


def test_processes_and_this_process_give_the_same_numbers(base: Words, stub_configs: Path, tmp_path: Path) -> None:
    curves = {}
    for workers in (0, 2):
        words = [{**base, "out": str(tmp_path / f"with{workers}"), "seed": seed} for seed in (0, 1, 2)]
        planned = plan(words, stub_configs)
        assert execute(planned, workers, stub_configs).ran == 3
        curves[workers] = [(run.id, (run.directory / "curve.csv").read_bytes()) for run in planned]
    assert curves[0] == curves[2]
    assert len({curve for _, curve in curves[0]}) == 3


def test_done_runs_are_skipped_and_forced_ones_are_not(base: Words, stub_configs: Path, log: Path) -> None:
    words = [{**base, "seed": seed} for seed in (0, 1)]
    execute(plan(words, stub_configs), 0, stub_configs)
    planned = plan([*words, {**base, "seed": 2}], stub_configs)
    assert [run.done for run in planned] == [True, True, False]
    summary = execute(planned, 0, stub_configs)
    assert (summary.ran, summary.found) == (1, 2)
    assert log.read_text().split() == ["0", "1", "2"]
    forced = execute(plan([{**base, "seed": 0, "force": True}], stub_configs), 0, stub_configs)
    assert forced.ran == 1
    assert log.read_text().split() == ["0", "1", "2", "0"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_of_another_process_is_waited_for_and_not_run_twice(
    workers: int, base: Words, stub_configs: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.workers.RETRY_SECONDS", 0.05)
    planned = plan([base, {**base, "seed": 1}], stub_configs)
    held = runs.lock(planned[0].directory)
    held.__enter__()

    def finish_elsewhere(progress: Progress) -> None:
        if progress.run is planned[1] and progress.kind == "done":
            result = json.loads((progress.run.directory / "result.json").read_text())
            runs.write_json(planned[0].directory / "result.json", result)
            held.__exit__(None, None, None)

    summary = execute(planned, workers, stub_configs, finish_elsewhere)
    assert (summary.ran, summary.found, summary.failed) == (1, 1, {})
    assert log.read_text().split() == ["1"]


def test_estimate_is_by_method_and_shared_by_the_workers(base: Words, stub_configs: Path) -> None:
    planned = plan([{**base, "seed": seed} for seed in range(4)], stub_configs)
    assert estimate(planned, 2) is None
    execute(planned[:1], 0, stub_configs)
    result = json.loads((planned[0].directory / "result.json").read_text())
    result["cost"]["wall_seconds"] = 10.0
    runs.write_json(planned[0].directory / "result.json", result)
    planned = plan([{**base, "seed": seed} for seed in range(4)], stub_configs)
    assert estimate(planned, 2) == pytest.approx(3 * 10.0 / 2)


def start_sweep(file: str, configs: Path, *words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "scripts.sweep", file, "--config-dir", str(configs), "--workers", "2", *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def heed_interrupts() -> None:  # which whoever started the tests in the background has switched off
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(
        command,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_interrupts,
    )


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_sweep_goes_on_with_what_is_missing(
    how: signal.Signals, base: Words, stub_configs: Path, tmp_path: Path, log: Path, capsys: pytest.CaptureFixture
) -> None:
    lines = "\n".join(f"  {key}: {json.dumps(value)}" for key, value in base.items())
    file = sweep_file(
        tmp_path, f"base:\n{lines}\n  protocol.mode: sleep\n  protocol.batches: 2\ngrids: [{{seed: [0, 1, 2]}}]"
    )
    process = start_sweep(file, stub_configs)
    until = time.monotonic() + 90
    out = tmp_path / "runs"
    while not list(out.glob("*/result.json")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as Ctrl-C does
    else:
        process.kill()
    _, said = process.communicate(timeout=60)
    assert process.returncode == (130 if how == signal.SIGINT else -how)
    if how == signal.SIGINT:
        assert "stopped; started again" in said
        assert "Traceback" not in said
    time.sleep(1)  # orphans end when they next tell of a step
    done = {path.parent.name for path in out.glob("*/result.json")}
    log.write_text("")
    assert main([file, "--config-dir", str(stub_configs), "--workers", "0"]) == 0
    assert len(list(out.glob("*/result.json"))) == 3
    assert len(log.read_text().split()) == 3 - len(done)
    assert f"{3 - len(done)} run, {len(done)} done before, 0 failed" in capsys.readouterr().err

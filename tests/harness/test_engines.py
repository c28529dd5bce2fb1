"""Engines of one machine: same numbers whichever runs them; failures, deaths, interrupts and neighbours cost little."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from dembench.harness import runs
from dembench.harness.compose import ConfigError, Words
from dembench.harness.engines import choose as choosing
from dembench.harness.engines import processes
from dembench.harness.engines.choose import Settings, choose, choose_gpus
from dembench.harness.engines.execute import execute
from dembench.harness.engines.inline import Inline
from dembench.harness.engines.job import Engine, Progress
from dembench.harness.engines.processes import Processes
from dembench.harness.experiment import resolve_device
from dembench.harness.sweeps import Planned, plan
from dembench.harness.times import Times
from dembench.scripts.sweep import main
from dembench.tasks.common import trust
from dembench.tasks.common.files import write_atomic

ENGINES = [pytest.param(Inline, id="inline"), pytest.param(lambda: Processes(2), id="processes")]


@pytest.fixture
def base(tmp_path: Path) -> Words:
    (tmp_path / "data.txt").write_text("images")
    return {"task": "stub", "data.root": str(tmp_path / "data.txt"), "out": str(tmp_path / "runs")}


def test_failures_are_recorded_and_the_others_run(base: Words, stub_configs: Path, tmp_path: Path, log: Path) -> None:
    words = [{**base, "protocol.mode": "crash-on-2", "seed": seed} for seed in (1, 2, 3)]
    words.append({**base, "protocol.mode": "die"})
    told: list[Progress] = []
    summary = execute(plan(words, stub_configs), Processes(1), retries=1, tell=told.append)
    assert (summary.ran, summary.found, summary.retried, len(summary.failed)) == (2, 0, 1, 2)
    texts = sorted(path.read_text() for path in summary.failed.values())
    assert {path.parent for path in summary.failed.values()} == {tmp_path / "runs" / "failed"}
    died, crashed = sorted(texts, key=lambda text: "Traceback" in text)
    assert "exit code 9" in died
    assert "attempt 2, the last" in died
    assert "RuntimeError: the stub broke" in crashed
    assert crashed.startswith("dembench run --config-dir ")
    assert "seed=2" in crashed.splitlines()[0]
    kinds = Counter(progress.kind for progress in told if progress.kind != "step")
    assert kinds == {"start": 5, "done": 2, "again": 1, "failed": 2}
    assert sorted(log.read_text().split()) == ["0", "0", "1", "2", "3"]
    log.write_text("")  # started again, it tries only what failed
    again = execute(plan(words[:3], stub_configs), Inline())
    assert (again.ran, again.found, again.retried, len(again.failed)) == (0, 2, 0, 1)
    assert log.read_text().split() == ["2"]


def test_a_run_whose_worker_died_is_tried_again_and_done(base: Words, stub_configs: Path, log: Path) -> None:
    planned = plan([{**base, "protocol.mode": "die-once"}, {**base, "seed": 1}], stub_configs)
    summary = execute(planned, Processes(1))
    assert (summary.ran, summary.retried, summary.failed) == (2, 1, {})
    assert log.read_text().split() == ["0", "1", "0"]  # at the end of the queue
    assert not (planned[0].directory.parent / "failed").exists()


@pytest.mark.parametrize(("retry_errors", "attempts"), [(False, 1), (True, 3)])
def test_errors_are_tried_again_only_when_asked(
    retry_errors: bool, attempts: int, base: Words, stub_configs: Path, log: Path
) -> None:
    planned = plan([{**base, "protocol.mode": "crash"}], stub_configs)
    summary = execute(planned, Inline(), retries=2, retry_errors=retry_errors)
    assert (summary.retried, len(summary.failed)) == (attempts - 1, 1)
    assert log.read_text().split() == ["0"] * attempts


def test_no_retries_means_none(base: Words, stub_configs: Path, log: Path) -> None:
    summary = execute(plan([{**base, "protocol.mode": "die"}], stub_configs), Processes(1), retries=0)
    assert (summary.retried, len(summary.failed)) == (0, 1)
    assert log.read_text().split() == ["0"]


def test_a_killed_worker_is_named_by_its_signal(base: Words, stub_configs: Path) -> None:
    planned = plan([{**base, "protocol.mode": "sleep", "protocol.batches": 20}], stub_configs)

    def kill(progress: Progress) -> None:
        if progress.kind == "step":
            lock = (planned[0].directory / ".lock").resolve()
            holders = [link for link in Path("/proc").glob("[0-9]*/fd/*") if _leads_to(link, lock)]
            os.kill(int(holders[0].parts[2]), signal.SIGKILL)

    summary = execute(planned, Processes(1), retries=0, tell=kill)
    assert "ended by SIGKILL" in summary.failed[planned[0].id].read_text()


def _leads_to(link: Path, target: Path) -> bool:
    try:
        return link.readlink() == target and int(link.parts[2]) != os.getpid()
    except OSError:
        return False


def test_a_failure_note_goes_when_the_run_succeeds(base: Words, stub_configs: Path) -> None:
    planned = plan([base], stub_configs)
    note = planned[0].directory.parent / "failed" / f"{planned[0].id}.txt"
    write_atomic(note, "failed yesterday")
    assert execute(planned, Inline()).ran == 1
    assert not note.exists()


def test_a_run_without_a_result_has_failed_whatever_its_worker_says(base: Words, stub_configs: Path) -> None:
    class Liar:
        slots = 1

        def run(self, todo: deque[Planned]) -> Iterator[Progress]:
            yield Progress("done", todo.popleft())

    planned = plan([base], stub_configs)
    summary = execute(planned, Liar())
    assert summary.ran == 0
    assert "there is no" in summary.failed[planned[0].id].read_text()


def test_processes_and_this_process_give_the_same_numbers(base: Words, stub_configs: Path, tmp_path: Path) -> None:
    real = {"task": "tta", "data": "digits", "data.num_images": 24, "model": "digits_convnet", "method": "tent"}
    real |= {"protocol.batch_size": 12, "protocol.corruptions": ["fog", "contrast"]}
    found = {}
    for name, engine in (("inline", Inline()), ("processes", Processes(2))):
        out = str(tmp_path / name)
        words = [{**base, "out": out, "seed": seed} for seed in (0, 1)]
        words += [{**real, "out": out, "loss": loss} for loss in ("em", "adadem")]
        planned = plan(words, stub_configs)
        assert execute(planned, engine).ran == 4
        found[name] = [content(run) for run in planned]
    assert found["inline"] == found["processes"]
    assert len({json.dumps(rows) for _, rows, _ in found["inline"][2:]}) == 2
    assert len({curve for *_, curve in found["inline"][:2]}) == 2


def content(run: Planned) -> tuple[str, list[dict], bytes]:
    """What must not depend on who ran it."""
    result = json.loads((run.directory / "result.json").read_text())
    return run.id, result["rows"], (run.directory / "curve.csv").read_bytes()


def test_done_runs_are_skipped_and_forced_ones_are_not(base: Words, stub_configs: Path, log: Path) -> None:
    words = [{**base, "seed": seed} for seed in (0, 1)]
    execute(plan(words, stub_configs), Inline())
    planned = plan([*words, {**base, "seed": 2}], stub_configs)
    assert [run.done for run in planned] == [True, True, False]
    summary = execute(planned, Inline())
    assert (summary.ran, summary.found) == (1, 2)
    assert log.read_text().split() == ["0", "1", "2"]
    forced = execute(plan([{**base, "seed": 0, "force": True}], stub_configs), Inline())
    assert forced.ran == 1
    assert log.read_text().split() == ["0", "1", "2", "0"]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_of_another_process_is_waited_for_and_not_run_twice(
    engine: Callable[[], Engine], base: Words, stub_configs: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dembench.harness.engines.job.RETRY_SECONDS", 0.05)
    planned = plan([base, {**base, "seed": 1}], stub_configs)
    held = runs.lock(planned[0].directory)
    held.__enter__()
    told = []

    def finish_elsewhere(progress: Progress) -> None:
        told.append((progress.kind, progress.run.config["seed"]))
        if ("done", 1) in told and ("busy", 0) in told and not (planned[0].directory / "result.json").exists():
            result = json.loads((planned[1].directory / "result.json").read_text())
            runs.write_json(planned[0].directory / "result.json", {**result, "id": planned[0].id})
            held.__exit__(None, None, None)

    summary = execute(planned, engine(), tell=finish_elsewhere)
    assert (summary.ran, summary.found, summary.failed) == (1, 1, {})
    assert log.read_text().split() == ["1"]


def test_two_sweeps_on_one_folder_share_the_work(base: Words, stub_configs: Path, tmp_path: Path, log: Path) -> None:
    file = sweep_file(tmp_path, base, "{seed: [0, 1, 2, 3, 4, 5, 6, 7]}", "sleep")
    both = [start_sweep(file, stub_configs, 1) for _ in range(2)]
    said = [process.communicate(timeout=240)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sorted(log.read_text().split()) == [str(seed) for seed in range(8)]
    assert all("by another process" in text for text in said)


def test_each_gpu_is_given_to_one_worker_and_each_worker_has_one_thread(
    base: Words, stub_configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEMBENCH_STUB_SURROUNDINGS", str(tmp_path / "surroundings"))
    words = [{**base, "seed": seed, "protocol.mode": "sleep", "protocol.batches": 1} for seed in range(4)]
    engine = Processes(gpus=["3", "GPU-5f1c"])
    told = []
    before = dict(os.environ)
    assert execute(plan(words, stub_configs), engine, tell=told.append).ran == 4
    assert dict(os.environ) == before
    seen = [json.loads(line) for line in (tmp_path / "surroundings").read_text().splitlines()]
    gpu_of = {entry["pid"]: entry["CUDA_VISIBLE_DEVICES"] for entry in seen}
    assert {entry["seed"] for entry in seen} == set(range(4))
    assert sorted(gpu_of.values()) == ["3", "GPU-5f1c"]
    assert len({(entry["pid"], entry["CUDA_VISIBLE_DEVICES"]) for entry in seen}) == 2
    assert {(entry["OMP_NUM_THREADS"], entry["threads"]) for entry in seen} == {("1", 1)}
    assert {p.place for p in told} == {"worker 0, GPU 3", "worker 1, GPU GPU-5f1c"}


def on_gpu(planned: list[Planned]) -> list[Planned]:
    """The same runs, as if they used one."""
    for run in planned:
        run.config["device"] = "cuda"
    return planned


def test_runs_on_gpus_take_a_worker_a_gpu_or_more(
    base: Words, stub_configs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = on_gpu(plan([{**base, "seed": seed} for seed in range(9)], stub_configs))
    monkeypatch.setattr(choosing, "visible_gpus", lambda: ["4", "5", "7"])
    monkeypatch.setattr(choosing, "gpu_memory", lambda place: 24 << 30)
    monkeypatch.setattr(choosing, "cpus", lambda: 16)

    def chosen(**settings: object) -> tuple[int, list[str]]:
        engine = choose(Settings(**settings), planned)
        assert isinstance(engine, Processes)
        return engine.slots, [engine.environment(i)["CUDA_VISIBLE_DEVICES"] for i in range(engine.slots)]

    assert chosen() == (3, ["4", "5", "7"])
    assert chosen(gpus_per_run=0.5) == (6, ["4", "5", "7"] * 2)
    assert chosen(gpus_per_run=0.1, gpus="2") == (9, ["7"] * 9)  # ten would fit, nine are missing
    assert chosen(workers=2, gpus="2,0") == (2, ["7", "4"])
    with pytest.raises(ConfigError, match="no GPU '3'; 3 are visible, counted from 0"):
        chosen(gpus="3")
    with pytest.raises(ConfigError, match="one GPU or a part of it, got 2"):
        chosen(gpus_per_run=2.0)


def test_runs_share_a_gpu_as_its_memory_allows(
    base: Words, stub_configs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = on_gpu(plan([{**base, "seed": seed} for seed in range(40)], stub_configs))
    monkeypatch.setattr(choosing, "visible_gpus", lambda: ["4", "5"])
    monkeypatch.setattr(choosing, "gpu_memory", lambda place: (80 << 30, 48 << 30)[place])
    monkeypatch.setattr(choosing, "cpus", lambda: 16)
    assert choose(Settings(), planned).slots == 2 * 2  # 16 GiB are assumed, and the smaller GPU decides
    assert choose(Settings(gpus="0"), planned).slots == 3
    times = Times()
    past = {"config": planned[0].config, "cost": {"wall_seconds": 1.0, "peak_gpu_bytes": 4 << 30}}
    times.add_result(past)
    assert choose(Settings(), planned, times).slots == 2 * 7  # 48 / (1.3 * 4 + 1)
    times.add_result({**past, "cost": {"wall_seconds": 1.0, "peak_gpu_bytes": 9 << 30}})
    assert choose(Settings(), planned, times).slots == 2 * 3  # the largest counts
    times = Times()
    times.add_result({**past, "cost": {"wall_seconds": 1.0, "peak_gpu_bytes": 1 << 20}})
    assert choose(Settings(), planned, times).slots == 2 * 8  # no more than that unasked
    monkeypatch.setattr(choosing, "cpus", lambda: 4)
    assert choose(Settings(), planned, times).slots == 2 * 4
    assert choose(Settings(workers=5), planned).environment(4)["CUDA_VISIBLE_DEVICES"] == "4"


def test_runs_of_the_cpu_are_beside_those_of_the_gpu(
    base: Words, stub_configs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan([{**base, "seed": seed} for seed in range(12)], stub_configs)
    on_gpu(planned[:6])
    monkeypatch.setattr(choosing, "visible_gpus", lambda: ["7"])
    monkeypatch.setattr(choosing, "gpu_memory", lambda place: 80 << 30)
    monkeypatch.setattr(choosing, "cpus", lambda: 8)

    def places(**settings: object) -> list[str]:
        engine = choose(Settings(**settings), planned)
        assert isinstance(engine, Processes)
        return [engine.environment(i)["CUDA_VISIBLE_DEVICES"] for i in range(engine.slots)]

    assert places() == ["7"] * 3 + [""] * 5
    assert places(workers=4) == ["7"] * 3 + [""]
    assert places(workers=1) == ["7"]  # takes the others when none of the GPU is left
    assert places(gpus_per_run=1.0, workers=3) == ["7"] + [""] * 2
    engine = Processes(1, gpus=["7"])
    todo = deque(planned[::-1])  # those of the CPU first
    assert [engine.take(worker, todo).config["seed"] for worker in (0, 1, 0)] == [5, 11, 4]
    todo = deque(planned[6:])
    assert [engine.take(worker, todo).config["seed"] for worker in (0, 1)] == [6, 7]
    assert engine.take(1, deque(planned[:6])) is None


def test_each_run_meets_a_worker_of_its_kind(
    base: Words, stub_configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEMBENCH_STUB_SURROUNDINGS", str(tmp_path / "surroundings"))
    monkeypatch.setattr(processes, "_on_gpu", lambda run: run.config["seed"] < 2)  # as if
    planned = plan([{**base, "seed": seed, "protocol.mode": "sleep"} for seed in range(6)], stub_configs)
    assert execute(planned, Processes(1, gpus=["3"])).ran == 6
    seen = [json.loads(line) for line in (tmp_path / "surroundings").read_text().splitlines()]
    place_of = {entry["seed"]: entry["CUDA_VISIBLE_DEVICES"] for entry in seen}
    assert place_of[0] == place_of[1] == "3"
    assert "" in place_of.values()


def test_auto_means_what_a_task_prefers(monkeypatch: pytest.MonkeyPatch, stub_configs: Path) -> None:
    trust.trust_folder(stub_configs)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == "cuda"
    assert resolve_device("auto", "dembench_stub.Task") == "cuda"
    assert resolve_device("auto", "dembench.tasks.minigrid.task.Minigrid") == "cpu"
    assert resolve_device("cuda", "dembench.tasks.minigrid.task.Minigrid") == "cuda"


def test_visible_gpus_keep_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-77")
    assert choose_gpus(None) == ["3", "GPU-77"]
    assert choose_gpus("1") == ["GPU-77"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert choose_gpus(None) == ["0", "1"]


def test_runs_on_the_cpu_take_as_many_workers_as_cpus_divided_by_threads(
    base: Words, stub_configs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "cpus", lambda: 6)
    planned = plan([{**base, "seed": seed} for seed in range(20)], stub_configs)
    threaded = plan([{**base, "seed": seed, "threads": 3} for seed in range(20)], stub_configs)
    assert choose(Settings(), planned).slots == 6
    assert choose(Settings(), planned[:4]).slots == 4
    assert choose(Settings(workers=7), planned).slots == 7
    assert choose(Settings(cpus_per_run=4), planned).slots == 1
    engine = choose(Settings(), threaded)
    assert engine.slots == 2
    assert isinstance(engine, Processes)
    assert engine.environment(0) == {"OMP_NUM_THREADS": "3"}
    assert isinstance(choose(Settings(workers=0), planned), Inline)
    with pytest.raises(ConfigError, match="--gpus: none of the runs uses a GPU"):
        choose(Settings(gpus="0"), planned)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "rai"], "--engine: unknown engine 'rai'; nearest: ray; valid: inline, processes, ray"),
        (["--engine", "inline", "--workers", "2"], "--workers 2 is not for the engine inline"),
        (["--engine", "processes", "--workers", "0"], "--workers: expected at least 1 for the engine processes, got 0"),
        (["--engine", "ray", "--workers", "2"], "--workers is not for the engine ray"),
        (["--address", "auto"], "--address is not for the engine processes"),
        (["--gpus-per-run", "0"], "--gpus-per-run: expected more than 0, got 0"),
        (["--workers", "0", "--gpus-per-run", "0.5"], "--gpus-per-run is not for the engine inline"),
        (["--retries", "-1"], "--retries: expected at least 0, got -1"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["demo", *options]) == 2
    assert capsys.readouterr().err == f"dembench sweep: {message}\n"


def sweep_file(tmp_path: Path, base: Words, grid: str, mode: str) -> str:
    lines = [f"  {key}: {json.dumps(value)}" for key, value in base.items()]
    lines += [f"  protocol.mode: {mode}", "  protocol.batches: 2"]
    (tmp_path / "grid.yaml").write_text("\n".join(["base:", *lines, f"grids: [{grid}]"]))
    return str(tmp_path / "grid.yaml")


def start_sweep(file: str, configs: Path, workers: int) -> subprocess.Popen:
    options = ["--config-dir", str(configs), "--workers", str(workers)]
    command = [sys.executable, "-m", "dembench.scripts.sweep", file, *options]
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


def group(leader: int) -> list[int]:
    """Living processes of the session that ``start_sweep`` has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(session) == leader and state != "Z":
            found.append(int(stat.parts[2]))
    return found


def test_no_worker_outlives_a_killed_sweep(base: Words, stub_configs: Path, tmp_path: Path, log: Path) -> None:
    process = start_sweep(sweep_file(tmp_path, base, "{seed: 0}", "hang"), stub_configs, 1)
    until = time.monotonic() + 150
    while not log.read_text() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    assert len(group(process.pid)) >= 2
    process.kill()
    process.wait()
    until = time.monotonic() + 20
    while (left := group(process.pid)) and time.monotonic() < until:
        time.sleep(0.05)
    if left:
        os.killpg(process.pid, signal.SIGKILL)
    assert not left


@pytest.mark.parametrize("how", ["Ctrl-C", "killed"])
def test_a_stopped_sweep_goes_on_with_what_is_missing(
    how: str, base: Words, stub_configs: Path, tmp_path: Path, log: Path, capsys: pytest.CaptureFixture
) -> None:
    file = sweep_file(tmp_path, base, "{seed: [0, 1, 2]}", "sleep")
    process = start_sweep(file, stub_configs, 2)
    until = time.monotonic() + 150
    out = tmp_path / "runs"
    while not list(out.glob("*/result.json")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    else:  # parent and workers
        os.killpg(process.pid, signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode == (130 if how == "Ctrl-C" else -signal.SIGKILL)
    if how == "Ctrl-C":
        assert "interrupted; rerun the command" in said
        assert "Traceback" not in said
    done = {path.parent.name for path in out.glob("*/result.json")}
    assert 1 <= len(done) <= 2
    log.write_text("")
    assert main([file, "--config-dir", str(stub_configs), "--workers", "0"]) == 0
    assert len(list(out.glob("*/result.json"))) == 3
    assert len(log.read_text().split()) == 3 - len(done)
    assert f"{3 - len(done)} run, {len(done)} done before, 0 failed" in capsys.readouterr().err

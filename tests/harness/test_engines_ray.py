"""The engine ray on a real cluster of two nodes on 127.0.0.1, one of which is killed while it computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("ray")
from ray_nodes import Nodes, nodes

from dembench.harness.compose import ConfigError, Words
from dembench.harness.engines import ray as ray_engine
from dembench.harness.engines.choose import Settings, choose
from dembench.harness.engines.execute import execute
from dembench.harness.engines.inline import Inline
from dembench.harness.engines.job import Progress
from dembench.harness.sweeps import Planned, plan
from dembench.scripts.sweep import main


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with nodes() as made:
        yield made


def many(tmp_path: Path, out: str) -> list[Words]:
    """Four runs that take about a second each, and a real one."""
    (tmp_path / "data.txt").write_text("images")
    stub = {"task": "stub", "data.root": str(tmp_path / "data.txt"), "protocol.mode": "sleep", "protocol.batches": 3}
    real = {"task": "tta", "data": "digits", "data.num_images": 24, "model": "digits_convnet", "method": "tent"}
    real |= {"protocol.batch_size": 12, "protocol.corruptions": ["fog"], "loss": "adadem"}
    return [{**words, "out": str(tmp_path / out)} for words in (*({**stub, "seed": s} for s in range(4)), real)]


def content(run: Planned) -> tuple[str, list[dict], bytes]:
    """What must not depend on who ran it."""
    result = json.loads((run.directory / "result.json").read_text())
    return run.id, result["rows"], (run.directory / "curve.csv").read_bytes()


def test_a_node_is_killed_and_all_runs_complete_with_the_numbers_of_inline(
    cluster: Nodes, stub_configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEMBENCH_STUB_LOG", str(tmp_path / "log"))
    head = cluster.add()
    planned = plan(many(tmp_path, "ray"), stub_configs)
    engine = choose(Settings(engine="ray", address=cluster.address), planned)
    assert engine.slots == 1
    other = cluster.add()  # afterwards, so that this process does not belong to the node that dies
    told: list[Progress] = []
    killed: list[str] = []

    def kill(progress: Progress) -> None:
        told.append(progress)
        if not killed and progress.kind == "step" and progress.place.endswith(other[:8]):
            killed.append(progress.run.id)
            assert cluster.kill(other) >= 2  # the raylet and the worker at least

    summary = execute(planned, engine, tell=kill)
    assert (summary.ran, summary.failed) == (5, {})
    assert summary.retried >= 1
    (lost,) = killed
    kinds = [p.kind for p in told if p.run.id == lost and p.kind != "step"]
    assert kinds[0] == "start"
    assert [kind for kind in kinds if kind != "start"] == ["again", "done"]  # the end may be heard before the start
    assert {p.place.split()[0] for p in told if p.kind == "done"} == {"127.0.0.1"}
    assert {p.place.split()[1] for p in told if p.kind == "done"} >= {head[:8]}
    assert not list((tmp_path / "ray").glob(".sweep-*"))
    assert len((tmp_path / "log").read_text().split()) == 4 + 1  # nothing but the lost run was run again

    inline = plan(many(tmp_path, "inline"), stub_configs)
    assert execute(inline, Inline()).ran == 5
    assert [content(run) for run in inline] == [content(run) for run in planned]


def test_a_cluster_without_room_or_without_the_shared_folder_is_named(
    cluster: Nodes, stub_configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.add()
    planned = plan(many(tmp_path, "runs")[:1], stub_configs)
    with pytest.raises(ConfigError, match="has the 4 CPUs and 0 GPUs that a run takes; they have 1 CPUs"):
        choose(Settings(engine="ray", address=cluster.address, cpus_per_run=4), planned)
    with pytest.raises(ConfigError, match="has the 1 CPUs and 0.5 GPUs that a run"):
        choose(Settings(engine="ray", address=cluster.address, gpus_per_run=0.5), planned)
    of, elsewhere = ray_engine._Places.of, "/here/and/not/there"
    monkeypatch.setattr(ray_engine._Places, "of", lambda self, out: replace(of(self, out), folder=elsewhere))
    engine = choose(Settings(engine="ray", address=cluster.address), planned)
    summary = execute(planned, engine)
    text = summary.failed[planned[0].id].read_text()
    assert "node 127.0.0.1" in text
    assert f"no {elsewhere} there; the folder of the sweep and `out` must be shared by all nodes" in text


@pytest.mark.parametrize(
    ("address", "reason"),
    [("127.0.0.1:9", "refused"), ("ray://127.0.0.1:9", "refused"), ("clusterhead", "expected auto, local, HOST:PORT")],
)
def test_no_cluster_is_said_at_once(
    address: str, reason: str, stub_configs: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = many(tmp_path, "runs")[0]
    (tmp_path / "grid.yaml").write_text(json.dumps({"base": words, "grids": [{}]}))
    command = [str(tmp_path / "grid.yaml"), "--config-dir", str(stub_configs), "--engine", "ray", "--address", address]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"dembench sweep: no Ray cluster at {address}")
    assert reason in said
    assert said.count("\n") == 1


def test_without_ray_the_extra_is_named(stub_configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = plan(many(tmp_path, "runs")[:1], stub_configs)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "dembench.harness.engines.ray", raising=False)
    with pytest.raises(ConfigError, match=r'the engine ray needs: pip install "dembench\[ray\]"'):
        choose(Settings(engine="ray"), planned)


@pytest.mark.slow
def test_the_head_is_killed_and_what_is_done_is_kept(cluster: Nodes, stub_configs: Path, tmp_path: Path) -> None:
    """Ray ends a process whose head is gone; the sweep, run again elsewhere, does what is missing and nothing else."""
    head = cluster.add()
    cluster.add()
    (tmp_path / "data.txt").write_text("images")
    out, log = tmp_path / "runs", tmp_path / "log"
    words = [f"data.root={tmp_path / 'data.txt'}", "protocol.mode=sleep", "protocol.batches=3", f"out={out}"]
    (tmp_path / "grid.yaml").write_text("base: {task: stub}\ngrids: [{seed: [0, 1, 2, 3, 4, 5, 6, 7]}]\n")
    command = [sys.executable, "-m", "dembench", "sweep", str(tmp_path / "grid.yaml"), *words]
    command += ["--config-dir", str(stub_configs)]
    environment = {**os.environ, "DEMBENCH_STUB_LOG": str(log)}
    with open(tmp_path / "said", "w") as said:
        own = ["--engine", "ray", "--address", cluster.address]
        sweep = subprocess.Popen([*command, *own], env=environment, stdout=said, stderr=said)
    try:
        limit = time.monotonic() + 240
        while not list(out.glob("*/result.json")):
            assert sweep.poll() is None, (tmp_path / "said").read_text()[-2000:]
            assert time.monotonic() < limit
            time.sleep(0.2)
        cluster.kill(head)
        assert sweep.wait(240) != 0
    finally:
        sweep.kill()
    cluster.close()
    done = {path: path.read_bytes() for path in out.glob("*/result.json")}
    assert 1 <= len(done) < 8
    before = len(log.read_text().split())
    again = subprocess.run([*command, "--engine", "inline"], env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr[-2000:]
    assert f"{8 - len(done)} run, {len(done)} done before, 0 failed" in again.stderr
    assert len(log.read_text().split()) == before + 8 - len(done)
    assert {path: path.read_bytes() for path in done} == done
    assert len(list(out.glob("*/result.json"))) == 8

"""Run ids, files that are whole or absent, and what events become in a result."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
from report_runs import make_run

from dembench.harness import runs
from dembench.tasks.base import Artifact, Flag, Histogram, Note, Point, Row, Scalars

CONFIG = {
    "seed": 1,
    "device": "cpu",
    "out": "runs",
    "force": False,
    "progress": True,
    "choices": {"method": "tent"},
    "method": {"_target_": "a.Tent", "lr": 1e-3},
    "data": {"_target_": "a.Data", "root": "/here", "num_images": None},
    "model": {"_target_": "a.Model", "weights": "/w.th"},
    "task": {"data": {"root": "/here"}},
}
PRINTS = {"data": "d" * 12, "weights": "w" * 12}


def changed(**top: object) -> dict:
    return {**CONFIG, **top}


def test_id_is_the_hash_of_what_is_written_down_here() -> None:
    # Spelt out, because ids of one version must find the runs of another.
    text = (
        '{"config":{"data":{"_target_":"a.Data","num_images":null},"device":"cpu",'
        '"method":{"_target_":"a.Tent","lr":0.001},"model":{"_target_":"a.Model"},"seed":1,"task":{"data":{}}},'
        '"fingerprints":{"data":"dddddddddddd","weights":"wwwwwwwwwwww"}}'
    )
    assert runs.run_id(CONFIG, PRINTS) == hashlib.sha256(text.encode()).hexdigest()[:12]


def test_id_does_not_depend_on_paths_places_or_key_order() -> None:
    same = [
        changed(out="/elsewhere", force=True, progress=False, choices={"method": "mine"}),
        changed(data={**CONFIG["data"], "root": "/there", "cache": "/c", "frost": "/f", "source": "/s"}),
        changed(model={**CONFIG["model"], "weights": "/other/place.th"}, task={"data": {"root": "/there"}}),
        dict(reversed(CONFIG.items())),
    ]
    assert {runs.run_id(config, PRINTS) for config in same} == {runs.run_id(CONFIG, PRINTS)}


def test_id_depends_on_every_setting_and_on_what_paths_hold() -> None:
    other = [
        (changed(seed=2), PRINTS),
        (changed(device="cuda"), PRINTS),
        (changed(method={"_target_": "a.Tent", "lr": 1e-4}), PRINTS),
        (changed(method={"_target_": "a.Other", "lr": 1e-3}), PRINTS),
        (changed(data={**CONFIG["data"], "num_images": 10}), PRINTS),
        (CONFIG, {**PRINTS, "data": "e" * 12}),
        (CONFIG, {**PRINTS, "weights": "e" * 12}),
    ]
    ids = {runs.run_id(config, prints) for config, prints in [(CONFIG, PRINTS), *other]}
    assert len(ids) == 1 + len(other)


def test_write_json_refuses_what_json_cannot_say_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    runs.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        runs.write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.json"]


def hold(directory: Path, pipe: object) -> None:
    with runs.lock(directory):
        pipe.send("held")
        pipe.recv()


def test_a_lock_is_held_by_one_process_and_goes_with_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=hold, args=(tmp_path, theirs))
    process.start()
    assert ours.recv() == "held"
    with pytest.raises(runs.RunBusy, match="another process is writing"), runs.lock(tmp_path):
        pass
    process.kill()
    process.join()
    with runs.lock(tmp_path):
        pass


def test_read_result(tmp_path: Path) -> None:
    assert runs.read_result(tmp_path) is None
    folder = make_run(tmp_path)
    written = json.loads((folder / "result.json").read_text())
    assert runs.read_result(folder) == written
    for text, message in (
        (json.dumps({**written, "schema": 99}), "another version"),
        (json.dumps({**written, "id": "0" * 12}), "is a copy of run 000000000000"),
        ('{"schema": 1', "not valid JSON"),
    ):
        (folder / "result.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            runs.read_result(folder)


def test_recorder_turns_events_into_plain_content() -> None:
    recorder = runs.Recorder()
    recorder.add(Note("frost", "synthetic"))
    recorder.add(Note("frost", "synthetic"))
    recorder.add(Point(0, "fog/5", 200, 150, 0.5, None, 0))
    recorder.add(Point(1, "fog/5", 100, 50, 1 / 3, -0.25, 100))
    recorder.add(Histogram("fog/5", (3, 4), (5, 2)))
    recorder.add(Row("fog/5", "error", 1 / 3, "fraction", 300))
    assert recorder.body() == {
        "status": "ok",
        "flags": [],
        "notes": [{"key": "frost", "text": "synthetic"}],
        "rows": [{"slice": "fog/5", "metric": "error", "value": 1 / 3, "unit": "fraction", "n": 300}],
        "histograms": {"fog/5": {"predicted": [3, 4], "label": [5, 2]}},
    }
    lines = list(csv.DictReader(io.StringIO(recorder.curve())))
    assert list(lines[0]) == ["step", "slice", "n", "correct", "entropy", "loss", "updated"]
    assert lines[0]["loss"] == ""
    assert float(lines[1]["entropy"]) == pytest.approx(1 / 3, rel=1e-6)
    assert float(lines[1]["loss"]) == -0.25


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_become_null_and_a_flag(bad: float) -> None:
    recorder = runs.Recorder()
    recorder.add(Flag("collapse", "fog/5", "one class"))
    assert recorder.status == "collapse"
    recorder.add(Row("fog/5", "nll", bad, "nats", 10))
    recorder.add(Row("fog/5", "ece", bad, "fraction", 10))
    body = recorder.body()
    assert body["status"] == "nan"
    assert [row["value"] for row in body["rows"]] == [None, None]
    assert [(flag["kind"], flag["slice"]) for flag in body["flags"]] == [("collapse", "fog/5"), ("nan", "fog/5")]
    json.dumps(body, allow_nan=False)


def test_points_that_are_not_finite_are_flagged_once_per_slice() -> None:
    recorder = runs.Recorder()
    for step in range(3):
        recorder.add(Point(step, "fog/5", 1, 1, float("nan"), None, 0))
    recorder.add(Point(3, "snow/5", 1, 1, 0.1, float("inf"), 0))
    assert [flag["slice"] for flag in recorder.flags] == ["fog/5", "snow/5"]


def test_recorder_refuses_what_is_no_event() -> None:
    with pytest.raises(TypeError, match="expected an event"):
        runs.Recorder().add({"slice": "fog/5"})


def test_environment_names_code_versions_and_hardware() -> None:
    import torch

    found = runs.environment("cpu", 1)
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["device"] == "cpu"
    assert found["cpu"]
    assert found["commit"] or found["version"] != "unknown"
    json.dumps(found, allow_nan=False)


def test_commit_is_that_of_this_checkout() -> None:
    root = Path(runs.__file__).parents[1]
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")
    head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert runs.code_version()["commit"] == head.stdout.strip()


def test_learning_curves_and_files_are_written_beside_the_result(tmp_path):
    recorder = runs.Recorder()
    recorder.add(Scalars(1024, "train", {"return": 0.25, "entropy": 1.5}))
    recorder.add(Scalars(2048, "train", {"return": float("nan"), "entropy": 1.25}))
    recorder.add(Artifact("agent.gif", b"GIF89a\n\x00"))
    recorder.write(tmp_path)
    assert (tmp_path / "series.csv").read_text() == (
        "step,slice,metric,value\n1024,train,return,0.25\n1024,train,entropy,1.5\n2048,train,return,\n"
        "2048,train,entropy,1.25\n"
    )
    assert (tmp_path / "files" / "agent.gif").read_bytes() == b"GIF89a\n\x00"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["files", "series.csv"]


@pytest.mark.parametrize("name", ["../agent.gif", "a/b.png", ".hidden", ""])
def test_an_artifact_stays_in_its_folder(name):
    with pytest.raises(ValueError, match="plain file name"):
        runs.Recorder().add(Artifact(name, b""))

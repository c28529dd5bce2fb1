"""``dembench.run`` and its kin do what the commands do: the same records, numbers, tables and messages."""

from __future__ import annotations

import ast
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from report_runs import interval, make_run

import dembench
from dembench.scripts import api
from dembench.scripts.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def words(tmp_path: Path, stub_configs: Path) -> dict[str, object]:
    (tmp_path / "data.txt").write_text("images")
    return {"task": "stub", "out": tmp_path / "runs", "config_dir": stub_configs, "progress": False, "device": "cpu"}


@pytest.fixture
def values(tmp_path: Path) -> dict[str, object]:
    return {"data.root": tmp_path / "data.txt"}


def test_every_name_is_there_and_typed() -> None:
    """The names that type checkers see are those that exist."""
    assert set(dembench.__all__) <= set(dir(dembench))
    assert all(callable(getattr(dembench, name)) for name in dembench.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'rum'"):
        _ = dembench.rum
    seen = set()
    for node in ast.walk(ast.parse((ROOT / "__init__.py").read_text())):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            seen |= {
                name.asname or name.name for own in node.body if isinstance(own, ast.ImportFrom) for name in own.names
            }
    assert seen == set(dembench.__all__)


def test_a_run_is_that_of_the_command(words, values, tmp_path, capsys) -> None:
    done = dembench.run({**values, "protocol.batches": 2}, **words, seed=3)
    place = json.loads((done.path / "result.json").read_text())
    assert (done.ran, done.id, done.status, done.record) == (True, done.path.name, "ok", place)
    assert done.metrics == {"error": 0.25}
    assert done.notes == {"stub": "invented numbers"}
    assert done.numbers.to_dict("records") == place["rows"]
    assert done.curve["n"].tolist() == [4] * 4
    assert "stub walk plain none stub-data short seed 3: mean: error 0.2500" in str(done)
    assert str(done.path) in done._repr_html_()
    command = ["run", f"data.root={tmp_path / 'data.txt'}", "protocol.batches=2", "seed=3", "task=stub", "device=cpu"]
    assert main([*command, f"out={tmp_path / 'runs'}", "--config-dir", str(words["config_dir"])]) == 0
    told = capsys.readouterr()
    assert "finished before" in told.err
    assert Path(told.out.strip()).parent == done.path
    assert not dembench.run({**values, "protocol.batches": 2}, **words, seed=3).ran
    assert "dembench run --config-dir" in done.record["command"]


def test_nothing_of_torch_is_other_afterwards(words, values) -> None:
    def state() -> list[object]:
        drawn = [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]
        return [*drawn, torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()]

    torch.use_deterministic_algorithms(False)
    before = state()
    dembench.run(values, **words)
    assert state() == before


def test_a_sweep_resumes_and_keeps_what_did_not_fail(words, values) -> None:
    grid = {"loss": ["plain"], "seed": range(1, 4)}
    with pytest.warns(UserWarning, match="1 of 3 runs failed; .*the stub broke"):
        done = dembench.sweep(grid, {**values, "protocol.mode": "crash-on-2"}, **words)
    assert [run.record["seed"] for run in done] == [1, 3]
    assert [*done.failed.values()] == ["RuntimeError: the stub broke [red]on[/] purpose"]
    assert done.frame["error"].tolist() == [0.25, 0.25]
    assert "failed: " in done._repr_html_()
    assert len(done[:1]) == 1
    again = dembench.sweep([{"seed": 1}, {"seed": [3, 4]}], {**values, "protocol.mode": "crash-on-2"}, **words)
    assert [run.ran for run in again] == [False, False, True]
    several = dembench.sweep({"loss": "plain"}, {**values, "protocol.mode": "crash-on-2"}, **words, seed=[1, 4])
    assert [run.record["seed"] for run in several] == [1, 4]


def test_runs_become_two_tables(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run(tmp_path, (0.3, 0.2, 0.1 + seed / 100), seed=seed, lr=0.01)
    numbers, runs = dembench.load(tmp_path)
    own = numbers[(numbers.metric == "error") & (numbers.slice == "jpeg_compression/5")].sort_values("seed")
    assert own.value.tolist() == [0.1, 0.11]
    assert own.n.tolist() == [200, 200]
    assert len(runs) == 2
    assert runs["method.lr"].tolist() == [0.01, 0.01]
    assert sorted(runs.run) == sorted(path.name for path in tmp_path.iterdir())
    assert not [key for key in runs if key.startswith(("task.", "choices."))]
    assert dembench.load(dembench.load(tmp_path).runs.run.map(lambda id: tmp_path / id)).runs.shape == runs.shape


def test_two_sides_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    errors = {"em": (0.30, 0.32, 0.31), "adadem": (0.25, 0.29, 0.27)}
    for loss, found in errors.items():
        for seed, value in enumerate(found):
            make_run(tmp_path / "runs", (value, value, value), loss=loss, seed=seed)
    found = dembench.compare("loss=em", "loss=adadem", runs=tmp_path / "runs")
    (row,) = found.frame.to_dict("records")
    difference = 100 * (np.array(errors["em"]) - np.array(errors["adadem"]))
    low, high = interval(difference)
    assert row["gain"] == pytest.approx(difference.mean())
    assert (row["gain_low"], row["gain_high"]) == (pytest.approx(low), pytest.approx(high))
    assert main(["compare", "loss=em", "loss=adadem", "--runs", str(tmp_path / "runs")]) == 0
    command = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert command == [line.rstrip() for line in str(found).splitlines()]
    assert "<table" in found._repr_html_()
    both = sorted((tmp_path / "runs").iterdir())
    sides = [
        [path for path in both if json.loads((path / "result.json").read_text())["loss"] == loss] for loss in errors
    ]
    assert dembench.compare(*sides).frame.gain.tolist() == found.frame.gain.tolist()


def test_the_report_is_called_by_its_room(tmp_path: Path) -> None:
    import dembench.report

    make_run(tmp_path / "runs")
    page = dembench.report(tmp_path / "runs", tmp_path / "out", figures=0)
    assert page.path == tmp_path / "out" / "index.html"
    assert "<html" in page.path.read_text()
    assert str(page) in page._repr_html_()
    assert dembench.report is dembench.__getattr__("report")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dembench.run(method="tnt"), "unknown method 'tnt'; nearest: tent"),
        (lambda: dembench.run({"method.lrr": 1}), "unknown key 'method.lrr'; nearest: method.lr"),
        (lambda: dembench.run(loss=torch.nn.Identity()), 'loss="my_module.Identity" with allow_target="my_module"'),
        (lambda: dembench.run(allow_target="a b"), "allow_target: expected a dotted name"),
        (lambda: dembench.sweep({"metod": ["tent"]}), "unknown key 'metod'; nearest: method"),
        (lambda: dembench.sweep({"seed": []}), "a sweep of no runs: seed is empty"),
        (lambda: dembench.sweep({}, workers=1, model=torch.nn.Identity()), "in this process only: workers=0"),
        (lambda: dembench.load("nowhere"), "no such directory or file: nowhere"),
        (lambda: dembench.compare("loss=em", "loss=adadem", runs="nowhere"), "there is no folder nowhere"),
        (lambda: dembench.report("nowhere"), "no such directory or file: nowhere"),
        (lambda: dembench.report("nowhere", figures=-1), "figures: expected 0 or more, got -1"),
    ],
)
def test_a_mistake_is_an_exception_of_one_line(call, message, monkeypatch) -> None:
    monkeypatch.setenv("DEMBENCH_ALLOW_TARGET", "")
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the text is looked at below
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_in_a_notebook_a_bar_is_drawn_again_in_place(words, values, monkeypatch) -> None:
    """IPython as far as it is used: a shell with a kernel, and a display that is updated."""
    import sys
    from types import ModuleType, SimpleNamespace

    drawn: list[str] = []
    handle = SimpleNamespace(update=drawn.append)
    shell = ModuleType("IPython")
    shell.get_ipython = lambda: SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    shown = ModuleType("IPython.display")
    shown.HTML, shown.display = str, lambda text, display_id: drawn.append(text) or handle  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    dembench.run({**values, "protocol.batches": 2}, **{**words, "progress": True})
    assert 'value="4" max="4"' in drawn[-2]
    assert "note (stub): invented numbers" in drawn[-1]
    dembench.sweep({"seed": [5, 6]}, values, **{**words, "progress": True})
    assert 'value="2" max="2"' in drawn[-1]
    assert api.Result is not None


def own_mean(record: dict[str, Any]) -> float:
    return next(row["value"] for row in record["rows"] if (row["slice"], row["metric"]) == ("mean", "error"))


@pytest.mark.slow
def test_the_notebook_of_first_steps_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells one after the other; adapting helps, and the numbers shown are those of the records."""
    import matplotlib

    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "examples" / "first_steps.ipynb").read_text())["cells"]
    space: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells:
        assert not cell.get("outputs")
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), space)
    assert space["error_adapted"] < space["error_source"] - 0.2
    records = [json.loads(path.read_text()) for path in Path("first_steps/runs").glob("*/result.json")]
    assert len(records) == 6
    mean = {loss: np.mean([own_mean(one) for one in records if one["loss"] == loss]) for loss in ("em", "adadem")}
    shown = space["errors"].loc["mean"].to_dict()
    assert shown == pytest.approx(mean)
    assert space["found"].frame.gain[0] == pytest.approx(100 * (mean["em"] - mean["adadem"]))
    assert Path("first_steps/report/index.html").is_file()

"""The command as a user meets it: exit status, one line of error, the path last; and no torch before it is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dembench.scripts.cli import COMMANDS, main


@pytest.fixture
def stub(tmp_path: Path, stub_configs: Path) -> list[str]:
    (tmp_path / "data.txt").write_text("images")
    words = ["task=stub", f"data.root={tmp_path / 'data.txt'}", f"out={tmp_path / 'runs'}"]
    return ["--config-dir", str(stub_configs), *words]


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["rn"], ["dembench: unknown command 'rn'; nearest: run; valid: run, evaluate, sweep, "]),
        (["run", "metod=tent"], ["dembench run: unknown key 'metod'; nearest: method"]),
        (["run", "method=tnet"], ["unknown method 'tnet'; nearest: tent"]),
        (["run", "method.learning_rate=1"], ["unknown key 'method.learning_rate'", "method.lr"]),
        (["run", "data=cifar10c_generated"], ["data=cifar10c_generated needs a value: data.source=..."]),
        (["run", "device=gpu"], ["unknown device 'gpu'"]),
        (["run", "--frce"], ["dembench run: unrecognized arguments: --frce"]),
        (["run", "--config-dir"], ["--config-dir: expected one argument"]),
        (["sweep", "dmo"], ["dembench sweep: unknown sweep 'dmo'; nearest: demo"]),
        (["sweep", "demo", "--workers", "-1"], ["--workers: expected at least 0, got -1"]),
        (["sweep", "demo", "--workers", "two"], ["--workers: invalid int value: 'two'"]),
        (["sweep", "demo", "metod=x"], ["dembench sweep: unknown key 'metod'"]),
        (["sweep"], ["dembench sweep: the following arguments are required: sweep"]),
        (["list", "modle"], ["dembench list: unknown group 'modle'; nearest: model"]),
        (["list", "--task", "ttt"], ["dembench list: unknown task 'ttt'; nearest: tta"]),
        (["report", "/no/such/folder"], ["dembench report: no folder or file /no/such/folder"]),
        (["demo", "metod=x"], ["dembench demo: unknown key 'metod'"]),
    ],
)
def test_mistakes_are_one_line_and_status_2(argv: list[str], parts: list[str], capsys: pytest.CaptureFixture) -> None:
    try:
        status = main(argv)
    except SystemExit as stop:  # argparse's way
        status = stop.code
    said = capsys.readouterr()
    assert status == 2
    assert said.out == ""
    assert said.err.count("\n") == 1
    for part in parts:
        assert part in said.err


def test_run_prints_the_path_last_and_does_not_run_twice(stub: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(["run", *stub, "seed=4"]) == 0
    said = capsys.readouterr()
    path = Path(said.out.splitlines()[-1])
    result = json.loads(path.read_text())
    assert result["seed"] == 4
    assert result["command"] == " ".join(["dembench", "run", *stub, "seed=4"])
    assert "fog/5: error 0.250" in said.err
    assert "note (stub): invented numbers" in said.err
    assert "mean: error 0.2500, " in said.err
    assert main(["run", *stub, "seed=4"]) == 0
    again = capsys.readouterr()
    assert again.out == said.out
    assert "finished before" in again.err


def test_progress_can_be_switched_off(stub: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(["run", *stub, "progress=false"]) == 0
    assert capsys.readouterr().err == ""


def test_show_prints_the_configuration_and_runs_nothing(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert main(["run", "--show", "method.lr=0.5", f"out={tmp_path / 'runs'}"]) == 0
    assert "lr: 0.5" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_sweep_dry_run_then_run_then_nothing_left(
    stub: list[str], capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "grid.yaml").write_text("grids: [{seed: [0, 1]}, {protocol.mode: crash-on-2, seed: 2}]")
    command = ["sweep", str(tmp_path / "grid.yaml"), *stub, "--workers", "0"]
    assert main([*command, "--dry-run"]) == 0
    said = capsys.readouterr()
    assert "3 runs: 0 done, 3 to run" in said.err
    assert [line.split()[1] for line in said.out.splitlines()] == ["missing"] * 3
    assert not (tmp_path / "runs").exists()
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "2 run, 0 done before, 1 failed" in said
    assert "FAILED, RuntimeError: the stub broke [red]on[/] purpose" in said
    assert "error 0.2500" in said
    assert main([*command, "protocol.mode=ok", "seed=0,1"]) == 0
    assert "2 runs: 2 done, 0 to run" in capsys.readouterr().err


def first_two_words(table: str) -> dict[str, str]:
    """name -> state, of the lines that begin a row."""
    rows = [line.split() for line in table.splitlines() if not line.startswith(" ")]
    return {row[0]: row[1] for row in rows if len(row) > 1}


def test_list_names_everything_and_says_what_is_missing(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEMBENCH_DATA", str(tmp_path / "nothing"))
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for name in ("tta", "tent", "adadem", "cifar_resnet56", "digits", "continual", "cifar10_jpeg", "demo"):
        assert f"\n{name} " in out
    assert main(["list", "data"]) == 0
    out = capsys.readouterr().out
    rows = first_two_words(out)
    assert rows["digits"] == "here"
    assert rows["cifar10c"] == rows["cifar10_jpeg"] == "missing"
    assert "zenodo.org/records/2535967" in out
    assert "data.root=DIR" in out
    assert main(["list", "model"]) == 0
    rows = first_two_words(capsys.readouterr().out)
    assert rows["digits_convnet"] == "here"
    assert rows["cifar_resnet20"] == "missing"


@pytest.mark.data
def test_list_finds_what_is_there(capsys: pytest.CaptureFixture) -> None:
    assert main(["list", "data"]) == main(["list", "model"]) == 0
    rows = first_two_words(capsys.readouterr().out)
    assert rows["cifar10_jpeg"] == rows["cifar_resnet20"] == "here"


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["help"]])
def test_help_names_every_command(argv: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS)


@pytest.mark.parametrize("command", ["run", "sweep", "list", "report", "demo"])
def test_each_command_has_help(command: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"usage: dembench {command}" in capsys.readouterr().out


def test_nothing_to_do_is_wrong_usage(capsys: pytest.CaptureFixture) -> None:
    assert main([]) == 2
    assert "usage: dembench" in capsys.readouterr().out


LIGHT = """
import sys
from dembench.scripts.cli import main
for argv in (["--help"], ["--version"], ["run", "--help"], ["sweep", "--help"], ["list", "--help"], ["nonsense"]):
    try:
        main(argv)
    except SystemExit:
        pass
heavy = {"torch", "hydra", "numpy", "pandas", "matplotlib", "rich"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""


LIST = """
import sys
from dembench.scripts.cli import main
for argv in (["list", "loss"], ["list", "study"], ["list", "method"]):
    assert main(argv) == 0
sys.exit("imported torch" if "torch" in sys.modules else 0)
"""


def test_help_imports_nothing_heavy_and_names_need_no_torch() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for code in (LIGHT, LIST):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["run", "sweep", "list", "report", "demo"])
def test_each_command_is_a_module_too_from_any_folder(module: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", f"dembench.scripts.{module}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"usage: dembench {module}" in done.stdout

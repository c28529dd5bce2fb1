"""What commands import before they work, how loud they are, and what a shell is told to complete."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dembench.harness import compiler, say
from dembench.harness.compose import options
from dembench.scripts import report as report_command
from dembench.scripts.cli import COMMANDS, main
from dembench.scripts.completion import FIRST, GROUPS, complete

HEAVY = ["torch._dynamo", "torch._inductor", "scipy", "pandas", "matplotlib", "mmengine", "torchvision", "optuna"]


def loaded(*commands: list[str], modules: list[str]) -> str:
    """Which of the modules a fresh process has imported after each command."""
    program = f"""
import sys
from dembench.scripts.cli import main
for argv in {list(commands)!r}:
    try:
        main(argv)
    except SystemExit:
        pass
    print("LOADED", *[name for name in {modules!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return "\n".join(line for line in done.stdout.splitlines() if line.startswith("LOADED"))


def test_names_and_ranges_are_checked_and_names_listed_without_torch(tmp_path: Path) -> None:
    wrong = [["run", "method=tnet"], ["run", "method=tent", "method.lr=-1"], ["run", "seed=x"]]
    wrong += [["sweep", "nothing"], ["sweep", "demo", "--workers", "-1"], ["sweep", "demo", "seed=-3", "--dry-run"]]
    fine = [["list"], ["run", "--show"], ["completion", "bash"], ["suite", "--help"], ["report", "--help"]]
    found = loaded(*wrong, *fine, modules=["torch", "scipy", "pandas", "matplotlib"])
    assert found == "\n".join(["LOADED"] * (len(wrong) + len(fine)))


def test_a_run_imports_what_it_uses(tmp_path: Path) -> None:
    words = ["method=tent", "data.num_images=20", "protocol.corruptions=[fog]", "device=cpu", f"out={tmp_path}"]
    assert loaded(["run", *words], modules=["torch", "sklearn.base", *HEAVY]) == "LOADED torch"
    (record,) = tmp_path.glob("*/result.json")
    assert '"backward_passes": 1' in record.read_text()


@pytest.mark.parametrize("name", ["Adam", "SGD", "AdamW"])
def test_optimizers_without_the_compiler_step_as_they_do_with_it(name: str) -> None:
    def ends() -> torch.Tensor:
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 7))
        optimizer = getattr(torch.optim, name)([weight], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            (weight.sin() * weight).sum().backward()
            optimizer.step()
        assert torch.is_grad_enabled()
        return weight.detach()

    compiler.on_demand()
    assert torch.equal(ends(), by_hand(name))


def test_once_the_compiler_is_there_optimizers_are_as_torch_made_them() -> None:
    script = """
import sys, torch
from dembench.harness import compiler
compiler.on_demand()
def ends():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weight], lr=0.1)
    (weight ** 2).sum().backward()
    optimizer.step()
    return weight.detach()
first = ends()
assert "torch._dynamo" not in sys.modules
import torch._dynamo
assert torch.equal(ends(), first)
marked = vars(torch.optim.Optimizer.add_param_group.__wrapped__)["__dynamo_disable"]
assert marked.__module__.startswith("torch."), marked.__module__
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def by_hand(name: str) -> torch.Tensor:
    """The same three steps by torch's own functions for lists of tensors, which no wrapper surrounds."""
    from torch.optim import adam, adamw, sgd

    weight = torch.linspace(-1, 1, 7)
    first, second, steps = [torch.zeros(7)], [torch.zeros(7)], [torch.tensor(0.0)]
    for _ in range(3):
        own = weight.clone().requires_grad_()
        (own.sin() * own).sum().backward()
        grads = [own.grad]
        if name == "SGD":
            common = {"weight_decay": 0, "momentum": 0, "lr": 0.1, "dampening": 0, "nesterov": False, "maximize": False}
            sgd.sgd([weight], grads, [None], foreach=False, has_sparse_grad=False, **common)
        else:
            function, decay = (adam.adam, 0) if name == "Adam" else (adamw.adamw, 0.01)
            common = {"amsgrad": False, "beta1": 0.9, "beta2": 0.999, "lr": 0.1, "weight_decay": decay, "eps": 1e-8}
            function([weight], grads, first, second, [], steps, foreach=False, maximize=False, **common)
    return weight


def test_quiet_leaves_results_and_errors_and_verbose_says_more(
    tmp_path: Path, stub_configs: Path, capsys: pytest.CaptureFixture
) -> None:
    data = tmp_path / "data.txt"
    data.write_text("x")
    words = ["run", "task=stub", f"data.root={data}", f"out={tmp_path}/runs", "--config-dir", str(stub_configs)]
    assert main(["-q", *words]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.strip().endswith("result.json")
    assert main([*words, "-v", "seed=1"]) == 0
    said = capsys.readouterr().err
    assert "prepared in" in said
    assert main([*words, "--quiet", "device=gpu"]) == 2
    assert "unknown device 'gpu'" in capsys.readouterr().err
    assert not say.is_quiet()  # the next command is as loud as usual


def test_what_takes_longer_than_a_second_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(say, "FIRST", 0.05)
    with say.alive(lambda: "", first="preparing a run"):
        time.sleep(0.3)
    assert capsys.readouterr().err == "preparing a run\n"
    with say.alive(lambda: "", first="preparing another"):
        pass
    assert capsys.readouterr().err == ""


def test_no_color(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert main(["list", "loss"]) == 0
    assert "\x1b[36m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["list", "loss"]) == 0
    out = capsys.readouterr().out
    assert "adadem" in out
    assert "\x1b[3" not in out


def test_something_is_said_while_nothing_happens(capsys: pytest.CaptureFixture) -> None:
    with say.alive(lambda: "still here", every=0.1):
        time.sleep(0.55)
    count = capsys.readouterr().err.count("still here")
    assert 3 <= count <= 6
    with say.alive(lambda: "still here", every=0.2):
        for _ in range(6):
            time.sleep(0.05)
            say.say("news")
    assert "still here" not in capsys.readouterr().err


def test_watching_writes_the_page_anew_when_a_run_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    pauses = iter(["none", "one", "same", "two"])

    def write(runs: list[Path], out: Path, **options: object) -> Path:
        seen.append(len(list(tmp_path.glob("*/result.json"))))
        return out

    def sleep(seconds: float) -> None:
        match next(pauses, None):
            case "one" | "two" as name:
                (tmp_path / name).mkdir()
                (tmp_path / name / "result.json").write_text("{}")
            case None:
                raise KeyboardInterrupt

    monkeypatch.setattr("dembench.report.write_report", write)
    monkeypatch.setattr(report_command.time, "sleep", sleep)
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "page"), "--watch"]) == 0
    assert seen == [1, 2, 2]  # and once more at the end


def test_completion_knows_commands_options_and_names() -> None:
    assert complete([""]) == sorted([*COMMANDS, "--help", "--version"])
    assert complete(["sw"]) == ["sweep"]
    assert complete(["run", "method=tipi_"]) == ["method=tipi_official"]
    assert complete(["run", "task=semi", "method=fix"]) == ["method=fixmatch"]
    assert complete(["run", "loss="]) == [f"loss={name}" for name in options("loss")]
    assert {"task=", "data=", "device="} <= set(complete(["run", ""]))
    assert complete(["run", "device="]) == ["device=auto", "device=cpu", "device=cuda"]
    assert "--dry-run" in complete(["suite", "--d"])
    assert complete(["sweep", "dem"]) == ["demo"]
    assert complete(["sweep", "study=ttc_table2"]) == ["study=ttc_table2"]
    assert complete(["suite", "q"]) == ["quick"]
    assert set(FIRST["list"]) >= set(GROUPS)
    assert complete(["nonsense", ""]) == []
    for command in COMMANDS:
        assert all(option.startswith("--") for option in complete([command, "--"]))


def test_the_script_for_bash_completes(tmp_path: Path) -> None:
    if (bash := shutil.which("bash")) is None:
        pytest.skip("no bash")
    command = tmp_path / "dembench"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m dembench "$@"\n')
    command.chmod(0o755)
    program = """
source <(dembench completion bash)
compopt() { :; }
for line in "dembench run method=tipi_" "dembench sw" "dembench list "; do
    COMP_LINE="$line" COMP_POINT=${#line} COMPREPLY=()
    _dembench
    echo "${COMPREPLY[@]}"
done
"""
    variables = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([bash, "-c", program], capture_output=True, text=True, env=variables, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] in ("tipi_official", "method=tipi_official")
    assert lines[1] == "sweep"
    assert lines[2].split() == sorted(FIRST["list"])


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_scripts_of_other_shells_are_read_by_them(shell: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "dembench completion words -- " in script.replace("${words[1]}", "dembench")
    if (program := shutil.which(shell)) is not None:
        subprocess.run([program, "-n"], input=script, text=True, check=True)

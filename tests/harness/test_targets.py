"""Which code a configuration may name; everything else is a line and is never imported."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dembench.harness import targets
from dembench.harness.compose import ConfigError, compose
from dembench.scripts.cli import main
from dembench.tasks.common import trust

ROOT = Path(__file__).parents[2]
COMMAND = "touch marker"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own, in a current folder that has a marker where a command was run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(trust.ALLOWED, raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(trust, "_folders", {})
    (tmp_path / "mine" / "loss").mkdir(parents=True)
    return tmp_path / "mine"


def refused(capsys: pytest.CaptureFixture[str], *words: str, match: str) -> None:
    """A command ends with one line and status 2, and nothing was run."""
    assert main(list(words)) == 2
    said = capsys.readouterr()
    assert match in said.err
    assert said.err.count("\n") == 1
    assert not Path("marker").exists()


@pytest.mark.parametrize(
    "target",
    [
        "os.system", "subprocess.getoutput", "builtins.eval", "sympy.sympify", "joblib.load", "pandas.read_pickle",
        "torch.load", "numpy.load", "mmengine.fileio.load", "torch.nn.CrossEntropyLoss", "hydra.utils.instantiate",
        "dembench.harness.runs.os.system", "dembench.tasks.common.files.os.system",
        "dembench.tasks.common.files.write_atomic", "dembench.core.functional.F.softmax", "dembench.scripts.cli.main",
        "dembench.harness.search.trials.Search", "dembench.harness.runs.write_json", "dembench.core", "dembench",
        "no_such_module.f", "dembench.core.NoSuchLoss", "", "a b", "os.system()", ".os", "../evil.py", "évil.f",
    ],
)  # fmt: skip
def test_a_target_that_is_not_ours_is_refused_however_it_is_given(own, capsys, target) -> None:
    (own / "loss" / "evil.yaml").write_text(f"_target_: {json.dumps(target)}\ncommand: {COMMAND}\n")
    node = f"{{_target_: {json.dumps(target)}, command: {COMMAND}}}"
    Path("grid.yaml").write_text(f"base: {{method: tent, loss: em, +loss.x: {node}}}\ngrids: [{{seed: 0}}]\n")
    Path("leaf.yaml").write_text(
        f"base: {{method: tent, loss: em, loss._target_: {json.dumps(target)}}}\ngrids: [{{}}]\n"
    )
    match = "loss"
    refused(capsys, "run", "loss=evil", "--config-dir", "mine", "out=runs", match=match)
    refused(capsys, "run", f"loss._target_='{target}'", "out=runs", match=match)
    refused(capsys, "sweep", "grid.yaml", "--dry-run", match=match)
    refused(capsys, "sweep", "leaf.yaml", "--dry-run", match=match)
    assert not Path("runs").exists()


HIDDEN = {
    "nested": "a: {b: {_target_: os.system, command: touch marker}}",
    "list": "a: [1, {_target_: os.system, command: touch marker}]",
    "partial": "a: {_target_: os.system, _partial_: true, command: touch marker}",
    "arguments": "a: {_target_: dembench.core.EM, _args_: [{_target_: os.system, _args_: [touch marker]}]}",
    "resolved": "b: os.system\na: {_target_: '${loss.b}', command: touch marker}",
    "created": "a: ${oc.create:{_target_: os.system, command: touch marker}}",
    "twice": r"a: '\${oc.create:{_target_: os.system, command: touch marker}}'",
    "number": "a: {_target_: 3}",
    "texts": "a: {_target_: [os.system]}",
    "path": "a: !!python/object/apply:pathlib.PosixPath [/tmp]",
    "bytes": "a: !!binary aGVsbG8=",
}


@pytest.mark.parametrize("form", HIDDEN)
def test_wherever_it_is_hidden(own, capsys, form) -> None:
    (own / "loss" / "evil.yaml").write_text(f"_target_: dembench.core.EM\n{HIDDEN[form]}\n")
    refused(capsys, "run", "loss=evil", "--config-dir", "mine", match="loss")
    Path("grid.yaml").write_text(
        yaml.safe_dump({"base": {"loss": "em"}, "grids": [{"+loss.a": "${oc.create:{_target_: os.system}}"}]})
    )
    refused(capsys, "sweep", "grid.yaml", "--dry-run", match="loss.a: _target_ os.system")


def test_a_module_of_the_folder_and_one_that_is_allowed_are_built(own, capsys) -> None:
    code = "import os\nimport torch\nfrom torch.nn import Module\n\nclass Mine(torch.nn.Module):\n    pass\n"
    (own / "folder_losses.py").write_text(code)
    Path("current_losses.py").write_text(code)
    named = {"one": "folder_losses.Mine", "two": "current_losses.Mine", "three": "torch.nn.Identity"}
    for name, target in {**named, "bad": "folder_losses.os.system"}.items():
        (own / "loss" / f"{name}.yaml").write_text(f"_target_: {target}\n")
    assert type(targets.build({"_target_": compose(["loss=one"], own).loss._target_})).__name__ == "Mine"
    refused(capsys, "run", "loss=bad", "--config-dir", "mine", match="leads into another package, ")
    refused(capsys, "run", "loss=two", "--config-dir", "mine", match="say --allow-target current_losses")
    assert "current_losses" not in sys.modules
    assert main(["run", "loss=two", "--config-dir", "mine", "--allow-target", "current_losses", "--show"]) == 0
    assert targets.build({"_target_": "current_losses.Mine"}).__module__ == "current_losses"
    refused(capsys, "run", "loss=three", "--config-dir", "mine", match="say --allow-target torch.nn")
    trust.allow("torch.nn.Identity")
    assert compose(["loss=three"], own).loss._target_ == "torch.nn.Identity"
    with pytest.raises(ConfigError, match="not allowed"):
        targets.permit("torch.nn.IdentityOfAnother", "loss")
    assert trust.arguments(own)[-2:] == ["--allow-target", "torch.nn.Identity"]
    with pytest.raises(SystemExit):
        main(["run", "--allow-target", "os;system"])


def test_a_module_with_the_name_of_an_installed_one_is_refused(own, capsys) -> None:
    (own / "yaml.py").write_text("raise RuntimeError\n")
    (own / "loss" / "evil.yaml").write_text("_target_: yaml.unsafe_load\nstream: 1\n")
    refused(capsys, "run", "loss=evil", "--config-dir", "mine", match="another module is called yaml, too; rename")


def test_nothing_in_the_current_folder_is_imported(tmp_path) -> None:
    """Neither plugins of Hydra nor packages that are optional and not installed here."""
    code = "import pathlib; pathlib.Path('marker').touch()\n"
    (tmp_path / "hydra_plugins.py").write_text(code)
    for name in ("mlflow", "wandb", "tensorrt", "sitecustomize_of_dembench"):
        (tmp_path / f"{name}.py").write_text(code)
    script = "import sys; from dembench.scripts.cli import main; sys.exit(main(sys.argv[1:]))"
    for path in ("", str(tmp_path)):  # also where the current folder is on the path, as with `python -m`
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH", "")])),
        }
        done = subprocess.run([sys.executable, "-P", "-c", script, "run", "--show"], cwd=tmp_path, env=environment,
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert not (tmp_path / "marker").exists()


def test_what_is_shipped_names_dembench_only_and_one_module_instantiates() -> None:
    found = {
        target
        for file in (ROOT / "configs").rglob("*.yaml")
        for target in _targets(yaml.safe_load(file.read_text(encoding="utf-8")))
    }
    found -= {"???"}  # the user names it
    assert found - {"???"} == targets.shipped()  # what model=my.module.Net fills in
    assert all(target.startswith("dembench.") for target in found)
    for room in ("core", "tasks", "harness", "report", "scripts"):
        for file in (ROOT / room).rglob("*.py"):
            names = {
                alias.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)
                for alias in node.names
            }  # fmt: skip
            assert ("instantiate" in names) == (file.name == "targets.py"), file


def _targets(node: object) -> list[str]:
    if isinstance(node, dict):
        return [v for k, v in node.items() if k == "_target_"] + [t for v in node.values() for t in _targets(v)]
    return [t for v in node for t in _targets(v)] if isinstance(node, list) else []

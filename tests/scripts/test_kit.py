"""The kit for a machine without network: what goes into it, and that it installs where nothing is."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest

from dembench.scripts import kit
from dembench.scripts.kit import canonical, closure, line, main, names, pinned

needs_all = pytest.mark.skipif(
    not {"opencv-python", "ray", "pygame-ce", "nvidia-cublas"} <= {canonical(there.name) for there in distributions()},
    reason="needs dembench[test] by constraints.txt: what packages need is read from those installed here",
)
BACKEND = """
import zipfile
def build_wheel(directory, settings=None, metadata=None):
    name = "antlr4_python3_runtime-4.9.3"
    with zipfile.ZipFile(f"{directory}/{name}-py3-none-any.whl", "w") as wheel:
        for member, text in FILES.items():
            wheel.writestr(member, text)
    return f"{name}-py3-none-any.whl"
"""


def files(name: str, version: str, module: str) -> dict[str, str]:
    """Members of a wheel with one module."""
    info = f"{name}-{version}.dist-info"
    members = {
        f"{module}.py": "here = True\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digest = {
        member: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        for member, text in members.items()
    }
    record = [f"{member},sha256={digest[member]},{len(text)}" for member, text in members.items()]
    return {**members, f"{info}/RECORD": "\n".join([*record, f"{info}/RECORD,,"]) + "\n"}


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All that pip can reach: a wheel named hydra-core and a source archive of antlr4, both made here."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "hydra_core-1.3.8-py3-none-any.whl", "w") as wheel:
        for member, text in files("hydra_core", "1.3.8", "hydra").items():
            wheel.writestr(member, text)
    source = tmp_path / "antlr4-python3-runtime-4.9.3"
    source.mkdir()
    (source / "pyproject.toml").write_text(
        "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
    )
    (source / "backend.py").write_text(f"FILES = {files('antlr4_python3_runtime', '4.9.3', 'antlr4')!r}\n{BACKEND}")
    (source / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: antlr4-python3-runtime\nVersion: 4.9.3\n")
    with tarfile.open(folder / f"{source.name}.tar.gz", "w:gz") as archive:
        archive.add(source, source.name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def everything_but(tmp_path: Path, *wanted: str) -> Path:
    """A list of packages with all that is needed but ``wanted``."""
    there = tmp_path / "there.txt"
    there.write_text("\n".join(name for name in closure(["all"], "3.12", set()) if name not in wanted))
    return there


@needs_all
def test_needs_are_followed_up_to_what_is_there() -> None:
    everything = closure(["all"], "3.12", set())
    assert {"torch", "hydra-core", "omegaconf", "antlr4-python3-runtime", "pygame-ce", "wcwidth", "sqlalchemy"} <= {
        *everything
    }
    assert "ray" not in everything  # no part of `all`
    without = closure(["all"], "3.12", {"hydra-core", "omegaconf"})
    assert {*everything} - {*without} == {"hydra-core", "omegaconf", "antlr4-python3-runtime"}
    assert closure([], "3.12", {*everything}) == []
    assert "minigrid" not in closure(["prompt"], "3.12", set())


@needs_all
def test_every_package_that_a_kit_can_need_has_a_version() -> None:
    specs = pinned(closure(["all", "ray", "loggers"], "3.12", set()))
    assert "antlr4-python3-runtime==4.9.3" in specs
    with pytest.raises(ValueError, match="no version of nothing-of-the-kind"):
        pinned(["torch", "nothing-of-the-kind"])


def test_lists_of_packages() -> None:
    text = "# a comment\nFarama-Notifications==0.0.6\n\n  open_clip_torch\nzope.interface>=5 ; python_version > '3'\n"
    assert [canonical(name) for name in names(text)] == ["farama-notifications", "open-clip-torch", "zope-interface"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--python", "312"], "--python: expected a version such as 3.12"),
        (["--extra", "nothing"], "unknown extra 'nothing'; valid: timm, minigrid, "),
        (["--data", "no/such/file"], "--data: no no/such/file"),
        (["--have", "no/such/file"], "no/such/file"),
    ],
)
def test_wrong_words(words: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "kit"), *words]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "kit").exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("mine")
    assert main([str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err


@needs_all
def test_what_has_no_wheel_and_cannot_be_built_is_named(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "kit"), "--have", str(everything_but(tmp_path, "safetensors"))]) == 2
    assert "safetensors==0.8.0: no wheel for that machine, and none can be built" in capsys.readouterr().err


def test_a_wheel_built_for_this_machine_is_refused(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pip(*words: str) -> subprocess.CompletedProcess[str]:
        if words[0] == "wheel":
            (tmp_path / "x-1-cp311-cp311-linux_x86_64.whl").touch()
        return subprocess.CompletedProcess(words, int(words[0] == "download"), "", "none")

    monkeypatch.setattr(kit, "pip", pip)
    with pytest.raises(ValueError, match="gives x-1-cp311-cp311-linux_x86_64.whl, which is for this machine only"):
        kit.fetch("x==1", tmp_path, kit.parser().parse_args(["kit"]))
    assert not list(tmp_path.glob("*.whl"))


def test_the_line_for_a_tree_that_comes_another_way() -> None:
    assert 'ln -sfn "$PWD" kit/site/dembench' in line("kit", tree=False, data=False)
    assert "ln -sfn" not in line("kit", tree=True, data=False)
    assert "DEMBENCH_DATA" in line("kit", tree=True, data=True)


def python_312() -> str:
    """Python 3.12 where it is on the PATH or among pyenv's, else this Python."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    found = [shutil.which("python3.12"), *sorted(map(str, pyenv.glob("versions/3.12*/bin/python3.12")))]
    works = (p for p in found if p and not subprocess.run([p, "--version"], capture_output=True).returncode)
    return next(works, sys.executable)


@needs_all
@pytest.mark.slow
def test_the_kit_installs_where_nothing_is(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wheel, one built from its source archive, the tree and data, by the printed line in an empty environment."""
    data = tmp_path / "all data"
    (data / "data/set").mkdir(parents=True)
    (data / "data/set/file").write_text("seen")
    monkeypatch.setenv("DEMBENCH_DATA", str(data))
    there = everything_but(tmp_path, "hydra-core", "antlr4-python3-runtime")
    folder = tmp_path / "my kit"
    assert main([str(folder), "--have", str(there), "--data", str(data / "data/set")]) == 0
    command = capsys.readouterr().out.splitlines()[-1]
    assert {file.name for file in (folder / "wheels").iterdir()} == {
        "hydra_core-1.3.8-py3-none-any.whl",
        "antlr4_python3_runtime-4.9.3-py3-none-any.whl",
    }
    assert (folder / "data/data/set/file").read_text() == "seen"
    assert (folder / "dembench/core/functional.py").is_file()
    assert not (folder / "dembench/docs/results").exists()
    subprocess.run([python_312(), "-m", "venv", tmp_path / "empty"], check=True, timeout=120)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "PYTHON", "DEMBENCH"))}
    clean["PATH"] = f"{tmp_path / 'empty/bin'}:/usr/bin:/bin"

    def run(line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=120
        )

    code = "import hydra, antlr4, os; print(hydra.__file__, antlr4.__file__, os.environ['DEMBENCH_DATA'], sep='\\n')"
    done = run(command.replace("-m dembench check gpu", f'-c "{code}"'))
    assert done.stdout.splitlines() == [f"{folder}/site/hydra.py", f"{folder}/site/antlr4.py", f"{folder}/data"], done
    assert "dembench COMMAND" in run(command.replace("check gpu", "--help")).stdout
    assert "No module named 'torch'" in run(command).stderr  # which alone is missing before a device is looked for

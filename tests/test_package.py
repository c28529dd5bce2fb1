"""What is installed: one top-level name, complete, and the same from whichever folder it is used."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

from dembench.scripts.lowest import lowest

ROOT = Path(__file__).parents[1]
SUPPORT = ROOT / "tests" / "support"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]
FOLDERS = sorted({package.split(".")[1] for package in PACKAGES if "." in package})
NAMES = ("core", "tasks", "configs", "scripts", "harness", "report", "lookup", "records")  # that a user may have, too

IMPORTED = """
import sys
before = set(sys.modules)
import dembench
assert "torch" not in sys.modules
assert {name for name in set(sys.modules) - before if "dembench" in name} == {"dembench"}
import torch
before = set(sys.modules)
from dembench import AdaDEM
print(*sorted(set(sys.modules) - before))
"""
USED = """
import sys
from dembench import AdaDEM, DEM, EM, CADF, GMC
from dembench.scripts.cli import main
import dembench, torch
print(dembench.__file__)
AdaDEM()(torch.zeros(2, 3))
sys.exit(main(sys.argv[1:]))
"""


def files(folder: Path) -> set[str]:
    """Paths of all files below a folder, as they were written by hand."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_list_of_packages_is_what_is_on_the_disk() -> None:
    found = {"dembench"}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join(["dembench", *path.parent.relative_to(ROOT).parts]))
    assert sorted(PACKAGES) == sorted(found)
    for path in ROOT.glob("*/__init__.py"):
        assert path.parent.name in FOLDERS


def test_the_package_imports_nothing_and_the_losses_import_torch_alone() -> None:
    """More than ``import torch`` would take is a handful of our own modules and of the standard library."""
    done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, env=environment(sys.path))
    assert done.returncode == 0, done.stderr
    for name in done.stdout.split():
        top = name.partition(".")[0]
        assert name.startswith("dembench.core") or top == "torch" or top in sys.stdlib_module_names, name


def test_every_requirement_has_a_lowest_version_and_a_tested_one() -> None:
    """What ``make test-oldest`` and ``make setup`` install."""
    tested = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    tested = {canonical(name): release(version) for name, version in tested.items()}
    found = lowest(PROJECT["project"])
    assert {"torch", "hydra-core", "optuna", "pytest"} <= found.keys()
    assert all(release(version) <= tested[canonical(name)] for name, version in found.items())


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def test_a_requirement_without_a_lower_bound_is_refused() -> None:
    project = {"name": "x", "dependencies": ["a-b[c]>=1.5,<2"], "optional-dependencies": {"d": ["x[all]", "e<3"]}}
    with pytest.raises(ValueError, match="e<3: no lower bound"):
        lowest(project)
    project["optional-dependencies"]["d"] = ["x[all]"]
    assert lowest(project) == {"a-b": "1.5"}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package's sources, as a checkout is named by default; building leaves folders behind."""
    place = tmp_path_factory.mktemp("parent") / "dembench"
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, place / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, place)
    return place


def environment(path: list[str] | None = None) -> dict[str, str]:
    """Of a child that sees only what is installed, and ``path``."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "DEMBENCH_DATA")}
    return kept | ({"PYTHONPATH": os.pathsep.join(filter(None, path))} if path else {})


def run(*command: str | Path, cwd: Path) -> str:
    words = list(map(str, command))
    done = subprocess.run(words, capture_output=True, text=True, cwd=cwd, env=environment(), timeout=300)
    assert done.returncode == 0, f"{words} in {cwd}: {done.stderr or done.stdout}"
    return done.stdout


def pip(*words: str | Path, cwd: Path, python: str | Path = sys.executable) -> None:
    run(sys.executable, "-m", "pip", "--python", python, "--quiet", "--disable-pip-version-check", *words, cwd=cwd)


def fresh(folder: Path) -> Path:
    """The Python of a new environment over the packages of this one, without what is installed here of ours, and with
    a package ``core`` of somebody else."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    below = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))  # their .pth files are not read
    (site / "below.pth").write_text("\n".join(below) + "\n")
    (site / "core").mkdir()
    (site / "core" / "__init__.py").write_text("raise RuntimeError('the core of another distribution')\n")
    return python


@pytest.fixture(scope="module")
def wheel(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", out, clone, cwd=out)
    (found,) = out.glob("dembench-*.whl")
    return found


def test_the_wheel_holds_every_file_of_the_package_and_nothing_beside_it(wheel: Path) -> None:
    members = set(zipfile.ZipFile(wheel).namelist())
    assert {member.partition("/")[0] for member in members} == {"dembench", f"dembench-{version()}.dist-info"}
    held = {member.removeprefix("dembench/") for member in members if member.startswith("dembench/")}
    wanted = {f"{folder}/{name}" for folder in FOLDERS for name in files(ROOT / folder)}
    assert held == wanted | {"__init__.py", "__main__.py", "lookup.py", "records.py", "py.typed"}
    for kind in ("run.yaml", "page.html.j2", "py.typed"):  # not only what the disk happens to have
        assert any(name.endswith(kind) for name in held), kind


def version() -> str:
    return str(json.loads(run(sys.executable, "-c", READ_VERSION, str(ROOT / "__init__.py"), cwd=ROOT)))


READ_VERSION = """
import ast, json, sys
for node in ast.parse(open(sys.argv[1]).read()).body:
    if isinstance(node, ast.Assign) and node.targets[0].id == "__version__":
        print(json.dumps(node.value.value))
"""


def use(python: Path, place: Path, installed: Path) -> None:
    """Runs in a folder, with a task of its own beside it, and lists; the package comes from ``installed``."""
    shutil.copytree(SUPPORT / "configs", place / "mine", dirs_exist_ok=True)
    (place / "data.txt").write_text("images")
    words = ("run", "--config-dir", "mine", "task=stub", "data.root=data.txt", "progress=false", "device=cpu")
    said = run(python, "-c", USED, *words, cwd=place).splitlines()  # Python looks into the current folder first
    assert Path(said[0]).resolve() == (installed / "__init__.py").resolve()
    assert json.loads((place / said[-1]).read_text())["rows"][0]["value"] == 0.25
    assert "adadem" in run(python.parent / "dembench", "list", "loss", cwd=place)


def of_ones_own(folder: Path, with_init: bool) -> Path:
    """A folder of a project that has packages named as ours."""
    for name in NAMES:
        (folder / name).mkdir(parents=True)
        code = folder / name / ("__init__.py" if with_init else "own.py")
        code.write_text("raise RuntimeError('the package of the current folder')\n")
    return folder


def sweep(python: Path, place: Path) -> None:
    """Two processes; the current folder comes first on the path of ``python -m``."""
    (place / "grid.yaml").write_text(
        "base: {task: stub, data.root: data.txt, out: swept, device: cpu}\ngrids: [{seed: [5, 6]}]\n"
    )
    run(python, "-m", "dembench", "sweep", "grid.yaml", "--config-dir", "mine", "--workers", "2", cwd=place)
    assert len(list((place / "swept").glob("*/result.json"))) == 2


def test_a_wheel_is_used_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    python = fresh(tmp_path / "venv")
    pip("install", "--no-deps", "--ignore-installed", wheel, cwd=tmp_path, python=python)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    (tmp_path / "empty").mkdir()
    assert "tta" in run(python.parent / "dembench", "list", "task", cwd=tmp_path / "empty")
    use(python, of_ones_own(tmp_path / "without", with_init=False), site / "dembench")
    use(python, of_ones_own(tmp_path / "with", with_init=True), site / "dembench")
    sweep(python, tmp_path / "with")


def test_an_editable_install_is_used_from_any_folder(clone: Path, tmp_path: Path) -> None:
    python = fresh(tmp_path / "venv")
    pip("install", "--no-deps", "--ignore-installed", "--no-build-isolation", "-e", clone, cwd=tmp_path, python=python)
    own = of_ones_own(tmp_path / "with", with_init=True)
    assert "tta" in run(python.parent / "dembench", "list", "task", cwd=own)
    use(python, clone.parent, clone)
    use(python, clone, clone)
    sweep(python, clone)
    said = run(python, "-c", "from core import AdaDEM; print(AdaDEM.__module__)", cwd=clone)
    assert said.strip() == "core.losses"  # in a checkout

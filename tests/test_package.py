"""The wheel holds everything that runs need, and works from there alone."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    files = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-co", "--exclude-standard", "-z"], capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, files):  # a copy: building leaves folders behind
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", out, source]
    subprocess.run(command, check=True, timeout=300)
    (found,) = out.glob("dembench-*.whl")
    return found


@pytest.mark.slow
def test_wheel_holds_code_configurations_and_the_reports_files(wheel: Path) -> None:
    members = set(zipfile.ZipFile(wheel).namelist())
    here = {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml")}
    assert here <= members
    for package in ("core", "tasks", "scripts"):
        here = {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*") if path.is_file()}
        assert {name for name in here if "__pycache__" not in name} <= members
    assert not {name for name in members if name.startswith(("tests", "docs", "examples"))}


@pytest.mark.slow
def test_an_unpacked_wheel_runs_from_any_folder(wheel: Path, tmp_path: Path, stub_configs: Path) -> None:
    place, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            archive.extract(member, place)
    (elsewhere / "data.txt").write_text("images")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(place), str(stub_configs.parent)])}
    environment.pop("DEMBENCH_DATA", None)

    def dembench(*words: str) -> str:
        command = [sys.executable, "-P", "-c", "import sys, scripts.cli; sys.exit(scripts.cli.main())", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=elsewhere, env=environment, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = [sys.executable, "-P", "-c", "import configs, core, tasks; print(configs.__file__)"]
    found = subprocess.run(where, capture_output=True, text=True, cwd=elsewhere, env=environment, check=True).stdout
    assert found.startswith(str(place))
    assert "adadem" in dembench("list")
    path = dembench("run", "--config-dir", str(stub_configs), "task=stub", "data.root=data.txt").splitlines()[-1]
    assert (elsewhere / path).is_file()

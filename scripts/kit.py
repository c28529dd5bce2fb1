"""dembench kit: a folder with all that a machine without network needs, wheels, this tree and chosen data."""

from __future__ import annotations

import argparse
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from dembench.records import read_text
from dembench.scripts.cli import Parser, fail

ROOT = Path(__file__).resolve().parent.parent
CHECKS = ("pytest", "pytest-xdist", "hypothesis")  # what `dembench check gpu` runs tests with
LEFT_OUT = (":(exclude)docs/results",)
EPILOG = """The packages are those of the extras and what these need, at the versions of constraints.txt; needs are read
from the packages installed here. What --have names is taken to be there with all that it needs; `python3 -m pip list
--format=freeze` of that machine writes such a file. A path of --data that lies in $DEMBENCH_DATA keeps its place there.

  dembench kit kit --have there.txt
  dembench kit kit --have there.txt --data $DEMBENCH_DATA/data/digits

Prints the size, and one line that installs the wheels beside that machine's own packages and checks its GPU."""


def parser() -> argparse.ArgumentParser:
    p = Parser("dembench kit", description="Prepare a folder for a machine without network.", epilog=EPILOG)
    p.add_argument("folder", type=Path, help="new or empty; copy it as it is")
    p.add_argument("--python", default="3.12", metavar="X.Y", help="of that machine (default 3.12)")
    p.add_argument("--machine", default="x86_64", help="its processor (default x86_64)")
    p.add_argument("--glibc", type=int, default=35, metavar="N", help="newest glibc 2.N it can load (default 35)")
    p.add_argument(
        "--have", type=Path, metavar="FILE", help="packages that are there, one a line; versions are ignored"
    )
    p.add_argument("--extra", action="append", metavar="NAME", help="of pyproject.toml; default: all")
    p.add_argument(
        "--data", type=Path, action="append", default=[], metavar="PATH", help="a file or folder to take along"
    )
    p.add_argument("--wheels-only", action="store_true", help="no tree, for a machine that gets the tree another way")
    p.add_argument("--dry-run", action="store_true", help="show the packages and fetch nothing")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    try:
        return make(args)
    except (OSError, ValueError) as error:
        return fail(f"dembench kit: {error}")


def make(args: argparse.Namespace) -> int:
    """Raises: ValueError for what cannot be had, with the reason; OSError for files."""
    if not re.fullmatch(r"3\.\d+", args.python):
        raise ValueError(f"--python: expected a version such as 3.12, got {args.python!r}")
    if args.folder.exists() and any(args.folder.iterdir()):
        raise ValueError(f"{args.folder} is not empty")
    missing = [path for path in args.data if not path.exists()]
    if missing:
        raise ValueError(f"--data: no {missing[0]}")
    have = {canonical(name) for name in names(read_text(args.have))} if args.have else set()
    needed = pinned(closure(args.extra or ["all"], args.python, have))
    if args.dry_run:
        print("\n".join(needed))
        return 0
    wheels = args.folder / "wheels"
    wheels.mkdir(parents=True)
    for spec in needed:
        print(spec, flush=True)
        fetch(spec, wheels, args)
    if not args.wheels_only:
        export(args.folder / "dembench")
    for path in args.data:
        take(path, args.folder / "data")
    size = sum(file.stat().st_size for file in args.folder.rglob("*") if file.is_file())
    print(f"{len(needed)} wheels, {size / 2**20:.1f} MiB in all. On that machine, from the folder that holds it:")
    print(line(args.folder.name, tree=not args.wheels_only, data=bool(args.data)))
    return 0


def take(path: Path, data: Path) -> None:
    """Copies a file or folder to its place in the kit's $DEMBENCH_DATA."""
    path = path.resolve()
    here = Path(os.environ.get("DEMBENCH_DATA") or path.parent).resolve()
    target = data / (path.relative_to(here) if path.is_relative_to(here) else path.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, target, dirs_exist_ok=True)
    else:
        shutil.copy(path, target)


def line(kit: str, *, tree: bool, data: bool) -> str:
    """The shell command that installs the wheels beside the machine's packages and checks its GPU.

    Without the tree in the kit it has to be run in the tree, which is then imported by a link to it.
    """
    kit = shlex.quote(kit)
    steps = [
        f"python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target {kit}/site {kit}/wheels/*.whl"
    ]
    if not tree:
        steps.append(f'ln -sfn "$PWD" {kit}/site/dembench')
    path = f'"$PWD"/{kit}:"$PWD"/{kit}/site' if tree else f'"$PWD"/{kit}/site'
    folder = f' DEMBENCH_DATA="$PWD"/{kit}/data' if data else ""
    steps.append(f"PYTHONPATH={path}{folder} python3 -m dembench check gpu")
    return " && ".join(steps)


def canonical(name: str) -> str:
    """A package's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def names(text: str) -> list[str]:
    """Names in a list such as `pip list --format=freeze` or `pip freeze` gives; comments are skipped."""
    found = (re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)", line) for line in text.splitlines())
    return [match[1] for match in found if match]


def closure(extras: Iterable[str], python: str, have: set[str]) -> list[str]:
    """Names of all packages that are needed and not there, sorted; what is there is not looked into.

    Raises: ValueError for an unknown extra, or a package that is not installed here.
    """
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    found: set[str] = set()
    todo = [*project["dependencies"], *CHECKS, *(f"{project['name']}[{extra}]" for extra in extras)]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        need = Requirement(todo.pop())
        name, wanted = canonical(need.name), frozenset(need.extras)
        if name in have or (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        if name == project["name"]:
            unknown = wanted - optional.keys()
            if unknown:
                raise ValueError(f"unknown extra {min(unknown)!r}; valid: {', '.join(optional)}")
            todo += [text for extra in wanted for text in optional[extra]]
            continue
        found.add(name)
        try:
            texts = requires(name) or []
        except PackageNotFoundError:
            raise ValueError(f"{name} is not installed here, so what it needs is not known") from None
        todo += [text for text in texts if _applies(Requirement(text), python, wanted)]
    return sorted(found)


def _applies(need: object, python: str, extras: Iterable[str]) -> bool:
    """Whether a requirement holds on Linux for this version of Python."""
    there = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "os_name": "posix",
    }
    marker = need.marker  # type: ignore[attr-defined]
    return marker is None or any(marker.evaluate({**there, "extra": extra}) for extra in ["", *extras])


def pinned(wanted: Iterable[str]) -> list[str]:
    """name==version of each, by constraints.txt. Raises: ValueError for one that is not in it."""
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pins = {canonical(line.split("==")[0]): line for line in lines if "==" in line}
    unpinned = [name for name in wanted if name not in pins]
    if unpinned:
        raise ValueError(f"constraints.txt has no version of {', '.join(unpinned)}")
    return [pins[name] for name in wanted]


def fetch(spec: str, wheels: Path, args: argparse.Namespace) -> None:
    """Downloads the wheel, or builds it from the source archive where there is none.

    Raises: ValueError where neither gives a wheel for that machine.
    """
    tags = [f"manylinux_2_{n}_{args.machine}" for n in range(args.glibc, 4, -1)]
    tags += [f"{old}_{args.machine}" for old in ("manylinux2014", "manylinux2010", "manylinux1")]
    target = ["--python-version", args.python, "--implementation", "cp", *(f"--platform={tag}" for tag in tags)]
    download = pip("download", "--no-deps", "--only-binary=:all:", *target, "-d", str(wheels), spec)
    if not download.returncode:
        return
    before = set(wheels.iterdir())
    built = pip("wheel", "--no-deps", "-w", str(wheels), spec)
    new = set(wheels.iterdir()) - before
    if built.returncode or not new:
        raise ValueError(f"{spec}: no wheel for that machine, and none can be built\n{download.stderr[-600:].strip()}")
    for wheel in new:
        if not wheel.name.endswith("-none-any.whl"):
            wheel.unlink()
            raise ValueError(f"{spec}: its source archive gives {wheel.name}, which is for this machine only")


def pip(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", words[0], "--quiet", *words[1:]]
    return subprocess.run(command, capture_output=True, text=True)


def export(folder: Path) -> None:
    """The tree as it is committed, without recorded results. Raises: ValueError outside a git checkout."""
    command = ["git", "-C", str(ROOT), "archive", "HEAD", ".", *LEFT_OUT]
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        raise ValueError(f"the tree is taken from git: {done.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")

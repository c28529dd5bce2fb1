"""The rooms: which may import which, and that no chain of imports comes back to where it began."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY = {  # what each room may import beside itself; scripts may import all
    "core": set(),
    "tasks": {"core", "lookup", "records"},
    "report": {"lookup", "records"},
    "harness": {"core", "tasks", "report", "lookup", "records"},
}
REPORT = ("page", "figures", "tables", "judge", "read")  # its rooms: each may use itself and those after it
TASKS = ("tta", "prompt", "semi", "longtail", "segmentation", "minigrid")


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


ROOMS = ("core", "tasks", "harness", "report", "scripts")
FILES = {module(path): path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))}
FILES |= {name: ROOT / f"{name}.py" for name in ("lookup", "records")}


def nodes(tree: ast.AST, inside: bool) -> Iterator[ast.AST]:
    """Everything that runs; with ``inside`` what runs only when a function is called, too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.FunctionDef) and not inside:
            continue
        yield node
        yield from nodes(node, inside)


@cache
def imports(name: str, inside: bool) -> set[str]:
    """Our modules that a module imports, without the prefix dembench."""
    found: set[str] = set()
    package = name.split(".") if FILES[name].name == "__init__.py" else name.split(".")[:-1]
    for node in nodes(ast.parse(FILES[name].read_text(encoding="utf-8")), inside):
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("dembench.") for alias in node.names if alias.name in FILES}
            continue
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            base = [*package[: len(package) - node.level + 1], *filter(None, [node.module])]
        elif node.module and node.module.split(".")[0] == "dembench":
            base = node.module.split(".")[1:]
        else:
            continue
        for alias in node.names:
            own = ".".join([*base, alias.name])  # of a module; otherwise a name that its package defines
            found |= {own if own in FILES else ".".join(base)} & FILES.keys()
    return found - {name}


def test_no_module_imports_a_room_that_it_must_not() -> None:
    wrong = []
    for name in FILES:
        room = name.partition(".")[0]
        for other in imports(name, inside=True):
            there = other.partition(".")[0]
            if room in MAY and there != room and not {there, other} & MAY[room]:
                wrong.append(f"{name} imports {other}")
    assert not wrong


def test_no_task_imports_another_but_long_tailed_learning_the_semi_supervised_one() -> None:
    wrong = []
    for name in FILES:
        for other in imports(name, inside=True):
            one, two = [(n.split(".") + [""])[1] if n.startswith("tasks.") else "" for n in (name, other)]
            if one and two in TASKS and one != two and (one, two) != ("longtail", "semi"):
                wrong.append(f"{name} imports {other}")
    assert not wrong


def test_a_room_of_the_report_uses_those_below_it() -> None:
    wrong = []
    for name in FILES:
        room, _, rest = name.removeprefix("report.").partition(".")
        if name.startswith("report.") and rest:
            below = REPORT[REPORT.index(room) :]
            others = {other for other in imports(name, inside=True) if other.startswith("report")}
            wrong += [f"{name} imports {other}" for other in others if (other.split(".") + [""])[1] not in below]
    assert not wrong


@pytest.mark.parametrize("inside", [False, True])
def test_there_is_no_circle(inside: bool) -> None:
    """An import inside a function counts: it would hide a circle, not remove it."""
    graph = {name: set(imports(name, inside)) for name in FILES}
    graph["core._kernels"].discard("core._triton")  # an optional backend, loaded once Triton is known to be there
    TopologicalSorter(graph).prepare()  # CycleError names the circle


def test_no_package_gives_another_thing_the_name_of_its_module() -> None:
    """The first import of the module would put it in the place of the other thing."""
    wrong = []
    for name, path in FILES.items():
        if path.name != "__init__.py":
            continue
        inside = {other.removeprefix(f"{name}.") for other in FILES if other.startswith(f"{name}.")}
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom):
                bound = {a.asname or a.name for a in node.names if f"dembench.{name}" != node.module}
            elif isinstance(node, ast.Import):
                bound = {a.asname or a.name for a in node.names}
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                bound = {node.name}
            elif isinstance(node, ast.Assign):
                bound = {target.id for target in node.targets if isinstance(target, ast.Name)}
            else:
                continue
            wrong += [f"{name}: {one}" for one in bound & inside]
    assert not wrong

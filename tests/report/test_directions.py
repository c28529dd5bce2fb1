"""The rooms of the report and the way down: page -> figures -> tables -> judge -> read, and nothing of other rooms."""

from __future__ import annotations

import ast
from pathlib import Path

import dembench.report

ROOT = Path(dembench.report.__file__).parent
ROOMS = ("page", "figures", "tables", "judge", "read")  # each may use itself and those after it
OUTSIDE = ("lookup", "configs")


def imports(path: Path) -> set[str]:
    """The modules of dembench that a file imports, also within functions, but not for type checkers only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    nodes = [node for node in ast.walk(tree) if id(node) not in skipped]
    named = {
        f"{node.module}.{alias.name}" for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    named |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name.removeprefix("dembench.") for name in named if name.startswith("dembench.")}


def test_every_room_uses_those_below_it():
    for place, room in enumerate(ROOMS):
        for path in (ROOT / room).glob("*.py"):
            for name in imports(path):
                head, _, rest = name.partition(".")
                assert head in ("report", *OUTSIDE), (path.name, name)
                if head == "report":
                    assert rest.partition(".")[0] in ROOMS[place:], f"{room}/{path.name} uses {name}"


def test_no_module_needs_one_that_needs_it():
    files = {f"report.{path.parent.name}.{path.stem}": path for room in ROOMS for path in (ROOT / room).glob("*.py")}
    needs = {name: {other for other in files if any(n == other or n.startswith(f"{other}.") for n in imports(path))}
             for name, path in files.items()}  # fmt: skip
    left = dict(needs)
    while free := [name for name, others in left.items() if not others & left.keys() - {name}]:
        for name in free:
            del left[name]
    assert not left, f"a circle among {sorted(left)}"

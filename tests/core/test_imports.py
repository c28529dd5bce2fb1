import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_core_imports_torch_and_the_standard_library_alone():
    allowed = {"torch", *sys.stdlib_module_names}
    for path in (ROOT / "core").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert {name.split(".")[0] for name in names} <= allowed, path
            assert not isinstance(node, ast.ImportFrom) or node.level < 2, path  # nothing above core


def test_the_example_runs_and_lowers_the_entropy():
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "own_loop.py"], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    entropies = [float(line.split()[-2]) for line in done.stdout.splitlines()]
    assert len(entropies) == 10
    assert entropies[-1] < entropies[0]

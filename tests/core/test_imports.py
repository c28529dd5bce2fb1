import ast
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_core_imports_torch_and_the_standard_library_alone():
    allowed = {"torch", *sys.stdlib_module_names}  # and its own modules, by relative imports
    for path in (ROOT / "core").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert {name.split(".")[0] for name in names} <= allowed, path


USE = """
import sys, torch
from vendored.entropy import AdaDEM, DEM, EM
z = torch.randn(9, 5, requires_grad=True)
for loss in (EM(), DEM(1.2, 0.8), AdaDEM()):
    loss(z).sum().backward()
torch.compile(AdaDEM(5), fullgraph=True, backend="aot_eager")(z).sum().backward()
torch.func.vmap(AdaDEM(episodic=True))(torch.randn(2, 9, 5))
print(sorted(name for name in sys.modules if name.split(".")[0] in ("core", "tasks", "scripts", "dembench")))
"""


def test_a_copy_works_in_another_project_under_another_name(tmp_path):
    shutil.copytree(ROOT / "core", tmp_path / "vendored" / "entropy", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("core", "tasks"):  # the project's own, which must not be taken for ours
        (tmp_path / f"{name}.py").write_text("raise ImportError('not this one')")
    (tmp_path / "use.py").write_text(USE)
    done = subprocess.run([sys.executable, "use.py"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


def test_the_example_runs_and_lowers_the_entropy():
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "own_loop.py"], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    entropies = [float(line.split()[-2]) for line in done.stdout.splitlines()]
    assert len(entropies) == 10
    assert entropies[-1] < entropies[0]

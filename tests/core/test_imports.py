import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def test_core_imports_torch_and_the_standard_library_alone():
    allowed = {"torch", *sys.stdlib_module_names}  # and its own modules, by relative imports
    for path in (ROOT / "core").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            optional = {"triton"} if path.stem == "_triton" else set()
            assert {name.split(".")[0] for name in names} <= allowed | optional, path
            assert not isinstance(node, ast.ImportFrom) or node.level < 2, path  # nothing above core


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


PRIVATE = [
    "_C._are_functorch_transforms_active",
    "_C._AutoDispatchBelowAutograd",
    "_C._functorch.TransformType",
    "_C._functorch.is_batchedtensor",
    "_functorch.pyfunctorch.retrieve_all_functorch_interpreters",
    "_C._autograd._get_current_graph_task_keep_graph",
]
DELETING = """
import functools, torch, torch._functorch.pyfunctorch
active, kinds = torch._C._are_functorch_transforms_active, torch._C._functorch.TransformType
for path in {names}:
    *owners, name = path.split(".")
    delattr(functools.reduce(getattr, owners, torch), name)
from dembench.core import DEM, EM, AdaDEM
torch._C._are_functorch_transforms_active = active  # core has imported without; torch itself needs these two
torch._C._functorch.TransformType = kinds

torch.manual_seed(0)
z = torch.randn(9, 5, requires_grad=True)
loss = AdaDEM()
for call in (EM(), DEM(1.2, 0.8), loss, loss):
    z.grad = None
    value = call(z)
    value.sum().backward()
    print([value.tolist(), z.grad.flatten().tolist()])
try:
    print(torch.func.jvp(EM(), (z.detach(),), (z.detach(),))[1].tolist())
except RuntimeError as error:
    print("refused:", error)
"""


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7), reason="torch 2.6 needs these names to import itself"
)
def test_plain_use_survives_without_private_names_of_torch():
    def printed(names):
        program = DELETING.format(names=names)
        return subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
        ).stdout.splitlines()

    *expected, _ = printed([])
    *values, refused = printed(PRIVATE)
    assert len(values) == 4
    for got, want in zip(values, expected, strict=True):
        assert sum(ast.literal_eval(got), []) == pytest.approx(sum(ast.literal_eval(want), []), rel=1e-5, abs=1e-6)
    assert "use reverse mode" in refused  # nothing could tell a forward mode inside another from one alone


def test_the_example_runs_and_lowers_the_entropy():
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "own_loop.py"], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    entropies = [float(line.split()[-2]) for line in done.stdout.splitlines()]
    assert len(entropies) == 10
    assert entropies[-1] < entropies[0]

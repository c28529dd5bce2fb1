"""dembench check gpu: whether all works on a CUDA device, and how fast, in one command of a few minutes.

``dembench check loss``, ``method``, ``model`` and ``data`` are in ``check_own``.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dembench.scripts.check_own import KINDS
from dembench.scripts.check_own import main as check_own
from dembench.scripts.cli import Parser, fail

ROOT = Path(__file__).resolve().parent.parent
LIMITS = {  # seconds
    "tests": 170,
    "losses": 120,
    "tta": 60,
    "prompt": 60,
    "semi": 45,
    "segmentation": 60,
    "minigrid": 45,
    "corruptions": 30,
}
EPILOG = """Parts run one after the other, each in a process of its own with its own time limit. After every figure the
page gpu.md, gpu.json and gpu.log are written anew in the output folder, so a check that is cut off leaves what it
had."""


def parser() -> argparse.ArgumentParser:
    p = Parser("dembench check", description="Check the CUDA device of this machine.", epilog=EPILOG)
    p.add_argument("what", choices=["gpu", *KINDS], help="the device; KIND NAME checks a loss, method, model or data")
    p.add_argument("--out", type=Path, default=Path("reports/gpu"), metavar="DIR", help="of the results (reports/gpu)")
    p.add_argument("--seconds", type=float, default=480, help="for everything (default 480)")
    p.add_argument("--part", action="append", choices=list(LIMITS), help="only this one; may be given again")
    p.add_argument("--study", metavar="FILE", help="a sweep file to run in the time that is left at the end")
    p.add_argument("--data", type=Path, metavar="DIR", help="folder of real data, for the study (DEMBENCH_DATA)")
    p.add_argument("--workers", type=int, default=8, help="of the tests (default 8)")
    p.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu tries the check itself, tiny sizes")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 all parts done, 1 a part failed or was cut off, 2 no device or wrong usage."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] and argv[0] in KINDS:
        return check_own(argv)
    options = parser().parse_args(argv)
    if options.seconds <= 0 or options.workers < 0:
        return fail("dembench check: expected --seconds above 0 and --workers of at least 0")
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        return fail(f"dembench check gpu: PyTorch {torch.__version__} finds no CUDA device here")
    from dembench.scripts.gpu.page import write
    from dembench.scripts.gpu.parts import run_parts
    from dembench.tasks.common.files import scratch

    options.out.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, sys.path))  # the parts import what this process can
    os.environ["PYTHONUNBUFFERED"] = "1"
    if options.data:
        os.environ["DEMBENCH_DATA"] = str(options.data.resolve())
    about = facts(options.device)
    with scratch("check") as folder:
        chosen = parts(options)
        outcomes = run_parts(chosen, options.seconds, folder, lambda found: write(options.out, about, found))
    for outcome in outcomes:
        print(f"{outcome.part.name:<14}{outcome.status:<10}{outcome.seconds:6.1f} s")
    print(options.out / "gpu.md")
    return 0 if all(outcome.status == "done" for outcome in outcomes) else 1


def parts(options: argparse.Namespace) -> list[Any]:
    """The parts of this check in their order."""
    from dembench.scripts.gpu.parts import Part
    from dembench.scripts.gpu.steps import TASKS

    titles = {"tests": "Tests marked gpu", "losses": "Losses", **{name: title for name, (title, _, _) in TASKS.items()}}
    sizes = "full" if options.device == "cuda" else "tiny"
    chosen = []
    for name in options.part or LIMITS:
        command = [sys.executable, "-m", f"{__package__}.gpu", name, options.device, sizes]
        if name == "tests":
            command = tests(options.workers)
        chosen.append(Part(name, titles[name], command, LIMITS[name]))
    if options.study:
        command = [sys.executable, "-m", f"{__package__}.cli", "sweep", options.study, f"out={options.out / 'study'}"]
        chosen.append(Part("study", f"Study {options.study}", command, options.seconds))
    return chosen


def tests(workers: int) -> list[str]:
    """pytest on the files that can have tests for a GPU, those with the marker's name; no workers: in one process."""
    files = [str(file) for file in sorted((ROOT / "tests").rglob("test_*.py")) if ".gpu" in file.read_text()]
    plugins = ["-p", f"{__package__}.gpu.outcomes", "-p", "no:cacheprovider"]
    flags = ["-m", "gpu", "--continue-on-collection-errors", "--tb=short", "-q", "-ra", *plugins]
    parallel = ["-n", str(workers)] if workers else []
    return [sys.executable, "-m", "pytest", "--rootdir", str(ROOT), *flags, *parallel, *files]


def facts(device: str) -> dict[str, Any]:
    """Card, versions and date."""
    import datetime

    import torch

    found: dict[str, Any] = {"date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC"}
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        found["card"] = (
            f"{card.name}, {card.total_memory / 2**30:.0f} GiB, {card.multi_processor_count} multiprocessors"
        )
        found["CUDA, cuDNN"] = f"{torch.version.cuda}, {torch.backends.cudnn.version()}"
    else:
        found["card"] = "none: the check was tried on the CPU with tiny sizes; its figures mean nothing"
    found["torch"] = torch.__version__
    found["python"] = platform.python_version()
    found["CPU"] = f"{os.cpu_count()} cores"
    return found

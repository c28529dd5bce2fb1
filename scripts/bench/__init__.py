"""Speed, as ratios inside one run: ``dembench bench NAME``.

Each bench is a module of this package with

- ``HELP``: one line on what it measures,
- ``add_arguments(parser)``: its own options,
- ``run(options, console) -> dict``: measures, prints tables, and returns the figures for ``--json``,
- ``MANY_THREADS = True`` if it compares several numbers of threads.

``options`` has its own and those that all share: ``devices`` ("cpu", "cuda"), ``threads``, a list of numbers of which
the first is set, ``seconds``, ``json``. A
``ValueError`` or an ``ImportError`` from ``run`` ends the command with its message; optional packages are imported in
``run``, so that the list of benches needs none.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from dembench.harness.say import counting
from dembench.lookup import lookup
from dembench.scripts.cli import Parser, fail

_HELPERS = ("operations", "textbook_forward", "textbook_tta", "timing")
_QUIET = {"KINETO_LOG_LEVEL": "99", "TORCH_CPP_LOG_LEVEL": "ERROR"}  # the profiler counts bytes, and need not say so
BENCHES = tuple(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _HELPERS)


def usage() -> str:
    lines = [f"  {name:<14}{importlib.import_module(f'{__name__}.{name}').HELP}" for name in BENCHES]
    return "\n".join(
        ["usage: dembench bench NAME ...", "", "Measure speed; every figure is a ratio inside one run.", "", *lines]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 measured, 2 wrong usage or something missing."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    try:
        name = lookup(argv[0], BENCHES, "bench")
    except ValueError as error:
        return fail(f"dembench bench: {error}")
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    bench = importlib.import_module(f"{__name__}.{name}")
    parser = Parser(f"dembench bench {name}", description=f"{bench.HELP}; every figure is a ratio inside one run.")
    parser.add_argument("--device", choices=["cpu", "cuda"], action="append", help="default: cpu, and cuda if there")
    many = getattr(bench, "MANY_THREADS", False)
    words = "of torch on the CPU (default 1)" + ("; several, such as 1,2,4, are compared" if many else "")
    parser.add_argument("--threads", type=numbers, default=[1], help=words)
    parser.add_argument("--seconds", type=float, default=1.0, help="of measuring each call (default 1)")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    bench.add_arguments(parser)
    options = parser.parse_args(argv[1:])
    problem = _problem(options, many)
    if problem:
        return fail(f"dembench bench {name}: {problem}")

    import torch
    from rich.console import Console

    there = torch.cuda.is_available()
    options.devices = options.device or ["cpu", *(["cuda"] if there else [])]
    if "cuda" in options.devices and not there:
        return fail(f"dembench bench {name}: --device cuda: PyTorch finds no CUDA device here")
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads[0])
    try:
        with counting("measuring", first=f"measuring {name}"):
            found = bench.run(options, Console())
    except (ValueError, ImportError) as error:
        return fail(f"dembench bench {name}: {error}")
    finally:
        torch.set_num_threads(threads)
    if options.json:
        number = options.threads if len(options.threads) > 1 else options.threads[0]
        record = {"torch": torch.__version__, "threads": number, **found}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def numbers(text: str) -> list[int]:
    """ "1,2,4" as a list."""
    return [int(part) for part in text.split(",")]


def _problem(options: Namespace, many: bool) -> str | None:
    if min(options.threads) < 1:
        return f"--threads: expected at least 1, got {min(options.threads)}"
    if len(options.threads) > 1 and not many:
        return "--threads: expected one number"
    if not 0 < options.seconds < 3600:
        return f"--seconds: expected more than 0 and less than 3600, got {options.seconds}"
    if options.json and not options.json.parent.is_dir():
        return f"--json: no folder {options.json.parent}"
    if options.json and options.json.exists() and not options.json.is_file():
        return f"--json: {options.json} is not a file"
    return None

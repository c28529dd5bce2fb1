"""What commands cost before any work is done: CPU seconds of whole processes, their children included."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

HELP = "CPU seconds of --help, list, a run of 20 images and the plan of 1,000 runs"
RUN = ("method=tent", "data.num_images=20", "protocol.corruptions=[fog]", "device=cpu", "progress=false")
GRID = """base: {task: tta, data.num_images: 40, device: cpu}
grids: [{method: [source, norm, tent, eta, eata, sar, deyo, tipi, ttc, t3a], loss: [em, adadem], seed: SEEDS}]
"""
LIMITS = {
    "--help": 0.15,
    "--version": 0.15,
    "list, cold": 4.0,
    "list": 1.5,
    "run of 20 images": 4.0,
    "plan of 1,000 runs": 5.0,
}


def add_arguments(parser: ArgumentParser) -> None:
    """None of its own; --seconds and --device mean nothing here."""


def run(options: Namespace, console: Any) -> dict[str, Any]:
    """CPU seconds by command, beside ``import torch`` alone, which is most of those that need it."""
    from rich.table import Table

    with tempfile.TemporaryDirectory() as place:
        grid = Path(place) / "grid.yaml"
        grid.write_text(GRID.replace("SEEDS", str(list(range(50)))))
        commands = {
            "--help": ["-m", "dembench", "--help"],
            "--version": ["-m", "dembench", "--version"],
            "list, cold": ["-m", "dembench", "list"],
            "list": ["-m", "dembench", "list"],
            "import torch": ["-c", "import torch"],
            "run of 20 images": ["-m", "dembench", "run", *RUN, f"out={place}/runs"],
            "plan of 1,000 runs": ["-m", "dembench", "sweep", str(grid), f"out={place}/runs", "--dry-run"],
        }
        caches = {"list, cold": f"{place}/cache", "list": f"{place}/cache"}
        found = {name: cpu_seconds(words, caches.get(name)) for name, words in commands.items()}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("command", "CPU s", "at most"):
        table.add_column(column, justify="left" if column == "command" else "right")
    for name, seconds in found.items():
        table.add_row(name, f"{seconds:.2f}", f"{LIMITS[name]:g}" if name in LIMITS else "")
    console.print(table)
    return {"cpu_seconds": found, "limits": LIMITS}


def cpu_seconds(words: list[str], cache: str | None = None) -> float:
    """User and system time of a Python process. Raises: ValueError where it fails."""
    import resource  # of POSIX systems

    variables = {**os.environ, "OMP_NUM_THREADS": "1"} | ({} if cache is None else {"DEMBENCH_CACHE": cache})
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *words], env=variables, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise ValueError(f"{' '.join(words)}: {done.stderr.strip()[-300:]}")
    return round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 3)

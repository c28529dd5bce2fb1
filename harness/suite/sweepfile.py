"""Runs in words, written back as a sweep file that ``dembench sweep`` takes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from dembench.harness.compose import Words
from dembench.tasks.common.files import write_atomic


def write_sweep(path: Path, many: Iterable[Words], about: str) -> Path:
    """Writes one grid for all runs that differ in their seed only, and returns ``path``."""
    grids: dict[str, dict[str, Any]] = {}
    seeds: dict[str, list[Any]] = {}
    for words in many:
        rest = {key: value for key, value in words.items() if key != "seed"}
        key = json.dumps(rest, sort_keys=True)
        grids.setdefault(key, rest)
        seeds.setdefault(key, [])
        if "seed" in words:
            seeds[key].append(words["seed"])
    lines = [f"# About: {about}", "grids:"]
    for key, grid in grids.items():
        # a list in a grid means several values, so that a value that is a list stands in one
        plain = {name: [value] if isinstance(value, list) else value for name, value in grid.items()}
        if seeds[key]:
            plain["seed"] = seeds[key]
        lines.append(f"  - {yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=10**6).strip()}")
    write_atomic(path, "\n".join(lines) + "\n")
    return path

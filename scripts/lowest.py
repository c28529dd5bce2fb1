"""The lowest versions that pyproject.toml admits, as constraints for pip: ``python scripts/lowest.py``."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def lowest(project: dict) -> dict[str, str]:
    """Name -> lowest version, of all requirements and extras of a pyproject table ``project``.

    Raises: ValueError for a requirement without a lower bound.
    """
    found: dict[str, str] = {}
    for text in [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]:
        name = re.match(r"[\w.-]+", text)[0]
        if name == project["name"]:  # an extra of our own
            continue
        bound = re.search(r">=\s*([\w.]+)", text)
        if bound is None:
            raise ValueError(f"{text}: no lower bound")
        if found.setdefault(name, bound[1]) != bound[1]:
            raise ValueError(f"{name} has two lower bounds: {found[name]} and {bound[1]}")
    return found


if __name__ == "__main__":
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for package, version in lowest(table["project"]).items():
        print(f"{package}=={version}")

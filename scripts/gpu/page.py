"""The page and the JSON file of a check, and the log of its parts; written anew whenever there is something new."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dembench.scripts.gpu.parts import Outcome

LOG_BYTES = 1_000_000  # of each part's output that are kept, the last ones
STATUS = {
    "waiting": "not started yet",
    "running": "still running",
    "done": "done",
    "failed": "**failed**",
    "killed": "**stopped at its time limit**; what it had by then is below",
    "left out": "**left out**, no time was left",
}


def write(folder: Path, about: dict[str, Any], outcomes: list[Outcome]) -> None:
    """Writes gpu.md, gpu.json and gpu.log; each is whole at any time.

    Args:
        about: card, versions and the like, by name.
    """
    _replace(folder / "gpu.json", json.dumps({"about": about, "parts": [_record(o) for o in outcomes]}, indent=1))
    _replace(folder / "gpu.md", markdown(about, outcomes))
    _replace(folder / "gpu.log", "".join(f"==== {o.part.name}\n{o.log[-LOG_BYTES:]}\n" for o in outcomes if o.log))


def _record(outcome: Outcome) -> dict[str, Any]:
    return {
        "name": outcome.part.name,
        "status": outcome.status,
        "seconds": round(outcome.seconds, 2),
        "limit": outcome.part.limit,
        "rows": outcome.rows,
        "last_lines": outcome.last_lines if outcome.status in ("failed", "killed") else "",
    }


def _replace(file: Path, text: str) -> None:
    part = file.with_suffix(f"{file.suffix}.part")
    part.write_text(text.rstrip("\n") + "\n")
    part.replace(file)


def markdown(about: dict[str, Any], outcomes: list[Outcome]) -> str:
    """The page: what it was measured on, then a section for each part."""
    lines = ["# Check of the GPU", "", *(f"- {name}: {value}" for name, value in about.items()), ""]
    for outcome in outcomes:
        lines += [f"## {outcome.part.title}", ""]
        took = f", {outcome.seconds:.0f} s of at most {outcome.part.limit:.0f} s" if outcome.seconds else ""
        lines += [f"{STATUS[outcome.status]}{took}".capitalize() if not took else f"{STATUS[outcome.status]}{took}", ""]
        for title in dict.fromkeys(row["table"] for row in outcome.rows):
            cells = [row["cells"] for row in outcome.rows if row["table"] == title]
            lines += [f"### {title}", "", *table(cells), ""]
        if outcome.status in ("failed", "killed") and outcome.last_lines:
            lines += ["The last lines of its output:", "", "```text", outcome.last_lines, "```", ""]
    return "\n".join(lines)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table of all columns that any row has."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, ["---"] * len(columns)] + [[_text(row.get(column)) for column in columns] for row in rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value).replace("|", "\\|").replace("\n", " ")

"""Runs from runs.csv, the table with a row for each run that every report writes: what is left of a study whose run
directories are gone.

A row holds a run's settings and its numbers over all slices. Curves, numbers per slice and notes are lost, nested
settings of a method have lost their prefix, and a value that was not set and one that was set to nothing are the same.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dembench import records
from dembench.report.read.names import COSTS, metrics_of
from dembench.report.read.record import clean

NAMES = ("task", "data", "model", "protocol", "method", "loss", "status")
NEEDED = ("run", *NAMES, "seed", "setting", "loss setting")
OPTIONAL = ("preset", "commit", "modified", "command")  # an older report has none of them
NOTE = (
    "These runs were read from a table with a row for each run: their settings and their numbers over all slices. "
    "Curves, numbers per slice and the notes of the runs are not in it."
)
WORDS = {"yes": True, "no": False, "none": None}
GREEK = {"τ": "tau", "α": "alpha"}


class Row:
    """One row as the record of a run."""

    def __init__(self, path: Path, number: int, row: dict[str, str]) -> None:
        self.name, self.path, self._row = f"{path.name}, row {number}", path, row

    def record(self) -> dict[str, Any]:
        row = {**dict.fromkeys(OPTIONAL, ""), **clean(self._row)}
        config: dict[str, Any] = {"seed": int(row["seed"]), "choices": {"method": row["method"], "loss": row["loss"]}}
        fingerprints, rows, cost = {}, [], {}
        metrics = {metric.column: metric for metric in metrics_of(row["task"]).values()}
        for column, text in row.items():
            if text == "" or column in NEEDED or column in OPTIONAL:
                continue
            if metric := metrics.get(column):
                value = float(text) / metric.scale
                rows.append({"slice": "mean", "metric": metric.name, "value": value, "unit": "", "n": 0})
            elif column in COST_BY_LABEL:
                cost[COST_BY_LABEL[column]] = float(text)
            elif column.endswith(" fingerprint"):
                fingerprints[column.removesuffix(" fingerprint")] = text
            else:
                put(config, column, parse(text))
        config["method"] = {**({"preset": row["preset"]} if row["preset"] else {}), **settings(row["setting"])}
        config["loss"] = settings(row["loss setting"])
        environment = {"commit": row["commit"], "modified": row["modified"] == "True"} if row["commit"] else {}
        return {
            "schema": records.VERSION,
            "id": row["run"],
            **{name: row[name] for name in NAMES},
            "seed": int(row["seed"]),
            "flags": [],
            "notes": [{"key": "record", "text": NOTE}],
            "rows": rows,
            "cost": cost,
            "config": config,
            "fingerprints": fingerprints,
            "environment": environment,
            "command": row["command"],
        }

    def text(self, name: str) -> str:
        raise FileNotFoundError(name)

    def pictures(self) -> list[Path]:
        return []


def rows(path: Path) -> Iterator[Row]:
    """The runs of a runs.csv.

    Raises: ValueError for any other table; OSError where it cannot be read.
    """
    records.check_regular(path)
    with open(path, encoding="utf-8", newline="") as file:
        try:
            reader = csv.DictReader(file, strict=True)
            if missing := [name for name in NEEDED if name not in (reader.fieldnames or ())]:
                raise ValueError(f"{path} is no runs.csv of a report: it lacks {', '.join(missing)}")
            for number, row in enumerate(reader, 2):
                if None in row or None in row.values():
                    raise ValueError(f"{path}, line {number}: expected {len(row)} cells")
                yield Row(path, number, row)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is no table: {error}") from None


def put(node: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key."""
    *heads, last = key.split(".")
    for head in heads:
        node = node.setdefault(head, {})
    node[last] = value


def parse(text: str) -> Any:
    """A value as the report shows it: "yes", "none", "1e-3", "90, 120"."""
    if text in WORDS:
        return WORDS[text]
    if ", " in text:
        return [parse(item) for item in text.split(", ")]
    try:
        return int(text) if re.fullmatch(r"-?\d+", text) else float(text)
    except ValueError:
        return text


def settings(text: str) -> dict[str, Any]:
    """Keys and values of a method or a loss: "lr 1e-3, optimizer adam, steps 1"; the values of a list have no key."""
    items: list[list[str]] = []
    for item in filter(None, text.split(", ")):
        key, space, value = item.partition(" ")
        if space and re.fullmatch("[A-Za-z_]\\w*|τ|α", key):
            items.append([GREEK.get(key, key), value])
        elif items:
            items[-1][1] += f", {item}"
        else:
            raise ValueError(f"expected a key and a value, got {item!r}")
    return {key: parse(value) for key, value in items}


COST_BY_LABEL = {label: name for name, (label, _) in COSTS.items()}

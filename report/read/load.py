"""Run directories, exported files and tables of runs -> Run records. Reads files and judges nothing: what cannot be
used is listed with its reason.

Ten thousand runs are few different settings: equal parts of configurations are kept once, and what only a figure needs
(curves, histograms, pictures) is read when it is drawn.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dembench.report.read import names, runs_csv
from dembench.report.read.record import Directory, Store, clean, lines

RUN_FILES = ("result.json", "config.yaml", "environment.json", "curve.csv", "series.csv")
SEARCHES = ("searches", "tunes")  # folders of trials: ``plane`` shows the first, and runs tell of the second
NAMES = ("id", "task", "method", "loss", "model", "data", "protocol", "status")
LONGEST = 2_000  # characters of a note or message that are shown
BROKEN = (OSError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError)  # of a bad record
Value = TypeVar("Value")
Histograms = dict[str, tuple[tuple[int, ...], tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class Run:
    """One finished run. ``scores`` maps (slice, metric) to a value in the unit of ``units[metric]``; ``sizes`` maps a
    slice to its number of samples; ``slices`` are in the order of the stream, without "mean"."""

    id: str
    task: str
    method: str
    loss: str
    model: str
    data: str
    protocol: str
    status: str
    seed: int
    flags: tuple[tuple[str, str, str], ...]
    notes: tuple[tuple[str, str], ...]
    scores: dict[tuple[str, str], float]
    units: dict[str, str]
    sizes: dict[str, int]
    slices: tuple[str, ...]
    cost: dict[str, float]
    config: dict[str, Any]
    environment: dict[str, Any]
    fingerprints: dict[str, str]
    labels: dict[tuple[str, str], names.Label]
    command: str
    store: Store
    tuned: dict[str, Any] | None = None  # what chose its settings, and how

    @property
    def collapsed(self) -> bool:
        return self.status == "collapse"

    @property
    def looks(self) -> int:
        """How often a rule looked at the runs while it added seeds (dembench sweep --until); 1 elsewhere."""
        told = self.config.get("sequential")
        looks = told.get("looks") if isinstance(told, dict) else None
        return looks if isinstance(looks, int) and looks > 1 else 1

    def score(self, metric: str, part: str = "mean") -> float:
        """The value over ``part``; NaN for a run that met a NaN or lacks the number. Without a recorded mean, the plain
        mean over the slices."""
        if self.status == "nan":
            return math.nan
        value = self.scores.get((part, metric))
        if value is None and part == "mean":
            values = [self.scores[name, metric] for name in self.slices if (name, metric) in self.scores]
            value = sum(values) / len(values) if values else None
        return math.nan if value is None or not math.isfinite(value) else value

    def curve(self) -> Curve | None:
        """The per-batch record, or None where there is none that can be read."""
        read = self._columns("curve.csv", ("slice", "n", "correct"))
        if read is None:
            return None
        slices, n, correct = read
        try:
            return Curve(
                tuple(slices), *(np.fromiter(map(float, column), float, len(column)) for column in (n, correct))
            )
        except ValueError:
            return None

    def series(self) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
        """{(slice, metric): (steps, values)} of the learning curves, in the order of the file; NaN where a value was
        not finite, and empty where there is no file that can be read."""
        read = self._columns("series.csv", ("step", "slice", "metric", "value"))
        found: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
        try:
            for step, part, metric, value in zip(*(read or ([], [], [], [])), strict=True):
                steps, values = found.setdefault((part, metric), ([], []))
                steps.append(float(step))
                values.append(float(value) if value else math.nan)
        except ValueError:
            return {}
        return {key: (np.array(steps), np.array(values)) for key, (steps, values) in found.items()}

    def histograms(self) -> Histograms:
        """{slice: (predicted, label) counts per class}, read anew; empty where there are none that can be read."""
        try:
            found = self.store.record().get("histograms") or {}
            return {str(k): (tuple(map(int, h["predicted"])), tuple(map(int, h["label"]))) for k, h in found.items()}
        except BROKEN:
            return {}

    def pictures(self) -> list[Path]:
        """The files that belong to the run, by name."""
        return self.store.pictures()

    def _columns(self, name: str, wanted: tuple[str, ...]) -> list[list[str]] | None:
        try:
            header, *rows = csv.reader(io.StringIO(self.store.text(name), newline=""))
            at = [header.index(column) for column in wanted]
            return [[row[i] for row in rows] for i in at] if rows else None
        except (OSError, ValueError, KeyError, IndexError, csv.Error):
            return None


@dataclass(frozen=True, slots=True)
class Curve:
    """Per batch: its slice, its samples and the correct ones among them, arrays of (batches,)."""

    slices: tuple[str, ...]
    n: np.ndarray
    correct: np.ndarray


@dataclass(frozen=True, slots=True)
class Aside:
    """A directory or run that is in no number of the report, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Collection:
    """All that was found: finished runs sorted by id, and what was set aside."""

    runs: tuple[Run, ...]
    unfinished: tuple[Aside, ...]
    unreadable: tuple[Aside, ...]
    duplicates: tuple[Aside, ...]


def load(roots: list[Path]) -> Collection:
    """Reads every run of ``roots``: directories that hold run directories at any depth, files of ``dembench export``,
    and runs.csv of a report. A run id found twice is taken once.

    Raises: ValueError when a root is missing or cannot be read, or when there is no finished run.
    """
    runs: dict[str, Run] = {}
    unfinished: list[Aside] = []
    unreadable: list[Aside] = []
    duplicates: list[Aside] = []
    shared = Shared()
    for store in stores(list(map(Path, roots)), unreadable):
        try:
            run = read_run(store, shared)
        except FileNotFoundError:
            unfinished.append(Aside(clean(store.name), "no result.json: started and not finished"))
            continue
        except BROKEN as error:
            unreadable.append(Aside(clean(store.name), clean(f"{type(error).__name__}: {error}")[:LONGEST]))
            continue
        names.learn(run.labels)
        first = runs.setdefault(run.id, run)
        if first is not run:
            same = first.scores == run.scores
            reason = "the same numbers" if same else "DIFFERENT NUMBERS; the first one found is used"
            duplicates.append(Aside(run.id, f"found twice, with {reason}"))
    if not runs:
        held = f"; {len(unfinished)} unfinished, {len(unreadable)} unreadable" if unfinished or unreadable else ""
        raise ValueError(f"report: no finished run under {', '.join(map(str, roots)) or 'no directory at all'}{held}")
    ordered = tuple(runs[key] for key in sorted(runs))
    return Collection(ordered, *(tuple(sorted(x, key=lambda a: a.name)) for x in (unfinished, unreadable, duplicates)))


def stores(roots: list[Path], unreadable: list[Aside]) -> Iterator[Store]:
    """Every run of ``roots``, a directory that two of them hold once."""
    for root in roots:
        if not root.exists():
            raise ValueError(f"report: no such directory or file: {root}")
    folders: dict[Path, None] = {}
    for root in roots:
        if not root.is_dir():
            yield from runs_csv.rows(root) if root.suffix == ".csv" else lines(root)
            continue
        for folder in find_runs(root.resolve(), unreadable):
            if folder not in folders:
                folders[folder] = None
                yield Directory(folder)


def find_runs(root: Path, unreadable: list[Aside]) -> list[Path]:
    """Run directories at or under ``root``: those that hold a file of a run or are named like a run id. Folders that
    cannot be opened are added to ``unreadable``."""
    found = []

    def closed(error: OSError) -> None:
        unreadable.append(Aside(clean(Path(error.filename).name), f"{type(error).__name__}: {error.strerror}"))

    for folder, children, files in os.walk(root, onerror=closed):
        if any(name in files for name in RUN_FILES) or re.fullmatch("[0-9a-f]{12}", Path(folder).name):
            found.append(Path(folder))
            children.clear()
        else:
            children[:] = sorted(name for name in children if not name.startswith(".") and name not in SEARCHES)
    return found


class Shared:
    """Gives equal values one object."""

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}

    def __call__(self, value: Value, key: Any = None) -> Value:
        return self._known.setdefault(repr(value) if key is None else key, value)


def read_run(store: Store, shared: Shared) -> Run:
    """One record as a Run. Raises FileNotFoundError where there is none, and one of BROKEN where it is not one."""
    record = store.record()
    if missing := [name for name in (*NAMES, "seed", "rows") if name not in record]:
        raise ValueError(f"lacks {', '.join(missing)}")
    scores: dict[tuple[str, str], float] = {}
    units: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for row in record["rows"]:
        key = (str(row["slice"]), str(row["metric"]))
        scores[shared(key, key)] = math.nan if row["value"] is None else float(row["value"])
        units.setdefault(key[1], str(row.get("unit", "")))
        sizes.setdefault(key[0], int(row.get("n") or 0))
    flags = ((str(f["kind"]), str(f.get("slice", "")), str(f.get("message", ""))) for f in record.get("flags") or ())
    notes = ((str(note["key"]), str(note["text"])[:LONGEST]) for note in record.get("notes") or ())
    cost = record.get("cost") or {}
    return Run(
        **{name: shared("none" if record[name] is None else str(record[name])) for name in NAMES},
        seed=int(record["seed"]),
        flags=tuple((kind, part, message[:LONGEST]) for kind, part, message in flags),
        notes=shared(tuple(notes)),
        scores=scores,
        units=shared(units),
        sizes=shared(sizes),
        slices=shared(tuple(name for name in sizes if name != "mean")),
        cost={str(k): float(v) for k, v in cost.items() if isinstance(v, int | float)},
        config={str(key): shared(value) for key, value in dict(record.get("config") or {}).items()},
        environment=shared(dict(record.get("environment") or {})),
        fingerprints=shared({str(k): str(v) for k, v in (record.get("fingerprints") or {}).items()}),
        labels=shared(labels_of(record)),
        command=str(record.get("command") or ""),
        store=store,
        tuned=tuned_of(record, shared),
    )


def tuned_of(record: dict[str, Any], shared: Shared) -> dict[str, Any] | None:
    """What a record tells of the choice of its settings. Raises one of BROKEN where that is not as it should be."""
    found = record.get("tuned")
    if found is None:
        return None
    points = [found, *found["trials"], *found["choices"].values()]
    if any(set(point["values"]) != set(found["keys"]) for point in points):
        raise ValueError("tuned: a trial or a choice has other keys than were tuned")
    [int(seed) for trial in found["trials"] for seed in trial["seeds"]]
    kept = ("id", "by", "keys", "values", "metric", "settings", "cost", "trials", "choices")
    return {key: shared(found[key]) for key in kept}


def labels_of(record: dict[str, Any]) -> dict[tuple[str, str], names.Label]:
    """What a record says of its task, method and loss, by (group, name); the presets of a method share its name."""
    found: dict[tuple[str, str], names.Label] = {}
    preset = ((record.get("config") or {}).get("method") or {}).get("preset")
    for group in names.LABELLED:
        if (label := dict(record.get("labels") or {}).get(group)) and record[group] is not None:
            name = str(record[group])
            found[group, name.removesuffix(f"_{preset}") if group == "method" else name] = names.checked(label)
    return found

"""Which runs are asked for: a word of the command line as folders and filters, and the runs that these leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dembench.lookup import lookup
from dembench.report.judge.group import flatten, leaf
from dembench.report.read.load import Run, load

NAMES = ("task", "data", "model", "protocol", "method", "loss", "seed", "status")
UNSEARCHED = ("task", "out", "force", "progress", "hydra")  # keys that say nothing of a run, or say it again
UNSET = {"null"}  # of a key that a run does not have


@dataclass(frozen=True, slots=True)
class Side:
    """What one word of the command asks for: folders, and the values that each key may have."""

    text: str
    folders: tuple[Path, ...]
    filters: tuple[tuple[str, tuple[str, ...]], ...]


def side(text: str, default: Path) -> Side:
    """A word of the command as a Side: a folder or a file of runs, KEY=VALUE[,VALUE] filters on the runs of
    ``default``, or folders, files and filters with spaces between them.

    Raises: ValueError for a folder or file that is not there and for a filter without key or value.
    """
    words = [text] if text.strip() and Path(text).exists() else text.split()
    folders, filters = [], []
    for word in words:
        key, equals, value = word.partition("=")
        if Path(word).exists():
            folders.append(Path(word))
        elif equals and key and value:
            filters.append((key, tuple(value.split(","))))
        else:
            kind = "a filter is KEY=VALUE" if equals else "expected a folder or file of runs, or KEY=VALUE"
            raise ValueError(f"{word!r}: {kind}; a side of several words needs quotes, as in 'runs loss=em'")
    if not words:
        raise ValueError("an empty side: expected a folder or file of runs, or KEY=VALUE")
    if not folders and not default.exists():
        raise ValueError(f"{text!r} names no folder, and there is no folder {default}; say --runs DIR")
    return Side(text, tuple(folders) or (default,), tuple(filters))


def select(wanted: Side, runs: Sequence[Run]) -> tuple[Run, ...]:
    """The runs of a side; a key that some runs lack is ``null`` in those.

    Raises: ValueError for a key that no run has, and where no run has the values.
    """
    known = {run.id: searchable(run) for run in runs}
    keys = sorted({key for found in known.values() for key in found})
    for key, values in wanted.filters:
        lookup(key, [*NAMES, *(name for name in keys if name not in NAMES)], "key")
        there = {text for found in known.values() for text in found.get(key, UNSET)}
        for value in values:
            if not matches({value}, there):
                lookup(value, sorted(there), f"value of {key}")
    kept = [
        run
        for run in runs
        if all(matches(set(values), known[run.id].get(key, UNSET)) for key, values in wanted.filters)
    ]
    if not kept:
        raise ValueError(f"{wanted.text!r}: none of {len(runs)} runs has all of these values")
    return tuple(kept)


def matches(wanted: set[str], there: set[str]) -> bool:
    """Whether a value is asked for, as text without regard to case or as a number: 1e-3 is 0.001."""
    folded = {text.lower() for text in there}
    numbers = {value for text in there if (value := as_number(text)) is not None}
    return any(
        text.lower() in folded or ((value := as_number(text)) in numbers and value is not None) for text in wanted
    )


def as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def searchable(run: Run) -> dict[str, set[str]]:
    """{key: texts that ask for its value}: names as recorded and as typed, and the keys of the configuration."""
    found = {name: {str(getattr(run, name))} for name in NAMES}
    for key, value in flatten({k: v for k, v in run.config.items() if k not in UNSEARCHED}).items():
        head, _, rest = key.partition(".")
        name = rest if head == "choices" else key
        if not leaf(name).startswith("_") and not (head == "choices" and rest not in NAMES):
            text = "null" if value is None else str(value)
            found.setdefault(name, set()).add(text.lower() if isinstance(value, bool) else text)
    return found


def read(wanted: Side) -> tuple[Run, ...]:
    """The runs of a side, from its folders.

    Raises: ValueError where there is none, or none that the filters ask for.
    """
    return select(wanted, load(list(wanted.folders)).runs)

"""What a suite consists of: a file in configs/suite/ lists grids; its runs are grouped by what they need.

A suite file has ``parts``, each with ``sweep`` (a sweep's name) or with ``base`` and ``grids`` as in a sweep file;
``search``, options of ``dembench search`` for the parts with loss=dem_star; ``tune``, those of ``dembench tune`` for
parts with ``tuned``; and ``out``, where runs and report go.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dembench.harness import sweeps
from dembench.harness.compose import (
    ConfigError,
    Words,
    compose,
    header,
    lookup_or_fail,
    options,
    read_data,
    read_option,
)
from dembench.harness.suite.available import what_is_missing

KEYS = ("out", "search", "tune", "parts", "costs")


@dataclass(frozen=True)
class Suite:
    """A suite file; ``search`` and ``tune`` hold options of these commands without their dashes."""

    name: str
    about: str
    out: Path
    search: Mapping[str, Any]
    parts: tuple[Mapping[str, Any], ...]
    costs: Mapping[str, Any]
    tune: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Runs of one item with one task, data set and model, and what they lack on this machine."""

    item: str
    task: str
    data: str
    model: str
    runs: tuple[Words, ...]
    lacks: tuple[str, ...] = field(default=())

    @property
    def here(self) -> bool:
        return not self.lacks

    def names(self, group: str) -> list[str]:
        """The methods or losses among the runs, each once."""
        return list(dict.fromkeys(str(words[group]) for words in self.runs if group in words))


def read_suite(name: str, config_dir: Path | None = None) -> Suite:
    """The suite of a name.

    Raises: ConfigError where there is none, or where its file is no suite.
    """
    text = read_option(
        "suite", lookup_or_fail(name, options("suite", config_dir=config_dir), "suite"), None, config_dir
    )
    plain = read_data(text, f"suite {name}", f"the keys {', '.join(KEYS)}")
    for key in plain:
        lookup_or_fail(str(key), KEYS, f"key of suite {name}")
    parts = plain.get("parts") or []
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise ConfigError(f"suite {name}: parts must be a list of mappings")
    for part in parts:
        for key in part:
            lookup_or_fail(str(key), ("sweep", "base", "grids"), f"key of a part of suite {name}")
    out = Path(plain.get("out") or f"reports/{name}")
    search, tune, costs = (plain.get(key) or {} for key in ("search", "tune", "costs"))
    return Suite(name, header(text, "About"), out, search, tuple(parts), costs, tune)


def runs_of(suite: Suite, overrides: Sequence[str] = (), config_dir: Path | None = None) -> list[Words]:
    """Every run of a suite's parts in words, each once; an override replaces a key in all of them.

    Raises: ConfigError for a part that is no grid.
    """
    given = sweeps.read_overrides(overrides)
    found: dict[str, Words] = {}
    for part in suite.parts:
        sweep = sweeps.read_sweep(part["sweep"], config_dir) if "sweep" in part else _grid(part, suite.name)
        for words in sweeps.expand(sweep, given):
            found.setdefault(json.dumps(words, sort_keys=True), words)
    return sweeps.fit(list(found.values()), given, config_dir)[0]


def _grid(part: Mapping[str, Any], name: str) -> dict[str, Any]:
    base, grids = part.get("base") or {}, part.get("grids") or [{}]
    if not isinstance(base, dict) or not isinstance(grids, list) or not all(isinstance(grid, dict) for grid in grids):
        raise ConfigError(f"suite {name}: base must be a mapping and grids a list of mappings")
    return {"base": base, "grids": grids}


def grouped(item: str, many: Iterable[Words], config_dir: Path | None = None) -> list[Group]:
    """Runs by task, data and model, in the order of their first run; what they lack is not looked for.

    Raises: ConfigError for an unknown name.
    """
    found: dict[tuple[str, str, str], list[Words]] = {}
    for words in many:
        found.setdefault(_named(words, config_dir), []).append(words)
    return [Group(item, *names, tuple(runs)) for names, runs in found.items()]


def checked(group: Group, config_dir: Path | None = None) -> Group:
    """The group with what its first run lacks on this machine.

    Raises: ConfigError for an unknown name or key.
    """
    return replace(group, lacks=tuple(_lacks(group.runs[0], config_dir)))


def _named(words: Words, config_dir: Path | None) -> tuple[str, str, str]:
    task = str(words.get("task", "tta"))
    if "data" in words and "model" in words:
        return task, str(words["data"]), str(words["model"])
    chosen = compose({key: words[key] for key in ("task", "data", "model") if key in words}, config_dir, complete=False)
    return task, str(chosen.choices.get("data")), str(chosen.choices.get("model") or "")


def _lacks(words: Words, config_dir: Path | None) -> list[str]:
    try:
        return what_is_missing(words, config_dir)
    except ImportError as error:  # of a task whose packages are not installed
        return [f"task={words.get('task', 'tta')}: {error}"]


def only(groups: Iterable[Group], tasks: Sequence[str], config_dir: Path | None = None) -> list[Group]:
    """The groups of some tasks; all of them where none is named.

    Raises: ConfigError for an unknown task.
    """
    for task in tasks:
        lookup_or_fail(task, options("task", config_dir=config_dir), "task")
    return [group for group in groups if not tasks or group.task in tasks]

"""The tables and figures of the sources and the studies of our own, with the settings that each can run in.

A study file gives its item: as it is, mostly on embedded data, and once for every entry of its key ``paper``, which
replaces keys for the paper's own data and model; ``???`` is what the user has to give.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dembench.harness import sweeps
from dembench.harness.compose import ConfigError, header, lookup_or_fail, options, read_option
from dembench.harness.figures import FIGURES
from dembench.harness.suite.suites import Group, checked, grouped, only

ASKED = "???"  # OmegaConf's mark of a value that is missing
SOURCES = ("dem_", "ttc_")  # how names of the sources' tables and figures begin; the others are studies of our own


@dataclass(frozen=True)
class Setting:
    """One way to run an item: its runs by what they need."""

    groups: tuple[Group, ...]
    paper: bool  # an entry of ``paper``; otherwise the file as it is
    asked: tuple[str, ...] = ()  # keys that the entry leaves to the user

    @property
    def data(self) -> list[str]:
        return list(dict.fromkeys(group.data for group in self.groups))

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(group.model for group in self.groups if group.model))

    @property
    def runs(self) -> int:
        return sum(len(group.runs) for group in self.groups)

    @property
    def lacks(self) -> list[str]:
        return list(dict.fromkeys(lack for group in self.groups for lack in group.lacks))


@dataclass(frozen=True)
class Item:
    """A table, a figure or a study: what it shows, its settings, and whether ``dembench figure`` draws it."""

    name: str
    about: str
    settings: tuple[Setting, ...]
    figure: bool


def names(config_dir: Path | None = None) -> list[str]:
    """Every study and every figure, the sources' first, in reading order."""
    found = {*options(sweeps.STUDIES, config_dir=config_dir), *FIGURES}
    return sorted(found, key=lambda name: (not name.startswith(SOURCES), _natural(name)))


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def items(
    wanted: Sequence[str] = (),
    overrides: Sequence[str] = (),
    tasks: Sequence[str] = (),
    data: Sequence[str] = (),
    config_dir: Path | None = None,
    *,
    check: bool = True,
) -> list[Item]:
    """Items with their settings.

    Args:
        wanted: names; all where there are none.
        overrides: key=value words that replace keys in all runs of all settings.
        tasks: only runs of these tasks. data: only settings on these datasets.
        check: look for what each setting lacks on this machine.
    Raises: ConfigError for unknown names, and where nothing is left.
    """
    known = names(config_dir)
    chosen = [lookup_or_fail(name, known, "table, figure or study") for name in wanted] or known
    found = [_item(name, overrides, tasks, data, config_dir) for name in dict.fromkeys(chosen)]
    if tasks or data:
        found = [item for item in found if item.settings]
    if not found:
        raise ConfigError(f"nothing is of task {' or '.join(tasks) or 'any'} on data {' or '.join(data) or 'any'}")
    if not check:
        return found
    lacks: dict[tuple[object, ...], tuple[str, ...]] = {}
    return [replace(item, settings=tuple(_checked(s, lacks, config_dir) for s in item.settings)) for item in found]


def _item(
    name: str, overrides: Sequence[str], tasks: Sequence[str], data: Sequence[str], config_dir: Path | None
) -> Item:
    about = FIGURES[name].about if name in FIGURES else ""
    if name not in options(sweeps.STUDIES, config_dir=config_dir):
        return Item(name, about, (), True)
    text = read_option(sweeps.STUDIES, name, config_dir=config_dir)
    content = sweeps.read_sweep(f"study={name}", config_dir)
    settings = []
    own = sweeps.read_overrides(overrides)
    for entry in (None, *content["paper"]):
        replaced = sweeps.axes(entry or {})
        asked = [key for key, values in replaced.items() if values == [ASKED]]
        given = {key: values for key, values in replaced.items() if key not in asked} | own
        many, _ = sweeps.fit(sweeps.expand(content, given), given, config_dir)
        groups = only(grouped(name, many, config_dir), tasks, config_dir)
        groups = [group for group in groups if not data or group.data in data]
        if groups:
            settings.append(Setting(tuple(groups), entry is not None, tuple(key for key in asked if key not in given)))
    return Item(name, header(text, "About"), tuple(settings), name in FIGURES)


def _checked(setting: Setting, memo: dict[tuple[object, ...], tuple[str, ...]], config_dir: Path | None) -> Setting:
    groups = []
    for group in setting.groups:
        key = (group.task, *sorted((k, str(v)) for k, v in group.runs[0].items() if _needs(k)))
        if key not in memo:
            memo[key] = checked(group, config_dir).lacks
        lacks = memo[key]
        if "model.weights" in setting.asked and "model.num_classes" in group.runs[0]:  # not those of the model's name
            lacks += (f"model={group.model}: model.weights=FILE, trained on the classes of {group.data}",)
        groups.append(replace(group, lacks=lacks))
    return replace(setting, groups=tuple(groups))


def _needs(key: str) -> bool:
    return key.split(".")[0] in ("data", "model")

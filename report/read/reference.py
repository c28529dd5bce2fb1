"""Published numbers: configs/reference/*.yaml -> records, and which of them may stand beside measured ones.

A file holds one table of a paper: what its numbers share, its columns, and its rows with a value per column. A row's
field wins over its column's, and that over a shared one. A value is a number, [mean, standard deviation], or null.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

TEXT = ("paper", "citation", "item", "task", "metric", "unit")
LISTS = ("columns", "rows")
FIELDS = ("data", "model", "protocol", "slice", "method", "loss")  # what a number is of
SETTINGS = (
    "severity",
    "batch_size",
    "optimizer",
    "lr",
    "images",
    "setting",
    "loss_setting",
    "weights",
)  # what it was made with
NEEDED = ("data", "protocol", "slice")
MODELS = {  # other ways to write a model, letters and digits only
    "wideresnet2810": "wrn2810", "wideresnet402": "wrn402", "wrn402augmix": "wrn402",
    "resnext2932x4d": "resnext29", "resnext29augmixcifar10": "resnext29", "resnext29augmixcifar100": "resnext29",
    "vitbasepatch16224augregin21kftin1k": "vitbasepatch16224", "vitb16": "vitbasepatch16224",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Published:
    """One printed number. ``made_with`` holds those of SETTINGS that the paper states."""

    task: str
    data: str
    model: str | None
    protocol: str
    slice: str
    method: str | None
    loss: str | None
    metric: str
    unit: str
    value: float
    sd: float | None
    made_with: Mapping[str, Any]

    def as_metric(self, metric: str) -> float | None:
        """The value as another metric in the same unit: accuracy and error in % are one number; else None."""
        if metric == self.metric:
            return self.value
        return 100 - self.value if {metric, self.metric} == {"error", "accuracy"} and self.unit == "%" else None


@dataclass(frozen=True, slots=True)
class Reference:
    """One table or figure of a source: its names, and a number or None for each row and column."""

    name: str
    about: str
    paper: str
    citation: str
    item: str
    remark: str
    task: str
    metric: str
    unit: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Published | None, ...]], ...]

    @property
    def source(self) -> str:
        return f"{self.paper} {self.item}"

    def numbers(self) -> Iterator[tuple[str, Published]]:
        """(row name, number) of every cell that has one."""
        for name, cells in self.rows:
            yield from ((name, cell) for cell in cells if cell is not None)


@cache
def references() -> tuple[Reference, ...]:
    """All files of configs/reference, by name.

    Raises: ValueError for a file that breaks the rules of this module.
    """
    folder = resources.files("dembench.configs").joinpath("reference")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    return tuple(read(name[:-5], folder.joinpath(name).read_text(encoding="utf-8")) for name in names)


def read(name: str, text: str) -> Reference:
    """One file's text as a Reference.

    Raises: ValueError for unknown or missing keys, rows whose values do not match the columns, and what is no number.
    """
    try:
        content: Any = OmegaConf.to_container(OmegaConf.create(text))
    except (YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"reference {name}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"reference {name}: expected keys and values")
    _only(name, content, (*TEXT, *LISTS, "remark", "shared"), needed=(*TEXT, *LISTS))
    shared = content.get("shared") or {}
    _only(name, shared, (*FIELDS, *SETTINGS))
    columns, rows = content["columns"], []
    for column in columns:
        _only(name, column, ("name", *FIELDS, *SETTINGS), needed=("name",))
    for row in content["rows"]:
        _only(name, row, ("name", "values", *FIELDS, *SETTINGS), needed=("name", "values"))
        if len(row["values"]) != len(columns):
            raise ValueError(f"reference {name}, {row['name']}: {len(row['values'])} values for {len(columns)} columns")
        cells = []
        for column, value in zip(columns, row["values"], strict=True):
            fields: dict[str, Any] = {**shared, **column, **row}
            cells.append(None if value is None else _number(name, content, fields, value))
        rows.append((str(row["name"]), tuple(cells)))
    about = next((line[9:].strip() for line in text.splitlines() if line.startswith("# About: ")), "")
    texts = {key: str(content[key]) for key in TEXT}
    names = tuple(str(column["name"]) for column in columns)
    return Reference(name, about, remark=str(content.get("remark", "")), columns=names, rows=tuple(rows), **texts)


def _only(name: str, node: Any, valid: tuple[str, ...], needed: tuple[str, ...] = ()) -> None:
    if not isinstance(node, dict):
        raise ValueError(f"reference {name}: expected keys and values, got {node!r}")
    if unknown := [key for key in node if key not in valid]:
        raise ValueError(f"reference {name}: unknown keys {', '.join(map(str, unknown))}; valid: {', '.join(valid)}")
    if missing := [key for key in needed if node.get(key) is None]:
        raise ValueError(f"reference {name}: lacks {', '.join(missing)}")


def _number(name: str, content: dict[str, Any], fields: dict[str, Any], value: Any) -> Published:
    mean, sd = value if isinstance(value, list) and len(value) == 2 else (value, None)
    for part in (mean, sd):
        number = isinstance(part, int | float) and not isinstance(part, bool) and math.isfinite(part)
        if not number and part is not None:
            raise ValueError(f"reference {name}, {fields['name']}: expected a number or [mean, sd], got {value!r}")
    if mean is None:
        raise ValueError(f"reference {name}, {fields['name']}: a deviation without a mean")
    if content["unit"] == "%" and not 0 <= mean <= 100:
        raise ValueError(f"reference {name}, {fields['name']}: {mean} is no percentage")
    if missing := [key for key in NEEDED if key not in fields]:
        raise ValueError(f"reference {name}, {fields['name']}: lacks {', '.join(missing)}")
    texts: dict[str, Any] = {key: None if fields.get(key) is None else str(fields[key]) for key in FIELDS}
    made_with = {key: fields[key] for key in SETTINGS if key in fields}
    common = {key: str(content[key]) for key in ("task", "metric", "unit")}
    return Published(**texts, **common, value=float(mean), sd=None if sd is None else float(sd), made_with=made_with)


def canonical(name: str | None) -> str:
    """A name without signs and case, known spellings of a model made one: "wrn28_10" and "WRN-28-10" are the same."""
    plain = re.sub("[^a-z0-9]", "", (name or "").lower())
    return MODELS.get(plain, plain)

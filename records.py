"""Files that somebody else may have written: read as data of known types, or refused in one line.

A folder of results can come from anywhere. What is read from it is a plain file of a bounded size that holds JSON, and
every part of it has the type that its schema gives. A schema is ``str``, ``int``, ``float`` (any finite number),
``bool``, ``None``, a tuple of alternatives, a list with the schema of its items, a dictionary, or ``PLAIN``. A
dictionary names its keys ("key?" may be absent); the entry under ``str`` stands for all keys that it does not name.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

LARGEST = 64_000_000  # bytes of a file that is read
DEEPEST = 40  # containers inside each other
RUN_ID = re.compile("[0-9a-f]{12}")
PLAIN = object()  # whatever JSON can hold, with finite numbers
VERSION = 1  # of the schemas of whole files below

TUNING: dict[Any, Any] = {  # what a run at chosen settings tells of the choice
    "id": str,
    "keys": [str],
    "space": [{"key": str, "low": float, "high": float, "log": bool, "whole": bool}],
    "preset": {str: float},
    "metric": str,
    "subset": {"share": float, "seed": int, "samples": int, "text": str},
    "settings": {"trials": int, "run_seeds": [int], str: PLAIN},
    "cost": {str: float},
    "trials": [
        {"number": int, "values": {str: float}, "status": str, "seeds": {str: {str: (float, None)}}},
    ],
    "choices": {str: {"trial": int, "values": {str: float}}},
    "fingerprints": {str: str},
    "command": str,
}
RESULT: dict[Any, Any] = {  # result.json of a run
    "schema": int,
    "id": str,
    "task": str,
    **dict.fromkeys(("method", "loss", "model", "data", "protocol"), (str, None)),
    "seed": int,
    "status": str,
    "flags?": [{"kind": str, "slice?": str, "message?": str}],
    "notes?": [{"key": str, "text": str}],
    "rows": [{"slice": str, "metric": str, "value": (float, None), "unit?": str, "n?": int}],
    "histograms?": {str: {"predicted": [int], "label": [int]}},
    "cost": {"wall_seconds": float, str: float},
    "labels?": {str: PLAIN},
    "config": {"choices": {str: (str, None)}, str: PLAIN},
    "fingerprints?": {str: str},
    "search?": {str: PLAIN},
    "tuned?": {"by": str, "values": {str: float}, **TUNING},
    "environment?": {str: PLAIN},
    "started?": str,
    "finished?": str,
    "command?": str,
    "files?": {str: str},  # in a line of an exported file only
}
SEARCH: dict[Any, Any] = {  # search.json of a search for DEM*
    "schema": int,
    "id": str,
    **dict.fromkeys(("task", "method"), str),
    **dict.fromkeys(("model", "data", "protocol"), (str, None)),
    "pair": {"tau": float, "alpha": float},
    "metric": str,
    "value": float,
    "at_one_one": (float, None),
    "settings": {
        **dict.fromkeys(("space", "order"), str),
        **dict.fromkeys(("trials", "startup", "seed"), int),
        "run_seeds": [int],
        "metric": (str, None),
    },
    "subset": {"share": float, "seed": int, "samples": int, "text": str},
    "cost": {**dict.fromkeys(("cpu_seconds", "wall_seconds", "forward_passes", "backward_passes", "runs"), float)},
    "trials": [
        {
            "number": int,
            "tau": float,
            "alpha": float,
            "status": str,
            "value": (float, None),
            "runs": {str: {str: float}},
        }
    ],
    "identity": {str: PLAIN},
    "fingerprints": {str: str},
    "environment": {str: PLAIN},
    "finished": str,
    "command": str,
}
TUNE: dict[Any, Any] = {  # tune.json of a tuning
    "schema": int,
    **dict.fromkeys(("task", "method", "loss"), str),
    **dict.fromkeys(("model", "data", "protocol"), (str, None)),
    **TUNING,
    "better": str,
    "absent": {str: str},
    "identity": {str: PLAIN},
    "environment": {str: PLAIN},
    "finished": str,
}


def check_regular(path: Path) -> None:
    """Raises ValueError for a pipe, a device or a folder: to open it could mean to wait. OSError where nothing is."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"{path} is not a regular file")


def read_plain(path: Path, most: int = LARGEST) -> bytes:
    """The bytes of a regular file; a pipe, a device or an endless file is refused at once instead of waited for.

    Raises: FileNotFoundError; OSError where it cannot be opened; ValueError for anything but a regular file of at most
        ``most`` bytes.
    """
    check_regular(path)
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # it was replaced in between
            raise ValueError(f"{path} is not a regular file")
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{path} is larger than {most // 10**6 or most} {'MB' if most >= 10**6 else 'bytes'}")
    return content


def read_text(path: Path, most: int = LARGEST) -> str:
    """The text of a regular UTF-8 file. Raises: as ``read_plain``, and ValueError for other bytes."""
    try:
        return read_plain(path, most).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text in UTF-8") from None


def read_json(path: Path, schema: Any, most: int = LARGEST) -> Any:
    """What a JSON file holds, checked. Raises: as ``read_plain``, and ValueError for anything that does not fit."""
    content = read_plain(path, most)
    try:
        return parse(content.decode("utf-8"), schema)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def parse(text: str, schema: Any) -> Any:
    """JSON text that fits a schema. Raises: ValueError, one line."""
    try:
        value = json.loads(text, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error})") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if schema in (RESULT, SEARCH, TUNE) and (not isinstance(value, dict) or value.get("schema") != VERSION):
        raise ValueError(f"expected a record of schema {VERSION}; this is none, or one of another version")
    check(value, schema)
    return value


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a finite number")


def check(value: Any, schema: Any, where: str = "", depth: int = 0) -> None:
    """Raises ValueError, which names the place, where a value does not fit a schema."""
    if isinstance(schema, tuple):
        schema = None if value is None else next(kind for kind in schema if kind is not None)
    if depth > DEEPEST:
        raise ValueError(f"{where[:80]}...: nested too deeply")
    if schema is PLAIN:
        schema = (
            {str: PLAIN} if isinstance(value, dict) else [PLAIN] if isinstance(value, list) else _kind(value, where)
        )
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            _wrong(value, "keys with values", where)
        _check_keys(value, schema, where, depth)
    elif isinstance(schema, list):
        if not isinstance(value, list):
            _wrong(value, "a list", where)
        for number, item in enumerate(value):
            check(item, schema[0], f"{where}[{number}]", depth + 1)
    elif schema is None:
        if value is not None:
            _wrong(value, "null", where)
    elif schema in (int, float):
        # a number that is too large for a float would fail later, at its first use
        small = isinstance(value, (int, schema)) and not isinstance(value, bool) and math.isfinite(_float(value))
        if not small:
            _wrong(value, "a whole number" if schema is int else "a finite number", where)
    elif not isinstance(value, schema):
        _wrong(value, {str: "a text", bool: "true or false"}[schema], where)


def _check_keys(value: Mapping[Any, Any], schema: Mapping[Any, Any], where: str, depth: int) -> None:
    named = {key.removesuffix("?"): key for key in schema if key is not str}
    if missing := [name for name, key in named.items() if name == key and name not in value]:
        raise ValueError(f"{where or 'the record'} lacks {', '.join(missing)}")
    for key, item in value.items():
        place = f"{where}.{key}" if where else str(key)
        if not isinstance(key, str) or (key not in named and str not in schema):
            raise ValueError(f"{place[:200]!r} is no known key; known: {', '.join(named)}")
        check(item, schema[named.get(key, str)], place, depth + 1)


def _kind(value: Any, where: str) -> Any:
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind
    return None if value is None else _wrong(value, "a plain value", where)


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _wrong(value: Any, expected: str, where: str) -> NoReturn:
    text = repr(value)
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    raise ValueError(f"{where or 'the record'}: expected {expected}, got {shown}")


def refuse_links(path: Path, *, names: int = 1) -> None:
    """Raises OSError where ``path`` is there and is not a regular file with so many names at most: to open it for
    writing could change another file, or wait for ever."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > names:
        raise OSError(errno.EINVAL, "it is a link or not a regular file, and is not written to", str(path))


def write_plain(path: Path, content: str | bytes) -> None:
    """Writes a file, text as UTF-8; refuses what ``refuse_links`` does."""
    refuse_links(path)
    path.write_bytes(content.encode() if isinstance(content, str) else content)

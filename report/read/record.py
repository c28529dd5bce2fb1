"""Where the record of a run is: in a run directory, or in a line of an exported file.

Both give the same three things: the content of result.json, the text of the files beside it, and the run's pictures.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from dembench import records

# control characters, halves of surrogate pairs, and marks that turn the direction of the text around them
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
ESCAPED = re.compile(r"\\u(?:[dD][89a-fA-F]|00[01]|007[fF]|202[a-eA-E]|206[6-9]|[fF]{3}[ef-fEF])")
FORMAT = "dembench records"  # in the first line of an exported file
TEXTS = ("curve.csv", "series.csv")  # files beside result.json that an exported line can hold


class Store(Protocol):
    """Where one run is kept."""

    name: str  # of the directory, or the id
    path: Path  # of the directory, or of the file that holds the run

    def record(self) -> dict[str, Any]:
        """The content of result.json. Raises FileNotFoundError where there is none, OSError or ValueError where it
        cannot be read."""
        ...

    def text(self, name: str) -> str:
        """A file beside result.json; raises OSError or ValueError where there is none that can be read."""
        ...

    def pictures(self) -> list[Path]:
        """The files that belong to the run, by name."""
        ...


class Directory:
    """A run directory, as the runner writes it."""

    def __init__(self, path: Path) -> None:
        self.name, self.path = path.name, path

    def record(self) -> dict[str, Any]:
        record = parse(records.read_plain(self.path / "result.json").decode("utf-8"))
        if records.RUN_ID.fullmatch(self.name) and record["id"] != self.name:
            raise ValueError(f"it is a copy of run {record['id']}")
        return record

    def text(self, name: str) -> str:
        return clean(records.read_plain(self.path / name).decode("utf-8"))

    def pictures(self) -> list[Path]:
        try:
            return sorted(path for path in (self.path / "files").iterdir() if path.is_file() and not path.is_symlink())
        except OSError:
            return []


class Line:
    """A run of an exported file; its line is held compressed until it is asked for."""

    def __init__(self, path: Path, number: int, line: bytes) -> None:
        self.name, self.path = f"{path.name}, line {number}", path
        self._line = zlib.compress(line, 6)

    def record(self) -> dict[str, Any]:
        return parse(zlib.decompress(self._line).decode("utf-8"))

    def text(self, name: str) -> str:
        return str(self.record()["files"][name])

    def pictures(self) -> list[Path]:
        return []


def parse(text: str) -> dict[str, Any]:
    """A result.json. Raises ValueError for anything else."""
    record: dict[str, Any] = records.parse(text, records.RESULT)
    return clean(record) if ESCAPED.search(text) or UNPRINTABLE.search(text) else record


def clean(value: Any) -> Any:
    """Text without characters that a page, a table or a file cannot hold; also within lists and dictionaries."""
    if isinstance(value, str):
        return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, dict):
        return {clean(key): clean(item) for key, item in value.items()}
    return [clean(item) for item in value] if isinstance(value, list) else value


def lines(path: Path) -> Iterator[Line]:
    """The runs of an exported file.

    Raises: ValueError where it is no such file or is cut off; OSError where it cannot be opened.
    """
    records.check_regular(path)
    try:
        with gzip.open(path) as file:
            head = json.loads(file.readline(records.LARGEST))
            if not isinstance(head, dict) or head.get("format") != FORMAT:
                raise ValueError(f"{path} is no file of `dembench export`")
            number = 1
            while line := file.readline(records.LARGEST):
                number += 1
                yield Line(path, number, line)
    except (gzip.BadGzipFile, EOFError, UnicodeDecodeError, json.JSONDecodeError, zlib.error) as error:
        raise ValueError(f"{path} is no whole file of `dembench export` ({type(error).__name__})") from None
    if number - 1 != head.get("runs"):
        raise ValueError(f"{path} holds {number - 1} of {head.get('runs')} runs: it was cut off")

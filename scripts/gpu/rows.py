"""How a part hands over its figures: one line of JSON each, appended to a file and flushed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Rows:
    """Appends rows to a file, which another process reads meanwhile.

    A row is one line of a table of the page: ``{"table": its title, "cells": {column: text or number or None}}``.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def add(self, table: str, **cells: Any) -> None:
        with self.file.open("a") as stream:
            stream.write(json.dumps({"table": table, "cells": cells}) + "\n")


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows that are complete; a line that is still being written is left out."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]

"""Runs the parts of a check one after the other, each in a process group of its own that is killed at its limit."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dembench.scripts.gpu.rows import read_rows

INTO = "DEMBENCH_CHECK_INTO"  # in a part's environment: the file for its rows
POLL = 0.2  # seconds between two looks at a part
LAST_LINES = 15  # of a part's output that the page shows when it failed
LEAST = 5.0  # seconds; a part that would get less is not started


@dataclass(frozen=True)
class Part:
    """One process of a check.

    Args:
        name: also of its working files.
        title: heading of its section.
        command: what is run; it finds the file for its rows in the environment variable ``INTO``.
        limit: seconds after which it is killed.
    """

    name: str
    title: str
    command: list[str]
    limit: float


@dataclass
class Outcome:
    """A part's status: "waiting", "running", "done", "failed", "killed" (at its limit) or "left out" (no time)."""

    part: Part
    status: str = "waiting"
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    log: str = ""  # all that it printed

    @property
    def last_lines(self) -> str:
        return "\n".join(self.log.rstrip().splitlines()[-LAST_LINES:])


def run_parts(
    parts: Iterable[Part], seconds: float, folder: Path, changed: Callable[[list[Outcome]], None]
) -> list[Outcome]:
    """Runs all parts that there is time for.

    Args:
        seconds: for all of them; the limit of a part is what is left where that is less.
        folder: for working files, empty.
        changed: called with all outcomes whenever one of them has changed.
    """
    outcomes = [Outcome(part) for part in parts]
    end = time.monotonic() + seconds
    for outcome in outcomes:
        limit = min(outcome.part.limit, end - time.monotonic())
        if limit < min(LEAST, outcome.part.limit):
            outcome.status = "left out"
        else:
            _run(outcome, limit, folder, lambda: changed(outcomes))
        changed(outcomes)
    return outcomes


def _run(outcome: Outcome, limit: float, folder: Path, changed: Callable[[], None]) -> None:
    name = outcome.part.name
    into, log = folder / f"{name}.jsonl", folder / f"{name}.log"
    outcome.status = "running"
    changed()
    start = time.monotonic()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            outcome.part.command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, INTO: str(into)},
            start_new_session=True,
        )
        try:
            while process.poll() is None and time.monotonic() - start < limit:
                time.sleep(POLL)
                rows = read_rows(into)
                if len(rows) > len(outcome.rows):
                    outcome.rows, outcome.seconds = rows, time.monotonic() - start
                    changed()
            ended = process.poll() is not None
        finally:
            kill_group(process)
    outcome.seconds = time.monotonic() - start
    outcome.rows = read_rows(into)
    outcome.log = log.read_text(errors="replace")
    outcome.status = "killed" if not ended else "done" if process.returncode == 0 else "failed"


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a process that leads a session, and all that it started."""
    with contextlib.suppress(ProcessLookupError):  # nothing of it is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

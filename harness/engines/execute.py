"""Runs what a plan lacks through an engine: retries, records failures, counts."""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dembench.harness import runs
from dembench.harness.engines.job import Engine, Progress
from dembench.harness.errors import DiskFull, no_room
from dembench.harness.sweeps import Planned, failure_note
from dembench.tasks.common.files import write_atomic

RETRIES = 2


@dataclass
class Summary:
    """How a sweep ended: numbers of runs, and the ids of the failed ones with where the reason is."""

    ran: int = 0
    found: int = 0
    retried: int = 0  # attempts beyond the first
    failed: dict[str, Path] = field(default_factory=dict)


def execute(
    planned: Sequence[Planned],
    engine: Engine,
    *,
    retries: int = RETRIES,
    retry_errors: bool = False,
    tell: Callable[[Progress], None] = lambda progress: None,
) -> Summary:
    """Runs what is not done.

    Args:
        planned: from ``harness.sweeps.plan``.
        engine: from ``harness.engines.choose``.
        retries: how often a run is tried again whose worker ended; it goes to the end of the queue.
        retry_errors: also retry runs that raised an exception.
        tell: called in this process as things happen.
    Raises: DiskFull, once the workers are ended, where a run or the note on a failure could not be written.
    Returns: the summary; tracebacks are in ``<out>/failed/<id>.txt``. On KeyboardInterrupt the workers are ended.
    """
    for run in planned:
        if run.odd:
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                runs.set_aside(run.directory)
    summary = Summary(found=sum(run.done for run in planned))
    todo = deque(run for run in planned if not run.done)
    attempts: Counter[str] = Counter()
    with contextlib.closing(engine.run(todo)) as events:  # ends the workers, wherever an interrupt finds us
        for progress in events:
            run = progress.run
            if progress.kind == "full":
                raise DiskFull(progress.message)
            if progress.kind in ("done", "found"):
                progress = _with_result(progress)
            if progress.kind in ("failed", "lost"):
                attempts[run.id] += 1
                if attempts[run.id] <= retries and (progress.kind == "lost" or retry_errors):
                    todo.append(run)
                    summary.retried += 1
                    progress = replace(progress, kind="again")
                else:
                    progress = replace(progress, kind="failed")
                    summary.failed[run.id] = _record(progress, attempts[run.id])
            elif progress.kind in ("done", "found"):
                failure_note(run.directory).unlink(missing_ok=True)
                summary.ran += progress.kind == "done"
                summary.found += progress.kind == "found"
            tell(progress)
    return summary


def _with_result(progress: Progress) -> Progress:
    """With what is on the disk: a run without a result there has failed, whatever its worker says."""
    try:
        result = runs.read_result(progress.run.directory)
    except ValueError as error:
        return replace(progress, kind="failed", message=str(error))
    if result is None:
        place = progress.run.directory / "result.json"
        return replace(progress, kind="failed", message=f"the worker has finished, but there is no {place}")
    return replace(progress, result=result)


def _record(progress: Progress, attempts: int) -> Path:
    path = failure_note(progress.run.directory)
    heading = progress.run.command if attempts == 1 else f"{progress.run.command}\n\nattempt {attempts}, the last"
    try:
        write_atomic(path, f"{heading}\n\n{progress.message.rstrip()}\n")
    except OSError as error:
        raise no_room(error) or error from None
    return path

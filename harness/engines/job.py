"""One run as an engine carries it out, and what an engine tells about it."""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from dembench.harness import errors, runs
from dembench.harness.compose import Words, composed
from dembench.harness.sweeps import Planned
from dembench.tasks.base import Event, Point, Scalars

if TYPE_CHECKING:
    from dembench.harness.experiment import Watcher

REPORT_SECONDS = 0.2  # how often a run tells how far it is
RETRY_SECONDS = 2.0  # how often a run that another process is writing is looked at

Kind = Literal["start", "step", "busy", "done", "found", "failed", "lost", "again", "full"]


@dataclass(frozen=True)
class Progress:
    """What happened to one run.

    Kinds: "start"; "step", ``step`` of ``total`` points while it runs; "busy", another process is writing it, it is
    looked at again later; "done", computed now; "found", another process had computed it; "failed", it raised;
    "lost", its worker ended without a word; "again", it failed or was lost and is tried once more; "full", nothing
    can be written any more.
    """

    kind: Kind
    run: Planned
    place: str = ""  # which worker
    step: int = 0
    total: int = 0
    message: str = ""  # of a failure: the traceback, or how the worker ended
    result: dict[str, Any] | None = None


class Engine(Protocol):
    """Carries out runs, several at a time."""

    slots: int  # runs at a time

    def run(self, todo: deque[Planned]) -> Generator[Progress, None, None]:
        """Takes runs from the left until none is left and none runs; closing the iterator ends what runs."""
        ...


@dataclass(frozen=True)
class Job:
    """What a worker is sent: a run in words, and what it was planned as."""

    words: Words
    id: str
    device: str
    directory: Path
    command: str
    config_dir: Path | None
    force: bool

    @classmethod
    def of(cls, run: Planned) -> Job:
        device, force = run.config["device"], run.config["force"]
        return cls(run.words, run.id, device, run.directory, run.command, run.config_dir, force)


def attempt(job: Job, watch: Watcher) -> tuple[Kind, str]:
    """Runs a job in this process: "done", "found" or "busy", or "failed" and the traceback.

    A ConnectionError is passed on: ``watch`` raises it where nobody listens any more.
    """
    try:
        return ("done" if perform(job, watch) else "found"), ""
    except runs.RunBusy:
        return "busy", ""
    except ConnectionError:
        raise
    except Exception as error:  # whatever it was, it is recorded and the next run starts
        full = errors.no_room(error)
        return ("failed", traceback.format_exc()) if full is None else ("full", str(full))


def perform(job: Job, watch: Watcher) -> bool:
    """Composes, prepares and runs one run in this process; False where another process had finished it.

    Raises: RunBusy where another process is writing it; RuntimeError where data or weights changed since the plan.
    """
    from dembench.harness import experiment

    if job.directory.is_dir():  # before anything is loaded
        if not job.force and runs.read_result(job.directory) is not None:
            return False
        with runs.lock(job.directory):
            pass
    words = {**job.words, "device": job.device}  # "auto" may mean something else in a worker
    prepared = experiment.prepare(composed(words, job.config_dir))
    if prepared.id != job.id:
        raise RuntimeError(f"planned as {job.id}, but its data or weights now give {prepared.id}; plan again")
    return experiment.run(prepared, command=job.command, watch=watch).ran


def teller(tell: Callable[[int, int], None]) -> Watcher:
    """A watcher that calls ``tell(step, total)`` now and then."""
    step, told = 0, 0.0

    def watch(event: Event, total: int) -> None:
        nonlocal step, told
        if isinstance(event, (Point, Scalars)):
            step += 1
            if time.monotonic() - told > REPORT_SECONDS:
                told = time.monotonic()
                tell(step, total)

    return watch


class Waiting:
    """Runs that other processes are writing, each until it is looked at again."""

    def __init__(self) -> None:
        self._runs: deque[tuple[float, Planned]] = deque()

    def add(self, run: Planned) -> None:
        self._runs.append((time.monotonic() + RETRY_SECONDS, run))

    def due(self) -> Iterator[Planned]:
        """Yields runs whose retry delay is over."""
        while self._runs and self._runs[0][0] <= time.monotonic():
            yield self._runs.popleft()[1]

    def __bool__(self) -> bool:
        return bool(self._runs)

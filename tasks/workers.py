"""Runs planned runs in worker processes, each with its own torch; a failed or dead one does not stop the others."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

from tasks import experiment, runs
from tasks.base import Event, Point, Scalars
from tasks.compose import compose
from tasks.sweeps import Planned, Words

RETRY_SECONDS = 2.0  # how often a run that another process is writing is looked at
REPORT_SECONDS = 0.2  # how often a worker tells how far it is


@dataclass(frozen=True)
class Progress:
    """What happened to one run; ``step`` of ``total`` points while it runs."""

    kind: Literal["start", "step", "done", "found", "failed"]
    run: Planned
    worker: int
    step: int = 0
    total: int = 0
    message: str = ""  # of a failure: its last line
    result: dict[str, Any] | None = None


@dataclass
class Summary:
    """How a sweep ended: numbers of runs, and the ids of the failed ones with where the reason is."""

    ran: int = 0
    found: int = 0
    failed: dict[str, Path] = field(default_factory=dict)


def execute(
    planned: Sequence[Planned],
    workers: int,
    config_dir: Path | None = None,
    tell: Callable[[Progress], None] = lambda progress: None,
) -> Summary:
    """Runs what is not done.

    Args:
        planned: from ``tasks.sweeps.plan``.
        workers: processes, started afresh (spawn); 0 runs all in this process.
        tell: called in this process as things happen.
    Returns: the summary; tracebacks lie in ``<out>/failed/<id>.txt``. On KeyboardInterrupt the workers are ended.
    """
    summary = Summary(found=sum(run.done for run in planned))
    todo = deque(run for run in planned if not run.done)
    loop = _in_processes(todo, min(workers, len(todo)), config_dir) if workers else _in_this_process(todo, config_dir)
    with contextlib.closing(loop):  # ends the workers, wherever an interrupt finds us
        for progress in loop:
            note = progress.run.directory.parent / "failed" / f"{progress.run.id}.txt"
            if progress.kind == "failed":
                runs.write_atomic(note, f"{progress.run.command}\n\n{progress.message.rstrip()}\n")
                summary.failed[progress.run.id] = note
            elif progress.kind in ("done", "found"):
                note.unlink(missing_ok=True)
                summary.ran += progress.kind == "done"
                summary.found += progress.kind == "found"
            tell(progress)
    return summary


def _perform(words: Words, id: str, command: str, config_dir: Path | None, watch: experiment.Watcher) -> dict[str, Any]:
    """Composes, prepares and runs one run in the current process; returns what is worth telling about it."""
    prepared = experiment.prepare(compose(words, config_dir))
    if prepared.id != id:
        raise RuntimeError(f"planned as {id}, but its data or weights now give {prepared.id}; plan again")
    outcome = experiment.run(prepared, command=command, watch=watch)
    return {"ran": outcome.ran, "result": {key: outcome.result[key] for key in ("rows", "status", "cost")}}


def _in_this_process(todo: deque[Planned], config_dir: Path | None) -> Iterator[Progress]:
    while todo:
        run = todo.popleft()
        yield Progress("start", run, 0)
        try:
            done = _perform(run.words, run.id, run.command, config_dir, lambda event, total: None)
        except runs.RunBusy:
            time.sleep(RETRY_SECONDS)
            todo.append(run)
        except Exception:  # whatever it was, it is recorded and the next run starts
            yield Progress("failed", run, 0, message=traceback.format_exc())
        else:
            yield Progress("done" if done["ran"] else "found", run, 0, result=done["result"])


def _in_processes(todo: deque[Planned], workers: int, config_dir: Path | None) -> Iterator[Progress]:
    waiting: deque[tuple[float, Planned]] = deque()  # written by another process; looked at again later
    with tempfile.TemporaryDirectory(prefix="dembench-") as folder, _one_thread():
        pool = [_Worker(number, Path(folder) / f"{number}.log", config_dir) for number in range(workers)]
        try:
            while todo or waiting or any(worker.run for worker in pool):
                while waiting and waiting[0][0] <= time.monotonic():
                    todo.append(waiting.popleft()[1])
                for worker in pool:
                    if worker.run is None and todo:
                        worker.give(todo.popleft())
                        yield Progress("start", worker.run, worker.number)
                busy = {worker.pipe: worker for worker in pool if worker.run}
                if not busy:
                    time.sleep(0.1)
                for pipe in wait(list(busy), timeout=REPORT_SECONDS) if busy else []:
                    worker = busy[pipe]
                    run = worker.run
                    kind, content = worker.hear()
                    if kind == "step":
                        yield Progress("step", run, worker.number, *content)
                    elif kind == "busy":
                        waiting.append((time.monotonic() + RETRY_SECONDS, run))
                    elif kind == "done":
                        yield Progress(
                            "done" if content["ran"] else "found", run, worker.number, result=content["result"]
                        )
                    else:
                        yield Progress("failed", run, worker.number, message=content)
        finally:
            for worker in pool:
                worker.process.terminate()
            for worker in pool:
                worker.process.join()


class _Worker:
    """A process that runs one run after the other, and the parent's end of the pipe to it."""

    def __init__(self, number: int, output: Path, config_dir: Path | None) -> None:
        self.number = number
        self.output = output  # what the process prints while it runs
        self.config_dir = config_dir
        self.run: Planned | None = None
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        arguments = (theirs, self.output, self.config_dir)
        self.process = context.Process(target=_work, args=arguments, daemon=True, name=f"dembench worker {self.number}")
        with _interrupts_ignored():  # Ctrl-C reaches the whole group; the parent decides
            self.process.start()
        theirs.close()  # so that the end of the process ends the pipe

    def give(self, run: Planned) -> None:
        self.run = run
        with contextlib.suppress(BrokenPipeError):  # a process that died is noticed when it is heard
            self.pipe.send((run.words, run.id, run.command))

    def hear(self) -> tuple[str, Any]:
        """The next message; a process that has died has failed its run and is replaced."""
        try:
            kind, content = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            kind = "failed"
            content = f"the worker process ended with exit code {self.process.exitcode}"
            self.pipe.close()
            self._start()
        if kind == "failed" and (printed := self.output.read_text(errors="replace").strip()):
            content += f"\n\nprinted:\n{printed[-4000:]}"
        if kind != "step":
            self.run = None
        return kind, content


def _work(pipe: Connection, output: Path, config_dir: Path | None) -> None:
    """The worker process: takes runs from the pipe until the parent is gone."""
    said = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, sys.stdout.fileno())
    os.dup2(said, sys.stderr.fileno())
    try:
        while True:
            words, id, command = pipe.recv()
            os.ftruncate(said, 0)
            pipe.send(_attempt(words, id, command, config_dir, _teller(pipe)))
    except (EOFError, ConnectionError):
        pass


def _attempt(*job: Any) -> tuple[str, Any]:
    try:
        return "done", _perform(*job)
    except runs.RunBusy:
        return "busy", None
    except ConnectionError:  # the parent is gone
        raise
    except Exception:  # whatever it was, it is recorded and the next run starts
        return "failed", traceback.format_exc()


def _teller(pipe: Connection) -> experiment.Watcher:
    step, told = 0, 0.0

    def watch(event: Event, total: int) -> None:
        nonlocal step, told
        if isinstance(event, (Point, Scalars)):
            step += 1
            if time.monotonic() - told > REPORT_SECONDS:
                told = time.monotonic()
                pipe.send(("step", (step, total)))

    return watch


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """A process started in here ignores Ctrl-C from its first instruction on."""
    if threading.current_thread() is not threading.main_thread():  # where Python allows no handlers
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Environment of the workers: libraries that read OMP_NUM_THREADS when they load take one thread."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before

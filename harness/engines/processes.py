"""Runs in processes of this machine, each with its own torch; a dead one is replaced and does not stop the others."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from dembench.harness.engines import warm
from dembench.harness.engines.job import REPORT_SECONDS, Job, Kind, Progress, Waiting, attempt, teller
from dembench.harness.sweeps import Planned
from dembench.tasks.common.files import scratch

PRINTED = 4000  # last characters of what a failed run printed that are kept


class Processes:
    """Workers that keep what they have imported from one run to the next, see ``warm``.

    Args:
        cpus: workers without a GPU.
        gpus: one worker each, as CUDA_VISIBLE_DEVICES names them; a name that is given twice is shared by two. Such a
            worker sees its GPU and no other, and takes runs of the CPU where none of a GPU is left; the others see no
            GPU. Without ``gpus`` all workers see what this process sees, and take every run.
        threads: of the numerical libraries in each worker.
    """

    def __init__(self, cpus: int = 0, gpus: Sequence[str] = (), threads: int = 1) -> None:
        self.slots = len(gpus) + cpus
        self.gpus = gpus
        self.threads = threads

    def environment(self, worker: int) -> dict[str, str]:
        """What the environment of a worker has of its own; those with a GPU come first."""
        own = {"OMP_NUM_THREADS": str(self.threads)}  # which libraries read when they load
        if self.gpus:
            own["CUDA_VISIBLE_DEVICES"] = self.gpus[worker] if worker < len(self.gpus) else ""
        return own

    def take(self, worker: int, todo: deque[Planned]) -> Planned | None:
        """The next run for a worker, taken from the queue, or None where no run there is for it."""
        first = next((run for run in todo if (worker < len(self.gpus)) == _on_gpu(run)), None)
        if first is None and todo and (worker < len(self.gpus) or not self.gpus):
            first = todo[0]
        if first is not None:
            todo.remove(first)
        return first

    def run(self, todo: deque[Planned]) -> Generator[Progress, None, None]:
        waiting = Waiting()
        with scratch("sweep") as folder, contextlib.ExitStack() as stack:
            pool: list[_Worker] = []
            stack.callback(_end, pool)
            for number in range(self.slots):  # their processes start with their first runs
                pool.append(_Worker(number, folder / f"{number}.log", self.environment(number)))
            while todo or waiting or any(worker.run for worker in pool):
                todo.extend(waiting.due())
                for worker in pool:
                    if worker.run is None and (run := self.take(worker.number, todo)) is not None:
                        worker.give(run)
                        yield Progress("start", run, worker.place)
                busy: dict[Any, _Worker] = {worker.pipe: worker for worker in pool if worker.run}
                if not busy:
                    time.sleep(REPORT_SECONDS)
                for pipe in wait(list(busy), timeout=REPORT_SECONDS) if busy else []:
                    worker = busy[pipe]
                    progress = worker.hear()
                    if progress.kind == "busy":
                        waiting.add(progress.run)
                    yield progress


def _on_gpu(run: Planned) -> bool:
    return run.config["device"] == "cuda"


class _Worker:
    """A process that runs one run after the other, and the parent's end of the pipe to it."""

    def __init__(self, number: int, output: Path, environment: Mapping[str, str]) -> None:
        self.number = number
        self.output = output  # what the process prints while it runs
        self.environment = environment
        self.run: Planned | None = None
        gpu = environment.get("CUDA_VISIBLE_DEVICES")
        self.place = f"worker {number}, GPU {gpu}" if gpu else f"worker {number}"
        self.process: multiprocessing.process.BaseProcess | None = None

    def _start(self) -> None:
        context = warm.context(self.environment)
        self.pipe, theirs = context.Pipe()
        arguments = (theirs, self.output, {**os.environ, **self.environment})
        with warm.interrupts_ignored(), warm.environment(self.environment):  # Ctrl-C reaches all; the parent decides
            self.process = context.Process(  # type: ignore[attr-defined]
                target=_work, args=arguments, daemon=True, name=f"dembench worker {self.number}"
            )
            self.process.start()
        theirs.close()  # so that the end of the process ends the pipe

    def give(self, run: Planned) -> None:
        self.run = run
        if self.process is None:
            self._start()
        with contextlib.suppress(BrokenPipeError):  # a process that died is noticed when it is heard
            self.pipe.send(Job.of(run))

    def hear(self) -> Progress:
        """The next message; a process that has died has lost its run, and the next run gets another."""
        run, process = self.run, self.process
        assert run is not None
        assert process is not None
        try:
            kind, content = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            process.join()
            kind, content = "lost", _ending(process.exitcode)
            self.pipe.close()
            self.process = None
        if kind == "step":
            return Progress("step", run, self.place, *content)
        if kind in ("failed", "lost") and (printed := self._printed()):
            content += f"\n\nprinted:\n{printed}"
        self.run = None
        return Progress(kind, run, self.place, message=content)

    def _printed(self) -> str:
        try:
            return self.output.read_text(errors="replace").strip()[-PRINTED:]
        except FileNotFoundError:  # it died before it could print
            return ""


def _end(pool: Sequence[_Worker]) -> None:
    processes = [worker.process for worker in pool if worker.process is not None]
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()


def _ending(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        hint = "; the system does so where memory runs out" if name == "SIGKILL" else ""
        return f"the worker process was ended by {name}{hint}"
    return f"the worker process ended with exit code {exitcode}"


def _work(pipe: Connection, output: Path, environment: Mapping[str, str]) -> None:
    """The worker process: takes runs from the pipe until the parent is gone."""
    warm.take(environment)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    said = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, sys.stdout.fileno())
    os.dup2(said, sys.stderr.fileno())

    def tell(step: int, total: int) -> None:
        pipe.send(("step", (step, total)))

    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            job = pipe.recv()
            os.ftruncate(said, 0)
            message: tuple[Kind, str] = attempt(job, teller(tell))
            pipe.send(message)


def _end_with_parent() -> None:
    """Ends this process when the parent is gone, even one that was killed: nobody waits for its run."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

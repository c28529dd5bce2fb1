"""Runs as tasks of a Ray cluster; workers and nodes may be lost, what ran there is told as lost.

The folder of the results must be the same on every node: a node that does not see it refuses its runs, and a run
counts as done only when its result can be read where the sweep was started.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import sys
import time
import traceback
import uuid
from collections import deque
from collections.abc import Collection, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import Timeout

from dembench.harness.compose import ConfigError
from dembench.harness.engines.job import REPORT_SECONDS, Job, Kind, Progress, Waiting, attempt, teller
from dembench.harness.sweeps import Planned
from dembench.tasks.common.files import plain_lock

try:
    import ray
    from ray import exceptions
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise ImportError(f'{error}; the engine ray needs: pip install "dembench[ray]"') from error

REACH_SECONDS = 10.0
VISIBLE_SECONDS = 90.0  # how long a network file system may take until it shows a file that another node has written
AHEAD = 16  # runs that are handed to Ray beyond those that it has room for


class Ray:
    """One Ray task per run.

    Args:
        address: "auto", "HOST:PORT" or "ray://HOST:PORT" of a cluster, or "local" for one on this machine alone.
        cpus: of each run. gpus: of each run; 0.5 puts two on one GPU.
    Raises: ConfigError where there is no such cluster, or no node of it has room for a run.
    """

    def __init__(self, address: str, cpus: float, gpus: float) -> None:
        self.cpus, self.gpus = cpus, gpus
        self._own = not ray.is_initialized()
        if self._own:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            try:
                _reach(address)
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, ValueError, RuntimeError, OSError) as error:
                reason = " ".join(str(error).split())
                raise ConfigError(f"no Ray cluster at {address} (`ray start --head` starts one): {reason}") from error
        self.slots = self._room()
        if not self.slots:
            have = [f"{_amount(node, 'CPU'):g} CPUs and {_amount(node, 'GPU'):g} GPUs" for node in _nodes()]
            self.close()
            asked = f"{cpus:g} CPUs and {gpus:g} GPUs"
            raise ConfigError(
                f"no node of the Ray cluster has the {asked} that a run takes; they have {'; '.join(have)}"
            )

    def close(self) -> None:
        """Leaves the cluster; what runs there for this sweep ends."""
        if self._own:
            ray.shutdown()

    def _room(self) -> int:
        """Runs that the living nodes have room for at a time."""
        asked = [(kind, each) for kind, each in (("CPU", self.cpus), ("GPU", self.gpus)) if each]
        return sum(math.floor(min(_amount(node, kind) / each for kind, each in asked)) for node in _nodes())

    def run(self, todo: deque[Planned]) -> Generator[Progress, None, None]:
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            places = _Places(stack)
            board = _Board()
            task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0, scheduling_strategy="SPREAD")(
                _carry_out
            )
            running: dict[Any, Planned] = {}  # handed to Ray
            stack.callback(_cancel, running)
            waiting, unseen = Waiting(), _Unseen()
            while todo or waiting or running or unseen:
                todo.extend(waiting.due())
                if todo:
                    self.slots = self._room()
                while todo and len(running) < self.slots + AHEAD:
                    run = todo.popleft()
                    running[task.remote(Job.of(run), places.of(run.directory.parent), board.actor)] = run
                if not running:
                    time.sleep(REPORT_SECONDS)
                for reference in ray.wait(list(running), timeout=REPORT_SECONDS)[0] if running else []:
                    run = running.pop(reference)
                    progress = _hear(reference, run)
                    board.forget(run)
                    if progress.kind == "busy":
                        waiting.add(run)
                    if progress.kind == "done":
                        unseen.add(progress)
                    else:
                        yield progress
                yield from board.news(running.values())
                yield from unseen.visible()


def _reach(address: str) -> None:
    """Fails at once where nothing listens, for which Ray takes minutes.

    Raises: OSError where there is no connection, ValueError for a malformed address.
    """
    if address in ("auto", "local"):
        return
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError("expected auto, local, HOST:PORT or ray://HOST:PORT")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS):
        pass


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _amount(node: dict[str, Any], kind: str) -> float:
    return float(node["Resources"].get(kind, 0.0))


def _cancel(running: dict[Any, Planned]) -> None:
    for reference in running:
        ray.cancel(reference, force=True)


def _carry_out(job: Job, place: _Place, board: Any) -> tuple[Kind, str, str]:
    """What a node does: what became of the run, a message, and the name of the node."""
    node = f"{ray.util.get_node_ip_address()} {ray.get_runtime_context().get_node_id()[:8]}"

    def tell(step: int, total: int) -> None:
        board.tell.remote(job.id, node, step, total)  # may be lost, and nobody waits for it

    tell(0, 0)
    try:
        place.take()
    except OSError as error:
        return "failed", f"node {node}: {error}", node
    kind, message = attempt(job, teller(tell))
    if kind == "failed":
        message = f"node {node}\n{message}"
    elif not place.locked_elsewhere():
        message = f"locks on files in {Path(place.mark).parent} do not reach from node to node: keep to one sweep there"
    return kind, message, node


def _hear(reference: Any, run: Planned) -> Progress:
    try:
        kind, message, node = ray.get(reference)
    except exceptions.RayTaskError:  # not of the run, which catches its own: the node cannot load this code, say
        return Progress("failed", run, message=traceback.format_exc())
    except exceptions.RayError as error:
        return Progress("lost", run, message=f"{type(error).__name__}: {' '.join(str(error).split())}")
    return Progress(kind, run, node, message=message)


@dataclass(frozen=True)
class _Place:
    """Where the sweep was started, for workers to stand in the same place."""

    folder: str
    path: tuple[str, ...]  # of Python
    settings: dict[str, str]  # variables of the environment that begin with DEMBENCH_
    mark: str  # a file beside the results that the sweep holds locked

    def take(self) -> None:
        """Raises: FileNotFoundError where this node does not see the sweep's folders."""
        os.environ.update(self.settings)
        sys.path.extend(entry for entry in self.path if entry not in sys.path)
        for path in (self.folder, self.mark):
            if not os.path.exists(path):
                raise FileNotFoundError(
                    f"no {path} there; the folder of the sweep and `out` must be shared by all nodes, under one name"
                )
        os.chdir(self.folder)

    def locked_elsewhere(self) -> bool:
        """Whether the sweep's lock is seen from here."""
        try:
            with plain_lock(self.mark).acquire(timeout=0):
                return False
        except Timeout:
            return True


class _Places:
    """A place for each folder of results; their marks go when the stack is closed."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._places: dict[Path, _Place] = {}

    def of(self, out: Path) -> _Place:
        if out not in self._places:
            out.mkdir(parents=True, exist_ok=True)
            mark = out.resolve() / f".sweep-{uuid.uuid4().hex}"
            self._stack.callback(mark.unlink, missing_ok=True)
            self._stack.enter_context(plain_lock(mark))
            settings = {name: value for name, value in os.environ.items() if name.startswith("DEMBENCH_")}
            self._places[out] = _Place(os.getcwd(), tuple(filter(None, sys.path)), settings, str(mark))
        return self._places[out]


class _Board:
    """An actor that workers tell how far they are; a lost board costs the display and nothing else."""

    def __init__(self) -> None:
        class Board:  # by value: its process needs no torch
            def __init__(self) -> None:
                self.told: dict[str, tuple[str, int, int]] = {}

            def tell(self, id: str, node: str, step: int, total: int) -> None:
                self.told[id] = (node, step, total)

            def news(self) -> dict[str, tuple[str, int, int]]:
                told, self.told = self.told, {}
                return told

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        make: Any = ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)  # type: ignore[call-overload]
        self.actor = make(Board).remote()
        self._asked: Any = None
        self._started: set[str] = set()

    def forget(self, run: Planned) -> None:
        """Of a run that has ended."""
        self._started.discard(run.id)

    def news(self, running: Collection[Planned]) -> Iterator[Progress]:
        """ "start" and "step" of runs, as far as the actor has answered."""
        if self._asked is None:
            self._asked = self.actor.news.remote()
        if not ray.wait([self._asked], timeout=0)[0]:
            return
        try:
            told = ray.get(self._asked)
        except exceptions.RayError:
            told = {}
        self._asked = None
        known = {run.id: run for run in running}
        for id, (node, step, total) in told.items():
            if (run := known.get(id)) is None:
                continue
            if id not in self._started:
                self._started.add(id)
                yield Progress("start", run, node)
            if total:
                yield Progress("step", run, node, step, total)


class _Unseen:
    """Runs that ended on some node, until their results can be read here."""

    def __init__(self) -> None:
        self._ended: list[tuple[float, Progress]] = []

    def add(self, progress: Progress) -> None:
        self._ended.append((time.monotonic() + VISIBLE_SECONDS, progress))

    def visible(self) -> list[Progress]:
        """Those whose result is here, and those past the timeout."""
        now = time.monotonic()
        ready = [((p.run.directory / "result.json").exists() or until < now, until, p) for until, p in self._ended]
        self._ended = [(until, progress) for here, until, progress in ready if not here]
        return [progress for here, _, progress in ready if here]

    def __bool__(self) -> bool:
        return bool(self._ended)

"""Where worker processes come from: on Linux a server process that has imported PyTorch once is forked for each of
them, so a worker starts in milliseconds, also one that replaces a dead one; elsewhere they start afresh (spawn).

A worker that is to see one GPU, or more threads than one, starts afresh, too: libraries read that when they load.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from multiprocessing.context import BaseContext

PRELOADED = ["dembench.harness.experiment", "dembench.harness.engines.processes", "hydra.utils"]
THREADS = "OMP_NUM_THREADS"


def context(own: Mapping[str, str]) -> BaseContext:
    """What starts processes whose environment has values of its own."""
    if sys.platform != "linux" or "CUDA_VISIBLE_DEVICES" in own or own.get(THREADS, "1") != "1":
        return multiprocessing.get_context("spawn")
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload(PRELOADED)
    return forking


def start() -> None:
    """Lets the server process begin to import, beside what this process does; nothing where there is none."""
    own = {THREADS: "1"}
    if context(own).get_start_method() == "forkserver":
        from multiprocessing import forkserver

        with interrupts_ignored(), environment(own):
            forkserver.ensure_running()


@contextlib.contextmanager
def interrupts_ignored() -> Iterator[None]:
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
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """A process started in here has these variables."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def take(variables: Mapping[str, str]) -> None:
    """In a process that was started: this environment and no other, and Ctrl-C is the parent's to decide on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if dict(os.environ) != variables:
        os.environ.clear()
        os.environ.update(variables)

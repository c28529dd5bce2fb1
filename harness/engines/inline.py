"""Runs one run after the other in this process."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator

from dembench.harness.engines.job import Job, Progress, Waiting, attempt
from dembench.harness.sweeps import Planned

PAUSE_SECONDS = 0.05


class Inline:
    """No workers: what ends a run hard ends the sweep."""

    slots = 1

    def run(self, todo: deque[Planned]) -> Generator[Progress, None, None]:
        waiting = Waiting()
        while todo or waiting:
            todo.extend(waiting.due())
            if not todo:
                time.sleep(PAUSE_SECONDS)
                continue
            run = todo.popleft()
            yield Progress("start", run)
            kind, message = attempt(Job.of(run), lambda event, total: None)
            if kind == "busy":
                waiting.add(run)
            yield Progress(kind, run, message=message)

"""Figures drawn by several processes at once: drawing is most of a report's work, and each figure is on its own."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice

from dembench.report.figures import choose as figures
from dembench.report.figures.drawing import Figure
from dembench.report.judge.group import Block
from dembench.report.judge.verdict import Verdict

FEW = 4  # comparisons that are not worth a second process
MOST = 8  # processes

Comparison = tuple[Block, list[Verdict], int]
_jobs: Sequence[Comparison] = ()  # what a child process inherits, so that nothing is copied to it
_files = True


def draw(jobs: Sequence[Comparison], files: bool = True) -> list[list[Figure]]:
    """The drawn figures of each (block, verdicts, most figures), in order and the same however many processes draw.
    ``files``: see ``Figure.draw``."""
    processes = min(cpus(), len(jobs), MOST)
    if processes < 2 or len(jobs) < FEW or not sys.platform.startswith("linux"):  # elsewhere fork is not safe
        _inherit(jobs, files)
        return [_draw(number) for number in range(len(jobs))]
    gc.collect()
    gc.freeze()  # else the children's collector would copy the pages that they share with us
    try:
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(processes, context, initializer=_inherit, initargs=(jobs, files)) as pool:
            return list(pool.map(_draw, range(len(jobs))))
    finally:
        gc.unfreeze()


def cpus() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _inherit(jobs: Sequence[Comparison], files: bool) -> None:
    global _jobs, _files
    _jobs, _files = jobs, files


def _draw(number: int) -> list[Figure]:
    block, verdicts, most = _jobs[number]
    found = list(islice(figures.block_figures(block, verdicts), most))
    for figure in found:
        figure.draw(_files)
    return found

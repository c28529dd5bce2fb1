"""Shows a run while it runs: a bar on a terminal, one line per slice elsewhere. Writes to stderr only."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from dembench.harness import notebook
from dembench.harness.experiment import Watcher
from dembench.harness.say import alive, is_quiet, say
from dembench.tasks.base import Event, Flag, Note, Point, Scalars


class SliceError:
    """Share of wrong predictions over the points of the current slice."""

    def __init__(self) -> None:
        self.slice: str | None = None
        self.n = self.correct = 0

    def add(self, point: Point) -> None:
        if point.slice != self.slice:
            self.slice, self.n, self.correct = point.slice, 0, 0
        self.n += point.n
        self.correct += point.correct

    def __str__(self) -> str:
        return f"error {1 - self.correct / self.n:.3f}" if self.n else ""


@contextmanager
def shown(enabled: bool, title: str) -> Iterator[Watcher | None]:
    """A watcher for ``harness.experiment.run``, or None where ``enabled`` is false."""
    if not enabled or is_quiet():
        yield None
    elif notebook.inside():
        with _in_notebook(title) as watch:
            yield watch
    elif sys.stderr.isatty():
        with _bar(title) as watch:
            yield watch
    else:
        lines = _Lines(title)
        with alive(lines.now):
            yield lines
        lines.close()


LINES = 10  # of a learning curve, where there is no terminal


class _Lines:
    def __init__(self, title: str) -> None:
        self.error = SliceError()
        self.scalars = self.step = self.total = 0
        self.start = time.perf_counter()
        say(title)

    def now(self) -> str:
        step = f"{self.step} of {self.total}" if self.total else "preparing"
        return f"  {step}, {time.perf_counter() - self.start:.0f} s"

    def __call__(self, event: Event, total: int) -> None:
        self.step, self.total = self.step + isinstance(event, Point | Scalars), total
        if isinstance(event, Point):
            if event.slice != self.error.slice:
                self.close()
            self.error.add(event)
        elif isinstance(event, Scalars):
            self.scalars += 1
            if self.scalars * LINES // total > (self.scalars - 1) * LINES // total:
                seconds = time.perf_counter() - self.start
                say(f"  {_numbers(event)} ({seconds:.1f} s)")
        elif text := _message(event):
            say(text)

    def close(self) -> None:
        if self.error.n:
            seconds = time.perf_counter() - self.start
            say(f"  {self.error.slice}: {self.error} ({seconds:.1f} s)")
            self.error = SliceError()


@contextmanager
def _bar(title: str) -> Iterator[Watcher]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    error = SliceError()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(escape(title), total=None)

        def watch(event: Event, total: int) -> None:
            if isinstance(event, Point):
                error.add(event)
                text = escape(f"{title} {event.slice} {error}")
                progress.update(bar, advance=1, total=total, description=text)
            elif isinstance(event, Scalars):
                progress.update(bar, advance=1, total=total, description=escape(f"{title} {_numbers(event)}"))
            elif text := _message(event):
                progress.console.print(escape(text))

        yield watch


@contextmanager
def _in_notebook(title: str) -> Iterator[Watcher]:
    bar, error, step = notebook.Bar(title), SliceError(), 0

    def watch(event: Event, total: int) -> None:
        nonlocal step
        if isinstance(event, Point):
            error.add(event)
        if isinstance(event, Point | Scalars):
            step += 1
            bar.show(step, total, f"{event.slice} {error}" if isinstance(event, Point) else _numbers(event))
        elif text := _message(event):
            bar.say(text)

    try:
        yield watch
    finally:
        bar.close()


def _numbers(event: Scalars) -> str:
    """The step and the first three of its numbers."""
    shown = [f"{name} {value:.4g}" for name, value in list(event.values.items())[:3]]
    return f"{event.slice} {event.step}: {', '.join(shown)}"


def _message(event: Event) -> str:
    if isinstance(event, Flag):
        return f"  {event.kind} in {event.slice}: {event.message}"
    if isinstance(event, Note):
        return f"  note ({event.key}): {event.text}"
    return ""

"""Shows a sweep while it runs: one live table on a terminal, a line per event elsewhere. Writes to stderr only."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dembench.harness import notebook
from dembench.harness.engines.job import Engine, Progress
from dembench.harness.say import alive, is_quiet, say, warn
from dembench.harness.sweeps import Planned
from dembench.harness.times import Times

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

RATE = 4  # pictures a second
AROUND = 8  # lines of a terminal that are not for running runs


@dataclass
class _Running:
    run: Planned
    place: str
    since: float
    step: int = 0
    total: int = 0


class State:
    """What is done, runs, and is left of a sweep, and how long that will take.

    Args:
        missing: the runs. engine: carries them out. labels: by id. times: of past runs; those that end are added.
        clock: seconds, as ``time.monotonic``.
    """

    def __init__(
        self,
        missing: Sequence[Planned],
        engine: Engine,
        labels: Mapping[str, str],
        times: Times,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.missing, self.engine, self.labels, self.times, self.clock = missing, engine, labels, times, clock
        self.start = clock()
        self.running: dict[str, _Running] = {}
        self.busy: set[str] = set()  # that other processes are writing
        self.warned: set[str] = set()
        self.done = self.failed = 0
        self._left = {run.id: run for run in missing}

    def add(self, progress: Progress) -> str:
        """Takes one event; returns the line that it is worth, or ""."""
        run, kind = progress.run, progress.kind
        if kind == "start":
            self.running[run.id] = _Running(run, progress.place, self.clock())
            self.busy.discard(run.id)
            return ""
        if kind == "step":
            if (running := self.running.get(run.id)) is not None:
                running.step, running.total = progress.step, progress.total
            return ""
        running = self.running.pop(run.id, None)
        if kind == "busy":
            new = run.id not in self.busy
            self.busy.add(run.id)
            return f"{self._name(run)}: another process is running it" if new else ""
        if kind == "again":
            return f"{self._name(run)}: {reason(progress)}; it is tried again"
        self.busy.discard(run.id)
        self._left.pop(run.id, None)
        if kind == "failed":
            self.failed += 1
        else:
            self.done += 1
        if kind == "done" and running is not None:
            self.times.add(run.config, self.clock() - running.since)
        width = len(str(len(self.missing)))
        warning = ""
        if kind != "failed" and progress.message and progress.message not in self.warned:  # said once
            self.warned.add(progress.message)
            warning = f"\nwarning: {progress.message}"
        return (
            f"[{self.done + self.failed:{width}}/{len(self.missing)}] {self._name(run)}: {outcome(progress)}{warning}"
        )

    def _name(self, run: Planned) -> str:
        return f"{run.id} {self.labels[run.id]}"

    def seconds_left(self) -> float | None:
        """By past runs, ``slots`` at a time; None where no run like the missing ones has ended yet."""
        now, total, known = self.clock(), 0.0, not self._left
        for run in self._left.values():
            expected = self.times.expected(run.config)
            if expected is None:
                continue
            known = True
            running = self.running.get(run.id)
            total += max(0.0, expected - (now - running.since)) if running else expected
        return total / max(1, min(self.engine.slots, len(self._left))) if known else None

    def line(self) -> str:
        """How far the sweep and its longest run are."""
        ended, left = self.done + self.failed, self.seconds_left()
        text = f"  {ended} of {len(self.missing)} ended, {len(self.running)} running"
        if running := next(iter(list(self.running.values())), None):
            step = f" at {running.step} of {running.total}" if running.total else ""
            text += f", {self.labels[running.run.id]}{step} for {duration(self.clock() - running.since)}"
        return text + ("" if left is None else f"; {duration(left)} left")

    def table(self, width: int, height: int) -> Table:
        """As many running runs as fit, below the counts."""
        from rich.markup import escape
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        count, ended = len(self.missing), self.done + self.failed
        left = self.seconds_left()
        counts = Text(f"{self.done} done, {len(self.running)} running, ")
        counts.append(f"{self.failed} failed", "bold red" if self.failed else "")
        counts.append(f", {count - ended - len(self.running)} waiting; {duration(self.clock() - self.start)} so far, ")
        counts.append(f"{'?' if left is None else duration(left)} left", "bold")
        grid = Table.grid(expand=True)
        grid.add_row(ProgressBar(count, ended))
        grid.add_row(counts)
        body = Table.grid(padding=(0, 2), expand=True)
        body.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        body.add_column(no_wrap=True, width=16)
        body.add_column(no_wrap=True, justify="right")
        if any(running.place for running in self.running.values()) and width >= 100:
            body.add_column(no_wrap=True, style="dim")
        shown = list(self.running.values())[: max(1, height - AROUND)]
        for running in shown:
            bar = ProgressBar(running.total, running.step, width=16) if running.total else ""
            cells = [escape(self.labels[running.run.id]), bar, duration(self.clock() - running.since)]
            body.add_row(*cells, *([escape(running.place)] if len(body.columns) == 4 else []))
        if len(shown) < len(self.running):
            body.add_row(f"and {len(self.running) - len(shown)} more", "", "")
        grid.add_row(body)
        return grid


@contextmanager
def shown(state: State, enabled: bool = True) -> Iterator[Callable[[Progress], None]]:
    """What to tell of each event."""
    if enabled and notebook.inside():
        bar = notebook.Bar(f"{len(state.missing)} runs")

        def tell_notebook(progress: Progress) -> None:
            if text := state.add(progress):
                bar.say(text)
            bar.show(state.done + state.failed, len(state.missing))

        yield tell_notebook
        return
    if not enabled or is_quiet() or not sys.stderr.isatty():

        def tell(progress: Progress) -> None:
            if (text := state.add(progress)) and enabled:
                (warn if progress.kind in ("failed", "again") else say)(text)

        with alive(state.line) if enabled else nullcontext():
            yield tell
        return
    from rich.console import Console

    with live(state, Console(stderr=True)) as tell_live:
        yield tell_live


@contextmanager
def live(state: State, console: Console) -> Iterator[Callable[[Progress], None]]:
    """The table, drawn again and again below the lines of what has ended."""
    from rich.live import Live
    from rich.text import Text

    def picture() -> Table:
        return state.table(console.width, console.height)

    with Live(get_renderable=picture, console=console, refresh_per_second=RATE, transient=True) as board:

        def tell(progress: Progress) -> None:
            if text := state.add(progress):
                style = "red" if progress.kind == "failed" else "yellow" if progress.kind == "again" else ""
                board.console.print(Text(text, style), soft_wrap=True)

        yield tell


def outcome(progress: Progress) -> str:
    """A run that has ended: its mean and its time, or why it failed."""
    if progress.kind == "failed":
        return f"FAILED, {reason(progress)}"
    result = progress.result or {}
    means = [row for row in result.get("rows", ()) if row["slice"] == "mean" and row["value"] is not None]
    number = f"{means[0]['metric']} {means[0]['value']:.4f}" if means else "no mean"
    status = "" if result.get("status") == "ok" else f" [{result.get('status')}]"
    elsewhere = ", by another process" if progress.kind == "found" else ""
    return f"{number}{status}, {duration(result.get('cost', {}).get('wall_seconds', 0))}{elsewhere}"


def reason(progress: Progress) -> str:
    """The last line of what a run raised, or how its worker ended."""
    message = progress.message.partition("\n\nprinted:")[0]
    return [line for line in message.splitlines() if line.strip()][-1]


def duration(seconds: float) -> str:
    """ "9.5 s", "80 s", "12 min", "3.4 h" or "2.5 days"."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"

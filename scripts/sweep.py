"""dembench sweep: a grid of runs, from the command line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.cli import Parser, fail

if TYPE_CHECKING:
    from tasks.sweeps import Planned
    from tasks.workers import Progress, Summary

EXAMPLE = """examples:
  dembench sweep demo --dry-run
  dembench sweep cifar10_jpeg out=runs/cifar10_jpeg seed=0,1 --workers 2
  dembench sweep my_grid.yaml
  dembench sweep study=ttc_table2 data=cifar10c data.root=DIR model=cifar_resnet20

A sweep file has `base` (what all runs share) and `grids`, a list of mappings from keys to a value or a list of values;
each grid gives every combination. An override replaces its key in all grids; one of method.* or loss.* is left out of
runs whose method or loss has no such option, with a line that says so. `seed=0,1` gives two values. What has a result
is skipped, so a stopped sweep goes on where it was; a failed run leaves its traceback in <out>/failed/."""


def parser() -> argparse.ArgumentParser:
    p = Parser("dembench sweep", description="Run a grid of runs; what is done is skipped.", epilog=EXAMPLE)
    p.add_argument("sweep", help="a file, a name that `dembench list sweep` shows, or study=NAME (dembench list study)")
    p.add_argument("overrides", nargs="*", metavar="key=value", help="as for dembench run; commas give several values")
    p.add_argument("--workers", type=int, metavar="N", help="processes (default: a CPU each, or 1 on a GPU); 0: none")
    p.add_argument("--dry-run", action="store_true", help="show what would run, and stop")
    p.add_argument("--config-dir", type=Path, metavar="DIR", help="own configurations, laid out as configs/")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_intermixed_args(list(sys.argv[1:] if argv is None else argv))
    from tasks.compose import ConfigError

    try:
        return sweep(args.sweep, args.overrides, args.workers, args.config_dir, args.dry_run)
    except ConfigError as error:
        return fail(f"dembench sweep: {error}")


def sweep(
    file_or_name: str,
    overrides: Sequence[str] = (),
    workers: int | None = None,
    config_dir: Path | None = None,
    dry_run: bool = False,
) -> int:
    """Plans and runs a sweep, showing how far it is on stderr; returns the exit status.

    Raises: ConfigError before the first run starts, for whatever is wrong with any of them.
    """
    from tasks import sweeps
    from tasks.compose import ConfigError
    from tasks.workers import execute

    if workers is not None and workers < 0:
        raise ConfigError(f"--workers: expected at least 0, got {workers}")
    content = sweeps.read_sweep(file_or_name, config_dir)
    given = sweeps.read_overrides(overrides)
    words, left = sweeps.fit(sweeps.expand(content, given), given, config_dir)
    for key, names in left.items():
        print(f"{key} is left out of the runs of {', '.join(names)}, which have no such option", file=sys.stderr)
    planned = sweeps.plan(words, config_dir)
    missing = [run for run in planned if not run.done]
    if workers is None:
        workers = default_workers(planned)
    workers = min(workers, len(missing))
    seconds = sweeps.estimate(planned, workers)
    text = f"{len(planned)} runs: {len(planned) - len(missing)} done, {len(missing)} to run"
    if missing:
        text += f" with {workers} worker{'s' * (workers != 1)}" if workers else " in this process"
        text += "" if seconds is None else f", about {duration(seconds)} by the runs that are done"
    print(text, file=sys.stderr)
    if dry_run:
        for run in planned:
            print(run.id, "done   " if run.done else "missing", " ".join(sweeps.to_arguments(run.words)))
        return 0
    try:
        with shown(len(missing)) as tell:
            summary = execute(planned, workers, config_dir, tell)
    except KeyboardInterrupt:
        return fail("dembench sweep: stopped; started again, it goes on with what is missing", status=130)
    return conclude(summary)


def default_workers(planned: Sequence[Planned]) -> int:
    """A process per CPU that this process may use, at most 8; one where runs go to a GPU."""
    if any(run.config["device"] == "cuda" for run in planned):
        return 1
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cpus, 8)


def conclude(summary: Summary) -> int:
    for id, path in summary.failed.items():
        print(f"failed: {id}, see {path}", file=sys.stderr)
    print(f"{summary.ran} run, {summary.found} done before, {len(summary.failed)} failed", file=sys.stderr)
    return 1 if summary.failed else 0


@contextmanager
def shown(runs: int) -> Iterator[Callable[[Progress], None]]:
    """Bars on a terminal, one line per finished run elsewhere; to stderr."""
    finished = 0

    def line(progress: Progress) -> str:
        nonlocal finished
        if progress.kind in ("start", "step"):
            return ""
        finished += 1
        return f"[{finished}/{runs}] {progress.run.id} {describe(progress)}"

    if not sys.stderr.isatty():

        def tell(progress: Progress) -> None:
            if text := line(progress):
                print(text, file=sys.stderr, flush=True)

        yield tell
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bars:
        whole = bars.add_task("runs", total=runs)
        bar_of = {}

        def tell_bars(progress: Progress) -> None:
            if progress.kind == "start":
                bar_of[progress.worker] = bars.add_task(escape(title(progress.run)), total=None)
            elif progress.kind == "step":
                bars.update(bar_of[progress.worker], completed=progress.step, total=progress.total)
            else:
                bars.remove_task(bar_of.pop(progress.worker))
                bars.advance(whole)
                bars.console.print(escape(line(progress)), highlight=False)

        yield tell_bars


def title(run: Planned) -> str:
    from scripts.run import title as title_of

    return title_of(run.config)


def describe(progress: Progress) -> str:
    """One line on a run that has ended: its names and its mean error, or why it failed."""
    if progress.kind == "failed":
        reason = [line for line in progress.message.partition("\n\nprinted:")[0].splitlines() if line.strip()][-1]
        return f"{title(progress.run)}: FAILED, {reason}"
    result = progress.result or {}
    means = [row for row in result.get("rows", ()) if row["slice"] == "mean" and row["value"] is not None]
    number = f"{means[0]['metric']} {means[0]['value']:.4f}" if means else "no mean"
    status = "" if result.get("status") == "ok" else f" [{result.get('status')}]"
    return f"{title(progress.run)}: {number}{status}, {result.get('cost', {}).get('wall_seconds', 0):.1f} s"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


if __name__ == "__main__":
    sys.exit(main())

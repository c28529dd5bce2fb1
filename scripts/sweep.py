"""dembench sweep: a grid of runs, from the command line."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dembench.harness.say import counting, say, whisper
from dembench.records import read_plain
from dembench.scripts.cli import Parser, fail

if TYPE_CHECKING:
    from dembench.harness.engines.choose import Settings
    from dembench.harness.engines.execute import Summary
    from dembench.harness.sequential import Until
    from dembench.harness.sweeps import Planned
    from dembench.harness.times import Times

EXAMPLE = """examples:
  dembench sweep demo --dry-run
  dembench sweep cifar10_jpeg out=runs/cifar10_jpeg seed=0,1 --workers 2
  dembench sweep my_grid.yaml --gpus-per-run 0.5
  dembench sweep study=ttc_table2 data=cifar10c data.root=DIR model=cifar_resnet20
  dembench sweep my_grid.yaml out=/shared/runs --engine ray
  dembench sweep demo --until 'task=tta method=tent protocol=continual: adadem-em +-0.3' --max-seeds 20

A sweep file has `base` (what all runs share) and `grids`, a list of mappings from keys to a value or a list of values;
each grid gives every combination. An override replaces its key in all grids; one of method.* or loss.* is left out of
runs whose method or loss has no such option, with a line that says so. `seed=0,1` gives two values. Every run is
checked before the first starts. What has a result is skipped, so an interrupted sweep resumes; two sweeps on
one folder share the work. A failed run leaves its traceback in <out>/failed/, and the sweep ends with status 1.

--until adds seeds to the runs that it names until the interval of the paired difference is that narrow (in points of a
metric in %), or --max-seeds. All looks share the 5%, so the interval holds although it decided when to stop; the
records say so, and the report's intervals of these runs are as wide as that takes."""


def parser() -> argparse.ArgumentParser:
    p = Parser("dembench sweep", description="Run a grid of runs; what is done is skipped.", epilog=EXAMPLE)
    p.add_argument("sweep", help="a file, a name that `dembench list sweep` shows, or study=NAME (dembench list study)")
    p.add_argument("overrides", nargs="*", metavar="key=value", help="as for dembench run; commas give several values")
    p.add_argument("--dry-run", action="store_true", help="show what is done, what is missing and how long it takes")
    p.add_own()
    p.add_argument("--retries", type=int, default=2, metavar="N", help="for a run whose worker or node died (2)")
    p.add_argument("--until", metavar="RULE", help="'KEY=VALUE ...: LOSS-LOSS +-NUMBER': add seeds until then")
    p.add_argument("--max-seeds", type=int, default=20, metavar="N", help="of --until (20)")
    p.add_argument("--retry-errors", action="store_true", help="also retry runs that raised an exception")
    where = p.add_argument_group("where runs run")
    where.add_argument("--engine", metavar="NAME", help="inline (this process), processes (the default) or ray")
    where.add_argument("--workers", type=int, metavar="N", help="processes (default: as CPUs or GPUs allow); 0: inline")
    where.add_argument("--gpus", metavar="0,1", help="of this machine, for processes (default: all that are visible)")
    where.add_argument(
        "--gpus-per-run", type=float, metavar="X", help="0.5 puts two runs on a GPU (default: by memory)"
    )
    where.add_argument("--cpus-per-run", type=float, metavar="X", help="default: the run's threads, which are 1")
    where.add_argument("--address", metavar="A", help="of the Ray cluster: auto (default), HOST:PORT, ray://HOST:PORT")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_intermixed_args(list(sys.argv[1:] if argv is None else argv))
    from dembench.harness.compose import ConfigError
    from dembench.harness.engines.choose import Settings
    from dembench.harness.sequential import read_until

    try:
        settings = Settings(args.engine, args.workers, args.gpus, args.cpus_per_run, args.gpus_per_run, args.address)
        if args.retries < 0:
            raise ConfigError(f"--retries: expected at least 0, got {args.retries}")
        return sweep(
            args.sweep,
            args.overrides,
            settings,
            config_dir=args.config_dir,
            dry_run=args.dry_run,
            retries=args.retries,
            retry_errors=args.retry_errors,
            until=None if args.until is None else read_until(args.until, args.max_seeds),
        )
    except ConfigError as error:
        return fail(f"dembench sweep: {error}", status=1 if type(error).__name__ == "DiskFull" else 2)
    except KeyboardInterrupt:  # while it is planned
        return fail("dembench sweep: interrupted before the first run", status=130)


def sweep(
    file_or_name: str,
    overrides: Sequence[str] = (),
    settings: Settings | int | None = None,
    config_dir: Path | None = None,
    dry_run: bool = False,
    retries: int = 2,
    retry_errors: bool = False,
    until: Until | None = None,
) -> int:
    """Plans and runs a sweep, showing how far it is on stderr; returns the exit status.

    ``settings`` say where runs run; a number is that of worker processes. ``until`` adds seeds.
    Raises: ConfigError before the first run starts, for whatever is wrong with any of them.
    """
    from dembench.harness import sequential, sweeps
    from dembench.harness.engines import warm
    from dembench.harness.engines.choose import Settings

    if not isinstance(settings, Settings):
        settings = Settings(workers=settings)
    content = sweeps.read_sweep(file_or_name, config_dir)
    given = sweeps.read_overrides(overrides)
    words, left = sweeps.fit(sweeps.expand(content, given), given, config_dir)
    for key, names in left.items():
        say(f"{key} is left out of the runs of {', '.join(names)}, which have no such option")
    sweeps.check_words(words, config_dir)
    if settings.name == "processes" and not settings.gpus and not dry_run:
        warm.start()  # imports PyTorch for the workers while this process plans
    options = {"dry_run": dry_run, "retries": retries, "retry_errors": retry_errors}
    if until is None:
        started = time.monotonic()
        with counting("planning", first=f"planning {len(words)} runs"):
            planned = sweeps.plan(words, config_dir, elsewhere=settings.name == "ray")
        whisper(f"planned in {time.monotonic() - started:.1f} s")
        return run_planned(planned, settings, **options)
    seeds = {int(own.get("seed", 0)) for own in words if until.concerns(own, config_dir)}
    if not seeds:
        raise sweeps.ConfigError(f"--until {until.text!r} names none of the runs")
    looks = until.looks(len(seeds))
    for count in looks:
        many = until.extended(words, count, len(looks), config_dir)
        planned = sweeps.plan(many, config_dir, elsewhere=settings.name == "ray")
        status = run_planned(planned, settings, **options)
        if status or dry_run:
            return status
        widest = max(sequential.widths(planned, until, len(looks), config_dir).values())
        say(f"{until.a} - {until.b}: +-{widest:.3g} with {count} seeds, asked +-{until.half:g}")
        if widest <= until.half:
            return 0
    say(f"not that narrow within --max-seeds {until.most}")
    return 0


def run_planned(planned: Sequence[Planned], settings: Settings, dry_run: bool, retries: int, retry_errors: bool) -> int:
    """Runs what is missing of a plan, or shows it; returns the exit status."""
    from dembench.harness import sweeps
    from dembench.harness.engines.choose import choose
    from dembench.harness.engines.execute import execute
    from dembench.harness.engines.view import State, shown

    for run in planned:
        if run.odd:
            kept = "" if dry_run else "; it is set aside as result.json.odd, and the run runs again"
            say(f"{run.odd.removesuffix('; remove it to run again')}{kept}")
    missing = [run for run in planned if not run.done]
    times = sweeps.past_times(planned)
    labels = sweeps.labels(planned)
    if not missing:
        say(f"{len(planned)} runs: {len(planned)} done, 0 to run")
    engine = choose(settings, planned, times) if missing else None
    if engine is not None:
        say(f"{plan_line(planned, settings, engine.slots, times)}")
    if dry_run:
        for run in planned:
            print(dry_line(run, labels[run.id], times))
        return 0
    if engine is None:
        return 0
    try:
        with shown(State(missing, engine, labels, times)) as tell:
            summary = execute(planned, engine, retries=retries, retry_errors=retry_errors, tell=tell)
    except KeyboardInterrupt:
        return fail("dembench sweep: interrupted; rerun the command to run what is missing", status=130)
    return conclude(summary)


def plan_line(planned: Sequence[Planned], settings: Settings, slots: int, times: Times) -> str:
    """ "54 runs: 10 done, 44 to run (1 failed before) in 2 processes, about 12 min by past runs"."""
    from dembench.harness.engines.view import duration
    from dembench.harness.sweeps import estimate, failure_note

    missing = [run for run in planned if not run.done]
    text = f"{len(planned)} runs: {len(planned) - len(missing)} done, {len(missing)} to run"
    if failed := sum(failure_note(run.directory).exists() for run in missing):
        text += f" ({failed} failed before)"
    if settings.name == "processes":
        text += f" in {slots} process{'es' * (slots != 1)}"
    else:
        text += " in this process" if settings.name == "inline" else f" on a Ray cluster with room for {slots}"
    seconds = estimate(planned, min(slots, len(missing)), times)
    if seconds is None:
        return f"{text}; no estimate: no earlier runs"
    text += f", about {duration(seconds)} by past runs"
    unknown = [run for run in missing if times.expected(run.config) is None]
    names = dict.fromkeys(str(run.config["choices"]["task"]) for run in unknown)
    return f"{text}, without the {len(unknown)} of {', '.join(names)}, which has none" if unknown else text


def dry_line(run: Planned, label: str, times: Times) -> str:
    """The id, whether it is done, how long it took or will take, and what tells it from the others."""
    from dembench.harness.engines.view import duration
    from dembench.harness.sweeps import failure_note

    if run.result is not None and run.done:
        state, seconds = "done", run.result["cost"]["wall_seconds"]
    else:
        state, seconds = "missing", times.expected(run.config)
        if failure_note(run.directory).exists():
            state = "failed"
    return f"{run.id} {state:<7} {'?' if seconds is None else duration(seconds):>8}  {label}"


def reason(path: Path) -> str:
    """The last line of a traceback, or of what else is known of a failure."""
    try:
        text = read_plain(path).decode(errors="replace").partition("\n\nprinted:\n")[0]
    except (OSError, ValueError):
        return "the reason could not be written"
    return ([line for line in text.split("\n") if line.strip()] or ["no reason given"])[-1][:200]


def conclude(summary: Summary) -> int:
    """Says how a sweep ended; the exit status."""
    for id, path in summary.failed.items():
        say(f"failed: {id}, see {path}: {reason(path)}")
    again = f", {summary.retried} tried again" if summary.retried else ""
    counts = f"{summary.ran} run, {summary.found} done before, {len(summary.failed)} failed{again}"
    say(counts)
    return 1 if summary.failed else 0


if __name__ == "__main__":
    sys.exit(main())

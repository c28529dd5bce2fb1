"""dembench suite: many grids under one name, the searches that they need before them and the report after them."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dembench.harness.say import counting, is_quiet, say
from dembench.records import write_plain
from dembench.scripts.cli import Parser, fail

if TYPE_CHECKING:
    from dembench.harness.suite.costs import Cost, Costs
    from dembench.harness.suite.papers import Item
    from dembench.harness.suite.suites import Group, Suite

STOPPED = 130  # the exit status after Ctrl-C
EXAMPLE = """examples:
  dembench suite quick                                # make demo
  dembench suite full --dry-run                       # every method and loss on all data that is here: plan and time
  dembench suite full --only tta,semi device=cuda
  dembench suite paper                                # every table and figure of the sources: data, state, cost
  dembench suite paper dem_table3 ttc_table2          # run these, on every data set of theirs that is here
  dembench suite paper ttc_table2 --data cifar10c data.root=DIR model.weights=FILE

What is missing is listed with how to get it, and left out. Interrupted suites resume; runs and
its report are in --out. DEM* is searched before its runs where no search of it is done."""


def parser(prog: str = "dembench suite") -> argparse.ArgumentParser:
    p = Parser(prog, description="Run a suite and write its report; print the page's path last.", epilog=EXAMPLE)
    p.add_argument("suite", help="quick, full, paper, or one of your own (dembench list suite)")
    p.add_argument("words", nargs="*", metavar="NAME|key=value", help="tables and figures; values, as in a sweep")
    p.add_argument("--only", metavar="TASK,...", default="", help="only runs of these tasks")
    p.add_argument("--data", metavar="DATA,...", default="", help="only runs on these datasets")
    p.add_argument("--out", type=Path, metavar="DIR", help="for report and runs (reports/demo, reports/full, ...)")
    p.add_argument("--workers", type=int, metavar="N", help="processes (default: as CPUs or GPUs allow); 0: none")
    p.add_argument("--dry-run", action="store_true", help="show what would run and what is missing, and stop")
    p.add_argument("--watch", action="store_true", help="write the report anew while runs come in")
    p.add_own()
    return p


def main(argv: Sequence[str] | None = None, prog: str = "dembench suite") -> int:
    args = parser(prog).parse_intermixed_args(list(sys.argv[1:] if argv is None else argv))
    from dembench.harness.compose import ConfigError

    try:
        return run(args)
    except ConfigError as error:
        return fail(f"{prog}: {error}", status=1 if type(error).__name__ == "DiskFull" else 2)
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        return fail(f"{prog}: the search of DEM* needs the package optuna: pip install 'dembench[search]'")
    except KeyboardInterrupt:
        return fail(f"{prog}: interrupted; rerun the command to run what is missing", status=STOPPED)


def run(args: argparse.Namespace) -> int:
    """Plans, then searches, runs and reports; returns the exit status. Raises: ConfigError before any of it."""
    from dembench.harness import sweeps
    from dembench.harness.compose import ConfigError, options
    from dembench.harness.suite import papers, suites
    from dembench.harness.suite.costs import Costs

    if args.workers is not None and args.workers < 0:
        raise ConfigError(f"--workers: expected at least 0, got {args.workers}")
    suite = suites.read_suite(args.suite, args.config_dir)
    figures = suites.read_suite("paper").costs
    names = [word for word in args.words if "=" not in word]
    overrides = [word for word in args.words if "=" in word]
    tasks, data = [[name for name in text.split(",") if name] for text in (args.only, args.data)]
    out = args.out or suite.out
    past = list(results(out / "runs"))
    costs = Costs(figures, past, args.config_dir)
    if suite.parts:
        if names:
            raise ConfigError(f"suite {suite.name} has no tables and figures to choose from; expected key=value")
        many = suites.runs_of(suite, overrides, args.config_dir)
        sweeps.check_words(many, args.config_dir)
        groups = suites.only(suites.grouped(suite.name, many, args.config_dir), tasks, args.config_dir)
        groups = [group for group in groups if not data or group.data in data]
        if groups:
            say(f"planning the suite {suite.name}, {sum(len(group.runs) for group in groups)} runs")
        groups = [suites.checked(group, args.config_dir) for group in groups]
        drawn: list[str] = []
    else:
        for task in tasks:
            suites.lookup_or_fail(task, options("task", config_dir=args.config_dir), "task")
        found = papers.items(names, overrides, tasks, data, args.config_dir)
        if not names and not tasks and not data:
            show_items(found, costs, figures)
            return 0
        groups = [group for item in found for setting in item.settings for group in setting.groups]
        drawn = [item.name for item in found if item.figure]
    if not groups and not drawn:
        raise ConfigError(f"suite {suite.name} has no runs of {args.only or 'any task'} on {args.data or 'any data'}")
    show_plan(groups, costs, past)
    return carry_out(suite, groups, drawn, costs, out, args)


def results(folder: Path) -> Iterable[Mapping[str, Any]]:
    """The finished runs in a folder, as far as they can be read."""
    from dembench.harness import runs

    for path in sorted(folder.glob("*/result.json")):
        with contextlib.suppress(ValueError):
            if (result := runs.read_result(path.parent)) is not None:
                yield result


def carry_out(
    suite: Suite, groups: Sequence[Group], drawn: Sequence[str], costs: Costs, out: Path, args: argparse.Namespace
) -> int:
    from dembench.harness.suite import searches
    from dembench.harness.suite.sweepfile import write_sweep
    from dembench.report import write_report

    runs = out / "runs"
    many = [{**words, "out": str(runs)} for group in groups if group.here for words in group.runs]
    todo = [s for s in searches.needed(many, suite.search.get("trials"), args.config_dir) if not s.done]
    tunings = [one for one in searches.tunings(many, args.config_dir) if not one.done]
    workers = default_workers() if args.workers is None else args.workers
    say_time(costs.of(many), searches_cost([*todo, *tunings], suite, costs), workers, len(todo) + len(tunings))
    if args.dry_run:
        return 0
    if not many and not drawn:
        return fail("no run can start here; see the missing items above", status=1)

    def tell(search: searches.Needed, text: str) -> None:
        say(f"{search.verb} {search.title}: {text}")

    options = {"search": suite.search, "tune": suite.tune}
    later = [words for words in many if words.get("loss") == searches.STAR or words.get("tuned") is not None]
    first = [words for words in many if words not in later] if todo or tunings else []
    status = 0
    with watched(runs, out, args.watch):
        if first:  # what needs no search can be read about meanwhile
            status = run_sweep(first, out, f"what dembench suite {suite.name} runs before its searches", args)
            if status == STOPPED:
                return status
        with counting("searching"):
            failed = searches.run([*todo, *tunings], options, workers, args.config_dir, tell)
        waiting = [words for search in failed for words in search.runs]
        if waiting:
            say(f"{len(waiting)} runs are left out, whose search failed")
        offered, reasons = searches.offered(later if first else many, args.config_dir)
        for reason in reasons:
            say(reason)
        left = [words for words in offered if words not in waiting]
        status |= int(bool(waiting))
        if left:
            swept = run_sweep(left, out, f"what dembench suite {suite.name} runs here", args)
            if swept == STOPPED:
                return swept
            status |= swept
    if first:
        write_sweep(out / "sweep.yaml", [*first, *left], f"what dembench suite {suite.name} runs here")
    status |= draw(drawn, runs, out / "figures")
    if runs.is_dir() and next(runs.glob("*/result.json"), None):
        print(f"report: {write_report([runs], out).resolve()}")
    return status


@contextlib.contextmanager
def watched(runs: Path, out: Path, watch: bool) -> Iterator[None]:
    """Makes the report again and again meanwhile, in a process of its own, where that is asked for."""
    if not watch:
        yield
        return
    command = [sys.executable, "-m", "dembench", "report", str(runs), "--out", str(out), "--watch", "--quiet"]
    runs.mkdir(parents=True, exist_ok=True)
    say(f"while runs come in: {(out / 'index.html').resolve()}")
    reporter = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        reporter.terminate()
        reporter.wait()


def run_sweep(many: Sequence[Mapping[str, Any]], out: Path, about: str, args: argparse.Namespace) -> int:
    """Runs what is missing; where some runs cannot be planned, the others, and returns 1 then, else the exit status."""
    from dembench.harness.compose import ConfigError
    from dembench.harness.suite.sweepfile import write_sweep
    from dembench.scripts.sweep import sweep

    try:
        return sweep(str(write_sweep(out / "sweep.yaml", many, about)), (), args.workers, args.config_dir)
    except ConfigError as error:
        say(f"{error}\nplanning each method by itself")
        rest = plannable(many, args.config_dir)
        if not rest:
            raise
    swept = sweep(str(write_sweep(out / "sweep.yaml", rest, about)), (), args.workers, args.config_dir)
    return swept or 1


def plannable(many: Sequence[Mapping[str, Any]], config_dir: Path | None) -> list[dict[str, Any]]:
    """Runs without those of methods that cannot be planned, which are named; a method is planned by its first run."""
    from dembench.harness import sweeps
    from dembench.harness.compose import ConfigError

    reasons: dict[str, str] = {}
    kept = []
    for words in many:
        key = json.dumps({k: v for k, v in words.items() if k != "seed" and k.split(".")[0] != "loss"}, sort_keys=True)
        if key not in reasons:
            reasons[key] = ""
            try:
                sweeps.plan([words], config_dir)
            except ConfigError as error:
                reasons[key] = str(error)
                say(f"left out: {error}")
        if not reasons[key]:
            kept.append(dict(words))
    return kept


def draw(names: Sequence[str], runs: Path, out: Path) -> int:
    """Draws figures not produced by a sweep, from the runs where they show some."""
    from dembench.harness.figures import FIGURES

    status = 0
    for name in names:
        try:
            figure = FIGURES[name].draw([], [runs] if runs.is_dir() else [])
        except (ValueError, OSError) as error:
            status = fail(f"figure {name}: {error}", status=1)
            continue
        out.mkdir(parents=True, exist_ok=True)
        figure.write(out)
        write_plain(out / f"{figure.name}.md", f"**{figure.title}.** {figure.caption}\n")
        print(f"figure: {(out / f'{figure.name}.png').resolve()}")
    return status


def default_workers() -> int:
    """A process for each CPU that this one may use, at most 8."""
    import os

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cpus, 8)


def searches_cost(todo: Sequence[Any], suite: Suite, costs: Costs) -> Cost:
    """Of the searches: each trial is a run on the searched part."""
    from dembench.harness.suite.costs import NOTHING

    total = NOTHING
    for search in todo:
        if search.verb == "tune":
            total += costs.of([{**search.words, "part": "search"}] * suite.tune.get("trials", 9))
        else:
            total += costs.of([{**search.words, "loss": "dem", "part": "search"}] * suite.search.get("trials", 40))
    return total


def say_time(runs: Cost, searched: Cost, workers: int, searches: int) -> None:
    before = f" after {searches} search{'es' * (searches != 1)}" if searches else ""
    parts = [cost.cpu_seconds for cost in (runs, searched)]
    if None in parts:
        say(f"time unknown{before}: no cost estimate for some runs")
        return
    say(f"about {hours(sum(parts) / max(1, workers))} with {max(1, workers)} CPUs{before}")


def show_plan(groups: Sequence[Group], costs: Costs, past: Sequence[Mapping[str, Any]]) -> None:
    """What runs, by task, data and model, and what is missing; to stderr."""
    from rich.table import Table

    done: dict[tuple[str, ...], int] = {}
    for result in past:
        names = result["config"]["choices"]
        key = tuple(str(names.get(group) or "") for group in ("task", "data", "model"))
        done[key] = done.get(key, 0) + 1
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("for", "task", "data", "model", "methods", "losses"):
        table.add_column(column, overflow="fold")
    for column in ("runs", "done", "CPU time"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    for group in groups:
        finished = done.get((group.task, group.data, group.model), 0)
        table.add_row(
            *(
                group.item,
                group.task,
                group.data,
                group.model,
                str(len(group.names("method"))),
                " ".join(group.names("loss")),
            ),
            *(str(len(group.runs)), str(finished or ""), spent(costs.of(group.runs)), "" if group.here else "missing"),
        )
    if not is_quiet():
        console(stderr=True).print(table)
    show_missing([lack for group in groups for lack in group.lacks], stderr=True)


def show_items(found: Sequence[Item], costs: Costs, figures: Mapping[str, Any]) -> None:
    """The whole list, to stdout: a line for every setting of every table, figure and study."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("name", no_wrap=True, style="cyan")
    table.add_column("what it shows; data and model", ratio=1)
    table.add_column("here", no_wrap=True)
    for column in ("runs", "CPU time", "GPU hours*"):
        table.add_column(column, justify="right", no_wrap=True)
    basis: set[str] = set()
    for item in found:
        table.add_row(item.name, Text(item.about), *_figure_cells(item, figures))
        for setting in item.settings:
            lacks = setting.lacks
            cost = _sum(costs.of(group.runs) for group in setting.groups)
            basis |= cost.basis
            what = ", ".join(setting.data) + (f" ({', '.join(setting.models)})" if setting.models else "")
            gpu = (
                "unknown"
                if cost.gpu_hours is None
                else f"{cost.gpu_hours:.2g}"
                if cost.gpu_hours < 1
                else f"{cost.gpu_hours:.1f}"
            )
            if not setting.paper and cost.gpu_hours is None:
                gpu = ""
            state = Text("missing", style="yellow") if lacks else Text("yes", style="green")
            table.add_row("", Text(f"  {what}", style="dim"), state, str(setting.runs), spent(cost), gpu)
        for line in _published(item.name):
            table.add_row("", Text(f"  published: {line}", style="dim"))
    for name, why in dict(figures.get("absent") or {}).items():
        table.add_row(name, Text(str(why)), "no", "", "", "")
    console().print(table)
    show_missing([lack for item in found for setting in item.settings for lack in setting.lacks])
    print("* of the operations of all runs at 100 TFLOP/s; arithmetic, no measurement. CPU time is that of one thread.")
    print("What the figures rest on:")
    for line in sorted(basis):
        print(f"  {line}")


def _published(name: str) -> list[str]:
    """What is known of the numbers of a table or figure."""
    from dembench.report.read.reference import references

    own = [reference for reference in references() if re.fullmatch(rf"{name}(_[a-z]+)?", reference.name)]
    found = [f"{sum(1 for _ in reference.numbers())} numbers, {reference.item}" for reference in own]
    return found or (["no numbers known here"] if name.startswith(("dem_", "ttc_")) else [])


def _figure_cells(item: Item, figures: Mapping[str, Any]) -> tuple[str, str, str, str]:
    if item.settings or not item.figure:
        return "", "", "", ""
    seconds = (figures.get("figures") or {}).get(item.name)
    return "yes", "", "unknown" if seconds is None else hours(seconds), ""


def _sum(costs: Iterable[Cost]) -> Cost:
    from dembench.harness.suite.costs import NOTHING

    return sum(costs, NOTHING)


def show_missing(lacks: Sequence[str], stderr: bool = False) -> None:
    """Each thing that is missing once, with how to get it."""
    if lacks:
        file = sys.stderr if stderr else sys.stdout
        print("missing, and left out:", file=file)
        for lack in dict.fromkeys(lacks):
            print(f"  {lack}", file=file)


def console(stderr: bool = False) -> Any:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 160, highlight=False)


def spent(cost: Cost) -> str:
    return "unknown" if cost.cpu_seconds is None else hours(cost.cpu_seconds)


def hours(seconds: float) -> str:
    """ "45 s", "12 min", "3.4 h", "1,200 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 100 * 3600 else f"{seconds / 3600:,.0f} h"


if __name__ == "__main__":
    sys.exit(main())

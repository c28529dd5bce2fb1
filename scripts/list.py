"""dembench list: names that can be used, and whether what they need is on this machine; or the runs of a folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dembench.scripts.cli import Parser, fail

ORDER = ("task", "method", "loss", "model", "data", "protocol", "sweep", "study", "figure", "suite")
FOR_ALL = ("task", "loss", "sweep", "study", "figure", "suite")  # groups whose names serve every task


def parser() -> argparse.ArgumentParser:
    p = Parser(
        "dembench list",
        description="Show names, and whether what they need is on this machine; or what runs there are.",
    )
    p.add_argument(
        "group",
        nargs="?",
        help=f"one of {', '.join(ORDER)}; all without it; or a folder of runs, a file of `dembench export`, a runs.csv",
    )
    p.add_argument("--check", action="store_true", help="look into the files of all data, too, as a run does (slower)")
    p.add_argument("--task", help="whose methods, models, data and protocols; those of every task without it")
    p.add_own()
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    from dembench.lookup import lookup

    if args.group is not None and args.group not in ORDER and Path(args.group).exists():
        return list_runs(Path(args.group))
    groups = ORDER
    try:
        if args.group is not None:
            groups = (lookup(args.group, ORDER, "group"),)
        from dembench.harness.compose import options

        tasks = options("task", config_dir=args.config_dir)
        if args.task is not None:
            tasks = [lookup(args.task, tasks, "task")]
    except ValueError as error:
        return fail(f"dembench list: {error}")
    found = {}
    for group in groups:
        for task in tasks[:1] if group in FOR_ALL else tasks:
            title = group if group in FOR_ALL or args.task else f"{group} of task={task}"
            found[title] = rows(group, task, args.config_dir, args.check)
    show(found)
    return 0


def list_runs(path: Path) -> int:
    """Prints a line for each finished run: names, seed, status and its main number."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from dembench.report.judge.group import method_of
    from dembench.report.judge.wording import number
    from dembench.report.read.load import load
    from dembench.report.read.names import primary

    try:
        found = load([path])
    except (ValueError, OSError) as error:
        return fail(f"dembench list: {str(error).removeprefix('report: ')}")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("run", "task", "data", "model", "protocol", "method", "loss", "seed", "status", "result"):
        table.add_column(name, no_wrap=True)
    for run in sorted(found.runs, key=lambda run: (run.task, run.data, run.protocol, run.method, run.loss, run.seed)):
        metric = primary(run.task, [run])
        result = f"{metric.label} {number(run.score(metric.name) * metric.scale, metric.digits) or '-'} {metric.unit}"
        names = (run.id, run.task, run.data, run.model, run.protocol, method_of(run), run.loss, str(run.seed))
        table.add_row(*map(Text, (*names, run.status, result.strip())))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    asides = ((found.unfinished, "unfinished"), (found.unreadable, "unreadable"))
    counts = [f"{len(found.runs)} finished", *(f"{len(items)} {name}" for items, name in asides if items)]
    print(f"{', '.join(counts)} in {path}")
    return 0


def rows(group: str, task: str, config_dir: Path | None, look_inside: bool = False) -> list[tuple[str, str, str, str]]:
    """One line per name of a group: name, state (see ``state_of``), what it is, how to get what is missing."""
    from dembench.harness.compose import header, options, read_option

    if group == "figure":
        from dembench.harness.figures import FIGURES

        return [(name, "", figure.about, "") for name, figure in FIGURES.items()]
    found = []
    folder = "sweep/study" if group == "study" else group
    owner = None if group in FOR_ALL else task
    for name in options(folder, owner, config_dir):
        text = read_option(folder, name, owner, config_dir)
        state, reason = state_of(group, name, task, config_dir, look_inside)
        get = header(text, "Get")
        if state != "missing":
            get = ""
        elif get not in reason:
            get = f"{get} ({reason})"
        found.append((name, state, header(text, "About"), get or reason))
    return found


def state_of(group: str, name: str, task: str, config_dir: Path | None, look_inside: bool) -> tuple[str, str]:
    """Whether a dataset or a model can be used as it stands.

    Returns: "here", "library" (its weights are downloaded on first use), "missing" or, for other groups, ""; and why.
    """
    if group not in ("data", "model"):
        return "", ""
    from dembench.harness import groups
    from dembench.harness.compose import ConfigError, composed
    from dembench.harness.suite.available import at_a_glance, data_state

    try:
        cfg = composed({"task": task, group: name}, config_dir, complete=group == "data")
        state, reason = at_a_glance(group, cfg)
        if look_inside and group == "data" and state == "here":
            return data_state(groups.resolve(cfg, (group,))[group])
    except ConfigError as error:
        return "missing", str(error)
    return state, reason


def show(groups: dict[str, list[tuple[str, str, str, str]]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 160)
    styles = {"here": "green", "library": "green", "missing": "yellow"}
    for group, lines in groups.items():
        table = Table(
            title=group, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
        )
        table.add_column("name", no_wrap=True, style="cyan")
        if any(state for _, state, _, _ in lines):
            table.add_column("on this machine", no_wrap=True)
        table.add_column("what it is")
        for name, state, about, get in lines:
            text = Text(about)
            if get:
                text.append(f"\nget: {get}", style="dim")
            cells = [Text(state, style=styles.get(state, ""))] if len(table.columns) == 3 else []
            table.add_row(Text(name), *cells, text)
        console.print(table)
        console.print()


if __name__ == "__main__":
    sys.exit(main())

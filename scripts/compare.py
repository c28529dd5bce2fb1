"""dembench compare: two sets of runs side by side, with paired differences."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dembench.scripts.cli import Parser, fail

if TYPE_CHECKING:
    from rich.console import Console

    from dembench.report.judge.compare import Compared, Pairs
    from dembench.report.judge.stats import Estimate, Pooled

OVER = {"seeds": "seeds", "cells": "rows"}
LISTED = 20  # lines on runs without a pair that the terminal shows on each side
EXAMPLES = """
A and B are each a folder or a file of runs, filters on the runs of --runs, or both in quotes:

  dembench compare runs_monday runs_tuesday
  dembench compare loss=em loss=adadem
  dembench compare "runs loss=em task=tta" "runs loss=adadem,dem task=tta"
  dembench compare method.lr=1e-3 method.lr=1e-2 --metric nll

A filter is KEY=VALUE[,VALUE] with any key of the command line; KEY=null: runs without it, too. Runs
are paired that have the same seed and are alike in every key but those in which A and B have no value in common; these
keys are what is compared.
"""


def parser() -> argparse.ArgumentParser:
    p = Parser("dembench compare", description="Compare two sets of runs, pair by pair.", epilog=EXAMPLES)
    p.add_argument("a", metavar="A", help="folder or file, KEY=VALUE, or both in quotes: what to compare with")
    p.add_argument("b", metavar="B", help="the same: what is compared; a positive gain says that B is better")
    p.add_argument("more", nargs="*", help=argparse.SUPPRESS)
    p.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="for sides without a folder (runs)")
    p.add_argument("--metric", metavar="NAME", help="another number than the task's own: nll, ece, wall_seconds")
    out = p.add_mutually_exclusive_group()
    out.add_argument("--json", action="store_true", help="print JSON")
    out.add_argument("--csv", action="store_true", help="print a CSV line for each row")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_intermixed_args(list(sys.argv[1:] if argv is None else argv))
    if args.more:
        words = " ".join([args.a, args.b, *args.more])
        return fail(f"dembench compare: expected two sides, got {words!r}; quote each side, as in 'runs loss=em'")
    from dembench.report.judge.compare import compare
    from dembench.report.judge.selection import read, side

    try:
        found = compare(*(read(side(text, args.runs)) for text in (args.a, args.b)), args.metric)
    except (ValueError, OSError) as error:
        return fail(f"dembench compare: {str(error).removeprefix('report: ')}")
    if args.json:
        print(json.dumps(as_json(found, args.a, args.b), indent=1, ensure_ascii=False, allow_nan=False))
    elif args.csv:
        write_csv(found)
    else:
        write_tables(found, args.a, args.b)
    return 0


def what(row: Pairs) -> str:
    from dembench.report.judge.compare import described
    from dembench.report.read.names import pretty

    return described(row.labels) or pretty(row.task)


def write_tables(found: Compared, a: str, b: str, console: Console | None = None) -> None:
    """Prints what differs, a table for each task, and what has no pair."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from dembench.report.judge.compare import described
    from dembench.report.judge.power import needed_short
    from dembench.report.judge.wording import number
    from dembench.report.read.names import pretty

    console = console or Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(Text(f"A  {a}: {count(len(found.a), 'run')}\nB  {b}: {count(len(found.b), 'run')}"))
    for task, gains in found.totals.items():
        rows = [row for row in found.pairs if row.task == task]
        metric, differs = rows[0].metric, found.differs[task]
        unit = f" in {metric.unit}" if metric.unit else ""
        better = "lower" if metric.sign < 0 else "higher"
        table = Table(title=Text(f"{pretty(task)}: {metric.label}{unit}, {better} is better"), title_justify="left")
        table.add_column("")
        for title in ("A", "B", "gain of B", "95% interval"):
            table.add_column(title, justify="right")
        table.add_column("pairs", justify="right")
        table.add_column("needed", justify="right")
        for row in rows:
            difference = row.gain
            own = [f"{name}: {described(own)}" for name, own in (("A", row.own_a), ("B", row.own_b)) if own]
            table.add_row(
                Text("; ".join([what(row), *own])),
                spread_text(row.spread("a"), metric.digits),
                spread_text(row.spread("b"), metric.digits),
                Text(number(difference.mean, metric.digits, sign=True), style=style(difference.verdict)),
                interval_text(difference, metric.digits),
                str(difference.n),
                needed_short(difference, metric),
            )
        if len(rows) > 1:
            table.add_section()
            for name, gain in gains.items():
                mean = Text(number(gain.mean, metric.digits, sign=True), style=style(gain.verdict))
                words = ["mean of the rows"] + [f"interval over {OVER.get(gain.over)}"] * bool(gain.over)
                words += [f"{gain.alone} with one seed left out"] * bool(gain.alone) + [name] * bool(name)
                interval = interval_text(gain, metric.digits)
                table.add_row(Text(", ".join(words)), "", "", mean, interval, count(gain.cells, "row"), "")
        console.print()
        said = "; ".join(
            f"{key}: {', '.join(mine)} | {', '.join(others)}"
            for key, (mine, others) in differs.items()
            if not (key.partition(".")[0] in differs and ("not set",) in (mine, others))
        )
        console.print(
            Text(f"A | B differ in {said}" if said else "A and B differ in no key: other code, or other machines")
        )
        console.print(table)
        if any(needed_short(row.gain, metric) for row in rows):
            console.print("needed: paired seeds for 80 % power, at a difference of this size; at 0.5 points")
    for name, only in (("A", found.only_a), ("B", found.only_b)):
        if only:
            listed = [*only[:LISTED], *([f"and {len(only) - LISTED} more"] if len(only) > LISTED else [])]
            console.print(Text(f"\nIn {name} without a pair ({len(only)}):\n  " + "\n  ".join(listed)))


def count(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"


def style(verdict: int) -> str:
    return {1: "green", -1: "red"}.get(verdict, "")


def spread_text(score: Estimate, digits: int) -> str:
    from dembench.report.judge.wording import number

    return number(score.mean, digits) + (f" ± {number(score.sd, digits)}" if score.sd is not None else "")


def interval_text(found: Estimate | Pooled, digits: int) -> str:
    """An interval, or why there is none."""
    from dembench.report.judge.wording import number

    if found.low is not None and found.high is not None:
        return f"[{number(found.low, digits, sign=True)}, {number(found.high, digits, sign=True)}]"
    return "one seed" if getattr(found, "n", 0) == 1 else "seeds alike"


def lines_of(found: Compared) -> list[dict[str, Any]]:
    """A flat line for each row, unrounded."""
    from dembench.report.judge.compare import described
    from dembench.report.judge.power import needed_short

    lines = []
    for row in found.pairs:
        gain, a, b = row.gain, row.spread("a"), row.spread("b")
        lines.append(
            {
                "task": row.task, "what": what(row), "a": described(row.own_a), "b": described(row.own_b),
                "metric": row.metric.name, "unit": row.metric.unit, "pairs": gain.n,
                "a_mean": a.mean, "a_sd": a.sd, "b_mean": b.mean, "b_sd": b.sd,
                "gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high,
                "looks": gain.looks, "seeds_needed": needed_short(gain, row.metric),
            }
        )  # fmt: skip
    return lines


def as_json(found: Compared, a: str, b: str) -> dict[str, Any]:
    tasks = {
        task: {
            "differ": {key: {"a": mine, "b": others} for key, (mine, others) in found.differs[task].items()},
            "mean": [
                {
                    "of": name, "gain": gain.mean, "low": gain.low, "high": gain.high, "rows": gain.cells,
                    "interval_over": OVER.get(gain.over), "left_out": gain.alone,
                }
                for name, gain in gains.items()
            ],
        }
        for task, gains in found.totals.items()
    }  # fmt: skip
    rows = [
        {**line, "seeds": {seed: [row.a[seed], row.b[seed]] for seed in sorted(row.a)}}
        for line, row in zip(lines_of(found), found.pairs, strict=True)
    ]
    only = {"a": found.only_a, "b": found.only_b}
    return {"a": a, "b": b, "runs": [len(found.a), len(found.b)], "tasks": tasks, "rows": rows, "without_pair": only}


def write_csv(found: Compared) -> None:
    lines = lines_of(found)
    writer = csv.DictWriter(sys.stdout, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)


if __name__ == "__main__":
    sys.exit(main())

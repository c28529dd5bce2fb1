"""Tables in a page of results, written from the runs: what stands between a marker and its end is made anew.

``<!-- table: NAME -->`` is followed by the table of that name in the report, without its caption. ``<!-- compare`` is
followed by lines ``LABEL: A | B`` up to ``-->``, A and B filters as of ``dembench compare``, and by a table of what
B gains over A, with a verdict in words and, where the two are not told apart, the paired seeds that would tell such
a difference, and one of 0.5 points; ``<!-- compare NAME`` compares by another metric. ``<!-- end -->`` ends both.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from dembench.report.judge.compare import Compared, compare, described
from dembench.report.judge.power import needed_short
from dembench.report.judge.selection import select, side
from dembench.report.judge.stats import Estimate, Pooled
from dembench.report.judge.wording import number
from dembench.report.read.load import Run
from dembench.report.read.names import Metric
from dembench.report.tables.table import md

BLOCK = re.compile(r"<!-- (?P<kind>table|compare)(?P<body>.*?)-->\n(?P<old>.*?)<!-- end -->\n", re.DOTALL)
SAID = {1: "better", -1: "worse", 0: "not told apart"}


def rewrite(text: str, runs: Sequence[Run], tables: Path) -> str:
    """The text with every marked table made from ``runs``, and from a report of them with its tables in ``tables``.

    Raises: ValueError for a table that the report does not have, and for what ``compare`` refuses.
    """

    def made(match: re.Match[str]) -> str:
        body = match["body"]
        table = report_table(body.strip(": \n"), tables) if match["kind"] == "table" else gains(body, runs)
        return f"<!-- {match['kind']}{match['body']}-->\n\n{table.strip()}\n\n<!-- end -->\n"

    return BLOCK.sub(made, text)


def report_table(name: str, tables: Path) -> str:
    path = tables / f"{name}.md"
    if not path.is_file():
        names = ", ".join(sorted(path.stem for path in tables.glob("*.md")))
        raise ValueError(f"the report has no table {name}; it has {names}")
    return path.read_text(encoding="utf-8").partition("\n\n")[2]


def gains(body: str, runs: Sequence[Run]) -> str:
    """A row for each pair of cells that the lines of a marker name, and a mean where a line names several."""
    metric, _, lines = body.partition("\n")
    rows = []
    for line in lines.strip().splitlines():
        label, colon, sides = line.partition(": ")
        words = sides.split(" | ")
        if not colon or len(words) != 2:
            raise ValueError(f"expected LABEL: A | B, got {line!r}")
        a, b = (select(side(text, Path()), runs) for text in words)
        rows += rows_of(label, compare(a, b, metric.strip() or None))
    return "\n".join(["| | A | B | gain of B | |", "|:---|---:|---:|---:|:---|", *rows])


def rows_of(label: str, found: Compared) -> list[str]:
    """The rows of one comparison."""
    rows = []
    for pair in found.pairs:
        a, b = (spread(pair.spread(name), pair.metric.digits) for name in "ab")
        title = f"{label}, {described(pair.labels)}" if len(found.pairs) > 1 else label
        rows.append(row(title, a, b, pair.gain, pair.metric))
    if len(found.pairs) > 1:
        (totals,) = found.totals.values()
        for name, pooled in totals.items():
            title = f"{label}, mean" + (f", {name}" if name else "")
            rows.append(row(title, "", "", pooled, found.pairs[0].metric))
    return rows


def row(title: str, a: str, b: str, gain: Estimate | Pooled, metric: Metric) -> str:
    mean, low, high = (number(value, metric.digits, sign=True) for value in (gain.mean, gain.low, gain.high))
    interval = f" [{low}, {high}]" if low else ""
    seeds = needed_short(gain, metric).split("; ") if isinstance(gain, Estimate) else [""]
    said = SAID[gain.verdict] if low else "one seed: no claim"
    said += f"; 80 % power: {seeds[0]} seeds" if seeds[0] else ""
    said += f", {seeds[1]} for 0.5 points" if len(seeds) > 1 else ""
    return f"| {md(title)} | {a} | {b} | {mean}{interval} | {said} |"


def spread(score: Estimate, digits: int) -> str:
    sd = number(score.sd, digits)
    return number(score.mean, digits) + (f" ± {sd}" if sd else "")

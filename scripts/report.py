"""dembench report: one page of tables and figures from run directories."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dembench.harness.say import alive, say
from dembench.scripts.cli import Parser, fail

PAUSE = 5.0  # seconds, at the least, between two pages of --watch


def parser() -> argparse.ArgumentParser:
    p = Parser("dembench report", description="Write a report of finished runs; print the path of its page last.")
    p.add_argument(
        "runs", nargs="+", type=Path, metavar="RUNS", help="folders of runs, files of `dembench export`, or a runs.csv"
    )
    p.add_argument(
        "--out", type=Path, default=Path("reports"), metavar="DIR", help="where to write it (default: reports)"
    )
    p.add_argument(
        "--figures",
        type=int,
        metavar="N",
        help="about how many to draw where comparisons are many; 0: none (default: 48)",
    )
    p.add_argument("--watch", action="store_true", help="write it anew while runs come in, until Ctrl-C")
    p.add_argument("--paper", action="store_true", help="also figures as PDF and PNG, and paper.tex with all tables")
    p.add_argument("--readme", type=Path, metavar="FILE", help="also make the marked tables of this Markdown file anew")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_intermixed_args(list(sys.argv[1:] if argv is None else argv))
    if args.figures is not None and args.figures < 0:
        return fail(f"dembench report: expected --figures of 0 or more, got {args.figures}")
    for folder in args.runs:
        if not folder.exists():
            return fail(f"dembench report: no folder or file {folder}; `dembench run` and `dembench sweep` make runs")
    if args.watch:
        watch(args)
    options = {"with_figures": args.figures != 0, "most_figures": args.figures, "paper": args.paper}
    try:
        with alive(lambda: "", first=f"reading {', '.join(map(str, args.runs))}"):
            from dembench.report import write_report

            page = write_report(args.runs, args.out, **options)
            if args.readme is not None:
                rewrite_readme(args.readme, args.runs, page.parent)
    except (ValueError, OSError) as error:
        return fail(f"dembench report: {error}")
    print(page)
    return 0


def watch(args: argparse.Namespace) -> None:
    """Writes the page whenever a run has ended, resting as long as that took, and at least PAUSE; until Ctrl-C."""
    from dembench.report import write_report

    seen: set[tuple[Path, int]] = set()
    kept: dict[Any, Any] = {}
    options = {"with_figures": args.figures != 0, "most_figures": args.figures, "paper": args.paper, "kept": kept}
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            ended = {(path, path.stat().st_mtime_ns) for path in _records(args.runs)}
            start = time.monotonic()
            if ended - seen:
                try:
                    page = write_report(args.runs, args.out, **options)
                    say(f"{page}: {len(ended)} runs")
                except (ValueError, OSError) as error:  # of a file that is being written; the next turn reads it again
                    say(f"not written this time: {error}")
                seen = ended
            time.sleep(max(PAUSE, time.monotonic() - start))


def _records(places: Sequence[Path]) -> Iterator[Path]:
    for place in places:
        yield from [place] if place.is_file() else place.glob("*/result.json")


def rewrite_readme(readme: Path, runs: list[Path], out: Path) -> None:
    from dembench.records import read_text
    from dembench.report.page.readme import rewrite
    from dembench.report.read.load import load

    text = read_text(readme)
    readme.write_text(rewrite(text, load(runs).runs, out / "tables"), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    sys.exit(main())

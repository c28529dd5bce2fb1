"""dembench demo: a small sweep on embedded data and the report of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.cli import Parser, fail

SWEEP = "demo"


def parser() -> argparse.ArgumentParser:
    p = Parser("dembench demo", description="Run the sweep `demo` and write its report; print the page's path last.")
    p.add_argument(
        "--out", type=Path, default=Path("report/demo"), metavar="DIR", help="for report and runs (report/demo)"
    )
    p.add_argument("--workers", type=int, metavar="N", help="processes (default: a CPU each)")
    p.add_argument("overrides", nargs="*", metavar="key=value", help="as for dembench sweep, such as seed=0")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_intermixed_args(list(sys.argv[1:] if argv is None else argv))
    from scripts.sweep import sweep
    from tasks.compose import ConfigError
    from tasks.report import write_report
    from tasks.sweeps import to_arguments

    runs = args.out / "runs"
    try:
        status = sweep(SWEEP, [*to_arguments({"out": str(runs)}), *args.overrides], args.workers)
    except ConfigError as error:
        return fail(f"dembench demo: {error}")
    if status:
        return status
    page = write_report([runs], args.out)
    print(f"report: {page.resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

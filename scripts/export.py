"""dembench export: the records of many runs as one file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dembench.scripts.cli import Parser, fail

MORE = """The file is JSON lines under gzip, the same bytes for the same runs. `report`, `compare` and `list` read it
like a folder. It holds configurations, numbers, histograms, notes and environments; absolute paths are cut to their
last name. Pictures, checkpoints and searches of DEM* are left out, and curves without --curves.
"""


def parser() -> argparse.ArgumentParser:
    p = Parser("dembench export", description="Write the finished runs of folders into one file.", epilog=MORE)
    p.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="folders of runs, or files as this one writes")
    p.add_argument("--out", type=Path, required=True, metavar="FILE", help="where to write it: NAME.jsonl.gz")
    p.add_argument(
        "--curves", action="store_true", help="with the curves of each run, which the figures over time need"
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_intermixed_args(list(sys.argv[1:] if argv is None else argv))
    from dembench.harness.runs import write_atomic
    from dembench.report.read.export import export

    try:
        content, found = export(args.runs, curves=args.curves)
        write_atomic(args.out, content)
    except (ValueError, OSError) as error:
        return fail(f"dembench export: {str(error).removeprefix('report: ')}")
    asides = ((found.unfinished, "unfinished"), (found.unreadable, "unreadable"))
    left = [f"{len(items)} {name}" for items, name in asides if items]
    print(f"{len(found.runs)} runs, {len(content) / 1000:.0f} kB" + (f"; left out: {', '.join(left)}" if left else ""))
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

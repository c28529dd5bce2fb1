"""dembench data: download public datasets (checksum-verified)."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from dembench.scripts.cli import Parser, fail

EPILOG = """fetched: cifar10c, cifar100c (2.9 GB each), cifar10, cifar100 (0.2 GB each). Others are found by hand:
`dembench list data` and `dembench data fetch NAME` say where, and how to lay them out."""


def parser() -> argparse.ArgumentParser:
    p = Parser("dembench data", description="Fetch a dataset; print its folder last.", epilog=EPILOG)
    p.add_argument("action", choices=["fetch"], help="download, check and unpack; what is there is left alone")
    p.add_argument("name", help="a dataset, as in `dembench list data`; or cifar10, cifar100")
    p.add_argument(
        "--to", type=Path, metavar="DIR", help="where to put it (default: $DEMBENCH_DATA/data, or data/data)"
    )
    return p


def known() -> dict[str, dict[str, str]]:
    """Every dataset, and what its file in each task says on how to get it."""
    from dembench.harness.compose import header, options, read_option
    from dembench.tasks.tta.download import ARCHIVES

    found: dict[str, dict[str, str]] = {name: {} for name in ARCHIVES}
    for task in options("task"):
        for name in options("data", task):
            found.setdefault(name, {})[task] = header(read_option("data", name, task), "Get")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    from dembench.lookup import lookup
    from dembench.tasks.tta.download import ARCHIVES, fetch

    found = known()
    try:
        name = lookup(args.name, found, "dataset")
    except ValueError as error:
        return fail(f"dembench data: {error}")
    if name not in ARCHIVES:
        if not any(found[name].values()):
            return fail(f"dembench data: {name} needs no download")
        ways = {get: [task for task in found[name] if found[name][task] == get] for get in found[name].values() if get}
        told = next(iter(ways)) if len(ways) == 1 else "; ".join(f"{', '.join(ways[get])}: {get}" for get in ways)
        return fail(f"dembench data: {name} is not fetched by this command; {told}")
    archive = ARCHIVES[name]
    to = args.to or Path(os.environ.get("DEMBENCH_DATA", "data")) / "data"
    if to.exists() and not to.is_dir():
        return fail(f"dembench data: --to: {to} is no folder")
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description:<9}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    try:
        bars = Progress(*columns, console=console)
        with bars if console.is_terminal else nullcontext():
            shown: dict[str, object] = {}

            def report(doing: str, done: int, total: int) -> None:
                if doing not in shown:
                    shown[doing] = bars.add_task(doing, total=total)
                bars.update(shown[doing], completed=done)

            folder = fetch(archive, to.expanduser(), report)
    except (OSError, ValueError) as error:
        return fail(f"dembench data: {error}", status=1)
    except KeyboardInterrupt:
        return fail("dembench data: interrupted; rerun the command to resume", status=130)
    path = folder if archive.key == "data.root" else folder.parent
    print(f"{name} (licence: {archive.licence}): give it to a run as {archive.key}={path}", file=sys.stderr)
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())

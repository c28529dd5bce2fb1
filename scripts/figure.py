"""dembench figure: figures of the sources that are not produced by a sweep."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dembench.records import write_plain
from dembench.scripts.cli import Parser, fail

EXAMPLE = """examples:
  dembench figure ttc_figure1
  dembench figure ttc_figure3 data=cifar10_jpeg data.num_images=2000 model=cifar_resnet20 --out figures
  dembench figure dem_figure3 --runs runs/dem_figure3

names:
"""


def parser() -> argparse.ArgumentParser:
    from dembench.harness.figures import FIGURES

    names = "\n".join(f"  {name:<13}{figure.about}" for name, figure in FIGURES.items())
    p = Parser("dembench figure", description="Draw one figure; print the paths of its files.", epilog=EXAMPLE + names)
    p.add_argument("name", help="one of those below")
    p.add_argument("overrides", nargs="*", metavar="key=value", help="as for dembench run")
    p.add_argument("--runs", nargs="+", type=Path, default=[], metavar="RUNS", help="folders that hold run directories")
    p.add_argument("--out", type=Path, default=Path("figures"), metavar="DIR", help="where to write it (figures)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_intermixed_args(list(sys.argv[1:] if argv is None else argv))
    from dembench.harness.figures import FIGURES
    from dembench.lookup import lookup

    try:
        drawn = FIGURES[lookup(args.name, FIGURES, "figure")]
        figure = drawn.draw(args.overrides, args.runs)
        args.out.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        return fail(f"dembench figure: {error}")
    figure.write(args.out)
    write_plain(args.out / f"{figure.name}.md", f"**{figure.title}.** {figure.caption}\n")
    for suffix in ("png", "pdf", "md"):
        print(args.out / f"{figure.name}.{suffix}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

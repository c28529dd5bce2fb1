"""dembench evaluate: judge the weights that a run kept once more."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dembench.harness.say import counting, say
from dembench.scripts.cli import Parser, fail

EXAMPLE = """examples:
  dembench run task=semi method=fixmatch save=last                  # keeps files/weights.safetensors in the run
  dembench evaluate runs/<id>                                       # the same test images again
  dembench evaluate runs/<id> data=folders data.root=DIR            # other images of the same classes

Nothing is learned. Task, method, loss and model stay those of the run; data, protocol, device, threads and precision
may differ. The result goes to runs/<id>/evaluations/."""


def parser() -> argparse.ArgumentParser:
    p = Parser("dembench evaluate", description="Judge the weights that a run kept once more.", epilog=EXAMPLE)
    p.add_argument("run", type=Path, metavar="RUN", help="directory of a run with save=last or save=best_validation")
    p.add_argument("overrides", nargs="*", metavar="key=value", help="other data or another protocol")
    p.add_argument("--weights", metavar="NAME", help="which file of files/, such as weights or average")
    p.add_own()
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_intermixed_args(argv)
    from dembench.harness.compose import ConfigError
    from dembench.harness.judging import judge
    from dembench.scripts.run import means

    try:
        with counting("judging", first=f"judging the weights of {args.run}"):
            path, result = judge(args.run, args.overrides, args.weights, args.config_dir)
    except ConfigError as error:
        return fail(f"dembench evaluate: {error}")
    say(means(result))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""dembench search: the pair (tau, alpha) of DEM* for a task, method, model, data set and protocol."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dembench.harness.say import alive, say
from dembench.scripts.cli import Parser, fail

if TYPE_CHECKING:
    from dembench.harness.search.trials import Done

EXAMPLE = """examples:
  dembench search method=tent protocol=continual out=runs/digits
  dembench run loss=dem_star part=rest method=tent protocol=continual out=runs/digits
  dembench search data=cifar10c data.root=DIR model=cifar_resnet20 method=eata --trials 60 --order sequential
  dembench search task=semi method=ent_min --seeds 0,1,2

Trials are runs of loss=dem on part=search of the data: search_share=0.2 of the samples, by search_seed=0; where a task
has labelled samples apart from those that it is judged on, such as validation images, they are the part. Everything
is kept in <out>/searches/. Started again, a search goes on; started several times at once, the processes share the
trials. What it found is used by loss=dem_star in a run or a sweep with the same out: with part=rest on the samples
that the search has not seen, or, with loss.evaluation=paper, on all of them as in the paper."""


def parser() -> argparse.ArgumentParser:
    p = Parser("dembench search", description="Search (tau, alpha) of DEM by TPE; print the result's path last.",
               epilog=EXAMPLE)  # fmt: skip
    p.add_argument("overrides", nargs="*", metavar="key=value", help="as for dembench run, without loss, part and seed")
    p.add_argument("--trials", type=int, default=40, metavar="N", help="in all (default 40), the first at (1, 1)")
    p.add_argument("--space", default="grid", help="grid (default): multiples of 0.1 up to 2, as the paper; continuous")
    p.add_argument("--order", default="joint", help="joint (default), or sequential: alpha at tau = 1, then tau")
    p.add_argument("--startup", type=int, default=10, metavar="N", help="trials at random before TPE (default 10)")
    p.add_argument("--sampler-seed", type=int, default=0, metavar="N", help="of TPE (default 0)")
    p.add_argument("--seeds", default="0", metavar="N,...", help="seeds of the runs of a trial; their mean counts")
    p.add_argument("--metric", help="to search on (default: the one that the report judges the task by)")
    p.add_own()
    return p


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parser().parse_intermixed_args(argv)
    from dembench.harness.compose import ConfigError

    try:
        from dembench.harness.search.find import search
        from dembench.harness.search.trials import Settings
    except ModuleNotFoundError as error:
        return fail(f"dembench search needs the package {error.name}: pip install 'dembench[search]'")
    try:
        seeds = tuple(int(word) for word in args.seeds.split(","))
    except ValueError:
        return fail(f"dembench search: --seeds: expected whole numbers and commas, got {args.seeds!r}")
    try:
        settings = Settings(args.trials, args.space, args.order, args.startup, args.sampler_seed, seeds, args.metric)
    except ValueError as error:
        return fail(f"dembench search: {error}")
    shown = Shown(settings.trials)
    command = shlex.join(["dembench", "search", *argv])

    def begin() -> None:
        say(f"searching (tau, alpha) of DEM*, {settings.trials} trials")

    try:
        with alive(lambda: f"  trial {shown.ended + 1} of {settings.trials}"):
            record = search(args.overrides, settings, args.config_dir, command=command, tell=shown, begin=begin)
    except ConfigError as error:
        return fail(f"dembench search: {error}")
    except KeyboardInterrupt:
        return fail("dembench search: interrupted; rerun the command to resume", status=130)
    except RuntimeError as error:
        return fail(f"dembench search: {error}", status=1)
    say(summary(record))
    print(record["path"])
    return 0


class Shown:
    """A line on stderr for each trial of this process."""

    def __init__(self, trials: int) -> None:
        self.trials, self.best, self.ended = trials, None, 0

    def __call__(self, done: Done) -> None:
        self.ended += 1
        if done.ok and (self.best is None or done.score > self.best.score):
            self.best = done
        text = f"[{done.number + 1}/{self.trials}] {describe(done)}"
        if self.best is not None and self.best is not done:
            text += f"; best here {describe(self.best)}"
        say(text)


def describe(done: Done) -> str:
    """tau 1.1, alpha 0.3: error 0.1234"""
    tau, alpha = done.pair
    value = done.details["value"]
    number = "not finite" if value is None else f"{value:.4f}"
    status = "" if done.ok else f" [{done.status}: cannot win]"
    return f"tau {tau:.3g}, alpha {alpha:.3g}: {done.details['metric']} {number}{status}"


def summary(record: dict[str, Any]) -> str:
    """The result in two lines."""
    pair, cost = record["pair"], record["cost"]
    one = "not finite" if record["at_one_one"] is None else f"{record['at_one_one']:.4f}"
    return (
        f"tau {pair['tau']:g}, alpha {pair['alpha']:g}: {record['metric']} {record['value']:.4f} on "
        f"{record['subset']['samples']} samples ({record['subset']['text']}), {one} at (1, 1)\n"
        f"{record['settings']['trials']} trials, {cost['runs']} runs: {cost['wall_seconds']:.0f} s, "
        f"{cost['backward_passes']} backward passes"
    )


if __name__ == "__main__":
    sys.exit(main())

"""dembench tune: every method with every loss at hyperparameters that were chosen alike."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dembench.harness.say import say
from dembench.scripts.cli import Parser, fail

if TYPE_CHECKING:
    from dembench.harness.search.ranges import Budget

EXAMPLE = """examples:
  dembench tune method=tent,eata loss=em,adadem protocol=continual out=runs/digits
  dembench tune method=tent loss=em,dem --space method.lr=1e-5:1e-1:log --space loss.tau=0.5:2 --trials 16
  dembench tune task=semi loss=em,adadem --space method.weight=0.01:1:log seed=0,1,2
  dembench tune study=rates_all_tasks out=runs/rates

Every method with every loss gets the same number of trials over the same space, the first of them at the preset's
values. Trials are runs on part=search of the data (as for dembench search); one set of them serves all rules of choice:
  fixed        the preset's values, at which all losses are compared at equal rate
  oracle       the best trial by the labels of the search part
  information  without labels: entropy of the mean prediction minus mean entropy (Shi and Sha 2012; Liang et al. 2020)
  consistency  without labels: agreement with the augmented copy (effective invariance, Deng et al. 2022)
Then every choice is judged on part=rest, as a sweep does. Interrupted, the command resumes. dembench report compares
the rules side by side. A run or sweep of yours takes a choice by tuned=oracle part=rest with the same out.
Reinforcement learning has fixed and oracle only: there is no choice without the return."""


def parser() -> argparse.ArgumentParser:
    p = Parser("dembench tune", description="Tune every method with every loss alike, and judge the choices.",
               epilog=EXAMPLE)  # fmt: skip
    p.add_argument("words", nargs="+", metavar="key=value",
                   help="as for dembench sweep; a first word without = or study=NAME names a sweep file")  # fmt: skip
    p.add_argument("--trials", type=int, metavar="N", help="for each method and loss (default 9)")
    p.add_argument("--space", action="append", metavar="KEY=LOW:HIGH[:log][:int]",
                   help="a key to tune; again for several (default: learning rate, 2 decades each way)")  # fmt: skip
    p.add_argument("--sampler", help="spread (default): points that no result guides; tpe: Optuna's, guided by labels")
    p.add_argument("--seeds", metavar="N,...", help="seeds of the runs of a trial; their mean counts (default 0)")
    p.add_argument("--metric", help="of the oracle (default: the one that the report judges the task by)")
    p.add_argument("--workers", type=int, metavar="N", help="processes (default: as CPUs allow); 0: this one")
    p.add_argument("--no-judge", action="store_true", help="choose, and judge nothing")
    p.add_own()
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_intermixed_args(list(sys.argv[1:] if argv is None else argv))
    from dembench.harness.compose import ConfigError

    try:
        return tune(args)
    except (ConfigError, ValueError) as error:
        return fail(f"dembench tune: {error}")
    except ModuleNotFoundError as error:
        return fail(f"dembench tune needs the package {error.name}: pip install 'dembench[search]'")
    except KeyboardInterrupt:
        return fail("dembench tune: interrupted; rerun the command to resume", status=130)


def budget_of(args: argparse.Namespace, file: dict[str, Any]) -> Budget:
    """By the file's options, and over them those of the command line. Raises: ValueError for one that is wrong."""
    from dembench.harness.search.ranges import Budget

    own = {key: getattr(args, key) for key in ("trials", "space", "sampler", "metric")}
    try:
        own["run_seeds"] = None if args.seeds is None else [int(word) for word in args.seeds.split(",")]
    except ValueError:
        raise ValueError(f"--seeds: expected whole numbers and commas, got {args.seeds!r}") from None
    found = file | {key: value for key, value in own.items() if value is not None}
    if unknown := sorted(found.keys() - Budget.__dataclass_fields__.keys()):
        raise ValueError(f"tune: no option {', '.join(unknown)}")
    return Budget(**{key: tuple(value) if isinstance(value, list) else value for key, value in found.items()})


def tune(args: argparse.Namespace) -> int:
    """Plans, tunes what is not tuned, and runs the choices; returns the exit status."""
    from dembench.harness import sweeps
    from dembench.harness.compose import ConfigError, lookup_or_fail
    from dembench.harness.engines.choose import Settings
    from dembench.harness.search.tune import check
    from dembench.harness.search.tuned import KINDS
    from dembench.harness.suite import searches
    from dembench.harness.suite.sweepfile import write_sweep
    from dembench.scripts.suite import default_workers
    from dembench.scripts.sweep import sweep

    settings = Settings(workers=args.workers)
    file, *words = args.words if "=" not in args.words[0] or args.words[0].startswith("study=") else ["", *args.words]
    content = sweeps.read_sweep(file, args.config_dir) if file else {"base": {}, "grids": [{}], "tune": {}}
    content["base"] = {"tuned": list(KINDS), "part": "rest", "seed": [0, 1, 2], **content["base"]}
    given = sweeps.read_overrides(words)
    many, left = sweeps.fit(sweeps.expand(content, given), given, args.config_dir)
    for key, names in left.items():
        say(f"{key} is left out of the runs of {', '.join(names)}, which have no such option")
    for own in many:
        if own.get("part") != "rest":
            raise ConfigError(f"part={own.get('part')}: a tuning is judged on part=rest")
        if own.get("tuned") is not None:
            lookup_or_fail(str(own["tuned"]), KINDS, "tuned")
    budget = budget_of(args, content["tune"])
    todo = searches.tunings(many, args.config_dir)
    check([one.words for one in todo], budget, args.config_dir)
    workers = default_workers() if args.workers is None else args.workers
    say(f"{len(todo)} tunings, {budget.trials} trials each")

    def tell(one: searches.Needed, text: str) -> None:
        say(f"tune {one.title}: {text}")

    failed = searches.run(todo, {"tune": asdict(budget)}, workers, args.config_dir, tell)
    if failed or args.no_judge:
        return int(bool(failed))
    many, reasons = searches.offered(many, args.config_dir)
    for reason in reasons:
        say(reason)
    out = Path(many[0].get("out", "runs"))
    planned = write_sweep(out / "tunes" / "judged.yaml", many, "what dembench tune judges")
    return sweep(str(planned), (), settings, args.config_dir)


if __name__ == "__main__":
    sys.exit(main())

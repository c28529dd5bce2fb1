"""dembench check loss|method|model|data NAME: shapes, gradients, determinism, batch of one, devices of your own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dembench.scripts.cli import Parser, fail

KINDS = ("loss", "method", "model", "data")
EXAMPLE = """examples:
  dembench check loss my_loss --config-dir .
  dembench check loss my_module.MyLoss --allow-target my_module
  dembench check model my_module.Net --allow-target my_module model.weights=net.pt
  dembench check data my_folder

One line for each thing that is looked at; the exit status is 1 where one failed. Methods, models and data are those of
the task tta; a loss serves every task. Where there is a CUDA device, each is tried on it, too."""


def parser() -> argparse.ArgumentParser:
    p = Parser("dembench check", description="Check a loss, method, model or data of your own.", epilog=EXAMPLE)
    p.add_argument("kind", choices=KINDS)
    p.add_argument("name", metavar="NAME", help="as for dembench run: a file's name, a dotted name, a folder of images")
    p.add_argument("overrides", nargs="*", metavar="key=value", help="its options, as for dembench run")
    p.add_argument("--size", type=int, metavar="N", help="of a model: pixels of its images (its preprocess, or 32)")
    p.add_own()
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 all is well, 1 something failed, 2 wrong usage."""
    args = parser().parse_intermixed_args(list(sys.argv[1:] if argv is None else argv))
    from dembench.harness import checks
    from dembench.harness.compose import ConfigError

    if args.size is not None and args.size < 1:
        return fail(f"dembench check: expected --size of at least 1, got {args.size}")
    try:
        make = maker(args.kind, args.name, args.overrides, args.config_dir)
    except ConfigError as error:
        return fail(f"dembench check: {error}")
    more = {"side": args.size} if args.kind == "model" else {}
    failed = 0
    for found in checks.findings(getattr(checks, f"check_{args.kind}")(make, **more)):
        failed += bool(found.problem)
        word = "FAILED" if found.problem else "-" if found.skipped else "ok"
        print(f"{word:<7}{': '.join(filter(None, [found.what, found.problem or found.skipped]))}")
    print(f"{args.kind} {args.name}: {f'{failed} failed' if failed else 'all is well'}")
    return 1 if failed else 0


def maker(kind: str, name: str, overrides: Sequence[str], config_dir: Path | None) -> Callable[..., Any]:
    """What builds the thing anew: of a method with ``model`` and ``loss``, else without arguments.

    Raises: ConfigError for names and options that are not there or may not be used.
    """
    from omegaconf import OmegaConf

    from dembench.harness import experiment
    from dembench.harness.compose import ConfigError, check_signatures, compose
    from dembench.harness.targets import build

    cfg = compose(["task=tta", f"{kind}={name}", *overrides], config_dir, complete=kind in ("model", "data"))
    node: Any = OmegaConf.to_container(cfg[kind], resolve=True)
    check_signatures({kind: node}, "check")
    if kind == "method":
        return lambda **parts: build(node, kind)(**parts)

    def make() -> Any:
        with experiment.user_errors():
            experiment.seed_all(0)
            return build(node, kind)

    if make() is None:
        raise ConfigError(f"{kind}={name} builds nothing, so there is nothing to check")
    return make


if __name__ == "__main__":
    sys.exit(main())

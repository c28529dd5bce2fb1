"""dembench run: one run from the command line."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from dembench.harness.say import counting, say, whisper
from dembench.scripts.cli import Parser, fail

if TYPE_CHECKING:
    from dembench.harness.experiment import Prepared

EXAMPLE = """examples:
  dembench run method=tent loss=adadem protocol=continual
  dembench run data=cifar10c data.root=DIR model=cifar_resnet20 method=tent loss=dem loss.tau=1.4 loss.alpha=1.4 seed=1

`dembench list` shows all names. Results go to runs/<id>/ (out=DIR for another place); a finished run is not run
again (force=true does). device=auto|cpu|cuda, precision=fp32|bf16, threads=N, progress=false are settings too."""


def parser() -> argparse.ArgumentParser:
    p = Parser("dembench run", description="Run once; print the path of result.json last.", epilog=EXAMPLE)
    p.add_argument("overrides", nargs="*", metavar="key=value", help="names of groups, and values inside them")
    p.add_own()
    p.add_argument("--show", action="store_true", help="print the composed configuration and stop")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parser().parse_intermixed_args(argv)
    from omegaconf import OmegaConf

    from dembench.harness import runs
    from dembench.harness.compose import ConfigError, compose

    try:
        cfg = compose(args.overrides, args.config_dir)
        if args.show:
            print(OmegaConf.to_yaml(cfg, resolve=True), end="")
            return 0
        started = time.monotonic()
        preparing = f"preparing {title({'choices': cfg.choices, 'seed': cfg.seed})}"
        with counting("preparing", first=preparing) if cfg.progress else nullcontext():
            from dembench.harness import experiment, progress

            prepared = experiment.prepare(cfg)
        whisper(f"run {prepared.id}, prepared in {time.monotonic() - started:.1f} s")
        command = shlex.join(["dembench", "run", *argv])
        try:
            with progress.shown(cfg.progress, title(prepared.config)) as watch:
                outcome = experiment.run(prepared, command=command, watch=watch)
        except (ConfigError, runs.RunBusy):
            raise
        except Exception as error:
            if os.environ.get("DEMBENCH_TRACEBACK"):
                raise
            return fail(f"dembench run: {failure(error, command, prepared)}", status=1)
    except ConfigError as error:
        return fail(f"dembench run: {error}", status=1 if type(error).__name__ == "DiskFull" else 2)
    except KeyboardInterrupt:
        text = "interrupted; rerun the command to resume (from the last checkpoint, if any)"
        return fail(f"dembench run: {text}", status=130)
    except runs.RunBusy as error:
        return fail(f"dembench run: {error}", status=1)
    if not outcome.ran:
        say("finished before; force=true runs it again")
        if cfg.save != "none" and not list((outcome.path.parent / "files").glob("*.safetensors")):
            say("that run kept no weights")
    if cfg.progress:
        say(summary(outcome.result))
    print(outcome.path)
    return 0


def failure(error: Exception, command: str, prepared: Prepared) -> str:
    """One line on a run that failed on its way; its traceback is kept beside the runs, as a sweep does."""
    from dembench.harness.errors import no_room, one_line
    from dembench.harness.runs import write_atomic
    from dembench.harness.sweeps import failure_note

    if (full := no_room(error)) is not None:
        return str(full)
    note = failure_note(Path(prepared.config["out"]) / prepared.id)
    text = f"the run {prepared.id} failed: {one_line(error)}"
    try:
        write_atomic(note, f"{command}\n\n{''.join(traceback.format_exception(error))}")
    except OSError:
        return f"{text}; DEMBENCH_TRACEBACK=1 shows its traceback"
    return f"{text}; its traceback is in {note}"


def summary(result: dict) -> str:
    """The means of a run and its time in one line, and its status where that is not ok."""
    return f"{means(result)}, {result['cost']['wall_seconds']:.1f} s"


def means(result: dict) -> str:
    """The means in one line, and the status where that is not ok."""
    rows = [row for row in result["rows"] if row["slice"] == "mean"]
    numbers = [
        f"{row['metric']} {'not finite' if row['value'] is None else format(row['value'], '.4f')}" for row in rows
    ]
    status = [] if result["status"] == "ok" else [f"status {result['status']}"]
    return "mean: " + ", ".join([*numbers, *status])


def title(config: dict) -> str:
    """The names of a run in a few words: "tent adadem cifar_resnet20 continual seed 1"."""
    names = config["choices"]
    words = [names[group] for group in ("method", "loss", "model", "protocol") if names.get(group)]
    return " ".join([*words, "seed", str(config["seed"])])


if __name__ == "__main__":
    sys.exit(main())

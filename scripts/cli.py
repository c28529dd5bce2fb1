"""The command ``dembench``: finds the named subcommand and calls it. Imports nothing heavy before that."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

COMMANDS = {
    "run": "run once: task, method, loss, model, data and protocol by name",
    "evaluate": "judge the weights that a run kept (save=last) once more, also on other data",
    "sweep": "run a grid of runs, by a file or by name; what is done is skipped",
    "tune": "every method with every loss at hyperparameters that were chosen alike",
    "search": "find (tau, alpha) of DEM* on a labelled part of the data",
    "data": "download public datasets (checksum-verified)",
    "list": "names that can be used, and whether their data is on this machine",
    "report": "one page of tables and figures from runs",
    "export": "the records of many runs as one file",
    "compare": "two sets of runs side by side, with paired differences",
    "suite": "many grids under one name: quick, full, paper",
    "demo": "the suite quick: all tasks and losses on embedded data, and the report of it",
    "figure": "figures not produced by a sweep",
    "bench": "time the losses and the methods",
    "new": "write a skeleton of a loss, method, model or data, with its test",
    "check": "a loss, method, model or data of your own; or whether all works on this machine's GPU",
    "completion": "a script that lets bash, zsh or fish complete these words",
    "kit": "a folder with wheels, this tree and chosen data, for a machine without network",
}


VOLUMES = (
    (("-q", "--quiet"), 30, "tell warnings and errors only"),  # levels of Python's logging
    (("-v", "--verbose"), 10, "tell more: where time goes"),
)


class Parser(argparse.ArgumentParser):
    """argparse, with errors of one line."""

    def __init__(self, prog: str, **kwargs: object) -> None:
        super().__init__(prog, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs)
        for flags, level, text in VOLUMES:
            self.add_argument(*flags, action=_Volume, nargs=0, const=level, dest=argparse.SUPPRESS, help=text)

    def add_own(self) -> None:
        """Options that name what is the user's own."""
        text = "own configurations, in folders as in configs/, and the modules that they name; their code is run"
        self.add_argument("--config-dir", type=Path, metavar="DIR", help=text)
        text = "let configurations name this module or class, in the current folder or installed; may be repeated"
        self.add_argument("--allow-target", action=_Allow, metavar="NAME", help=text)

    def error(self, message: str) -> NoReturn:
        sys.exit(fail(f"{self.prog}: {message}"))


class _Volume(argparse.Action):
    """How much is told on stderr."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: object, values: Any, option: object = None) -> None:
        from dembench.harness.say import LOG

        LOG.setLevel(self.const)


class _Allow(argparse.Action):
    """Allows a target in this process and its workers."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: object, values: Any, option: object = None) -> None:
        from dembench.tasks.common.trust import allow

        try:
            allow(values)
        except ValueError as error:
            parser.error(f"--allow-target: {error}")


def fail(message: str, status: int = 2) -> int:
    """Prints ``message`` to stderr, in one line, and returns the exit status."""
    from dembench.harness.say import LOG

    LOG.error("%s", " ".join(message.split("\n")))
    return status


def usage() -> str:
    lines = [f"  {name:<11}{text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: dembench COMMAND ...",
            "",
            "Entropy minimisation losses (EM, DEM, AdaDEM), measured.",
            "",
            "commands:",
            *lines,
            "",
            "dembench COMMAND --help tells more; dembench --version gives the version. Every command takes -q (only",
            "warnings and errors) and -v (more); NO_COLOR=1 switches colours off.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 done, 1 something failed, 2 wrong usage."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        from importlib.metadata import PackageNotFoundError, version

        try:
            print("dembench", version("dembench"))
        except PackageNotFoundError:
            print("dembench, not installed")
        return 0
    from dembench.lookup import lookup

    while len(argv) > 1 and argv[0] in (flag for flags, _, _ in VOLUMES for flag in flags):
        argv[:2] = [argv[1], argv[0]]  # dembench -q run is dembench run -q
    try:
        name = lookup(argv[0], COMMANDS, "command")
    except ValueError as error:
        return fail(f"dembench: {error}")
    from dembench.harness.say import LOG

    before = LOG.level
    try:
        return importlib.import_module(f"dembench.scripts.{name}").main(argv[1:])
    except BrokenPipeError:  # the reader of a pipe, such as head, has gone
        sys.stderr.close()
        return 1
    except KeyboardInterrupt:
        return fail(f"dembench {name}: interrupted", status=130)
    except Exception as error:
        if os.environ.get("DEMBENCH_TRACEBACK"):
            raise
        from dembench.harness.errors import told

        line, status = told(error)
        return fail(f"dembench {name}: {line}", status)
    finally:
        LOG.setLevel(before)


if __name__ == "__main__":
    sys.exit(main())

"""dembench completion: what a shell needs to complete the command's words; the shell asks this command."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dembench.scripts.cli import COMMANDS, Parser

SHELLS = {
    "bash": r"""_dembench() {
    local line="${COMP_LINE:0:COMP_POINT}" current IFS=$' \t\n'
    local words=($line)
    [[ $line == *[[:space:]] ]] && words+=("")
    current="${words[-1]}"
    mapfile -t COMPREPLY < <("${words[0]}" completion words -- "${words[@]:1}" 2>/dev/null)
    if [[ $current == *=* && $COMP_WORDBREAKS == *=* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${current%%=*}="}")
    fi
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace
    [[ ${#COMPREPLY[@]} -eq 0 ]] && compopt -o default
}
complete -F _dembench dembench
""",
    "zsh": r"""#compdef dembench
_dembench() {
    local -a found
    found=("${(@f)$(${words[1]} completion words -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    [[ -n "$found" ]] && compadd -S '' -- $found || _files
}
compdef _dembench dembench
""",
    "fish": r"""function __dembench
    dembench completion words -- (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null
end
complete -c dembench -a '(__dembench)'
""",
}
HOW = """examples:
  source <(dembench completion bash)                       # in ~/.bashrc
  source <(dembench completion zsh)                        # in ~/.zshrc, after compinit
  dembench completion fish > ~/.config/fish/completions/dembench.fish

Sub-commands, options, and names are completed: dembench run method=te<TAB>."""
GROUPS = ("task", "method", "loss", "model", "data", "protocol")
GRIDS = ("run", "sweep", "tune", "search", "suite", "evaluate", "figure")  # commands that take key=value
TOP = ("seed=", "device=", "precision=", "part=", "out=", "save=", "force=", "progress=", "logger=", "threads=")
VALUES = {
    "device": ("auto", "cpu", "cuda"),
    "precision": ("fp32", "bf16"),
    "part": ("all", "search", "rest"),
    "save": ("none", "last", "best_validation"),
    "force": ("true", "false"),
    "progress": ("true", "false"),
    "logger": ("tensorboard", "wandb", "mlflow"),
}
FIRST = {  # what may follow a command, beside key=value
    "list": (*GROUPS, "sweep", "study", "figure", "suite"),
    "figure": ("ttc_figure1", "ttc_figure3", "dem_figure2", "dem_figure3", "dem_figure4"),
    "completion": tuple(SHELLS),
}


def parser() -> argparse.ArgumentParser:
    p = Parser("dembench completion", description="Print a script that lets a shell complete the command.", epilog=HOW)
    p.add_argument("shell", choices=(*SHELLS, "words"), metavar="bash|zsh|fish")
    p.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    if args.shell == "words":
        print(*complete(args.words or [""]), sep="\n")
    else:
        print(SHELLS[args.shell], end="")
    return 0


def complete(words: Sequence[str]) -> list[str]:
    """What the last word may become, sorted. Reads names of files and imports nothing heavy.

    Args:
        words: behind ``dembench``, as far as the cursor; the last one may be empty.
    """
    *before, current = words
    if not before:
        return _begin(current, (*COMMANDS, "--help", "--version"))
    command = before[0]
    if command not in COMMANDS:
        return []
    if current.startswith("-"):
        return _begin(current, _options(command))
    task = next((word.partition("=")[2] for word in reversed(before) if word.startswith("task=")), "tta")
    if "=" in current:
        key = current.partition("=")[0]
        names = VALUES.get(key) or tuple(names_of("sweep/study" if key == "study" else key, task))
        return _begin(current, [f"{key}={name}" for name in names])
    found = list(FIRST.get(command, ()))
    if len(before) == 1 and command in ("sweep", "suite", "tune"):
        found += [*names_of("suite" if command == "suite" else "sweep", task)]
        found += ["study="] if command != "suite" else []
    if command in GRIDS:
        found += [*(f"{group}=" for group in GROUPS), *TOP]
    return _begin(current, found)


def names_of(group: str, task: str) -> Iterator[str]:
    """Names of the files of a group; nothing for what is no group."""
    import dembench.configs

    root = Path(dembench.configs.__path__[0])
    folder = root / group if group in ("task", "loss", "sweep", "sweep/study", "suite") else root / group / task
    if group in (*GROUPS, "sweep", "sweep/study", "suite") and folder.is_dir():
        yield from (file.stem for file in folder.glob("*.yaml"))


def _options(command: str) -> list[str]:
    module = importlib.import_module(f"dembench.scripts.{command}")
    if command == "demo":
        module = importlib.import_module("dembench.scripts.suite")
    made = getattr(module, "parser", None)
    return list(made()._option_string_actions) if made is not None else ["--help"]


def _begin(start: str, names: Iterable[str]) -> list[str]:
    return sorted({name for name in names if name.startswith(start)})


if __name__ == "__main__":
    sys.exit(main())

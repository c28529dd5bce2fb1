"""What the numbers were made with: facts of the first screen, commands, environments, flags and what was left out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from dembench.report.judge.group import Block, method_of
from dembench.report.judge.wording import run_label
from dembench.report.read.load import Collection, Run
from dembench.report.read.names import DIGITS, TOYS, pretty, rank

MIRRORED = (
    "TTC takes each image together with its mirror image (augment=hflip), and a mirrored digit is another one or none: "
    "its errors on digits say nothing of TTC on photographs."
)
QUIET = ("adapts", "aggregate", "fisher", "tipi")  # notes on what a method is made of
LOUD = ("stream",)  # on what a method is shown, which sets it apart from others


def facts(found: Collection, blocks: list[Block]) -> list[tuple[str, str]]:
    """What was compared, in a line each."""
    runs = found.runs

    def names(values: Iterable[str], group: str = "") -> str:
        return ", ".join(map(pretty, sorted(set(values), key=lambda value: (rank(group, value), value))))

    seeds = sorted({run.seed for run in runs})
    counts = Counter(run.status for run in runs)
    flagged = [f"{counts['collapse']} collapsed"] if counts["collapse"] else []
    flagged += [f"{counts['nan']} with NaN"] if counts["nan"] else []
    flagged += [f"{counts['unlearned']} that learned nothing"] if counts["unlearned"] else []
    other = sum(n for status, n in counts.items() if status not in ("ok", "collapse", "nan", "unlearned"))
    flagged += [f"{other} of unknown status"] if other else []
    asides = [f"{len(found.unfinished)} unfinished"] if found.unfinished else []
    asides += [f"{len(found.unreadable)} unreadable"] if found.unreadable else []
    return [
        ("Tasks", names((run.task for run in runs), "task")),
        ("Data", names(run.data for run in runs)),
        ("Models", names(run.model for run in runs if run.model != "none") or "none"),
        ("Protocols", names((run.protocol for run in runs), "protocol")),
        ("Methods", names(map(method_of, runs), "method")),
        ("Losses", names((loss for block in blocks for loss, _ in block.columns), "loss") or "none"),
        ("Seeds", ", ".join(map(str, seeds)) if len(seeds) <= 12 else f"{len(seeds)} ({seeds[0]} to {seeds[-1]})"),
        ("Runs", f"{len(runs)} finished"),
        ("Flagged", ", ".join(flagged) or "none"),
        ("Left out", ", ".join(asides) or "none"),
    ]


def commits(runs: Iterable[Run]) -> str:
    """A warning where runs come from several commits or from changed files; else empty."""
    counts = Counter(commit_of(run) for run in runs)
    changed = sum(n for (_, modified), n in counts.items() if modified)
    by_commit: Counter[str] = Counter()
    for (commit, _), n in counts.items():
        by_commit[commit] += n
    said = []
    if len(by_commit) > 1:
        listed = ", ".join(f"{commit} ({n})" for commit, n in by_commit.most_common())
        said.append(f"Runs of {len(by_commit)} commits stand beside each other: {listed}.")
    if changed:
        said.append(f"{changed} of {sum(counts.values())} runs were made with files that differ from their commit.")
    return " ".join(said)


def commit_of(run: Run) -> tuple[str, bool]:
    """(first digits of the commit or the version, whether tracked files were changed)."""
    commit = run.environment.get("commit") or run.environment.get("version") or "unknown"
    return str(commit)[:10], run.environment.get("modified") is True


@dataclass(frozen=True, slots=True)
class Remark:
    """A note of runs, which of them had it, and whether it tells about a method alone."""

    key: str
    text: str
    which: str
    quiet: bool


def notes_of(block: Block) -> list[Remark]:
    """Each different note once, the commonest first. A note is quiet where it tells what a method is made of: it names
    what adapts, or all runs of some methods have it and no others do, unless it sets these apart."""
    counts = Counter(note for run in block.runs for note in dict.fromkeys(run.notes))
    methods = Counter(method_of(run) for run in block.runs)
    remarks = []
    for (key, text), n in counts.most_common():
        having = Counter(method_of(run) for run in block.runs if (key, text) in run.notes)
        own = len(having) < len(methods) and all(methods[name] == m for name, m in having.items())
        names = ", ".join(pretty(name) for name in sorted(having, key=lambda name: rank("method", name)))
        which = "all runs" if n == len(block.runs) else names if own else f"{n} of {len(block.runs)} runs"
        remarks.append(Remark(key, text, which, key not in LOUD and (own or key in QUIET)))
    if TOYS.get(block.data) == DIGITS and (
        mirrored := dict.fromkeys(method_of(run) for run in block.runs if flips(run))
    ):
        remarks.append(Remark("digits", MIRRORED, ", ".join(map(pretty, mirrored)), quiet=False))
    return remarks


def flips(run: Run) -> bool:
    """Whether a method learns from mirrored images."""
    node = run.config.get("method")
    return isinstance(node, dict) and node.get("augment") == "hflip"


def commands_of(block: Block) -> list[tuple[str, str, str]]:
    """(what, seeds, command of the first seed) for each group of runs that differ in the seed only."""
    listed = []
    cells = [block.free[row] for row in block.rows if row in block.free]
    cells += [block.cells[row, col] for row in block.rows for col in block.columns if (row, col) in block.cells]
    for cell in cells:
        loss = "" if cell.loss is None else f" + {block.loss_label(cell)}"
        name = " ".join(filter(None, [pretty(cell.method) + loss, block.setting_label(cell)]))
        seeds = ", ".join(str(run.seed) for run in cell.runs)
        listed.append((name, seeds, next((run.command for run in cell.runs if run.command), "not recorded")))
    return listed


def flags_of(runs: Iterable[Run]) -> list[tuple[str, str, str, str]]:
    """(run id, what it was, kind and slice, message) of each flag."""
    return [
        (run.id, run_label(run), f"{kind} in {part}" if part else kind, message)
        for run in runs
        if run.status != "ok" or run.flags
        for kind, part, message in run.flags or ((run.status, "", "no detail recorded"),)
    ]


def environments(runs: Iterable[Run]) -> list[tuple[str, list[tuple[str, str]]]]:
    """("n runs", [(key, value)]) for each different environment, the commonest first."""
    groups: dict[tuple[tuple[str, str], ...], int] = defaultdict(int)
    for run in runs:
        groups[tuple((k, str(v)) for k, v in run.environment.items() if v is not None)] += 1
    ordered = sorted(groups.items(), key=lambda item: (-item[1], item[0]))
    return [(f"{n} run{'s' if n > 1 else ''}", list(key)) for key, n in ordered]

"""The page: loads runs, builds tables and figures, and writes them out. Nothing on it depends on when it is made."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from tasks.report import content, figures
from tasks.report.drawing import Figure
from tasks.report.group import LOSS_ORDER, Block, build_blocks, pretty, rank
from tasks.report.load import Aside, Collection, Run, load
from tasks.report.tables import Table
from tasks.report.verdict import Verdict, summary_table, verdicts

HERE = Path(__file__).parent
LISTED = 200  # entries of a list of runs beyond which the page refers to runs.csv


@dataclass(slots=True)
class Section:
    """One block on the page."""

    block: Block
    main: Table
    more: list[Table]
    figures: list[Figure]
    notes: list[tuple[str, str, str]]
    verdicts: list[Verdict]
    commands: list[tuple[str, str, str]]

    @property
    def anchor(self) -> str:
        return self.main.name

    @property
    def headlines(self) -> list[Verdict]:
        """Verdicts that the first screen states: AdaDEM's, or all where AdaDEM was not run."""
        return [v for v in self.verdicts if v.column[0] == "adadem"] or self.verdicts


@dataclass(slots=True)
class Task:
    name: str
    title: str
    sections: list[Section] = field(default_factory=list)


def write_report(run_roots: list[Path], out: Path, *, with_figures: bool = True) -> Path:
    """Reads every run under ``run_roots`` and writes ``out``/index.html, tables/ and figures/ beside it.

    Args:
        run_roots: run directories, or folders that hold some at any depth.
        out: made where it is missing; files of the same names are replaced.
        with_figures: False leaves all figures out, for a quick look.
    Returns: the path of index.html, which is self-contained and opens offline.
    Raises: ValueError when a root is missing or holds no finished run; nothing is written then.
    """
    found = load([Path(root) for root in run_roots])
    blocks = build_blocks(found.runs)
    out = Path(out)
    for folder in ("tables", "figures") if with_figures else ("tables",):
        (out / folder).mkdir(parents=True, exist_ok=True)
    taken = Counter(["summary", "runs", "reward-curves"])
    tasks: dict[str, Task] = {}
    for block in blocks:
        section = make_section(block, with_figures)
        tasks.setdefault(block.task, Task(block.task, pretty(block.task))).sections.append(section)
        for item in (section.main, *section.more, *section.figures):
            taken[item.name] += 1
            if taken[item.name] > 1:
                item.name = f"{item.name}-{taken[item.name]}"  # two titles that differ in signs only
            item.write(out / ("tables" if isinstance(item, Table) else "figures"))
    summary = summary_table([v for task in tasks.values() for section in task.sections for v in section.verdicts])
    if summary.rows:
        summary.write(out / "tables")
    runs_table = content.runs_table(blocks)
    (out / "tables" / "runs.csv").write_text(runs_table.csv(), encoding="utf-8", newline="\n")
    rewards = None
    if with_figures:
        rewards = figures.reward_curves()
        rewards.write(out / "figures")
    page = out / "index.html"
    page.write_text(render(found, list(tasks.values()), summary, rewards), encoding="utf-8", newline="\n")
    return page


def make_section(block: Block, with_figures: bool) -> Section:
    drawn = []
    if with_figures:
        for method in block.methods:
            for draw in (figures.rate_figure, figures.stream_figure, figures.share_figure):
                if (figure := draw(block, method)) is not None:
                    drawn.append(figure)
    main = content.main_table(block)
    more = [content.detail_table(block), content.cost_table(block)]
    return Section(block, main, more, drawn, notes_of(block), verdicts(block), commands_of(block))


def notes_of(block: Block) -> list[tuple[str, str, str]]:
    """(key, text, which runs) for each different note, the commonest first."""
    counts = Counter(note for run in block.runs for note in dict.fromkeys(run.notes))
    total = len(block.runs)
    return [
        (key, text, "all runs" if n == total else f"{n} of {total} runs") for (key, text), n in counts.most_common()
    ]


def commands_of(block: Block) -> list[tuple[str, str, str]]:
    """(what, seeds, command of the first seed) for each group of runs that differ in the seed only."""
    listed = []
    cells = [block.free[row] for row in block.rows if row in block.free]
    cells += [block.cells[row, col] for row in block.rows for col in block.columns if (row, col) in block.cells]
    for cell in cells:
        loss = "" if cell.loss is None else f" + {block.column_label((cell.loss, cell.params))}"
        name = " ".join(filter(None, [pretty(cell.method) + loss, block.setting_label(cell)]))
        seeds = ", ".join(str(run.seed) for run in cell.runs)
        listed.append((name, seeds, next((run.command for run in cell.runs if run.command), "not recorded")))
    return listed


def facts(found: Collection, tasks: list[Task]) -> list[tuple[str, str]]:
    """What was compared, in a line each."""
    runs = found.runs

    def names(field: str) -> str:
        values = sorted({getattr(run, field) for run in runs}, key=lambda v: (rank(LOSS_ORDER, v), v))
        return ", ".join(map(pretty, values))

    blocks = [section.block for task in tasks for section in task.sections]
    losses = {loss for block in blocks for loss, _ in block.columns}
    seeds = sorted({run.seed for run in runs})
    listed = [
        ("Tasks", names("task")),
        ("Data", names("data")),
        ("Models", names("model")),
        ("Protocols", names("protocol")),
        ("Methods", names("method")),
        (
            "Losses",
            ", ".join(pretty(name) for name in sorted(losses, key=lambda v: (rank(LOSS_ORDER, v), v))) or "none",
        ),
        ("Seeds", ", ".join(map(str, seeds)) if len(seeds) <= 12 else f"{len(seeds)} ({seeds[0]} to {seeds[-1]})"),
        ("Runs", f"{len(runs)} finished"),
    ]
    counts = Counter(run.status for run in runs)
    flagged = [f"{counts['collapse']} collapsed"] if counts["collapse"] else []
    flagged += [f"{counts['nan']} with NaN"] if counts["nan"] else []
    other = sum(n for status, n in counts.items() if status not in ("ok", "collapse", "nan"))
    flagged += [f"{other} of unknown status"] if other else []
    listed.append(("Flagged", ", ".join(flagged) or "none"))
    asides = [f"{len(found.unfinished)} unfinished"] if found.unfinished else []
    asides += [f"{len(found.unreadable)} unreadable"] if found.unreadable else []
    return [*listed, ("Left out", ", ".join(asides) or "none")]


def flags_of(runs: tuple[Run, ...]) -> list[tuple[str, str, str, str]]:
    """(run id, what it was, kind and slice, message) of each flag."""
    return [
        (run.id, content.run_label(run), f"{kind} in {part}" if part else kind, message)
        for run in runs
        if run.status != "ok" or run.flags
        for kind, part, message in run.flags or ((run.status, "", "no detail recorded"),)
    ]


def environments(runs: tuple[Run, ...]) -> list[tuple[str, list[tuple[str, str]]]]:
    """("n runs", [(key, value)]) for each different environment, the commonest first."""
    groups: dict[tuple[tuple[str, str], ...], int] = defaultdict(int)
    for run in runs:
        groups[tuple((k, str(v)) for k, v in run.environment.items() if v is not None)] += 1
    ordered = sorted(groups.items(), key=lambda item: (-item[1], item[0]))
    return [(f"{n} run{'s' if n > 1 else ''}", list(key)) for key, n in ordered]


def render(found: Collection, tasks: list[Task], summary: Table, rewards: Figure | None) -> str:
    """The HTML text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    jinja = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    sections = [section for task in tasks for section in task.sections]
    asides: list[tuple[str, tuple[Aside, ...] | list[Aside]]] = [
        ("Unfinished", found.unfinished),
        ("Unreadable", found.unreadable),
        ("Found twice", found.duplicates),
        ("Set aside: the same configuration twice", [aside for s in sections for aside in s.block.aside]),
    ]
    return jinja.get_template("page.html.j2").render(
        facts=facts(found, tasks),
        tasks=tasks,
        summary=summary,
        summary_notes=sorted({(key, text) for section in sections for key, text, _ in section.notes}),
        rewards=rewards,
        flags=flags_of(found.runs),
        asides=[(title, items) for title, items in asides if items],
        environments=environments(found.runs),
        listed=LISTED,
        multiple=len(sections) > 1,
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        script=(HERE / "page.js").read_text(encoding="utf-8"),
    )

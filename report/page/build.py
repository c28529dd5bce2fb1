"""The page: loads runs, builds tables and figures, and writes them out. Nothing on it depends on when it is made."""

from __future__ import annotations

import base64
import gzip
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dembench import records
from dembench.report.figures import choose as figures
from dembench.report.figures import parallel, plane
from dembench.report.figures.chosen import choice_figures
from dembench.report.figures.drawing import Figure
from dembench.report.figures.gallery import Gallery, Picture
from dembench.report.figures.sensitivity import across_figure
from dembench.report.judge.group import Block, build_blocks
from dembench.report.judge.ranking import RULE
from dembench.report.judge.tolerance import curves
from dembench.report.judge.verdict import Verdict, verdicts
from dembench.report.judge.wording import describe
from dembench.report.page import manifest, provenance
from dembench.report.page.first_screen import FirstScreen, first_screen
from dembench.report.page.listing import listing
from dembench.report.read.load import Aside, Collection, load
from dembench.report.read.names import pretty
from dembench.report.read.reference import references
from dembench.report.tables import detail as costs
from dembench.report.tables import results as content
from dembench.report.tables.environments import environment_tables
from dembench.report.tables.fair import choice_table, has_rules, width_table
from dembench.report.tables.headlines import Headline, headlines
from dembench.report.tables.latex import BOTH, ONE
from dembench.report.tables.measures import further_table
from dembench.report.tables.published import beside_table, reference_table
from dembench.report.tables.summary import summary_table
from dembench.report.tables.table import Table, capital, sentence

Kept = dict[Any, list[Figure]]
HERE = Path(__file__).parent
LISTED = 200  # entries of a list of runs beyond which the page refers to runs.csv
ROWS = 200  # of a table, beyond which the page refers to its files
FIGURES = 48  # that are drawn of all comparisons together
WHOLE = 40  # comparisons with all their tables on the page; of the others it shows the first and links the rest


@dataclass(slots=True)
class Section:
    """One block on the page, with all its tables where it is ``whole``, and not all its figures where it is ``cut``."""

    block: Block
    protocol: str
    whole: bool
    cut: bool
    main: Table
    more: list[Table]
    figures: list[Figure]
    notes: list[provenance.Remark]
    verdicts: list[Verdict]
    headlines: list[Headline]
    commands: list[tuple[str, str, str]]
    pictures: dict[str, list[Picture]]
    pictures_out: int
    references: set[str]
    held: str = ""

    @property
    def anchor(self) -> str:
        return self.main.name

    @property
    def brief(self) -> str:
        """What a reader sees before it is opened: the runs, and the judgements alone."""
        runs = len(self.block.runs)
        return " ".join([f"{runs} run{'s' * (runs != 1)}.", *(line.strong for line in self.headlines)])


@dataclass(slots=True)
class Task:
    """All blocks of one task, with tables and figures that span several of them."""

    name: str
    title: str
    sections: list[Section] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    held: str = ""


class Writer:
    """Writes tables and figures under names of their own, and knows what it wrote."""

    def __init__(self, out: Path, paper: bool) -> None:
        self.out, self.paper = out, paper
        self.taken = Counter(["runs"])
        self.written: list[Path] = []

    def write(self, item: Table | Figure) -> None:
        self.taken[item.name] += 1
        if self.taken[item.name] > 1:
            item.name = f"{item.name}-{self.taken[item.name]}"  # two titles that differ in signs only
        if isinstance(item, Figure):
            if item.canvas is not None:
                item.draw(self.paper)
            folder, suffixes = self.out / "figures", tuple(item.files)
        else:
            folder, suffixes = self.out / "tables", ("csv", "md", "tex")
        if suffixes:
            folder.mkdir(parents=True, exist_ok=True)
        item.write(folder)
        self.written += [folder / f"{item.name}.{suffix}" for suffix in suffixes]

    def write_all(self, items: list[Table | Figure]) -> None:
        for item in items:
            self.write(item)

    def text(self, name: str, text: str) -> Path:
        path = self.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        records.write_plain(path, text)
        self.written.append(path)
        return path


def write_report(
    run_roots: list[Path],
    out: Path,
    *,
    with_figures: bool = True,
    most_figures: int | None = None,
    paper: bool = False,
    kept: Kept | None = None,
) -> Path:
    """Reads every run under ``run_roots`` and writes ``out``/index.html and tables/ beside it.

    Args:
        run_roots: run directories, or folders that hold some at any depth.
        out: made where it is missing; what an earlier report wrote there and this one does not is removed.
        with_figures: False leaves all figures out, for a quick look.
        most_figures: about how many are drawn of all comparisons together, where there are many; FIGURES by default.
        paper: also writes the figures as PDF and PNG to figures/, and paper.tex, which sets all tables.
        kept: a dictionary, empty at first, that is given again at the next report of more runs: comparisons that did
            not change are not drawn again.
    Returns: the path of index.html, which is self-contained and opens offline.
    Raises: ValueError when a root is missing or holds no finished run; nothing is written then.
    """
    found = load([Path(root) for root in run_roots])
    blocks = build_blocks(found.runs)
    out, gallery = Path(out), Gallery()
    writer = Writer(out, paper)
    tasks: dict[str, Task] = {}
    judged = [verdicts(block) for block in blocks]
    planned = plan(blocks, judged, FIGURES if most_figures is None else most_figures) if with_figures else []
    drawn = draw(planned, paper, {} if kept is None else kept)
    for number, (block, said) in enumerate(zip(blocks, judged, strict=True)):
        shown = drawn[number] if number < len(drawn) else []
        section = make_section(block, said, shown, gallery, whole=number < WHOLE)
        section.cut = with_figures and (number >= len(planned) or len(shown) == planned[number][2])
        tasks.setdefault(block.task, Task(block.task, pretty(block.task))).sections.append(section)
        writer.write_all([section.main, *section.more, *section.figures])
    searches = plane.find(map(Path, run_roots))
    rates = curves(found.runs)
    for task in tasks.values():
        own = [record for record in searches if record.task == task.name]
        task.tables = environment_tables([section.block for section in task.sections])
        task.tables += [plane.table(own)] if own else []
        tried = [curve for curve in rates if curve.task == task.name]
        task.figures = [*figures_across(task), *map(plane.figure, own[: plane.MAPS])] if with_figures else []
        task.figures += choice_figures(tried) if with_figures else []
        writer.write_all([*task.tables, *task.figures])
    first = first_screen(blocks, judged, with_figures)
    if has_rules(blocks):
        first.tables.append(choice_table(judged))
    summary = summary_table([v for task in tasks.values() for section in task.sections for v in section.verdicts])
    first.details += [table for table in (summary, width_table(rates)) if table.rows]
    writer.write_all([*first.figures, *first.tables, *first.details])
    writer.text("tables/runs.csv", costs.runs_table(blocks).csv())
    if paper:
        writer.text("paper.tex", sheet([path for path in writer.written if path.suffix == ".tex"]))
    rewards = figures.reward_curves() if with_figures else None
    if rewards is not None:
        writer.write(rewards)
    listed = listing(blocks, with_figures)
    page = writer.text("index.html", render(found, list(tasks.values()), first, rewards, listed, paper))
    manifest.replace(out, writer.written)
    return page


def plan(blocks: list[Block], judged: list[list[Verdict]], most: int) -> list[parallel.Comparison]:
    """Which comparisons get figures, and how many each: the first ones, and at least three of each, within ``most``."""
    share = max(3, most // len(blocks))
    count = max(1, most // share)
    return [(block, said, share) for block, said in zip(blocks[:count], judged, strict=False)]


def draw(planned: list[parallel.Comparison], paper: bool, kept: Kept) -> list[list[Figure]]:
    """The figures of each comparison, those of ``kept`` where its runs are the same; ``kept`` is brought up to date."""
    keys = [(paper, most, *((run.id, *run.scores.items(), *run.cost.items()) for run in block.runs))
            for block, _, most in planned]  # fmt: skip
    todo = [number for number, key in enumerate(keys) if key not in kept]
    made = dict(zip(todo, parallel.draw([planned[number] for number in todo], paper), strict=True))
    now = {key: made[number] if number in made else kept[key] for number, key in enumerate(keys)}
    kept.clear()
    kept.update(now)
    return [[replace(figure) for figure in now[key]] for key in keys]  # copies, since writing gives them their names


def make_section(block: Block, judged: list[Verdict], drawn: list[Figure], gallery: Gallery, *, whole: bool) -> Section:
    beside, used = beside_table(block)
    tables = [
        *(beside, further_table(block), content.detail_table(block)),
        *(costs.cost_table(block), content.settings_table(block)),
    ]
    notes = provenance.notes_of(block)
    if mixed := provenance.commits(block.runs):
        notes.insert(0, provenance.Remark("code", mixed, "this comparison", quiet=False))
    pictures, left_out = gallery.of(block) if whole else ({}, 0)
    return Section(
        block,
        describe(block),
        whole,
        False,
        content.main_table(block),
        [table for table in tables if table is not None],
        drawn,
        notes,
        judged,
        headlines(block, judged),
        provenance.commands_of(block),
        pictures,
        left_out,
        used,
    )


def figures_across(task: Task) -> list[Figure]:
    """A figure for blocks of the same data, model and protocol that differ in one number."""
    groups = defaultdict(list)
    for section in task.sections:
        block = section.block
        groups[block.data, block.model, block.protocol].append(block)
    drawn = (across_figure(blocks) for blocks in groups.values() if len(blocks) > 1)
    return [figure for figure in drawn if figure is not None]


def heading(item: Table | Figure, within: str = "") -> str:
    """A title as a sentence, without the name of the comparison where that stands above already."""
    title = item.title.removeprefix(f"{within}: ") if within else item.title
    if within and title == within:
        title = "Main comparison"
    return sentence(capital(title))


def sheet(tables: list[Path]) -> str:
    """A document of two columns that sets every table, to look at them all; pdflatex, in the folder of the report."""
    return "\n".join(
        [
            r"\documentclass[10pt,twocolumn]{article}",
            r"\usepackage{booktabs}",
            rf"\textwidth {BOTH:g}pt \columnsep {BOTH - 2 * ONE:g}pt \oddsidemargin 0pt",
            r"\textheight 650pt \topmargin -20pt",
            r"\begin{document}",
            *(rf"\input{{tables/{path.name}}}\clearpage" for path in tables),
            r"\end{document}",
            "",
        ]
    )


def pack(text: str) -> str:
    """Text that the page holds and shows when it is asked for: no node of the page, and a fifth of its size."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def render(
    found: Collection, tasks: list[Task], first: FirstScreen, rewards: Figure | None, listed: str, paper: bool
) -> str:
    """The HTML text; what is folded is rendered first and packed into it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    jinja = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    jinja.globals.update(heading=heading, most_rows=ROWS, listed=LISTED, paper=paper)

    def packed(template: str, **values: Any) -> str:
        return pack(jinja.get_template(f"{template}.html.j2").render(**values))

    sections = [section for task in tasks for section in task.sections]
    for section in sections:
        section.held = packed("section", section=section)
    for task in tasks:
        task.held = packed("items", items=[*task.tables, *task.figures]) if task.tables or task.figures else ""
    loud = {(note.key, note.text) for section in sections for note in section.notes if not note.quiet}
    asides: list[tuple[str, tuple[Aside, ...] | list[Aside]]] = [
        ("Unfinished", found.unfinished),
        ("Unreadable", found.unreadable),
        ("Found twice", found.duplicates),
        ("Set aside: the same configuration twice", [aside for s in sections for aside in s.block.aside]),
    ]
    used = {name for section in sections for name in section.references}
    names = {task.name for task in tasks}
    elsewhere = [reference for reference in references() if reference.task in names and reference.name not in used]
    flags = provenance.flags_of(found.runs)
    runs = f"{len(found.runs)} run{'s' * (len(found.runs) != 1)}"
    return jinja.get_template("page.html.j2").render(
        facts=provenance.facts(found, [section.block for section in sections]),
        counted=runs + (f" in {len(tasks)} tasks" if len(tasks) > 1 else ""),
        mixed=provenance.commits(found.runs),
        tasks=tasks,
        first=first,
        tests=packed("items", items=first.details) if first.details else "",
        summary_notes=sorted((key, text) for key, text in loud if key != "code"),
        elsewhere=packed("published", tables=list(map(reference_table, elsewhere))) if elsewhere else "",
        rewards=packed("items", items=[rewards]) if rewards else "",
        flagged=packed("flags", flags=flags) if flags else "",
        runs=pack(listed),
        asides=[(title, items) for title, items in asides if items],
        environments=provenance.environments(found.runs),
        rule=RULE,
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        script=(HERE / "page.js").read_text(encoding="utf-8"),
    )

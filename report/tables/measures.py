"""Table of what else was measured over all slices: calibration, F1, geometric mean, head and tail, bias."""

from __future__ import annotations

from dembench.report.judge.group import Block, Cell
from dembench.report.judge.ranking import RULE, ranks
from dembench.report.judge.wording import COLLAPSED, NAN, describe, number, plain
from dembench.report.read.names import Metric, mean_of, metrics_of, pretty
from dembench.report.tables.results import flags, footnotes, picked_cells
from dembench.report.tables.table import Column, Entry, Table, slug


def further_table(block: Block) -> Table | None:
    """A row for each cell of the table per slice, a column for each known metric beside the block's own; None without
    any."""
    recorded = {metric for run in block.runs for part, metric in run.scores if part == "mean"}
    metrics = [m for name, m in metrics_of(block.task).items() if name in recorded and name != block.metric.name]
    picked = picked_cells(block)
    if not metrics or not picked:
        return None
    cells = [cell for cell, _ in picked]
    has_settings = any(block.setting_label(cell) for cell in cells)
    columns = [Column("Method", numeric=False), Column("Loss", numeric=False)]
    columns += [Column("Setting", numeric=False)] if has_settings else []
    columns += [Column(heading(metric), ("mean", "sd", "n")) for metric in metrics]
    marks = {m.name: ranks(cells, m) if m.ranked else {} for m in metrics}
    rows = []
    for cell, role in picked:
        entries = [Entry(pretty(cell.method)), Entry(block.loss_label(cell) + flags(cell))]
        if has_settings:
            entries.append(Entry(" ".join(filter(None, [block.setting_label(cell), role])) or "–"))
        rows.append(entries + [entry(cell, metric, marks[metric.name].get(id(cell), "")) for metric in metrics])
    caption = (
        f"What else was recorded, {mean_of(block.task)}: mean ± standard deviation over seeds, in % where no unit "
        "stands; an arrow points to where a metric is better. "
    )
    if unranked := [m.label for m in metrics if not m.ranked]:
        caption += f"Not ranked: {', '.join(unranked)}. "
    notes = [note for note in footnotes(cells, block) if note[0] in COLLAPSED + NAN]
    title = f"{block.title}: other metrics"
    context = f"Per column, {RULE[0].lower()}{RULE[1:]} {describe(block)}"
    return Table(slug("metrics", block.task, block.title), title, caption, columns, rows, notes, context)


def heading(metric: Metric) -> str:
    """With an arrow to where it is better, and its unit where that is not %."""
    unit = f" ({metric.unit})" if metric.unit not in ("", "%") else ""
    better = "" if not metric.ranked else " ↑" if metric.sign > 0 else " ↓"
    return f"{metric.label}{unit}{better}"


def entry(cell: Cell, metric: Metric, mark: str) -> Entry:
    score = cell.estimate(metric)
    if not score.n:
        return Entry("–", numbers=("", "", "0"))
    mean, sd = number(score.mean, metric.digits), number(score.sd, metric.digits)
    return Entry(mean + (f" ± {sd}" if sd else ""), "", (plain(mean), sd, str(score.n)), score.mean, mark)

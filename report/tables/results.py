"""Blocks -> tables: the main comparison, the detail per slice, and what methods and losses were set to."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from dembench.report.judge.group import DEFAULT_LR, Block, Cell, Key, leaf, show
from dembench.report.judge.ranking import RULE, leaders, ranks
from dembench.report.judge.wording import (
    COLLAPSED,
    FEW,
    NAN,
    describe,
    gain_numbers,
    gain_text,
    number,
    plain,
    points,
    settings_of,
    slice_labels,
)
from dembench.report.read.names import Metric, mean_of, metric_of, metrics_of, pretty
from dembench.report.tables.table import Column, Entry, Table, capital, slug

PER_CLASS = ("iou", "recall", "f1", "precision")  # in this order where slices are classes
LISTED = 12  # settings of a method that the table per slice lists


def main_table(block: Block) -> Table:
    """Method and setting by loss: mean and deviation over seeds, gain over EM, and which are best."""
    metric, keys = block.metric, setting_keys(block)
    columns = [Column("Method", numeric=False), *setting_columns(block, keys)]
    losses = block.shown_columns
    value_parts = (f"{metric.label} ({metric.unit})" if metric.unit else metric.label, "sd", "n", "collapsed", "nan")
    for loss in losses:
        extra = ("gain over EM", "low", "high", "pairs") if block.em and loss != block.em else ()
        own = ("setting",) if merged(block, loss) else ()
        columns.append(Column(block.column_label(loss), (*value_parts, *own, *extra)))
    if not losses:
        columns.append(Column("no loss", value_parts))
    cells = [cell for row in block.rows for cell in row_cells(block, row, losses) if cell]
    marks = ranks(cells, metric)
    rows, shown = [], []
    for row in block.rows:
        values = dict(row[1])
        entries = [Entry(pretty(row[0]), sort=pretty(row[0]))]
        entries += [Entry(show(values[k]) if k in values else "–", sort=sortable(values.get(k))) for k in keys]
        if row in block.free:
            free = block.free[row]
            entry = value_entry(free, marks, None, block)
            note = "loss-free" if losses else ""
            entries.append(Entry(entry.text, note, entry.numbers, entry.sort, entry.mark, max(1, len(losses))))
            shown.append(free)
        else:
            for loss in losses:
                cell = block.cells.get((row, loss))
                base = block.cells.get((row, block.em)) if block.em and loss != block.em else None
                entries.append(value_entry(cell, marks, base, block) if cell else Entry("–"))
                shown += [cell] if cell else []
        rows.append(entries)
    better = "lower" if metric.sign < 0 else "higher"
    caption = (
        f"{capital(metric.label)}{f' in {metric.unit}' if metric.unit else ''}, {mean_of(block.task)}, "
        f"± standard deviation over seeds (number of seeds); {better} is better. "
    )
    if block.em and len(losses) > 1:
        caption += (
            f"Second line: gain over EM at the same setting in {points(metric)}, positive where the loss is better "
            "than EM, with the paired 95% t interval over seeds. "
        )
    return Table(
        slug("main", block.task, block.title), block.title, caption, columns, rows,
        [*footnotes(shown, block), *separation(cells, metric)], f"{RULE} {describe(block)}",
    )  # fmt: skip


def row_cells(block: Block, row: Key, losses: Iterable[Key]) -> list[Cell | None]:
    return [block.free[row]] if row in block.free else [block.cells.get((row, loss)) for loss in losses]


def merged(block: Block, column: Key) -> bool:
    """Whether cells of a column differ in the settings of their loss."""
    return any(block.own_params(column, cell) for (_, key), cell in block.cells.items() if key == column)


def flags(cell: Cell) -> str:
    """Markers with their counts, such as " †1"."""
    return "".join(f" {mark}{count}" for mark, count in ((COLLAPSED, cell.collapsed), (NAN, cell.nans)) if count)


def value_entry(cell: Cell, marks: dict[int, str], base: Cell | None, block: Block) -> Entry:
    """Mean ± sd (n) with markers; below, the loss's own setting where the column has several, and the gain."""
    metric, column = block.metric, block.column_of(cell)
    score = cell.estimate(metric)
    mean, sd = number(score.mean, metric.digits), number(score.sd, metric.digits)
    text = (mean + (f" ± {sd}" if sd else "") + f" ({score.n})" if score.n else "no finite run") + flags(cell)
    numbers: tuple[str, ...] = (plain(mean) if score.n else "", sd, str(score.n), str(cell.collapsed), str(cell.nans))
    below = []
    if column is not None and merged(block, column):
        own = block.own_params(column, cell)
        below += [own] if own else []
        numbers += (own,)
    if base is not None:
        gain = cell.gain(base, metric)
        numbers += gain_numbers(gain, metric)
        below.append(gain_text(gain, metric) + (f" n={gain.n}" if 1 < gain.n != score.n else ""))
    return Entry(text, ": ".join(below), numbers, score.mean if score.n else None, marks.get(id(cell), ""))


def separation(cells: list[Cell], metric: Metric) -> list[str]:
    """Whether seeds tell the best from the second best apart, in numbers."""
    ranked = leaders(cells, metric)
    if len(ranked) < 2:
        return []
    gain = ranked[0].gain(ranked[1], metric)
    text = f"Best against second best: {gain_text(gain, metric)} {points(metric)}"
    if gain.low is None:
        return [f"{text}; no interval is claimed."]
    told = "the seeds tell them apart" if gain.verdict else "the seeds do not tell them apart"
    return [f"{text}, paired over {gain.n} seeds: {told}."]


def footnotes(cells: list[Cell], block: Block) -> list[str]:
    """What the markers mean, where they occur; seeds that are missing."""
    notes = []
    if any(cell.collapsed for cell in cells):
        notes.append(
            f"{COLLAPSED}k: in k of the runs one class took at least 90% of the predictions of at least one slice. "
            "Their error is a valid number and is part of the mean; such a cell is not ranked."
        )
    if any(cell.collapsed and cell.loss is None for cell in cells):
        notes.append(
            f"{COLLAPSED} in a loss-free row is the model's own bias on that slice, no collapse of adaptation; such a "
            "row stays ranked."
        )
    if any(cell.nans for cell in cells):
        notes.append(f"{NAN}k: k runs met a NaN; they are not in the mean and not in the number of seeds; not ranked.")
    missing = sum(bool(cell.missing) for cell in cells)
    if missing:
        seeds = ", ".join(map(str, block.seeds))
        notes.append(f"Seeds in this comparison: {seeds}. In {missing} of {len(cells)} cells at least one is missing.")
    if len(block.seeds) == 1:
        notes.append(f"One seed only ({block.seeds[0]}): no deviation and no interval is claimed.")
    hidden = len(block.columns) - len(block.shown_columns)
    if hidden:
        notes.append(f"{hidden} further settings of a loss are in runs.csv; its plain and its best one are shown, the "
                     "best one chosen on these numbers.")  # fmt: skip
    return notes


def detail_table(block: Block) -> Table:
    """Per slice: a row for every method and loss, at the default and at its best learning rate."""
    metric = slice_metric(block)
    slices = [part for part in block.slices if any((part, metric.name) in run.scores for run in block.runs)]
    digits, what = max(0, metric.digits - 1), "slice" if metric is block.metric else "class"
    picked = picked_cells(block)
    columns = [Column("Method", numeric=False), Column("Loss", numeric=False)]
    has_settings = any(block.setting_label(cell) for cell, _ in picked)
    columns += [Column("Setting", numeric=False)] if has_settings else []
    columns += [Column(name, ("mean", "n")) for name in (*slice_labels(slices), "mean")]
    cells = [cell for cell, _ in picked]
    marks = {part: ranks(cells, metric, part, digits) for part in (*slices, "mean")}
    rows = []
    for cell, role in picked:
        entries = [Entry(pretty(cell.method)), Entry(block.loss_label(cell))]
        if has_settings:
            entries.append(Entry(" ".join(filter(None, [block.setting_label(cell), role])) or "–"))
        for part in (*slices, "mean"):
            score = cell.estimate(metric, part)
            text = number(score.mean, digits) if score.n else "–"
            mark = f" {COLLAPSED}" if cell.collapsed and part == "mean" else ""
            mark += f" {NAN}" if cell.nans and part == "mean" else ""
            numbers = (plain(text) if score.n else "", str(score.n))
            entries.append(
                Entry(text + mark, "", numbers, score.mean if score.n else None, marks[part].get(id(cell), ""))
            )
        rows.append(entries)
    unit = f" in {metric.unit}" if metric.unit else ""
    caption = f"{capital(metric.label)}{unit} per {what}, mean over seeds. "
    if any(role for _, role in picked):
        caption += "“best”: the setting with the best mean, chosen on this very stream, so optimistic. "
    notes = []
    if any(cell.collapsed for cell in cells):
        notes.append(
            f"{COLLAPSED} in some runs one class took nearly all predictions of a slice; their error is part of the "
            "mean, and a row that adapts is then not ranked."
        )
    if any(cell.nans for cell in cells):
        notes.append(f"{NAN} some runs met a NaN; they are in no mean, and the row is not ranked.")
    name, title = slug("detail", block.task, block.title), f"{block.title}: per {what}"
    context = f"Per column, {RULE[0].lower()}{RULE[1:]} {describe(block)}"
    return Table(name, title, caption, columns, rows, notes, context)


def slice_metric(block: Block) -> Metric:
    """The block's metric where its slices have it, else the first known one that they have: recall of each class under
    an accuracy over all of them."""
    recorded = {metric for run in block.runs for part, metric in run.scores if part != "mean"}
    names = (block.metric.name, *PER_CLASS, *metrics_of(block.task))
    return next((metric_of(block.task, name) for name in names if name in recorded), block.metric)


def picked_cells(block: Block) -> list[tuple[Cell, str]]:
    """Cells worth a row, with their role: the loss-free ones, then each loss at the default learning rate and at its
    best, or at every setting where other things than the rate vary and the settings are few."""
    picked: list[tuple[Cell, str]] = [(block.free[row], "") for row in block.rows if row in block.free]
    for method in block.methods:
        for column in block.losses_of(method):
            if column not in block.shown_columns:
                continue
            best, default = block.best(method, column), default_cell(block, method, column)
            cells = block.settings(method, column)
            if rates_only(block, method) or len(cells) > LISTED:
                cells = [cell for cell in cells if cell is best or cell is default]
                cells.sort(key=lambda cell: cell is best)
            for cell in cells:
                roles = [name for name, one in (("default", default), ("best", best)) if cell is one]
                several = len(block.settings(method, column)) > 1
                picked.append((cell, f"({', '.join(roles)})" if roles and several else ""))
    return picked


def default_cell(block: Block, method: str, column: Key) -> Cell | None:
    """The cell at the default learning rate, where only that varies, or the only one."""
    settings = block.settings(method, column)
    if len(settings) == 1:
        return settings[0]
    if not rates_only(block, method):
        return None
    return next((cell for cell in settings if cell.lr is not None and math.isclose(cell.lr, DEFAULT_LR)), None)


def default_label(block: Block, cells: Iterable[Cell]) -> str:
    """What the default cells of several losses have in common; empty where nothing varies."""
    settings = {block.setting_label(cell) for cell in cells}
    if len(settings) > 1:
        return "each loss at its default setting"
    return f"every loss at {settings.pop()}" if any(settings) else ""


def rates_only(block: Block, method: str) -> bool:
    """Whether settings of a method differ in the learning rate alone."""
    return all(leaf(key) == "lr" for key in block.varying[method])


def settings_table(block: Block) -> Table | None:
    """What each method and loss was set to, where the captions do not say it."""
    settings = settings_of(block)
    if sum(kind == "method" for kind, _, _ in settings) <= FEW:
        return None
    rows = [[Entry(kind), Entry(name), Entry(text)] for kind, name, text in settings]
    columns = [Column("of", numeric=False), Column("Name", numeric=False), Column("Settings", numeric=False)]
    caption = "What does not vary within a method or a loss in this comparison; what varies stands in the tables."
    return Table(slug("settings", block.task, block.title), f"{block.title}: settings", caption, columns, rows)


def setting_keys(block: Block) -> list[str]:
    """Hyperparameters that vary within some method, the learning rate first."""
    keys = dict.fromkeys(key for names in block.varying.values() for key in names)
    return sorted(keys, key=lambda key: (leaf(key) != "lr", key))


def setting_columns(block: Block, keys: list[str]) -> list[Column]:
    """A column for each hyperparameter, to the right where all its values are numbers."""
    values = {key: [v for _, setting in block.rows for k, v in setting if k == key] for key in keys}
    return [Column(leaf(key), numeric=all(isinstance(v, int | float) for v in values[key])) for key in keys]


def sortable(value: Any) -> float | str | None:
    return value if isinstance(value, int | float | None) else str(value)

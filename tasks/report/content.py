"""Blocks -> tables: the main comparison, per-slice detail, calibration and cost, and the list of runs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from tasks.report.group import DEFAULT_LR, METRICS, Block, Cell, Key, Metric, label, leaf, pretty, setting_of, show
from tasks.report.load import Run
from tasks.report.stats import Estimate, estimate
from tasks.report.tables import Column, Entry, Table, number, plain, slug

COLLAPSED, NAN = "†", "‡"
COSTS = {
    "wall_seconds": ("wall time (s)", 1),
    "forward_passes": ("forward passes", 0),
    "backward_passes": ("backward passes", 0),
    "updated": ("samples updated", 0),
}
SPOKEN = {
    "protocol.reset": lambda v: "the method is reset before each domain" if v else "no reset between domains",
    "protocol.severity": lambda v: f"severity {show(v)}",
    "protocol.batch_size": lambda v: f"batch size {show(v)}",
    "precision": lambda v: f"precision {show(v)}",
    "device": lambda v: f"device {show(v)}",
    "protocol.corruptions": lambda v: f"corruptions {show(v)}" if v else "",
}


def main_table(block: Block) -> Table:
    """Method and setting by loss: mean and deviation over seeds, gain over EM, best and second best."""
    metric, keys = block.metric, setting_keys(block)
    columns = [Column("Method", numeric=False), *setting_columns(block, keys)]
    losses = block.shown_columns
    value_parts = (f"{metric.label} ({metric.unit})" if metric.unit else metric.label, "sd", "n", "collapsed", "nan")
    gain_parts = ("gain over EM", "low", "high", "pairs")
    for loss in losses:
        gains = gain_parts if block.em and loss != block.em else ()
        columns.append(Column(block.column_label(loss), value_parts + gains))
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
            cell = block.free[row]
            entry = value_entry(cell, metric, marks, None, block)
            note = "loss-free" if losses else ""
            entries.append(Entry(entry.text, note, entry.numbers, entry.sort, entry.mark, max(1, len(losses))))
            shown.append(cell)
        else:
            for loss in losses:
                cell = block.cells.get((row, loss))
                base = block.cells.get((row, block.em)) if block.em and loss != block.em else None
                entries.append(value_entry(cell, metric, marks, base, block) if cell else Entry("–"))
                shown += [cell] if cell else []
        rows.append(entries)
    better = "lower" if metric.sign < 0 else "higher"
    caption = (
        f"{metric.label.capitalize()}{f' in {metric.unit}' if metric.unit else ''}, mean over slices, "
        f"± standard deviation over seeds (number of seeds); {better} is better. "
    )
    if block.em and len(losses) > 1:
        caption += (
            f"Second line: gain over EM at the same setting in {points(metric)}, positive where the loss is better "
            "than EM, with the paired 95% t interval over seeds. "
        )
    caption += "Best mean in bold, second underlined; cells with a collapsed or NaN run are not ranked. "
    return Table(
        slug("main", block.task, block.title), block.title, caption + describe(block), columns, rows,
        [*footnotes(shown, block), *separation(cells, marks, metric)],
    )  # fmt: skip


def row_cells(block: Block, row: Key, losses: Iterable[Key]) -> list[Cell | None]:
    return [block.free[row]] if row in block.free else [block.cells.get((row, loss)) for loss in losses]


def value_entry(cell: Cell, metric: Metric, marks: dict[int, str], base: Cell | None, block: Block) -> Entry:
    """Mean ± sd (n) with markers, and the gain over ``base`` below."""
    score = cell.estimate(metric)
    mean, sd = number(score.mean, metric.digits), number(score.sd, metric.digits)
    flags = "".join(f" {mark}{count}" for mark, count in ((COLLAPSED, cell.collapsed), (NAN, cell.nans)) if count)
    text = (mean + (f" ± {sd}" if sd else "") + f" ({score.n})" if score.n else "no finite run") + flags
    numbers = (plain(mean) if score.n else "", sd, str(score.n), str(cell.collapsed), str(cell.nans))
    sub = ""
    if base is not None:
        gain = cell.gain(base, metric)
        numbers += gain_numbers(gain, metric)
        sub = gain_text(gain, metric) + (f" n={gain.n}" if 1 < gain.n != score.n else "")
    return Entry(text, sub, numbers, score.mean if score.n else None, marks.get(id(cell), ""))


def gain_numbers(gain: Estimate, metric: Metric) -> tuple[str, ...]:
    if not gain.n:
        return "", "", "", "0"
    return *(plain(number(x, metric.digits, sign=True)) for x in (gain.mean, gain.low, gain.high)), str(gain.n)


def gain_text(gain: Estimate, metric: Metric) -> str:
    """Signed difference and interval; a single pair, or pairs that are all alike, get no interval and say so."""
    if not gain.n:
        return "no pair"
    mean, low, high = (number(x, metric.digits, sign=True) for x in (gain.mean, gain.low, gain.high))
    return f"{mean} [{low}, {high}]" if low else f"{mean} ({'1 seed' if gain.n == 1 else 'seeds alike'})"


def ranks(cells: list[Cell], metric: Metric, part: str = "mean") -> dict[int, str]:
    """{id(cell): "best" or "second"} among cells without flagged runs and without missing seeds; cells that share a
    mean share the rank."""
    found = [(cell.estimate(metric, part), cell) for cell in cells if cell.clean]
    most = max((estimate.n for estimate, _ in found), default=0)
    scored = [(metric.sign * estimate.mean, cell) for estimate, cell in found if estimate.n == most]
    scored = [(score, cell) for score, cell in scored if math.isfinite(score)]
    top = sorted({score for score, _ in scored}, reverse=True)[:2]
    names = dict(zip(top, ("best", "second"), strict=False))
    return {id(cell): names[score] for score, cell in scored if score in names} if len(scored) > 1 else {}


def separation(cells: list[Cell], marks: dict[int, str], metric: Metric) -> list[str]:
    """Whether seeds tell the best from the second best apart."""
    best = [cell for cell in cells if marks.get(id(cell)) == "best"]
    second = [cell for cell in cells if marks.get(id(cell)) == "second"]
    if not best or not second:
        return []
    gain = best[0].gain(second[0], metric)
    if gain.low is None:
        return [f"Best against second best: {gain_text(gain, metric)} {points(metric)}; no interval is claimed."]
    told = "the seeds tell them apart" if gain.verdict else "the seeds do not tell them apart"
    return [
        f"Best against second best: {gain_text(gain, metric)} {points(metric)}, paired over {gain.n} seeds: {told}."
    ]


def footnotes(cells: list[Cell], block: Block) -> list[str]:
    """What the markers mean, where they occur; seeds that are missing."""
    notes = []
    if any(cell.collapsed for cell in cells):
        notes.append(
            f"{COLLAPSED}k: k of the runs collapsed (one class took nearly all predictions). Their error is a valid "
            "number and is part of the mean; such a cell is not ranked."
        )
    if any(cell.nans for cell in cells):
        notes.append(f"{NAN}k: k runs met a NaN; they are not in the mean and not in the number of seeds.")
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
    """Per slice: every method and loss at the default and at its best learning rate, best and second per column."""
    metric, slices, digits = block.metric, block.slices, max(0, block.metric.digits - 1)
    picked = picked_cells(block)
    columns = [Column("Method", numeric=False), Column("Loss", numeric=False)]
    has_settings = any(block.setting_label(cell) for cell, _ in picked)
    columns += [Column("Setting", numeric=False)] if has_settings else []
    columns += [Column(name, ("mean", "n")) for name in (*slice_labels(slices), "mean")]
    cells = [cell for cell, _ in picked]
    marks = {part: ranks(cells, metric, part) for part in (*slices, "mean")}
    rows = []
    for cell, role in picked:
        loss = block.column_label((cell.loss, cell.params)) if cell.loss is not None else "–"
        entries = [Entry(pretty(cell.method)), Entry(loss)]
        if has_settings:
            entries.append(Entry(" ".join(filter(None, [block.setting_label(cell), role])) or "–"))
        for part in (*slices, "mean"):
            score = cell.estimate(metric, part)
            text = number(score.mean, digits) if score.n else "–"
            flags = f" {COLLAPSED}" if cell.collapsed and part == "mean" else ""
            flags += f" {NAN}" if cell.nans and part == "mean" else ""
            numbers = (plain(text) if score.n else "", str(score.n))
            entries.append(
                Entry(text + flags, "", numbers, score.mean if score.n else None, marks[part].get(id(cell), ""))
            )
        rows.append(entries)
    unit = f" in {metric.unit}" if metric.unit else ""
    caption = (
        f"{metric.label.capitalize()}{unit} per slice, mean over seeds. Best per column in bold, second underlined. "
    )
    if any(role for _, role in picked):
        caption += "“best”: the setting with the best mean, chosen on this very stream, so optimistic. "
    notes = []
    if any(cell.collapsed for cell in cells):
        notes.append(f"{COLLAPSED} some runs collapsed; their error is part of the mean, and the row is not ranked.")
    if any(cell.nans for cell in cells):
        notes.append(f"{NAN} some runs met a NaN; they are in no mean, and the row is not ranked.")
    name, title = slug("detail", block.task, block.title), f"{block.title}: per slice"
    return Table(name, title, caption + describe(block), columns, rows, notes)


def picked_cells(block: Block) -> list[tuple[Cell, str]]:
    """Cells worth a row, with their role: the loss-free ones, then each loss at the default rate and at its best."""
    picked: list[tuple[Cell, str]] = [(block.free[row], "") for row in block.rows if row in block.free]
    for method in block.methods:
        for column in block.losses_of(method):
            if column not in block.shown_columns:
                continue
            best, default = block.best(method, column), default_cell(block, method, column)
            several = len(block.settings(method, column)) > 1
            if default and default is not best:
                picked.append((default, "(default)" if several else ""))
            if best:
                role = "(default, best)" if default is best else "(best)"
                picked.append((best, role if several else ""))
    return picked


def default_cell(block: Block, method: str, column: Key) -> Cell | None:
    """The cell at the default learning rate, or the only one."""
    settings = block.settings(method, column)
    if len(settings) == 1:
        return settings[0]
    return next((cell for cell in settings if cell.lr is not None and math.isclose(cell.lr, DEFAULT_LR)), None)


def slice_labels(slices: list[str]) -> list[str]:
    """Readable slice names, without a severity that all of them share."""
    tails = {name.rpartition("/")[2] for name in slices if "/" in name}
    shared = len(tails) == 1 and all("/" in name for name in slices)
    return [(name.rpartition("/")[0] if shared else name).replace("_", " ") for name in slices]


def cost_table(block: Block) -> Table:
    """Calibration and cost: the metrics beside the main one, time, passes and samples, mean over seeds."""
    recorded = dict.fromkeys(name for run in block.runs for name in run.units)
    metrics = [METRICS[name] for name in METRICS if name in recorded and name != block.metric.name]
    costs = [name for name in COSTS if any(name in run.cost for run in block.runs)]
    keys = setting_keys(block)
    columns = [Column("Method", numeric=False), *setting_columns(block, keys), Column("Loss", numeric=False)]
    columns += [Column(f"{m.label} ({m.unit})", ("mean", "sd")) for m in metrics]
    columns += [Column(COSTS[name][0], ("mean", "sd")) for name in costs]
    columns.append(Column("seeds", ("n",)))
    rows = []
    for row in block.rows:
        values = dict(row[1])
        for cell in filter(None, row_cells(block, row, block.shown_columns)):
            loss = block.column_label((cell.loss, cell.params)) if cell.loss is not None else "–"
            entries = [Entry(pretty(cell.method))]
            entries += [Entry(show(values[k]) if k in values else "–", sort=sortable(values.get(k))) for k in keys]
            entries.append(Entry(loss))
            entries += [spread(cell.estimate(metric), metric.digits) for metric in metrics]
            for name in costs:
                entries.append(spread(cost(cell, name), COSTS[name][1]))
            flags = "".join(f" {m}{c}" for m, c in ((COLLAPSED, cell.collapsed), (NAN, cell.nans)) if c)
            count = cell.estimate(block.metric).n
            entries.append(Entry(f"{count}{flags}", "", (str(count),), count))
            rows.append(entries)
    caption = (
        "Calibration and cost, mean ± standard deviation over seeds: expected calibration error (15 bins), negative "
        "log-likelihood and entropy of the predictions, mean over slices; passes over the whole stream, and its time, "
        "which includes making the images and whatever else the machine did. "
    )
    return Table(
        slug("cost", block.task, block.title),
        f"{block.title}: calibration and cost",
        caption + describe(block),
        columns,
        rows,
    )


def cost(cell: Cell, name: str) -> Estimate:
    return estimate([run.cost[name] for run in cell.runs if math.isfinite(run.cost.get(name, math.nan))])


def spread(score: Estimate, digits: int) -> Entry:
    if not score.n:
        return Entry("–")
    mean, sd = number(score.mean, digits), number(score.sd, digits) if score.sd else ""
    return Entry(mean + (f" ± {sd}" if sd else ""), "", (plain(mean), sd), score.mean)


def runs_table(blocks: list[Block]) -> Table:
    """One row per run, for other tools."""
    names = ["run", "task", "data", "model", "protocol", "method", "loss", "seed", "status"]
    columns = [Column(name, numeric=name == "seed") for name in names]
    columns += [Column(name, numeric=False) for name in ("setting", "loss setting")]
    metrics = [m for m in METRICS.values() if any(m.name in run.units for block in blocks for run in block.runs)]
    columns += [Column(f"{m.label} ({m.unit})") for m in metrics] + [Column(COSTS[name][0]) for name in COSTS]
    rows = []
    for block in blocks:
        for run in block.runs:
            setting, params = (parts(run.config.get(group)) for group in ("method", "loss"))
            values: list[Any] = [
                run.id,
                run.task,
                run.data,
                run.model,
                run.protocol,
                run.method,
                run.loss,
                run.seed,
                run.status,
            ]
            entries = [Entry(str(value)) for value in (*values, setting, params)]
            entries += [Entry(repr(v) if math.isfinite(v := run.score(m.name) * m.scale) else "") for m in metrics]
            entries += [Entry(f"{run.cost[name]:g}" if name in run.cost else "") for name in COSTS]
            rows.append(entries)
    return Table("runs", "Runs", "One row per run, unrounded.", columns, rows)


def parts(node: Any) -> str:
    setting = setting_of(node)
    return label("", setting, tuple(key for key, _ in setting))


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


def points(metric: Metric) -> str:
    return "percentage points" if metric.unit == "%" else metric.unit or "units"


def describe(block: Block) -> str:
    """The protocol in one sentence: every number names what it was measured under."""
    context = {k: v for k, v in block.context.items() if k not in ("data.num_images", "task.num_images")}
    said = [text for key, speak in SPOKEN.items() if key in context and (text := speak(context[key]))]
    sizes = sorted({run.sizes[name] for run in block.runs for name in run.slices})
    images = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}" if sizes else "no"
    said.append(f"{len(block.slices)} slices of {images} samples")
    quiet = lambda key, value: key in SPOKEN or value is None or value == "given"  # noqa: E731
    said += [f"{key.replace('.', ' ')} {show(value)}" for key, value in context.items() if not quiet(key, value)]
    methods = []
    for method in block.methods:
        fixed = {k: v for m, s in block.rows if m == method for k, v in s if k not in block.varying[method]}
        if fixed:
            methods.append(f"{pretty(method)}: {', '.join(f'{leaf(k)} {show(v)}' for k, v in sorted(fixed.items()))}")
    losses = []
    for loss in dict.fromkeys(name for name, _ in block.columns):
        named = {"tau", "alpha", *block.varying_params[loss]}
        fixed = {k: v for n, p in block.columns if n == loss for k, v in p if k not in named and v is not None}
        if fixed:
            losses.append(f"{pretty(loss)}: {', '.join(f'{leaf(k)} {show(v)}' for k, v in sorted(fixed.items()))}")
    tail = "".join(f" {text}." for text in (*methods, *losses))
    return f"Protocol {pretty(block.protocol)}: {'; '.join(said)}.{tail}"


def run_label(run: Run) -> str:
    """Which run it was, in words."""
    setting = parts(run.config.get("method"))
    method = f"{pretty(run.method)} + {pretty(run.loss)}" + (f" ({setting})" if setting else "")
    return f"{run.data} · {run.model} · {run.protocol} · {method}, seed {run.seed}"

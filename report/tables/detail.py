"""Blocks -> calibration and cost per cell, and the list of all runs for other tools."""

from __future__ import annotations

import math
from typing import Any

from dembench.report.judge.group import Block, Cell, contexts_of, show
from dembench.report.judge.stats import Estimate, estimate
from dembench.report.judge.wording import describe, number, plain, settings_text
from dembench.report.read.names import COSTS, mean_of, metrics_of, pretty
from dembench.report.tables.results import flags, row_cells, setting_columns, setting_keys, sortable
from dembench.report.tables.table import Column, Entry, Table, slug


def cost_table(block: Block) -> Table:
    """Calibration and cost: the metrics beside the main one, time, passes and samples, mean over seeds."""
    recorded = dict.fromkeys(name for run in block.runs for name in run.units)
    metrics = [m for name, m in metrics_of(block.task).items() if name in recorded and name != block.metric.name]
    costs = [name for name in COSTS if any(name in run.cost for run in block.runs)]
    keys = setting_keys(block)
    columns = [Column("Method", numeric=False), *setting_columns(block, keys), Column("Loss", numeric=False)]
    columns += [Column(m.column, ("mean", "sd")) for m in metrics]
    columns += [Column(COSTS[name][0], ("mean", "sd")) for name in costs]
    columns.append(Column("seeds", ("n",)))
    rows = []
    for row in block.rows:
        values = dict(row[1])
        for cell in filter(None, row_cells(block, row, block.shown_columns)):
            entries = [Entry(pretty(cell.method))]
            entries += [Entry(show(values[k]) if k in values else "–", sort=sortable(values.get(k))) for k in keys]
            entries.append(Entry(block.loss_label(cell)))
            entries += [spread(cell.estimate(metric), metric.digits) for metric in metrics]
            for name in costs:
                entries.append(spread(cost(cell, name), COSTS[name][1]))
            count = cell.estimate(block.metric).n
            entries.append(Entry(f"{count}{flags(cell)}", "", (str(count),), count))
            rows.append(entries)
    calibration = {"ece", "nll", "entropy"} & {metric.name for metric in metrics}
    caption = (
        "Expected calibration error (15 bins), negative log-likelihood and entropy of the predictions, "
        f"{mean_of(block.task)}; cost of the whole run. "
        if calibration
        else f"The other metrics, {mean_of(block.task)}, and the cost of the whole run. "
    )
    caption += (
        "Mean ± standard deviation over seeds; the time includes making the data and whatever else the machine did. "
    )
    name, title = slug("cost", block.task, block.title), f"{block.title}: calibration and cost"
    return Table(name, title, caption, columns, rows, context=describe(block))


def cost(cell: Cell, name: str) -> Estimate:
    return estimate([run.cost[name] for run in cell.runs if math.isfinite(run.cost.get(name, math.nan))])


def spread(score: Estimate, digits: int) -> Entry:
    if not score.n:
        return Entry("–")
    mean, sd = number(score.mean, digits), number(score.sd, digits) if score.sd else ""
    return Entry(mean + (f" ± {sd}" if sd else ""), "", (plain(mean), sd), score.mean)


def runs_table(blocks: list[Block]) -> Table:
    """One row per run, for other tools: names, settings, everything the protocol is made of, numbers, cost, origin."""
    names = ["run", "task", "data", "model", "protocol", "method", "loss", "seed", "status"]
    columns = [Column(name, numeric=name == "seed") for name in names]
    columns += [Column(name, numeric=False) for name in ("preset", "setting", "loss setting")]
    runs = [run for block in blocks for run in block.runs]
    contexts: dict[str, dict[str, Any]] = {}
    for block in blocks:
        contexts |= {run.id: context for run, context in zip(block.runs, contexts_of(block.runs), strict=True)}
    keys = list(dict.fromkeys(key for context in contexts.values() for key in context))
    columns += [Column(key, numeric=False) for key in keys]
    declared = {m.name: m for block in blocks for m in metrics_of(block.task).values()}
    metrics = [m for m in declared.values() if any(m.name in run.units for run in runs)]
    columns += [Column(m.column) for m in metrics]
    columns += [Column(COSTS[name][0]) for name in COSTS]
    columns += [Column(name, numeric=False) for name in ("commit", "modified", "command")]
    rows = []
    for run in runs:
        method = run.config.get("method")
        preset = method.get("preset") if isinstance(method, dict) else None
        texts = [run.id, run.task, run.data, run.model, run.protocol, run.method, run.loss, run.seed, run.status]
        texts += [preset or "", settings_text(method), settings_text(run.config.get("loss"))]
        texts += ["" if (value := contexts[run.id].get(key)) is None else show(value) for key in keys]
        entries = [Entry(str(text)) for text in texts]
        entries += [Entry(repr(v) if math.isfinite(v := run.score(m.name) * m.scale) else "") for m in metrics]
        entries += [Entry(f"{run.cost[name]:g}" if name in run.cost else "") for name in COSTS]
        entries += [Entry(str(run.environment.get(name, ""))) for name in ("commit", "modified")]
        rows.append([*entries, Entry(run.command)])
    return Table("runs", "Runs", "One row per run, unrounded.", columns, rows)

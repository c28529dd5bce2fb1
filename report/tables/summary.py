"""Verdicts -> the table of what each loss gains over EM, at equal settings and best against best."""

from __future__ import annotations

from collections import Counter

from dembench.report.judge.group import leaf, show
from dembench.report.judge.power import needed_short
from dembench.report.judge.stats import Estimate
from dembench.report.judge.verdict import Verdict
from dembench.report.judge.wording import COLLAPSED, gain_numbers, gain_text, points
from dembench.report.read.names import Metric, pretty
from dembench.report.tables.table import Column, Entry, Table


def summary_table(items: list[Verdict]) -> Table:
    """Gain over EM of every loss, at each setting that at least half of the rows have, and at the best ones."""
    settings: dict[str, tuple[float, str]] = {}
    held: Counter[str] = Counter()
    for item in items:
        for cell, _ in item.equal if item.swept else ():
            name = item.block.setting_label(cell)
            settings.setdefault(name, (cell.lr or 0.0, name))
            held[name] += 1
    names = sorted((name for name in settings if 2 * held[name] >= len(items)), key=lambda name: settings[name])
    parts = ("gain", "low", "high", "pairs")
    said_once, kept = identities(items)
    columns = [Column(name, numeric=False) for name in kept]
    columns += [Column(name, parts) for name in names]
    swept = any(item.swept for item in items)
    units = {points(item.block.metric) for item in items}
    columns.append(Column("best against best" if swept else "gain", parts))
    needing = [needed_short(item.best, item.block.metric) for item in items]
    columns += [Column("seeds for 80 % power", ("this size", "0.5 points"))] if any(needing) else []
    columns += [Column("best settings: EM; loss", numeric=False)] if swept else []
    rows = []
    for item, seeds in zip(items, needing, strict=True):
        block, metric = item.block, item.block.metric
        entries = [Entry(identity(item)[x], pretty(block.task) if x == "Comparison" else "") for x in kept]
        gains = {block.setting_label(cell): (gain, item.marker(cell)) for cell, gain in item.equal}
        picked = [gains.get(name) if item.swept else None for name in names]
        for found in [*picked, (item.best, f" {COLLAPSED}" if item.flagged else "")]:
            unit = f" {metric.gain_unit}" if len(units) > 1 else ""
            entries.append(gain_entry(found[0], unit + found[1], metric) if found and found[0].n else Entry("–"))
        pairs = ((item.em, item.base), (item.own, item.column))
        edges = [item.short_plain(cell) + ("*" if item.edge(cell, column) else "") for cell, column in pairs]
        if any(needing):
            entries.append(Entry(seeds, "", tuple(seeds.split("; "))) if seeds else Entry("–"))
        if swept:
            entries.append(Entry("; ".join(edges) if item.swept else "–"))
        rows.append(entries)
    unit = "the unit named" if len(units) > 1 else "".join(units)
    caption = (
        f"Gain over EM in {unit} with the paired 95% t interval over seeds; positive: better than EM."
        + (
            " “Best against best”: each loss at the setting with the best mean over seeds, chosen on the test stream "
            "itself, so optimistic for both."
            + (" Only settings with the most seeds can be the best one." if any(v.passed_over for v in items) else "")
            if swept
            else ""
        )
        + (
            " Seeds for 80 % power: where the two are not told apart, how many paired seeds would tell a difference of "
            "the observed size, and one of 0.5 points (paired t test at 5%; SD of the pairs at hand)."
            if any(needing)
            else ""
        )
        + said_once
    )
    marked = any(COLLAPSED in entry.text for row in rows for entry in row)
    notes = [f"{COLLAPSED} a run of one of the two collapsed; its error is part of the mean."] if marked else []
    edge = "* the best setting lies at the edge of the grid; the optimum may be outside."
    notes += [edge] if swept and any("*" in row[-1].text for row in rows) else []
    return Table("summary", "Gain over EM", caption, columns, rows, notes)


def identity(item: Verdict) -> dict[str, str]:
    """What a row of the summary is about, by column."""
    block = item.block
    extra = "".join(f", {leaf(key)} {show(value)}" for key, value in block.distinct.items())
    return {
        "Comparison": block.title,
        "Data": block.data,
        "Model": block.model,
        "Protocol": block.protocol + extra,
        "Method": pretty(item.method),
        "Loss": item.loss,
    }


def identities(items: list[Verdict]) -> tuple[str, list[str]]:
    """A sentence with what all rows share, and the names of the columns for the rest; the loss always has one."""
    rows = [identity(item) for item in items]
    tasks = {item.block.task for item in items}
    named = ("Data", "Model", "Protocol") if len(tasks) > 1 else ("Comparison",)
    rows = [{key: value for key, value in row.items() if key not in named} for row in rows]
    shared = [name for name in rows[0] if name != "Loss" and len({row[name] for row in rows}) == 1] if rows else []
    text = "; ".join(f"{name.lower()} {rows[0][name]}" for name in shared)
    return f" All rows: {text}." if text else "", [name for name in (rows[0] if rows else ()) if name not in shared]


def gain_entry(gain: Estimate, marker: str, metric: Metric) -> Entry:
    """The difference, and its interval below."""
    mean, _, interval = gain_text(gain, metric).partition(" ")
    return Entry(mean + marker, interval, gain_numbers(gain, metric), gain.mean)

"""What the numbers say about each loss against EM: at equal setting, and at the best setting of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from dembench.report.judge.group import Block, Cell, Key, leaf, show
from dembench.report.judge.stats import Estimate
from dembench.report.read.names import Metric, pretty
from dembench.report.tables.results import gain_numbers, gain_text
from dembench.report.tables.table import Column, Entry, Table, number
from dembench.report.tables.wording import COLLAPSED, points


@dataclass(frozen=True, slots=True)
class Verdict:
    """One loss against EM, in one block with one method. ``equal`` holds the cell of the loss and its gain at each
    setting that both have; ``best`` is the gain between ``own``, the loss's best cell, and ``em``, EM's best cell."""

    block: Block
    method: str
    column: Key
    equal: tuple[tuple[Cell, Estimate], ...]
    own: Cell
    em: Cell
    best: Estimate

    @property
    def loss(self) -> str:
        """The loss with the settings of its best cell."""
        return self.block.loss_label(self.own)

    @property
    def swept(self) -> bool:
        return max(len(self.block.settings(self.method, c)) for c in (self.column, self.block.em)) > 1

    @property
    def what(self) -> str:
        """What varies between settings, in words."""
        keys = self.block.varying[self.method]
        return "learning rate" if tuple(map(leaf, keys)) == ("lr",) else "setting"

    def edge(self, cell: Cell, column: Key) -> bool:
        """Whether the best rate is the lowest or highest tried, so that the optimum may lie outside."""
        rates = [c.lr for c in self.block.settings(self.method, column) if c.lr is not None]
        return self.what == "learning rate" and len(rates) > 1 and cell.lr in (min(rates), max(rates))

    def short(self, cell: Cell, column: Key) -> str:
        text = show(cell.lr) if self.what == "learning rate" else self.block.setting_label(cell)
        return text + (", edge of the grid" if self.edge(cell, column) else "")

    @property
    def headline(self) -> str:
        """The judgement alone."""
        if self.best.low is None:
            why = "one seed" if self.best.n == 1 else "seeds that differ in nothing"
            return f"{self.loss} against EM: {why}, no claim"
        names = {1: "is better than EM", -1: "is worse than EM", 0: "cannot be told apart from EM"}
        at = f", each at its best {self.what}" if self.swept else ""
        return f"{self.loss} {names[self.best.verdict]}{at}"

    @property
    def sentence(self) -> str:
        """The numbers behind the headline, whatever their sign."""
        metric, block = self.block.metric, self.block
        noun = "accuracy" if metric.name in ("error", "accuracy") else f"{metric.label} (as a gain)"
        unit, text = points(metric), f"{pretty(self.method)}, {self.loss} minus EM in {noun}: "
        if not self.swept:
            return text + f"{said(self.best, metric.digits, unit)}."
        ems, owns = self.short(self.em, block.em), self.short(self.own, self.column)
        text += f"{said(self.best, metric.digits, unit)} at each loss's best {self.what} "
        text += f"(EM {ems}; {self.loss} {owns}), chosen on the test stream itself"
        if not self.equal:
            return text + f"; there is no {self.what} that both have."
        listed = "; ".join(
            f"{self.short_plain(cell)}: {gain_text(gain, metric)}{self.marker(cell)}" for cell, gain in self.equal
        )
        signs = [None if gain.low is None else gain.verdict for _, gain in self.equal]
        words = [("better", 1), ("worse", -1), ("undecided", 0)] if set(signs) != {None} else []
        words += [("one seed only", None)] if None in signs else []
        tally = ", ".join(f"{word} at {signs.count(sign)}" for word, sign in words)
        return f"{text}. At equal {self.what} {tally} of {len(signs)} ({listed})."

    def short_plain(self, cell: Cell) -> str:
        return show(cell.lr) if self.what == "learning rate" else self.block.setting_label(cell)

    def marker(self, cell: Cell) -> str:
        """The collapse marker where a run of ``cell`` or of EM at the same setting collapsed."""
        base = self.block.cells.get(((cell.method, cell.setting), self.block.em))
        return f" {COLLAPSED}" if cell.collapsed or (base and base.collapsed) else ""

    @property
    def flagged(self) -> int:
        """Collapsed runs among the two best cells, which the comparison includes."""
        return self.own.collapsed + self.em.collapsed


def said(gain: Estimate, digits: int, unit: str) -> str:
    """A difference in words, with its interval where there is one."""
    if not gain.n:
        return "no seed in common"
    mean, low, high = (number(x, digits, sign=True) for x in (gain.mean, gain.low, gain.high))
    if not low:
        why = "one seed" if gain.n == 1 else f"{gain.n} seeds that give one and the same number"
        return f"{mean} {unit} ({why}, no interval)"
    return f"{mean} {unit} (95% interval [{low}, {high}], n = {gain.n} seeds)"


def verdicts(block: Block) -> list[Verdict]:
    """Every loss against EM, for each method that has both."""
    found = []
    for method in block.methods:
        columns = block.losses_of(method)
        em = block.best(method, block.em) if block.em in columns and block.em else None
        for column in columns if em else ():
            own = block.best(method, column)
            if column == block.em or own is None or column not in block.shown_columns:
                continue
            equal = []
            for cell in block.settings(method, column):
                base = block.cells.get(((method, cell.setting), block.em))
                gain = cell.gain(base, block.metric) if base else None
                if gain and gain.n:
                    equal.append((cell, gain))
            found.append(Verdict(block, method, column, tuple(equal), own, em, own.gain(em, block.metric)))
    return found


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
    columns += [Column("best settings: EM; loss", numeric=False)] if swept else []
    rows = []
    for item in items:
        block, metric = item.block, item.block.metric
        entries = [Entry(identity(item)[x], pretty(block.task) if x == "Comparison" else "") for x in kept]
        gains = {block.setting_label(cell): (gain, item.marker(cell)) for cell, gain in item.equal}
        picked = [gains.get(name) if item.swept else None for name in names]
        for found in [*picked, (item.best, f" {COLLAPSED}" if item.flagged else "")]:
            unit = f" {metric.gain_unit}" if len(units) > 1 else ""
            entries.append(gain_entry(found[0], unit + found[1], metric) if found and found[0].n else Entry("–"))
        pairs = ((item.em, block.em), (item.own, item.column))
        edges = [item.short_plain(cell) + ("*" if item.edge(cell, column) else "") for cell, column in pairs]
        if swept:
            entries.append(Entry("; ".join(edges) if item.swept else "one setting"))
        rows.append(entries)
    unit = "the unit named" if len(units) > 1 else "".join(units)
    caption = (
        f"Gain over EM in {unit} with the paired 95% t interval over seeds; positive: better than EM."
        + (
            " “Best against best”: each loss at the setting with the best mean over seeds, chosen on the test stream "
            "itself, so optimistic for both."
            if swept
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

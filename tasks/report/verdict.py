"""What the numbers say about each loss against EM: at equal setting, and at the best setting of each."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.report.content import gain_numbers, gain_text, points
from tasks.report.group import Block, Cell, Key, leaf, pretty, show
from tasks.report.stats import Estimate
from tasks.report.tables import Column, Entry, Table, number


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
        return self.block.column_label(self.column)

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
            return f"{self.loss} against EM: one seed, no claim"
        names = {1: "is better than EM", -1: "is worse than EM", 0: "cannot be told from EM"}
        at = f" at each one's best {self.what}" if self.swept else ""
        return f"{self.loss} {names[self.best.verdict]}{at}"

    @property
    def sentence(self) -> str:
        """The numbers behind the headline, whatever their sign."""
        metric, block = self.block.metric, self.block
        noun = "accuracy" if metric.name in ("error", "accuracy") else f"{metric.label} (as a gain)"
        unit, text = points(metric), f"{pretty(self.method)}, {self.loss} minus EM in {noun}: "
        if not self.swept:
            return text + f"{said(self.best, metric.digits)} {unit}."
        ems, owns = self.short(self.em, block.em), self.short(self.own, self.column)
        text += (
            f"{said(self.best, metric.digits)} {unit} at each loss's best {self.what} (EM {ems}; {self.loss} {owns})"
        )
        if not self.equal:
            return text + f"; there is no {self.what} that both have."
        single = all(gain.low is None for _, gain in self.equal)
        counts = {sign: sum(gain.verdict == sign for _, gain in self.equal) for sign in (1, -1, 0)}
        listed = "; ".join(f"{self.short_plain(cell)}: {gain_text(gain, metric)}" for cell, gain in self.equal)
        tally = f"better at {counts[1]}, worse at {counts[-1]}, undecided at {counts[0]} of {len(self.equal)}"
        return text + f". At equal {self.what} {'' if single else f'{tally} '}({listed})."

    def short_plain(self, cell: Cell) -> str:
        return show(cell.lr) if self.what == "learning rate" else self.block.setting_label(cell)

    @property
    def flagged(self) -> int:
        """Collapsed runs among the two best cells, which the comparison includes."""
        return self.own.collapsed + self.em.collapsed


def said(gain: Estimate, digits: int) -> str:
    if not gain.n:
        return "no seed in common, no"
    mean, low, high = (number(x, digits, sign=True) for x in (gain.mean, gain.low, gain.high))
    if not low:
        return f"{mean} (one seed, no interval)"
    return f"{mean}, 95 % interval [{low}, {high}], n = {gain.n} seeds,"


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
    """Gain over EM of every loss, at each setting and at the best ones."""
    settings: dict[str, tuple[float, str]] = {}
    for item in items:
        for cell, _ in item.equal if item.swept else ():
            settings.setdefault(item.block.setting_label(cell), (cell.lr or 0.0, item.block.setting_label(cell)))
    names = sorted(settings, key=lambda name: settings[name])
    parts = ("gain", "low", "high", "pairs")
    columns = [Column(name, numeric=False) for name in ("Data", "Model", "Protocol", "Method", "Loss")]
    columns += [Column(name, parts) for name in names]
    columns += [Column("best against best", parts), Column("best settings: EM; loss", numeric=False)]
    rows = []
    for item in items:
        block, metric = item.block, item.block.metric
        extra = "".join(f", {leaf(k)} {show(v)}" for k, v in block.distinct.items())
        text = (block.data, block.model, block.protocol + extra, pretty(item.method), item.loss)
        entries = [Entry(value) for value in text]
        gains = {block.setting_label(cell): gain for cell, gain in item.equal} if item.swept else {}
        for gain in [*(gains.get(name) for name in names), item.best]:
            entry = (
                Entry(gain_text(gain, metric), "", gain_numbers(gain, metric), gain.mean)
                if gain and gain.n
                else Entry("–")
            )
            entries.append(entry)
        edges = [
            item.short_plain(c) + ("*" if item.edge(c, k) else "")
            for c, k in ((item.em, block.em), (item.own, item.column))
        ]
        entries.append(Entry("; ".join(edges) if item.swept else "one setting"))
        rows.append(entries)
    unit = points(items[0].block.metric) if items else "points"
    caption = (
        f"Gain over EM in {unit} with the paired 95 % t interval over seeds; positive: better than EM. "
        "“Best against best”: each loss at the setting with the best mean over seeds, chosen on the test stream "
        "itself, so optimistic for both."
    )
    notes = (
        ["* the best setting lies at the edge of the grid; the optimum may be outside."]
        if any("*" in r[-1].text for r in rows)
        else []
    )
    return Table("summary", "Gain over EM", caption, columns, rows, notes)

"""What the numbers say about each loss against EM: at equal setting, and at the best setting of each."""

from __future__ import annotations

from dataclasses import dataclass

from dembench.report.judge.group import Block, Cell, Key, leaf, show
from dembench.report.judge.power import needed_text
from dembench.report.judge.stats import Estimate
from dembench.report.judge.wording import COLLAPSED, gain_text, number, points
from dembench.report.read.names import pretty


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
        return max(len(self.block.settings(self.method, c)) for c in (self.column, self.base)) > 1

    @property
    def base(self) -> Key:
        """The column of EM, which every verdict has."""
        return self.block.em or self.column

    @property
    def what(self) -> str:
        """What varies between settings, in words."""
        keys = self.block.varying[self.method]
        return "learning rate" if tuple(map(leaf, keys)) == ("lr",) else "setting"

    def edge(self, cell: Cell, column: Key) -> bool:
        """Whether the best rate is the lowest or highest tried, so that the optimum may lie outside."""
        rates = [c.lr for c in self.block.settings(self.method, column) if c.lr is not None]
        return self.what == "learning rate" and len(rates) > 1 and cell.lr in (min(rates), max(rates))

    @property
    def passed_over(self) -> bool:
        """Whether a setting could not be the best one because others have more seeds."""
        metric = self.block.metric
        seeds = [
            {len(cell.values(metric)) for cell in self.block.settings(self.method, c)} for c in (self.column, self.base)
        ]
        return any(len(numbers) > 1 for numbers in seeds)

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
        metric = self.block.metric
        noun = "accuracy" if metric.name in ("error", "accuracy") else f"{metric.label} (as a gain)"
        unit, text = points(metric), f"{pretty(self.method)}, {self.loss} minus EM in {noun}: "
        if not self.swept:
            return text + f"{said(self.best, metric.digits, unit)}.{self.seeds_needed}"
        ems, owns = self.short(self.em, self.base), self.short(self.own, self.column)
        text += f"{said(self.best, metric.digits, unit)} at each loss's best {self.what} "
        text += f"(EM {ems}; {self.loss} {owns}), chosen on the test stream itself"
        if not self.equal:
            return text + f"; there is no {self.what} that both have.{self.seeds_needed}"
        listed = "; ".join(
            f"{self.short_plain(cell)}: {gain_text(gain, metric)}{self.marker(cell)}" for cell, gain in self.equal
        )
        signs = [None if gain.low is None else gain.verdict for _, gain in self.equal]
        words: list[tuple[str, int | None]] = [("better", 1), ("worse", -1), ("undecided", 0)]
        words = words if set(signs) != {None} else []
        words += [("one seed only", None)] if None in signs else []
        tally = ", ".join(f"{word} at {signs.count(sign)}" for word, sign in words)
        return f"{text}. At equal {self.what} {tally} of {len(signs)} ({listed}).{self.seeds_needed}"

    @property
    def seeds_needed(self) -> str:
        """A sentence, after a space, on the seeds that would tell the two apart; empty where they are told apart."""
        text = needed_text(self.best, self.block.metric)
        return f" {text}." if text else ""

    def short_plain(self, cell: Cell) -> str:
        return show(cell.lr) if self.what == "learning rate" else self.block.setting_label(cell)

    def marker(self, cell: Cell) -> str:
        """The collapse marker where a run of ``cell`` or of EM at the same setting collapsed."""
        base = self.block.twin(cell)
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
    how = f"95% interval over {gain.looks} looks" if gain.looks > 1 else "95% interval"
    return f"{mean} {unit} ({how} [{low}, {high}], n = {gain.n} seeds)"


def verdicts(block: Block) -> list[Verdict]:
    """Every loss against EM, for each method that has both."""
    found = []
    for method in block.methods:
        columns = block.losses_of(method)
        em = block.best(method, block.em) if block.em in columns and block.em else None
        for column in columns:
            own = block.best(method, column)
            if em is None or column == block.em or own is None or column not in block.shown_columns:
                continue
            equal = []
            for cell in block.settings(method, column):
                base = block.twin(cell)
                gain = cell.gain(base, block.metric) if base else None
                if gain and gain.n:
                    equal.append((cell, gain))
            found.append(Verdict(block, method, column, tuple(equal), own, em, own.gain(em, block.metric)))
    return found


def best_per_method(verdicts: list[Verdict], loss: str) -> list[Verdict]:
    """One verdict on ``loss`` per method: that of its best parameters where there are several."""
    found: dict[str, Verdict] = {}
    for verdict in verdicts:
        if verdict.column[0] == loss:
            old, metric = found.get(verdict.method), verdict.block.metric
            score = metric.sign * verdict.own.estimate(metric).mean
            if old is None or score > metric.sign * old.own.estimate(metric).mean:
                found[verdict.method] = verdict
    return list(found.values())

"""The first screen in sentences: each loss against EM over all methods, and the best of all against baselines."""

from __future__ import annotations

from dataclasses import dataclass

from dembench.report.judge.group import Block, Cell
from dembench.report.judge.power import needed_short
from dembench.report.judge.ranking import leaders
from dembench.report.judge.verdict import Verdict, best_per_method, said
from dembench.report.judge.wording import gain_text, number, points
from dembench.report.read.names import pretty, rank

BASELINES = ("source", "norm", "zero_shot")


@dataclass(frozen=True, slots=True)
class Headline:
    """A judgement and the numbers behind it; ``sign`` is 1 or -1 where all that is decided points one way."""

    sign: int
    strong: str
    text: str


def headlines(block: Block, verdicts: list[Verdict]) -> list[Headline]:
    """One for each loss, then one for the best cell against the methods that learn nothing."""
    found = []
    for loss in sorted({v.column[0] for v in verdicts}, key=lambda name: (rank("loss", name), name)):
        own = best_per_method(verdicts, loss)
        found.append(single(own[0]) if len(own) == 1 else many(loss, own))
    baseline = against_baselines(block)
    return found + ([baseline] if baseline else [])


def single(verdict: Verdict) -> Headline:
    flagged = f" {verdict.flagged} collapsed run{'s are' if verdict.flagged > 1 else ' is'} among the two."
    text = verdict.sentence + (flagged if verdict.flagged else "")
    return Headline(verdict.best.verdict, f"{verdict.headline}.", text)


def many(loss: str, verdicts: list[Verdict]) -> Headline:
    """How often a loss is better, worse or not told apart, and its gain in each method."""
    signs = [None if v.best.low is None else v.best.verdict for v in verdicts]
    words = (("better", 1), ("worse", -1), ("not told apart", 0), ("without an interval", None))
    tally = ", ".join(f"{word} in {signs.count(sign)}" for word, sign in words if signs.count(sign))
    sign = 1 if 1 in signs and -1 not in signs else -1 if -1 in signs and 1 not in signs else 0
    metric = verdicts[0].block.metric
    swept = ", each at its best setting on this stream," if any(v.swept for v in verdicts) else ""
    listed = "; ".join(
        f"{pretty(v.method)} {gain_text(v.best, metric)}{f' ({v.flagged} collapsed)' if v.flagged else ''}"
        for v in verdicts
    )
    return Headline(
        sign,
        f"{pretty(loss)} against EM in {len(verdicts)} methods: {tally}.",
        f"Gain{swept} in {points(metric)}, paired over seeds: {listed}.{all_needed(verdicts)}",
    )


def all_needed(verdicts: list[Verdict]) -> str:
    """A sentence, after a space, on the seeds that would tell apart what was not; empty where all was."""
    metric = verdicts[0].block.metric
    found = [(pretty(v.method), text) for v in verdicts if (text := needed_short(v.best, metric))]
    sizes = "a difference of this size" + ("; for 0.5 points" if metric.unit == "%" else "")
    listed = ", ".join(f"{name} {text}" for name, text in found)
    return f" Paired seeds for 80 % power at {sizes}: {listed}." if found else ""


def against_baselines(block: Block) -> Headline | None:
    """The best mean of a loss, against each baseline; with the best of all, where that takes no loss."""
    metric = block.metric
    ranked = leaders(block.cells.values(), metric)
    bases = [cell for cell in block.free.values() if cell.method.partition(" (")[0] in BASELINES]
    if not ranked or not bases:
        return None
    best, score = ranked[0], ranked[0].estimate(metric)
    bases.sort(key=lambda cell: rank("method", cell.method))
    gains = [best.gain(base, metric) for base in bases]
    listed = "; ".join(
        f"{pretty(base.method)} {said(gain, metric.digits, points(metric))}"
        for base, gain in zip(bases, gains, strict=True)
    )
    signs = {gain.verdict for gain in gains}
    sign = 1 if signs == {1} else -1 if -1 in signs else 0
    value = f"{number(score.mean, metric.digits)}{f' {metric.unit}' if metric.unit else ''}"
    strong = f"Best mean of a loss: {what(block, best)}, {metric.label} {value}{ahead(block, best)}."
    return Headline(sign, strong, f"Gain over {listed}.")


def ahead(block: Block, best: Cell) -> str:
    """In brackets, after a space, a method without a loss whose mean is better still; else empty."""
    metric = block.metric
    for free in leaders(block.free.values(), metric)[:1]:
        mean = free.estimate(metric).mean
        if metric.sign * (mean - best.estimate(metric).mean) > 0:
            return f" ({pretty(free.method)}, without a loss: {number(mean, metric.digits)})"
    return ""


def what(block: Block, cell: Cell) -> str:
    setting = block.setting_label(cell)
    return f"{pretty(cell.method)} + {block.loss_label(cell)}" + (f" ({setting})" if setting else "")

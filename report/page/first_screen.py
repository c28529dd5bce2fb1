"""The first screen: what each loss gains over EM in every task, and the verdict on it in a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dembench.report.figures.critical import critical_figure
from dembench.report.figures.drawing import Figure
from dembench.report.figures.gains import gains_figure
from dembench.report.judge.comparisons import BASE, Comparison, Family, families, ranking
from dembench.report.judge.group import Block, Cell
from dembench.report.judge.significance import Ranking
from dembench.report.judge.stats import Pooled
from dembench.report.judge.verdict import Verdict
from dembench.report.judge.wording import number
from dembench.report.read.names import TOYS, Metric, pretty
from dembench.report.tables.gains import gains_table, ranks_table, tests_table
from dembench.report.tables.headlines import Headline
from dembench.report.tables.table import Table

JUDGED = ("dem", "dem_star", "adadem", "none")  # losses that get a sentence, run or not; others get one where they ran
ANSWERED = ("adadem", "dem_star", "dem")  # whose answer stands first
TITLES = {1: "Better", -1: "Worse", 0: "Not told apart", None: "No interval, so not counted"}
WORDS = {1: "better in", -1: "worse in", 0: "not told apart in"}


@dataclass(slots=True)
class FirstScreen:
    """One answer, the figure over all tasks (broad and narrow) and its table; then, folded, a sentence for each loss,
    ranks and tests, and the limits of what was measured."""

    answer: Headline | None = None
    lines: list[Headline] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    details: list[Table | Figure] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)


def first_screen(blocks: Sequence[Block], verdicts: Sequence[Sequence[Verdict]], with_figures: bool) -> FirstScreen:
    """Everything above the sections, from the comparisons and the verdicts of each."""
    blocks, verdicts = leading(blocks, verdicts)
    found = families(verdicts)
    if not found:
        return FirstScreen()
    everything = [one for family in found for one in family.comparisons]
    names, ranks = ranking(everything)
    run = {loss for family in found for loss in family.losses if family.gains[loss].cells}
    told = [loss for loss in (*JUDGED, *sorted(run - {*JUDGED})) if loss in run]
    lines = [sentence(loss, found, names, ranks) for loss in told]
    if missing := [loss for loss in JUDGED if loss not in run]:
        lines.append(silence(missing))
    critical = critical_figure(names, ranks) if with_figures else None
    return FirstScreen(
        answer(min(told, key=lambda loss: (ANSWERED.index(loss) if loss in ANSWERED else len(ANSWERED), loss)), found)
        if told
        else None,
        lines,
        [gains_figure(found), gains_figure(found, narrow=True)] if with_figures else [],
        [gains_table(found)],
        [ranks_table(found, names, ranks), tests_table(found), *filter(None, [critical])],
        limits(found, blocks),
    )


def answer(loss: str, found: Sequence[Family]) -> Headline:
    """The line that a reader takes home: one loss against EM over all tasks, and what it rests on."""
    gains = [(family, family.gains[loss]) for family in found if loss in family.losses and family.gains[loss].cells]
    states = [state(gain) for _, gain in gains]
    decided = [f"{pretty(family.task)} {gain_words(gain, family.metric)}" for family, gain in gains if state(gain)]
    text = f"{'; '.join(decided)}." if decided else ""
    if len(gains) == 1 and not decided:
        text = f"Mean gain {gain_words(gains[0][1], gains[0][0].metric)}."
    elif without := states.count(None):
        text = f"{text} {without} more task{'s have' if without > 1 else ' has'} no interval.".strip()
    return Headline(sign_of(states), f"{spoken(loss)} {judgement(states)}.", text)


def leading(
    blocks: Sequence[Block], verdicts: Sequence[Sequence[Verdict]]
) -> tuple[list[Block], list[Sequence[Verdict]]]:
    """The comparisons that the first screen counts: those without a choice of settings, else those of one rule of
    choice, with labels where it was used: the same losses judged by several rules are not several comparisons."""
    rules = [block.context.get("tuned") for block in blocks]
    one = None if None in rules else "oracle" if "oracle" in rules else rules[0] if rules else None
    kept = [i for i, rule in enumerate(rules) if rule == one]
    return [blocks[i] for i in kept], [verdicts[i] for i in kept]


def sentence(loss: str, found: Sequence[Family], names: Sequence[str], ranks: Ranking | None) -> Headline:
    """The judgement on one loss over all tasks, from the intervals of its mean gains, and the numbers behind it."""
    gains = [(family, family.gains[loss]) for family in found if loss in family.losses and family.gains[loss].cells]
    states = [state(gain) for _, gain in gains]
    if len(gains) == 1 or (len(gains) == 2 and not any(states)):
        said = "; ".join(f"{pretty(family.task)} {gain_words(gain, family.metric)}" for family, gain in gains)
        text = f"Mean gain: {said}."
    else:
        listed: dict[int | None, list[str]] = {1: [], -1: [], 0: [], None: []}
        for (family, gain), value in zip(gains, states, strict=True):
            number_too = f" {gain_words(gain, family.metric)}" if value else ""
            listed[value].append(pretty(family.task) + number_too)
        if not any(states):
            listed[0].clear()  # all of them, as the judgement says
        text = " ".join(f"{TITLES[value]}: {'; '.join(names)}." for value, names in listed.items() if names)
    if loss in names and ranks is not None and ranks.difference is not None:
        own, base = ranks.mean[names.index(loss)], ranks.mean[names.index(BASE)]
        apart = "more" if abs(own - base) > ranks.difference else "no more"
        text = f"{text} ".lstrip() + (
            f"Mean rank among {len(names)} losses in {ranks.rows} cells, 1 the best: {own:.2f}, EM {base:.2f}; {apart} "
            f"than the {ranks.difference:.2f} that tell two losses apart (critical difference)."
        )
    return Headline(sign_of(states), f"{spoken(loss)} {judgement(states)}.", text)


def sign_of(states: Sequence[int | None]) -> int:
    """1 or -1 where all that is decided points one way."""
    decided = {value for value in states if value}
    return decided.pop() if len(decided) == 1 else 0


def spoken(loss: str) -> str:
    """A loss at the start of a sentence."""
    return pretty(loss)[:1].upper() + pretty(loss)[1:]


def silence(losses: Sequence[str]) -> Headline:
    """What is said of losses that were not run: nothing."""
    *most, last = (spoken(loss) if loss == losses[0] else pretty(loss) for loss in losses)
    names = f"{', '.join(most)} and {last}" if most else last
    return Headline(0, f"{names}: not run beside EM here,", "so nothing is said.")


def state(gain: Pooled) -> int | None:
    return None if gain.low is None else gain.verdict


def judgement(states: Sequence[int | None]) -> str:
    """What the intervals say, in words, and of how many tasks; a task without an interval is not counted."""
    counted = [value for value in states if value is not None]
    if not counted:
        return "against EM: no interval, no claim"
    if len(states) == 1:
        return {1: "is better than EM", -1: "is worse than EM"}.get(counted[0], "cannot be told apart from EM")
    tasks = f"{len(counted)} tasks with an interval" if len(counted) > 1 else "the one task with an interval"
    if not any(counted):
        return f"cannot be told apart from EM in {'any of ' if len(counted) > 1 else ''}{tasks}"
    counts = [f"{WORDS[value]} {counted.count(value)}" for value in (1, -1, 0) if counted.count(value)]
    return f"against EM in {tasks}: {', '.join(counts)}"


def gain_words(gain: Pooled, metric: Metric) -> str:
    """Mean and interval with their unit, and what the reader must know of the interval."""
    mean, low, high = (number(value, metric.digits, sign=True) for value in (gain.mean, gain.low, gain.high))
    notes = [f"{gain.alone} cells with one seed left out"] if gain.alone else []
    notes += ["interval over cells, most have one seed"] if gain.over == "cells" else []
    notes += [] if low else ["no interval"]
    tail = f" ({'; '.join(notes)})" if notes else ""
    return f"{mean} {f'[{low}, {high}] ' if low else ''}{metric.gain_unit}{tail}"


def limits(found: Sequence[Family], blocks: Iterable[Block]) -> list[str]:
    """What the numbers above cannot say, from what was run."""
    blocks, said = list(blocks), []
    everything = [one for family in found for one in family.comparisons]
    toys: dict[str, list[str]] = {}
    for name in dict.fromkeys(block.data for block in blocks if block.data in TOYS):
        toys.setdefault(TOYS[name], []).append(name)
    if toys:
        said.append("No benchmark: " + "; ".join(f"{', '.join(names)}: {text}" for text, names in toys.items()) + ".")
    single = [family for family in found if len({one.block.data for one in family.comparisons}) == 1]
    if single:
        names = ", ".join(f"{pretty(family.task)} ({family.comparisons[0].block.data})" for family in single)
        said.append(f"One data set only in {names}: what holds there need not hold elsewhere.")
    every = [(verdict.best.n, len(one.block.seeds)) for one in everything for verdict in one.verdicts.values()]
    pairs = [n for n, _ in every if n] or [0]
    few, lacking, none = (
        sum(n == 1 for n in pairs),
        sum(0 < n < most for n, most in every),
        sum(not n for n, _ in every),
    )
    seeds = f"{min(pairs)} to {max(pairs)}" if min(pairs) < max(pairs) else str(pairs[0])
    text = f"Seeds per pair of cells: {seeds}"
    text += f"; {few} of {len(pairs)} pairs have one seed" if few else ""
    text += f"; {lacking} lack seeds that their comparison has" if lacking else ""
    text += f"; {none} pair{'s have' if none > 1 else ' has'} no seed in common" if none else ""
    said.append(f"{text}. Intervals cover seeds, not the choice of data sets, models or methods.")
    chosen = []
    for family in found:
        counts = {loss: family.choices(loss) for loss in family.losses}
        if max((n for pair in counts.values() for n in pair), default=0) > 1:
            listed = [
                f"EM {max(ems for _, ems in counts.values())}",
                *(f"{pretty(x)} {n}" for x, (n, _) in counts.items()),
            ]
            chosen.append(f"{pretty(family.task)}: {', '.join(listed)}")
    if chosen:
        said.append(
            "Each loss stands at its best setting on the very numbers shown, which flatters whoever had more to choose "
            f"from. Settings per cell, at most: {'; '.join(chosen)}."
        )
    if rule := next((one.block.context["tuned"] for one in everything if one.block.context.get("tuned")), None):
        said.append(
            f"Each loss stands at the settings of the rule {rule!r} (dembench tune), judged on what the choice has not "
            "seen; the other rules are in the table of equal rates and each loss at its best."
        )
    searched = [one.verdicts["dem_star"].own for one in everything if "dem_star" in one.verdicts]
    if searched:
        seen = sum(dict(cell.params).get("evaluation") == "paper" for cell in searched)
        text = "DEM* had labels, the other losses none: its (tau, alpha) was searched on a labelled part of the data"
        text += f", on which {seen} of {len(searched)} cells are judged, too" if seen else ", which is not judged here"
        said.append(f"{text}. The search is not part of its time.")
    collapsed = sum(cell.collapsed for one in everything for cell in cells_of(one))
    if collapsed:
        said.append(f"{collapsed} collapsed runs are among those compared; their numbers count.")
    without = [block for block in blocks if block.columns and not any(one.block is block for one in everything)]
    if without:
        said.append(f"{len(without)} of {len(blocks)} comparisons have nothing to compare with EM and are not above.")
    claims = sum(gain.low is not None for family in found for gain in family.gains.values())
    if claims > 1:
        said.append(f"The {claims} intervals are at 95% each, not corrected for their number.")
    return said


def cells_of(one: Comparison) -> list[Cell]:
    """Each cell of a comparison once."""
    return [one.em, *(verdict.own for verdict in one.verdicts.values())]

"""Tables over all tasks: the mean gains of the losses, and the tests behind them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from dembench.report.judge.comparisons import Family, median, time_ratios
from dembench.report.judge.significance import Ranking, SignedRanks, holm
from dembench.report.judge.stats import Pooled
from dembench.report.judge.wording import COLLAPSED, number, plain
from dembench.report.read.names import Metric, pretty, rank
from dembench.report.tables.table import Column, Entry, Table

PARTS = ("gain", "low", "high", "cells")


def losses_in(found: Sequence[Family]) -> list[str]:
    names = {loss for family in found for loss in family.losses}
    return sorted(names, key=lambda name: (rank("loss", name), name))


def gains_table(found: Sequence[Family]) -> Table:
    """A row per task: the mean gain of each loss over EM with its interval; then all tasks."""
    losses = losses_in(found)
    columns = [Column("Task", numeric=False), Column("cells", ("cells", "data sets"))]
    columns += [Column(pretty(loss), PARTS) for loss in losses]
    rows = []
    for family in found:
        data = len({one.block.data for one in family.comparisons})
        count = len(family.comparisons)
        rows.append(
            [
                Entry(pretty(family.task), described(family.metric), sort=pretty(family.task)),
                Entry(str(count), f"{data} data set{'s' * (data > 1)}", (str(count), str(data)), count),
                *(gain_entry(family, loss) for loss in losses),
            ]
        )
    if len(found) > 1:
        rows.append(all_tasks(found, losses))
    marked = any(COLLAPSED in entry.text for row in rows for entry in row)
    notes = [f"{COLLAPSED}k: k of the runs compared collapsed; their numbers are part of the mean."] if marked else []
    if any(family.gains[loss].alone for family in found for loss in family.losses):
        notes.append("*k: k more cells have one seed and are in neither mean nor interval.")
    caption = (
        "Mean over the cells of a task (a cell: one method on one data set under one protocol), in the task's own "
        "unit; positive: better than EM. In brackets: 95% t interval of the paired differences over seeds, their "
        "deviations taken within each data set (Welch, Satterthwaite)"
        + (" (“cells”: most cells have one seed, so the interval is over cells)" if any_over(found, "cells") else "")
        + "."
    )
    return Table("across-tasks", "Gain over EM in every task", caption, columns, rows, notes)


def any_over(found: Sequence[Family], over: str) -> bool:
    return any(gain.over == over for family in found for gain in family.gains.values())


def described(metric: Metric) -> str:
    unit = f" in {metric.unit}" if metric.unit else ""
    return f"{metric.label}{unit}, {'lower' if metric.sign < 0 else 'higher'} is better"


def gain_entry(family: Family, loss: str) -> Entry:
    """Mean gain and interval of one loss in one task, in the task's unit."""
    gain = family.gains.get(loss)
    if gain is None or not gain.cells:
        return Entry("–")
    texts = [number(value, family.metric.digits, sign=True) for value in (gain.mean, gain.low, gain.high)]
    flagged = sum(one.verdicts[loss].flagged for one in family.having(loss))
    text = texts[0] + (f" {COLLAPSED}{flagged}" if flagged else "") + (f" *{gain.alone}" if gain.alone else "")
    count = f", {gain.cells} cell{'s' * (gain.cells > 1)}" if gain.cells < len(family.comparisons) else ""
    interval = f"[{texts[1]}, {texts[2]}]" + (" cells" if gain.over == "cells" else "") if texts[1] else "no interval"
    return Entry(text, interval + count, (*map(plain, texts), str(gain.cells)), gain.mean)


def all_tasks(found: Sequence[Family], losses: Sequence[str]) -> list[Entry]:
    """The last row: gains of different units have no mean, so the tasks with an interval are counted."""
    everything = [one for family in found for one in family.comparisons]
    data = len({one.block.data for one in everything})
    counted = []
    for loss in losses:
        gains = [gain for family in found if (gain := family.gains.get(loss)) is not None and gain.low is not None]
        up, down = sum(gain.verdict > 0 for gain in gains), sum(gain.verdict < 0 for gain in gains)
        of = f"of {len(gains)} task{'s' * (len(gains) != 1)}"
        counted.append(Entry(f"{up} up, {down} down" if gains else "–", of if gains else "no interval"))
    total = len(everything)
    return [
        Entry("All tasks", "intervals clear of zero", sort="~"),
        Entry(str(total), f"{data} data set{'s' * (data > 1)}", (str(total), str(data)), total),
        *counted,
    ]


def ranks_table(found: Sequence[Family], names: Sequence[str], ranks: Ranking | None) -> Table:
    """A row per task and one for all: the mean rank of each loss, and its time over that of EM."""
    losses = losses_in(found)
    columns = [Column("Task", numeric=False), Column("cells", ("cells",))]
    columns += [Column(pretty(loss), ("rank", "time")) for loss in ("em", *losses)]
    rows = []
    for family in found:
        times = {loss: family.time(loss) for loss in losses}
        rows.append(ranks_row(pretty(family.task), losses, *family.ranking, times))
    if len(found) > 1:
        every = [one for family in found for one in family.comparisons]
        ratios = {loss: [x for one in every if loss in one.verdicts for x in time_ratios(one.verdicts[loss])]
                  for loss in losses}  # fmt: skip
        rows.append(ranks_row("All tasks", losses, names, ranks, {loss: median(own) for loss, own in ratios.items()}))
    caption = (
        "The place of each loss among those of a cell, 1 the best and equal scores sharing their mean place, as a mean "
        "over the cells that have all of them. Below: wall time over EM's at the same setting and seed, median over "
        "runs. A rank says how often a loss is ahead, not by how much; the critical difference says how far two mean "
        "ranks must lie apart to tell losses apart."
    )
    return Table("ranks", "Mean ranks and times", caption, columns, rows)


def ranks_row(
    title: str, losses: Sequence[str], names: Sequence[str], ranks: Ranking | None, times: Mapping[str, float]
) -> list[Entry]:
    of = dict(zip(names, ranks.mean, strict=True)) if ranks else {}
    timed = any(not math.isnan(value) for value in times.values())
    row = [Entry(title), Entry(str(ranks.rows) if ranks else "–")]
    for loss in ("em", *losses):
        place = f"{of[loss]:.2f}" if loss in of else "–"
        time = 1.0 if loss == "em" and timed else times.get(loss, math.nan)
        ratio = "" if math.isnan(time) else f"{time:.2f}"
        row.append(Entry(place, f"time {ratio}" if ratio else "", (place.strip("–"), ratio), of.get(loss)))
    return row


def tests_table(found: Sequence[Family]) -> Table:
    """A row per task and loss: what the interval covers, what single cells say, and Wilcoxon's test with Holm's
    correction over all rows."""
    pairs = [(family, loss) for family in found for loss in family.losses if family.having(loss)]
    corrected = holm([family.tests[loss].p for family, loss in pairs])
    columns = [Column("Task", numeric=False), Column("Loss", numeric=False), Column("mean gain", PARTS[:3])]
    columns += [
        Column("interval covers", numeric=False),
        Column("cells", ("cells", "with one seed", "lacking seeds")),
        Column("better, not told apart, worse", ("better", "not told apart", "worse", "no interval")),
        Column("Wilcoxon p", ("p", "pairs", "zeros", "smallest p")),
        Column("Holm", ("p",)),
    ]
    rows = []
    for (family, loss), p in zip(pairs, corrected, strict=True):
        gain, having, tally = family.gains[loss], family.having(loss), family.tally(loss)
        texts = [number(value, family.metric.digits, sign=True) for value in (gain.mean, gain.low, gain.high)]
        single = sum(one.verdicts[loss].best.n == 1 for one in having)
        lacking = sum(1 < one.verdicts[loss].best.n < len(one.block.seeds) for one in having)
        said = [f"{single} of one seed"] * bool(single) + [f"{lacking} lack seeds"] * bool(lacking)
        counts = [str(tally[key]) for key in (1, 0, -1, None)]
        without = f"{tally[None]} no interval" if tally[None] else ""
        rows.append(
            [
                Entry(pretty(family.task)),
                Entry(pretty(loss)),
                Entry(f"{texts[0]} {family.metric.gain_unit}", interval(texts), tuple(map(plain, texts)), gain.mean),
                Entry(covers(gain, family, loss)),
                Entry(str(len(having)), ", ".join(said), (str(len(having)), str(single), str(lacking)), len(having)),
                Entry(", ".join(counts[:3]), without, tuple(counts), tally[1] - tally[-1]),
                wilcoxon_entry(family.tests[loss]),
                Entry("–") if p is None else Entry(p_text(p), "", (p_text(p),), p),
            ]
        )
    tested = sum(p is not None for p in corrected)
    caption = (
        "Mean gain over EM with its 95% interval: Student's t, the deviations of the seeds taken within each data set "
        "over all methods and protocols there at once, degrees of freedom by Welch and Satterthwaite. "
        "Where most cells have one seed, it is over cells. “Better, …”: cells, by the paired 95% t interval of each. "
        "Wilcoxon: two-sided signed-rank test of the cells' mean gains, zeros split (Demsar 2006), exact where there "
        "are few pairs; no test where even gains of one sign could not reach 0.05, which takes 6 pairs. Holm: the p "
        f"value corrected for {tested} test{'s' * (tested != 1)} in this table. Cells that share data or method are "
        "not independent, which makes the p values too small."
    )
    return Table("tests", "Tests of the gains", caption, columns, rows)


def interval(texts: Sequence[str]) -> str:
    return f"[{texts[1]}, {texts[2]}]" if texts[1] else "no interval"


def covers(gain: Pooled, family: Family, loss: str) -> str:
    """What an interval is about: so many seeds, or cells where no cell has two seeds."""
    pairs = [one.verdicts[loss].best.n for one in family.having(loss)]
    if gain.over == "seeds":
        used = [n for n in pairs if n > 1]
        return f"{min(used)} seeds" if min(used) == max(used) else f"{min(used)} to {max(used)} seeds"
    if gain.over == "cells":
        return f"{gain.cells} cells"
    return "nothing: one seed" if max(pairs) == 1 else "nothing: seeds alike"


def wilcoxon_entry(test: SignedRanks) -> Entry:
    zeros = f", {test.ties} zero" if test.ties else ""
    numbers = (str(test.n), str(test.ties), p_text(test.smallest))
    if test.p is None:
        return Entry(
            "no test", f"{test.n} pair{'s' * (test.n != 1)}{zeros}: p ≥ {p_text(test.smallest)}", ("", *numbers)
        )
    sub = f"{test.n} pairs{zeros}; least {p_text(test.smallest)}"
    return Entry(p_text(test.p), sub, (p_text(test.p), *numbers), test.p)


def p_text(p: float) -> str:
    """Three decimals, or two digits where these would be zeros."""
    return f"{p:.3f}" if p >= 0.001 or p == 0 else f"{p:.1e}"

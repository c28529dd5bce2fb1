"""Tables of a fair comparison: each loss against EM by how its rate was chosen, and the width of its range of rates."""

from __future__ import annotations

from collections.abc import Sequence

from dembench.report.judge.group import Block, freeze, label, show
from dembench.report.judge.power import needed_short
from dembench.report.judge.significance import holm
from dembench.report.judge.tolerance import POINT, Curve, width
from dembench.report.judge.verdict import Verdict
from dembench.report.judge.wording import gain_numbers, gain_text, number, plain
from dembench.report.read.names import pretty, rank
from dembench.report.tables.table import Column, Entry, Table

RULES = {  # of choice, as dembench tune has them
    "fixed": "equal rate",
    "oracle": "best with labels",
    "information": "no labels: information",
    "consistency": "no labels: consistency",
}


def choice_table(judged: Sequence[Sequence[Verdict]]) -> Table:
    """A row for each loss, method and comparison that was tuned and each rule of choice: its gain over EM."""
    rows: dict[tuple[str, ...], dict[str, Verdict]] = {}
    for verdict in (one for found in judged for one in found):
        if (rule := verdict.block.context.get("tuned")) in RULES:
            rows.setdefault(row_of(verdict), {}).setdefault(str(rule), verdict)
    cells = [(key, kind) for key, found in rows.items() for kind in RULES if kind in found]
    corrected = dict(zip(cells, holm([paired_p(rows[key][kind]) for key, kind in cells]), strict=True))
    columns = [Column("Comparison", ("task", "comparison"), numeric=False), Column("Loss", numeric=False)]
    columns += [
        Column("rate chosen by", numeric=False),
        Column("gain over EM", ("gain", "low", "high", "pairs")),
        Column("EM at; loss at", ("EM at", "loss at")),
        Column("seeds needed", ("this size", "0.5 points")),
        Column("Holm p", ("Holm p",)),
        Column("trials of each", ("trials", "wall seconds")),
    ]
    entries = []
    for key, found in sorted(rows.items(), key=lambda item: (rank("task", item[0][0]), item[0])):
        first = next(iter(found.values()))
        what = f"{key[1]} · {pretty(key[2])}"
        tunes = [dict(cell.runs[0].tuned or {}) for cell in (first.em, first.own)]
        trials = max(len(tune.get("trials") or ()) for tune in tunes)
        seconds = [float((tune.get("cost") or {}).get("wall_seconds", 0)) for tune in tunes]
        cost = Entry(str(trials), f"{sum(seconds):.0f} s", (str(trials), f"{sum(seconds):.1f}"), trials)
        for kind in RULES:
            if kind in found:
                line = [Entry(what, pretty(key[0]), (pretty(key[0]), what)), Entry(key[3]), Entry(RULES[kind])]
                entries.append([*line, *entry(found[kind], corrected[key, kind]), cost])
    tests = sum(p is not None for p in corrected.values())
    caption = (
        "Gain over EM, positive: better, with the paired 95% t interval over seeds, judged on data that no choice has "
        "seen. Equal rate: both at the preset's. With labels: the best trial by the labels of the search part. No "
        "labels: information maximisation (entropy of the mean prediction minus mean entropy; Shi and Sha 2012, Liang "
        "et al. 2020) and consistency with an augmented copy (effective invariance, Deng et al. 2022). All losses had "
        "the same trials over the same space. Seeds needed: where the interval holds zero, how many paired seeds would "
        "have 80 % power for a difference of that size, and for 0.5 points. "
        f"Holm p: of the paired t test, corrected for {tests} tests in this table."
    )
    return Table("choice", "Equal rates, and each loss at its best", caption, columns, entries)


def row_of(verdict: Verdict) -> tuple[str, ...]:
    """What a row is about: task, comparison without the rule, method, loss; then what else tells comparisons apart."""
    block = verdict.block
    rest = {key: value for key, value in block.context.items() if key != "tuned"}
    names = [name for name in (block.data, block.model, block.protocol) if name != "none"]
    own = [f"{key.rpartition('.')[2]} {show(v)}" for key, v in block.distinct.items() if key != "tuned"]
    return block.task, " · ".join([*names, *own]), verdict.method, verdict.loss, repr(freeze(rest))


def paired_p(verdict: Verdict) -> float | None:
    """Of the paired t test against no gain; None without an interval."""
    gain = verdict.best
    if not gain.sd or gain.low is None:
        return None
    from scipy.stats import t

    return float(2 * t.sf(abs(gain.mean) / (gain.sd / gain.n**0.5), gain.n - 1))


def entry(verdict: Verdict, p: float | None) -> list[Entry]:
    """Gain, the values of EM and of the loss, seeds needed, corrected p value."""
    metric, gain = verdict.block.metric, verdict.best
    mean, _, interval = gain_text(gain, metric).partition(" ")
    values = [", ".join(show(v) for v in rates(verdict, own).values()) for own in (True, False)]
    seeds = needed_short(gain, metric)
    shown = "–" if p is None else number(p, 3)
    return [
        Entry(f"{mean} {metric.gain_unit}", interval, gain_numbers(gain, metric), gain.mean) if gain.n else Entry("–"),
        Entry("; ".join(values), "", tuple(values)),
        Entry(seeds or "–", "", tuple(seeds.split("; ")) if seeds else ("", "")),
        Entry(shown, "", ("" if p is None else f"{p:.3g}",), p),
    ]


def rates(verdict: Verdict, em: bool) -> dict[str, float]:
    """The values that were chosen for EM or for the loss."""
    return dict((verdict.em if em else verdict.own).runs[0].tuned or {}).get("values") or {}


def width_table(found: Sequence[Curve]) -> Table:
    """A row for each curve over a rate: how many decades are within a point of its best."""
    columns = [Column(name, numeric=False) for name in ("Task", "Comparison", "Method", "Loss")]
    columns += [
        Column("decades within a point of the best", ("decades", "low", "high", "reaches an end")),
        Column("best rate", ("rate",)),
        Column("rates; seeds", ("rates", "seeds")),
    ]
    ordered = sorted(found, key=lambda c: (rank("task", c.task), c.title, c.method, rank("loss", c.loss), c.params))
    rows = []
    for curve in ordered:
        own = width(curve.values, curve.metric)
        if own is None:
            continue
        texts = [number(value, 2) for value in (own.decades, own.low, own.high)]
        ends = [name for name, reached in (("lower", own.lower), ("upper", own.upper)) if reached]
        interval = f"[{texts[1]}, {texts[2]}]" if texts[1] else "one seed, no interval"
        below = interval + (f"; to the {' and '.join(ends)} end" if ends else "")
        tried = "trials" if curve.chosen else "runs"
        rows.append(
            [
                *(Entry(text) for text in (pretty(curve.task), curve.title, pretty(curve.method), named(curve))),
                Entry(("≥ " if ends else "") + texts[0], below, (*map(plain, texts), " ".join(ends)), own.decades),
                Entry(show(own.best), "", (f"{own.best:g}",), own.best),
                Entry(f"{len(curve.values)}; {own.seeds}", tried, (str(len(curve.values)), str(own.seeds))),
            ]
        )
    caption = (
        "The contiguous range of learning rates around the best in which the mean over seeds is within a point (of a "
        f"metric in %: {POINT['%']:g} percentage point; of others: 0.01) of the best mean, in decades of the rate; "
        "lines over the logarithm of the rate between those that were tried. In brackets: 95% bootstrap interval over "
        "seeds, which is rough with few. ≥: the range reaches an end of what was tried and may be wider. Of trials, "
        "the values are those of the searched part."
    )
    return Table("tolerance", "How wide the range of good learning rates is", caption, columns, rows)


def named(curve: Curve) -> str:
    keys = tuple(key for key, value in curve.params if value is not None)
    return label(pretty(curve.loss), curve.params, keys)


def has_rules(blocks: Sequence[Block]) -> bool:
    return any(block.context.get("tuned") in RULES for block in blocks)

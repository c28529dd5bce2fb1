"""Tables over several environments of reinforcement learning: aggregates with bootstrap intervals, and every
environment by itself, where seeds either solve it or do not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from dembench.report.judge import aggregate
from dembench.report.judge.aggregate import Interval
from dembench.report.judge.group import Block, Cell
from dembench.report.judge.wording import number, plain
from dembench.report.read.names import Metric, pretty
from dembench.report.tables.table import Column, Entry, Table, slug

RETURN, SUCCESS = Metric("return", "return", "", 1, 1, 3), Metric("success", "success rate", "%", 100, 1, 1)
EPISODE_SD = Metric("episode_sd", "SD over episodes", "", 1, -1, 3)
SOLVED = 90  # per cent of the evaluation's episodes
ENOUGH = 5  # runs in an environment, below which a percentile interval is plainly too narrow
Labels = tuple[str, str, str]  # method, setting, loss


def environment_tables(blocks: Sequence[Block]) -> list[Table]:
    """For comparisons judged by their return and alike in all but the environment: over all environments, if there are
    two or more, and per environment."""
    groups = defaultdict(list)
    for block in blocks:
        if block.metric.name == RETURN.name:
            groups[block.model, block.protocol, context(block)].append(block)
    tables = []
    for (_, protocol, _), same in groups.items():
        if len({block.data for block in same}) < len(same):
            continue  # one environment trained for two lengths: nothing to take a mean over
        if len(same) > 1 and (table := aggregate_table(same, protocol)).rows:
            tables.append(table)
        tables.append(seeds_table(same, protocol))
    return tables


def context(block: Block) -> tuple[str, ...]:
    """What a block's numbers depend on, but for the environment."""
    return tuple(sorted(f"{key}={value}" for key, value in block.context.items() if not key.startswith("data")))


def cells_of(block: Block) -> dict[Labels, Cell]:
    """{(method, setting, loss): cell}, the settings by all that varies between them."""
    found = {}
    for row in block.rows:
        for column in block.columns:
            if cell := block.cells.get((row, column)):
                found[pretty(cell.method), block.setting_label(cell), block.loss_label(cell)] = cell
    return found


def base_of(labels: Labels, cells: dict[Labels, Cell]) -> Cell | None:
    """EM with the same method and setting."""
    return cells.get((*labels[:2], pretty("em"))) if labels[2] != pretty("em") else None


def scores_of(cells: Sequence[Cell]) -> list[np.ndarray]:
    return [np.array([value for _, value in sorted(cell.values(RETURN).items())]) for cell in cells]


def aggregate_table(blocks: Sequence[Block], protocol: str) -> Table:
    """A row for each method, setting and loss that all environments have: interquartile mean, mean, optimality gap,
    probability of improvement over EM and paired difference to EM."""
    maps = [cells_of(block) for block in blocks]
    parts = ("value", "low", "high")
    columns = [Column("Method", numeric=False), Column("Setting", numeric=False), Column("Loss", numeric=False)]
    columns += [Column("runs")]
    titles = ("IQM", "mean", "optimality gap", "P(better than EM)", "IQM − EM, paired")
    columns += [Column(title, parts) for title in titles]
    rows = []
    for labels in maps[0]:
        cells = [found[labels] for found in maps if labels in found]
        scores = scores_of(cells)
        if len(cells) < len(maps) or not all(map(len, scores)):
            continue
        figures: list[Interval | None] = [
            aggregate.bootstrap(scores, statistic)
            for statistic in (aggregate.iqm, aggregate.mean, aggregate.optimality_gap)
        ]
        bases = [base_of(labels, found) for found in maps]
        figures += against(cells, [base for base in bases if base is not None])
        texts = [Entry(label or "–") for label in labels]
        runs = sum(map(len, scores))
        rows.append(
            [
                *texts,
                Entry(str(runs), "", (str(runs),), runs),
                *map(interval_entry, figures[:4]),
                *map(difference_entry, figures[4:]),
            ]
        )
    names = ", ".join(block.data for block in blocks)
    every = [scores_of([found[labels] for found in maps if labels in found]) for labels in maps[0]]
    largest = max(every, key=lambda scores: sum(map(len, scores)), default=[])
    few = min((len(score) for scores in every for score in scores if len(score)), default=0)
    caption = (
        f"Return of the final policy over {len(blocks)} environments ({names}), protocol {protocol}. IQM: mean of the "
        "middle half of all runs; optimality gap: mean distance below a return of 1, which no run reaches exactly; "
        "P(better than EM): chance that a run is better than one of EM with the same setting, ties counting half; "
        f"last: difference of IQMs, seeds in pairs. 95% percentile intervals of {aggregate.affordable(largest):,} "
        "bootstrap samples, runs drawn within each environment (Agarwal et al. 2021). Intervals are over seeds, not "
        "environments."
        + (f" With {few} run{'s' * (few > 1)} in an environment they are too narrow." if few < ENOUGH else "")
    )
    return Table(slug("environments", protocol), "All environments", caption, columns, rows)


def against(cells: Sequence[Cell], bases: Sequence[Cell]) -> list[Interval | None]:
    """Probability of improvement and paired difference of IQMs, over the environments; None where EM is missing."""
    if len(bases) < len(cells):
        return [None, None]
    better = aggregate.bootstrap_improvement(scores_of(cells), scores_of(bases))
    ours, theirs = [], []
    for cell, base in zip(cells, bases, strict=True):
        mine, other = cell.values(RETURN), base.values(RETURN)
        shared = sorted(mine.keys() & other.keys())
        ours.append(np.array([mine[seed] for seed in shared]))
        theirs.append(np.array([other[seed] for seed in shared]))
    if not all(map(len, ours)):
        return [better, None]
    return [better, aggregate.bootstrap_difference(ours, theirs, aggregate.iqm)]


def seeds_table(blocks: Sequence[Block], protocol: str) -> Table:
    """A row for each environment, method, setting and loss: what single seeds did."""
    columns = [Column(name, numeric=False) for name in ("Environment", "Method", "Setting", "Loss")]
    columns += [
        Column("mean return", ("mean",)),
        Column("SD over seeds", ("sd",)),
        Column("SD over episodes", ("sd",)),
        Column("median", ("median",)),
        Column("solved", ("solved", "runs")),
        Column("pairs with EM: won, tied, lost", ("won", "tied", "lost", "p")),
    ]
    rows = []
    for block in blocks:
        cells = cells_of(block)
        for labels, cell in cells.items():
            values = scores_of([cell])[0]
            if not len(values):
                continue
            episodes = [value for value in cell.values(EPISODE_SD).values()]
            solved = sum(value >= SOLVED for value in cell.values(SUCCESS).values())
            rows.append(
                [
                    Entry(block.data),
                    *(Entry(label or "–") for label in labels),
                    figure_entry(values.mean()),
                    figure_entry(values.std(ddof=1) if len(values) > 1 else None),
                    figure_entry(float(np.mean(episodes)) if episodes else None),
                    figure_entry(np.median(values)),
                    Entry(f"{solved} of {len(values)}", "", (str(solved), str(len(values))), solved / len(values)),
                    pairs_entry(cell, base_of(labels, cells)),
                ]
            )
    caption = (
        f"Return of the final policy by environment, protocol {protocol}. Solved: at least {SOLVED}% of the episodes "
        "succeed. SD over seeds says how runs differ, SD over episodes (a mean over seeds) how the episodes of one "
        "policy do; neither is the other. Pairs: seeds with a higher, equal or lower return than EM with the same "
        "setting and seed, and the two-sided p value of the sign test, not corrected for the number of rows."
    )
    return Table(slug("seeds", protocol), "Each environment, seed by seed", caption, columns, rows)


def figure_entry(value: float | None) -> Entry:
    if value is None:
        return Entry("–")
    text = number(float(value), RETURN.digits)
    return Entry(text, "", (plain(text),), float(value))


def pairs_entry(cell: Cell, base: Cell | None) -> Entry:
    if base is None:
        return Entry("–")
    mine, other = cell.values(RETURN), base.values(RETURN)
    gains = np.array([mine[seed] - other[seed] for seed in sorted(mine.keys() & other.keys())])
    if not len(gains):
        return Entry("–")
    won, lost = int((gains > 0).sum()), int((gains < 0).sum())
    tied, p = len(gains) - won - lost, number(aggregate.sign_test(gains), 3)
    return Entry(f"{won}, {tied}, {lost}", f"p {p}", (str(won), str(tied), str(lost), p), won - lost)


def interval_entry(found: Interval | None, sign: bool = False) -> Entry:
    if found is None:
        return Entry("–")
    texts = [number(value, RETURN.digits, sign=sign) for value in (found.value, found.low, found.high)]
    return Entry(texts[0], f"[{texts[1]}, {texts[2]}]", tuple(map(plain, texts)), found.value)


def difference_entry(found: Interval | None) -> Entry:
    return interval_entry(found, sign=True)

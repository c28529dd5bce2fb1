"""Runs -> blocks of comparable runs, and in each block cells: one method at one setting with one loss, over seeds.

Two runs share a block only if everything but method, loss and seed is equal, so that no table mixes protocols.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dembench.report.judge.stats import Estimate, estimate, paired
from dembench.report.read.load import Aside, Run
from dembench.report.read.names import OFFICIAL, Metric, pretty, primary, rank

Setting = tuple[tuple[str, Any], ...]
PATHS = ("root", "source", "frost", "weights", "out", "cache")
NOT_CONTEXT = ("method", "loss", "choices", "hydra", "out", "force", "progress", "seed", "runs", "tune", "sequential")
DEFAULT_LR = 1e-3  # Tent's rate on CIFAR-10-C
MANY = 8  # settings of one loss beyond which only the plain one and the best one get a column
VARIANTS = {("mec", False): "-Norm", ("norm", False): "-MEC", ("norm_of", "em"): "-V"}  # the paper's names


@dataclass(frozen=True)
class Cell:
    """One method, one setting, one loss: at most one run per seed. ``expected`` are the seeds of the whole block."""

    method: str
    setting: Setting
    loss: str | None
    params: Setting
    runs: tuple[Run, ...]
    expected: tuple[int, ...]

    def values(self, metric: Metric, part: str = "mean") -> dict[int, float]:
        """{seed: value in shown units} over the runs with a finite value; runs that met a NaN have none."""
        found = {run.seed: run.score(metric.name, part) * metric.scale for run in self.runs}
        return {seed: value for seed, value in found.items() if math.isfinite(value)}

    def estimate(self, metric: Metric, part: str = "mean") -> Estimate:
        values = self.values(metric, part)
        return estimate([values[seed] for seed in sorted(values)])

    def gain(self, base: Cell, metric: Metric, part: str = "mean") -> Estimate:
        """How much better than ``base``, in shown units, paired over the seeds that both have; positive is better."""
        mine, theirs = self.values(metric, part), base.values(metric, part)
        if metric.sign < 0:
            mine, theirs = theirs, mine
        return paired(mine, theirs, max(self.looks, base.looks))

    @property
    def looks(self) -> int:
        """How often the interval was looked at while seeds were added; 1 where their number was set before."""
        return max((run.looks for run in self.runs), default=1)

    @property
    def collapsed(self) -> int:
        return sum(run.collapsed for run in self.runs)

    @property
    def nans(self) -> int:
        return sum(run.status == "nan" for run in self.runs)

    @property
    def missing(self) -> list[int]:
        return sorted(set(self.expected) - {run.seed for run in self.runs})

    @property
    def clean(self) -> bool:
        """Whether the cell may be ranked; what learns nothing cannot have collapsed by learning, and what should have
        learned and did not is not the method."""
        unlearned = any(run.status == "unlearned" for run in self.runs)
        return not self.nans and not unlearned and (self.loss is None or not self.collapsed)

    @property
    def lr(self) -> float | None:
        value = dict(self.setting).get("lr")
        return float(value) if isinstance(value, int | float) else None


Key = tuple[str, Setting]


@dataclass
class Block:
    """Everything with the same task, data, model and protocol. ``free`` maps (method, setting) to its cell for methods
    that optimise nothing; ``cells`` maps (method, setting), (loss, params) to the others."""

    task: str
    data: str
    model: str
    protocol: str
    context: dict[str, Any]
    runs: list[Run]
    metric: Metric
    distinct: dict[str, Any] = field(default_factory=dict)
    free: dict[Key, Cell] = field(default_factory=dict)
    cells: dict[tuple[Key, Key], Cell] = field(default_factory=dict)
    aside: list[Aside] = field(default_factory=list)

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted({run.seed for run in self.runs}))

    @cached_property
    def rows(self) -> list[Key]:
        keys = dict.fromkeys([*self.free, *(row for row, _ in self.cells)])
        return sorted(keys, key=lambda key: (rank("method", key[0]), key[0], order(key[1])))

    @cached_property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(method for method, _ in self.rows))

    @cached_property
    def columns(self) -> list[Key]:
        keys = dict.fromkeys(column for _, column in self.cells)
        return sorted(keys, key=lambda key: (rank("loss", key[0]), key[0], order(key[1])))

    @cached_property
    def shown_columns(self) -> list[Key]:
        """Columns of the main table: all, but of a loss with many settings only the plain one and the best one."""
        shown = []
        for loss in dict.fromkeys(name for name, _ in self.columns):
            columns = [column for column in self.columns if column[0] == loss]
            if len(columns) > MANY:
                best = max(columns, key=self.best_score)
                columns = [key for key in columns if key == best or all(v in (1, None) for _, v in key[1])]
            shown += columns
        return shown

    def best_score(self, column: Key) -> float:
        """The best mean in a column, with higher always better."""
        means = (cell.estimate(self.metric).mean for (_, col), cell in self.cells.items() if col == column)
        return max((self.metric.sign * mean for mean in means if math.isfinite(mean)), default=-math.inf)

    @cached_property
    def em(self) -> Key | None:
        """The column that differences refer to: EM, the one with most runs if it has several settings."""
        keys = [key for key in self.columns if key[0] == "em"]
        return max(keys, key=lambda k: sum(len(c.runs) for (_, col), c in self.cells.items() if col == k), default=None)

    def twin(self, cell: Cell) -> Cell | None:
        """The cell of EM with the same method and setting."""
        return self.cells.get(((cell.method, cell.setting), self.em)) if self.em else None

    @cached_property
    def slices(self) -> list[str]:
        return list(dict.fromkeys(name for run in self.runs for name in run.slices))

    def losses_of(self, method: str) -> list[Key]:
        """Columns in which a method has a cell."""
        held = {column for row, column in self.cells if row[0] == method}
        return [column for column in self.columns if column in held]

    def settings(self, method: str, column: Key) -> list[Cell]:
        """Cells of one method and loss, in the order of the rows."""
        return [self.cells[row, column] for row in self.rows if row[0] == method and (row, column) in self.cells]

    def best(self, method: str, column: Key) -> Cell | None:
        """The setting with the best mean over seeds, among the cells that have most finite seeds."""
        scored = [(cell, cell.estimate(self.metric)) for cell in self.settings(method, column)]
        most = max((score.n for _, score in scored), default=0)
        full = [(cell, score) for cell, score in scored if score.n == most > 0]
        return max(full, key=lambda pair: self.metric.sign * pair[1].mean)[0] if full else None

    @cached_property
    def varying(self) -> dict[str, tuple[str, ...]]:
        """Per method, the hyperparameters that take more than one value in this block."""
        return {method: differing([dict(s) for m, s in self.rows if m == method]) for method in self.methods}

    @cached_property
    def varying_params(self) -> dict[str, tuple[str, ...]]:
        """Per loss, the parameters that take more than one value in this block."""
        losses = {loss for loss, _ in self.columns}
        return {
            loss: differing([dict(cell.params) for cell in self.cells.values() if cell.loss == loss]) for loss in losses
        }

    def row_label(self, row: Key) -> str:
        return label(pretty(row[0]), row[1], self.varying[row[0]])

    def column_label(self, column: Key) -> str:
        """The loss with its τ and α, which are part of its name, and with whatever else varies."""
        params = dict(column[1])
        variant = next((pair for pair in VARIANTS if column[0] == "adadem" and params.get(pair[0]) == pair[1]), None)
        shown = [key for key in ("tau", "alpha") if column[0] != "adadem" and params.get(key) is not None]
        shown += [key for key in self.varying_params.get(column[0], ()) if key not in shown]
        name = pretty(column[0]) + (VARIANTS[variant] if variant else "")
        return label(name, column[1], tuple(key for key in shown if not variant or key != variant[0]))

    def loss_label(self, cell: Cell) -> str:
        """The loss of a cell with its own parameters; a dash where it has none."""
        return "–" if cell.loss is None else self.column_label((cell.loss, cell.params))

    def column_of(self, cell: Cell) -> Key | None:
        """The column that holds a cell; None where it has no loss."""
        if cell.loss is None or (cell.loss, cell.params) in self.columns:
            return None if cell.loss is None else (cell.loss, cell.params)
        own = dict(cell.params)
        matching = (c for c in self.columns if c[0] == cell.loss and all(own.get(k) == v for k, v in c[1]))
        return next(matching, None)

    def own_params(self, column: Key, cell: Cell) -> str:
        """What a cell's loss has beyond its column, where a column stands for several settings: "τ 1.1, α 0"."""
        return label("", cell.params, tuple(key for key, _ in cell.params if key not in dict(column[1])))

    def setting_label(self, cell: Cell) -> str:
        """Only the hyperparameters that vary: "lr 1e-3"; empty where none does."""
        return label("", cell.setting, self.varying[cell.method])

    @cached_property
    def title(self) -> str:
        names = [name for name in (self.data, self.model, self.protocol) if name != "none"]  # not every task has all
        return " · ".join([*names, *(f"{leaf(k)} {show(v)}" for k, v in self.distinct.items())])


def build_blocks(runs: Iterable[Run]) -> list[Block]:
    """Groups runs into blocks, ordered by task, data, model and protocol."""
    named = defaultdict(list)
    for run in runs:
        named[run.task, run.data, run.model, run.protocol].append(run)
    blocks = []
    for names in sorted(named, key=lambda n: (rank("task", n[0]), *n[:3], rank("protocol", n[3]), n[3])):
        contexts = contexts_of(named[names])
        groups: dict[Setting, list[Run]] = defaultdict(list)
        for run, context in zip(named[names], contexts, strict=True):
            groups[freeze(context)].append(run)
        differs = telling([dict(key) for key in groups])
        for key in sorted(groups, key=order):
            metric = primary(names[0], groups[key])
            distinct = {name: dict(key).get(name) for name in differs}
            block = Block(*names, dict(key), groups[key], metric, distinct)
            fill(block)
            blocks.append(block)
    return blocks


def fill(block: Block) -> None:
    """Sorts the runs of a block into cells, one run per seed and cell."""
    by_method = defaultdict(list)
    for run in block.runs:
        by_method[method_of(run)].append(run)
    for method, runs in by_method.items():
        free = all(is_free(run) for run in runs)
        grouped: dict[tuple[Key, Key | None], dict[int, Run]] = defaultdict(dict)
        for run in runs:
            row = (method, own_setting(run, "method"))
            column = None if free else (run.loss, own_setting(run, "loss"))
            first = grouped[row, column].setdefault(run.seed, run)
            if first is not run and not (free and first.score(block.metric.name) == run.score(block.metric.name)):
                reason = f"same method, setting, loss and seed as run {first.id}, which is used"
                block.aside.append(Aside(run.id, reason))
        for (row, column), seeds in grouped.items():
            chosen = tuple(seeds[seed] for seed in sorted(seeds))
            loss, params = column or (None, ())
            cell = Cell(*row, loss, params, chosen, block.seeds)
            if column is None:
                block.free[row] = cell
            else:
                block.cells[row, column] = cell
    merge_columns(block)


def merge_columns(block: Block) -> None:
    """Gives a loss one column where no row has it with two settings, such as DEM with a (tau, alpha) per method."""
    for loss in {column[0] for _, column in block.cells}:
        held = [(row, column) for row, column in block.cells if column[0] == loss]
        settings = [dict(column[1]) for _, column in held]
        if len(held) == len({row for row, _ in held}) and (different := differing(settings)):
            shared = freeze({key: value for key, value in settings[0].items() if key not in different})
            for row, column in held:
                block.cells[row, (loss, shared)] = block.cells.pop((row, column))


def method_of(run: Run) -> str:
    """A method's name, with its preset where that is not the authors' own: "tent (mariodoebler)"."""
    node = run.config.get("method")
    preset = node.get("preset") if isinstance(node, dict) else None
    if not isinstance(preset, str):
        return run.method
    name = run.method.removesuffix(f"_{preset}")
    return name if preset == OFFICIAL else f"{name} ({preset})"


def is_free(run: Run) -> bool:
    """Whether the run optimised nothing: it recorded no backward pass."""
    return run.cost.get("backward_passes") == 0


def contexts_of(runs: list[Run]) -> list[dict[str, Any]]:
    """What a number depends on besides method, loss and seed, for each run. Paths are left out, whether one was given
    is kept; keys that follow the seed in all runs are left out."""
    contexts = []
    for run in runs:
        flat = flatten({k: v for k, v in run.config.items() if k not in NOT_CONTEXT})
        kept: dict[str, Any] = {f"{name} fingerprint": value for name, value in run.fingerprints.items()}
        for key, value in flat.items():
            parts = key.split(".")
            if run.tuned is not None and key in run.tuned["keys"]:
                continue  # chosen, not asked for
            if parts[-1].startswith("_") or (parts[0] == "task" and (len(parts) > 2 or parts[-1] in run.config)):
                continue  # the task node repeats the other groups
            if parts[-1] in PATHS:
                value = None if value is None or parts[-1] == "cache" else "given"
            kept[key] = value
        contexts.append(kept)
    seeds = {k for context in contexts for k in context if k.endswith("seed")}
    for key in seeds:
        if all(context.get(key, run.seed) == run.seed for context, run in zip(contexts, runs, strict=True)):
            for context in contexts:
                context.pop(key, None)
    return contexts


def own_setting(run: Run, group: str) -> Setting:
    """The hyperparameters of a run's method or loss, without those that a tuning chose: runs that were tuned alike are
    one row, each loss at its own values."""
    chosen = () if run.tuned is None else run.tuned["keys"]
    return tuple((key, value) for key, value in setting_of(run.config.get(group)) if f"{group}.{key}" not in chosen)


def setting_of(node: Any) -> Setting:
    """The hyperparameters of a method or loss node: constructor arguments without Hydra's own keys."""
    if not isinstance(node, dict):
        return ()
    parts = node.get("clustering")  # of TTC, in another method; none of them on is the same as no such key
    idle = not isinstance(parts, dict) or not any(v for k, v in parts.items() if k != "augment")
    left_out = ("loss", "model", "preset", "search", *(("clustering",) if idle else ()))
    flat = flatten({k: v for k, v in node.items() if k not in left_out})
    return freeze({k: v for k, v in flat.items() if not leaf(k).startswith("_")})


def flatten(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one of dotted keys; lists become tuples."""
    flat = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = freeze_list(value)
    return flat


def freeze_list(value: Any) -> Any:
    if isinstance(value, dict):
        return freeze(value)
    return tuple(map(freeze_list, value)) if isinstance(value, list | tuple) else value


def freeze(node: dict[str, Any]) -> Setting:
    return tuple(sorted(node.items(), key=lambda item: item[0]))


def telling(contexts: list[dict[str, Any]]) -> tuple[str, ...]:
    """The keys that tell contexts apart, without fingerprints where the other keys do it."""
    differs = differing(contexts)
    plain = tuple(key for key in differs if not key.endswith(" fingerprint"))
    apart = {freeze({key: context.get(key) for key in plain}) for context in contexts}
    return plain if len(apart) == len(contexts) else differs


def differing(nodes: list[dict[str, Any]]) -> tuple[str, ...]:
    """Keys that do not have one and the same value in all ``nodes``, sorted; an absent key counts as a value."""
    absent = object()
    keys = sorted({key for node in nodes for key in node})
    return tuple(key for key in keys if len({repr(node.get(key, absent)) for node in nodes}) > 1)


def order(setting: Setting) -> tuple[tuple[str, int, float, str], ...]:
    """A sort key under which numbers sort as numbers and anything else as text."""
    return tuple(
        (k, 0, float(v), "") if isinstance(v, int | float) and not isinstance(v, bool) else (k, 1, 0.0, str(v))
        for k, v in setting
    )


def leaf(key: str) -> str:
    return key.rsplit(".", 1)[-1]


def show(value: Any) -> str:
    """A hyperparameter as people write it: 1e-3, 0.5, yes, none."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float | int):
        text = f"{value:g}"
        if isinstance(value, float) and value and abs(value) < 0.1:
            mantissa, exponent = f"{value:e}".split("e")
            text = f"{float(mantissa):g}e{int(exponent)}"
        return text
    return ", ".join(map(show, value)) if isinstance(value, tuple) else str(value)


def label(name: str, setting: Setting, keys: tuple[str, ...]) -> str:
    values = dict(setting)
    greek = {"tau": "τ", "alpha": "α"}
    parts = [f"{greek.get(leaf(key), leaf(key))} {show(values[key])}" for key in keys if key in values]
    return " ".join(filter(None, [name, ", ".join(parts)]))

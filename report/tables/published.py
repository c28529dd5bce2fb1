"""Published numbers: beside measured ones where model and data are the same, else in tables of their own."""

from __future__ import annotations

import math
from collections.abc import Iterable

from dembench.report.judge.group import VARIANTS, Block, Cell, show
from dembench.report.judge.wording import number, plain, slice_labels
from dembench.report.read.names import pretty
from dembench.report.read.reference import Published, Reference, canonical, references
from dembench.report.tables.results import default_cell
from dembench.report.tables.table import Column, Entry, Table, capital, slug


def model_of(block: Block) -> str:
    """The architecture: what a library's model was asked for, else the model's name."""
    node = block.runs[0].config.get("model")
    arch = node.get("arch") if isinstance(node, dict) else None
    return canonical(arch if isinstance(arch, str) else block.model)


def comparable(block: Block, printed: Published) -> bool:
    """Whether a number is of this block's task, data, model, protocol and slices, all images of them."""
    severity = block.context.get("protocol.severity")
    return (
        printed.task == block.task
        and canonical(printed.data) == canonical(block.data)
        and printed.model is not None
        and canonical(printed.model) == model_of(block)
        and printed.protocol == block.protocol
        and printed.made_with.get("severity", severity) == severity
        and printed.as_metric(block.metric.name) is not None
        and same_scale(block, printed)
        and ("images" not in printed.made_with or slice_sizes(block) == {printed.made_with["images"]})
    )


def slice_sizes(block: Block) -> set[int]:
    """The numbers of samples of the slices of all runs."""
    return {run.sizes[name] for run in block.runs for name in run.slices}


def same_scale(block: Block, printed: Published) -> bool:
    """Whether batches are alike within a factor of two; Source does not mind them."""
    there, here = printed.made_with.get("batch_size"), block.context.get("protocol.batch_size")
    return printed.method == "source" or there is None or here is None or there <= 2 * here <= 4 * there


def counterpart(block: Block, printed: Published) -> Cell | None:
    """The measured cell that a number stands beside: its method, loss and settings, at its learning rate where there is
    one, else at the default."""
    cells = [*block.free.values(), *block.cells.values()]
    cells = [cell for cell in cells if base(cell) == printed.method and cell.loss == printed.loss]
    wanted, own = printed.made_with.get("setting") or {}, printed.made_with.get("loss_setting") or {}
    fitting = []
    for cell in cells:
        setting, params = dict(cell.setting), dict(cell.params)
        variant = any(params.get(key) == value for key, value in VARIANTS) and not own
        same = all(setting.get(k) == v for k, v in wanted.items()) and all(params.get(k) == v for k, v in own.items())
        if same and not variant:
            fitting.append(cell)
    rate = printed.made_with.get("lr")
    at_rate = [cell for cell in fitting if rate is not None and cell.lr is not None and math.isclose(cell.lr, rate)]
    default = [cell for cell in fitting if (c := block.column_of(cell)) and default_cell(block, cell.method, c) is cell]
    return next(iter([*at_rate, *default, *fitting]), None)


def base(cell: Cell) -> str:
    return cell.method.partition(" (")[0]


def differences(block: Block, cell: Cell, printed: Published) -> str:
    """What the paper states and we did otherwise."""
    here = {**{k: v for k, v in cell.setting if k in ("optimizer", "lr")},
            "batch_size": block.context.get("protocol.batch_size")}  # fmt: skip
    stated = {key: printed.made_with[key] for key in here if key in printed.made_with}
    if cell.loss is None:
        stated.pop("optimizer", None)
        stated.pop("lr", None)
    said = [
        f"{key.replace('_', ' ')} {show(value)} there, {show(here[key])} here"
        for key, value in stated.items()
        if here[key] is not None and here[key] != value
    ]
    return "; ".join(said) or "none stated"


def weights_of(cell: Cell, printed: Published) -> str:
    """Whether the weights are known to be the paper's: a reference states their fingerprint, or they are not."""
    here = ", ".join(sorted({run.fingerprints.get("weights", "made by the run")[:8] for run in cell.runs}))
    stated = printed.made_with.get("weights")
    if stated is None:
        return f"not known to be the same ({here} here)"
    same = all(run.fingerprints.get("weights") == stated for run in cell.runs)
    return f"the same ({here})" if same else f"other ({str(stated)[:8]} there, {here} here)"


def beside_table(block: Block, known: Iterable[Reference] | None = None) -> tuple[Table | None, set[str]]:
    """Measured numbers with the published ones below, and the names of the references that were used."""
    metric, used = block.metric, set()
    found: list[tuple[Reference, str, Cell, dict[str, Published]]] = []
    for reference in references() if known is None else known:
        for name, numbers in reference.rows:
            groups: dict[int, tuple[Cell, dict[str, Published]]] = {}
            for value in numbers:
                if value is not None and comparable(block, value) and (cell := counterpart(block, value)) is not None:
                    groups.setdefault(id(cell), (cell, {}))[1][value.slice] = value
            for cell, values in groups.values():
                found.append((reference, name, cell, values))
                used.add(reference.name)
    if not found:
        return None, used
    stated = {part for *_, values in found for part in values}
    slices = [name for name in block.slices if name.rpartition("/")[0] in stated or name in stated]
    columns = [Column("Source", numeric=False), Column("Row", numeric=False), Column("Measured", numeric=False)]
    columns += [Column(name, ("measured", "published")) for name in (*slice_labels(slices), "mean")]
    columns += [Column("Weights", numeric=False), Column("Other settings", numeric=False)]
    rows = []
    for reference, name, cell, values in found:
        what = " ".join(filter(None, [pretty(cell.method), block.setting_label(cell)]))
        what += "" if cell.loss is None else f" + {block.loss_label(cell)}"
        entries = [Entry(reference.source), Entry(name), Entry(what)]
        for part in (*slices, "mean"):
            value = values.get(part) or values.get(part.rpartition("/")[0])
            score = cell.estimate(metric, part)
            if value is None or not score.n:
                entries.append(Entry("–"))
                continue
            measured = number(score.mean, 1)
            published = number(value.as_metric(metric.name), 1)
            entries.append(Entry(measured, f"publ. {published}", (plain(measured), plain(published)), score.mean))
        first = next(iter(values.values()))
        entries += [Entry(weights_of(cell, first)), Entry(differences(block, cell, first))]
        rows.append(entries)
    unit = f" in {metric.unit}" if metric.unit else ""
    caption = (
        f"{capital(metric.label)}{unit} as measured here, and below as published (accuracies turned into errors or "
        "back), where task, name of the data, architecture, protocol and number of images are the same and batches "
        "alike within a factor of two. Unless the column says that the weights are the same, a difference may be "
        "theirs; versions of the data and what the last column names may differ, too."
    )
    title = f"{block.title}: published beside measured"
    return Table(slug("published", block.task, block.title), title, caption, columns, rows), used


def reference_table(reference: Reference) -> Table:
    """A source's table as it is printed."""
    columns = [Column("", numeric=False), *(Column(name) for name in reference.columns)]
    rows = []
    for name, numbers in reference.rows:
        entries = [Entry(name)]
        for value in numbers:
            if value is None:
                entries.append(Entry("–"))
                continue
            text = f"{value.value:g}" if reference.unit != "%" else f"{value.value:.1f}"
            entries.append(Entry(text + ("" if value.sd is None else f" ± {value.sd:g}"), "", (), value.value))
        rows.append(entries)
    unit = f" in {reference.unit}" if reference.unit else ""
    caption = f"{reference.citation}, {reference.item}: {reference.metric}{unit}. {reference.remark}".strip()
    return Table(f"reference-{reference.name}", reference.about, caption, columns, rows)

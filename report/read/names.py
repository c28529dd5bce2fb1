"""What the report calls things, in which order, and which way each metric is better.

This travels with the records: the runner writes into each what its task, method and loss say of themselves under
``_label_`` in their configurations. For records without it, and for tables of runs, the configurations of this package
are read. What has no label goes by its own name, behind the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dembench.report.read.load import Run

LABELLED = ("task", "method", "loss")  # groups whose files have labels
PROTOCOL_ORDER = ("single_domain", "continual", "gradual", "mixed", "long_tail", "label_shift", "dirichlet", "episodic")
OFFICIAL = "official"  # the preset that goes without saying
COSTS = {  # of a run: how each is called, and digits
    "wall_seconds": ("wall time (s)", 1),
    "forward_passes": ("forward passes", 0),
    "backward_passes": ("backward passes", 0),
    "updated": ("samples updated", 0),
    "resets": ("automatic resets", 1),
}
DIGITS = "made of the 1,797 pictures of 8 x 8 pixels that come with scikit-learn"
TOYS = {  # data that a reader must not take for a benchmark
    **dict.fromkeys(("digits", "digits-c", "digits-lt"), DIGITS),
    "cifar10-jpeg": "made of JPEG copies of CIFAR-10",
    "street": "street scenes drawn by this project",
}
LONGEST = 200  # characters of a title that are shown
LAST = float("inf")
Label = Mapping[str, Any]
_learnt: dict[tuple[str, str], Label] = {}  # (group, name): of the records that were read last


@dataclass(frozen=True, slots=True)
class Metric:
    """How a metric is shown: ``scale`` turns the recorded unit into ``unit``; ``sign`` is 1 where higher is better.
    What is not ``ranked`` was chosen on the test, or is no better for being high or low."""

    name: str
    label: str
    unit: str
    scale: float
    sign: int
    digits: int
    ranked: bool = True

    @property
    def column(self) -> str:
        """The head of its column in a table."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def gain_unit(self) -> str:
        """The unit of a difference, in a word."""
        return "points" if self.unit == "%" else self.unit or self.label


def learn(labels: Mapping[tuple[str, str], Label]) -> None:
    """Takes the labels that records carry, by (group, name); newer ones win."""
    _learnt.update(labels)


def checked(label: Any) -> dict[str, Any]:
    """A label of a record, as far as it is one: title, place, and metrics. Raises ValueError for anything else."""
    kinds: dict[str, tuple[type, ...]] = {"title": (str,), "order": (int, float), "mean": (str,), "metrics": (dict,)}
    own = {"title": (str,), "unit": (str,), "better": (str,), "digits": (int,), "ranked": (bool,)}

    def kept(node: Any, kinds: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
        if not isinstance(node, dict):
            raise ValueError(f"expected a label, got {type(node).__name__}")
        if wrong := [key for key, value in node.items() if not isinstance(value, kinds.get(key, (object,)))]:
            raise ValueError(f"label: {wrong[0]} is a {type(node[wrong[0]]).__name__}")
        return {
            key: value[:LONGEST] if isinstance(value, str) else value for key, value in node.items() if key in kinds
        }

    found = kept(label, kinds)
    if "metrics" in found:
        found["metrics"] = {str(name): kept(node or {}, own) for name, node in found["metrics"].items()}
    return found


def label_of(group: str, name: str) -> Label:
    """What is known of a name, without what it has in brackets; empty where nothing is."""
    base = name.partition(" (")[0]
    return _learnt.get((group, base)) or packaged().get((group, base)) or {}


@cache
def packaged() -> dict[tuple[str, str], Label]:
    """The labels in the configurations of this package, by (group, name)."""
    found: dict[tuple[str, str], Label] = {}
    root = resources.files("dembench.configs")
    for group in LABELLED:
        for folder in (root.joinpath(group), *(f for f in root.joinpath(group).iterdir() if f.is_dir())):
            for file in folder.iterdir():
                if file.name.endswith(".yaml") and (label := _label_in(file)):
                    found.setdefault((group, file.name[:-5]), label)
    return found


def _label_in(file: Traversable) -> Label | None:
    import yaml

    text = file.read_text(encoding="utf-8")
    if "_label_:" not in text:
        return None
    found = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return found["_label_"] if isinstance(found, dict) else None


def metrics_of(task: str) -> dict[str, Metric]:
    """The metrics that a task declares, the one it is judged by first."""
    return _metrics(_frozen(label_of("task", task).get("metrics") or {}))


def _frozen(node: Mapping[str, Any]) -> tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]:
    return tuple((str(name), tuple((own or {}).items())) for name, own in node.items())


@cache
def _metrics(declared: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]) -> dict[str, Metric]:
    found = {}
    for name, items in declared:
        own = dict(items)
        unit = str(own.get("unit", ""))
        title, sign = str(own.get("title", name.replace("_", " "))), -1 if own.get("better") == "lower" else 1
        digits = int(own.get("digits", 2 if unit == "%" else 3))
        found[name] = Metric(name, title, unit, 100 if unit == "%" else 1, sign, digits, own.get("ranked") is not False)
    return found


def metric_of(task: str, name: str) -> Metric:
    """A metric of a task; one that it does not declare is shown as recorded, higher taken as better."""
    return metrics_of(task).get(name) or Metric(name, name, "", 1, 1, 3)


def mean_of(task: str) -> str:
    """What a task's numbers are over, beside the seeds."""
    return str(label_of("task", task).get("mean", "mean over slices"))


def primary(task: str, runs: Iterable[Run]) -> Metric:
    """The metric that a task is judged by: the first it declares that its runs recorded, else their first."""
    present = dict.fromkeys(name for run in runs for name in run.units)
    declared = metrics_of(task)
    name = next((n for n in declared if n in present), next(iter(present), next(iter(declared), "error")))
    return metric_of(task, name)


def pretty(name: str) -> str:
    """The name as people write it; what a method's name has in brackets, such as its preset, stays."""
    base, bracket, rest = name.partition(" (")
    title = next((label["title"] for group in LABELLED if "title" in (label := label_of(group, base))), base)
    return str(title) + bracket + rest


def rank(group: str, name: str) -> float:
    """The place of a name, without what it has in brackets, among those of its group; behind all where it has none."""
    if group == "protocol":
        return PROTOCOL_ORDER.index(name) if name in PROTOCOL_ORDER else LAST
    order = label_of(group, name).get("order")
    return float(order) if isinstance(order, int | float) else LAST

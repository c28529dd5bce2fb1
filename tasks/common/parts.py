"""Which part of its data a run is judged on: all of it, a labelled share for the search of DEM*, or the rest.

The parts "search" and "rest" share no sample, whatever the method, loss and seed of the run, so that a setting that was
found on one can be judged on the other. A task that knows parts takes an argument ``part`` and has an attribute
``splits``: True where the search has a share of the very samples that are judged otherwise, False where it has labelled
samples of its own that are never judged, such as validation images.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from dembench.tasks.base import PART_KEYS, PARTS, Note
from dembench.tasks.common.orders import generator

ALL = PARTS[0]
KEYS = PART_KEYS  # a run on all data is recorded without
UNSET = ("criteria", "tuned", "sequential")  # keys that are recorded only where they are asked for


class DataPart:
    """A part of each set of samples. (No dataclass: Hydra would make a node of one.)

    Args:
        use: "search" or "rest".
        share: of the samples that the search has, between 0 and 1.
        seed: which of them.
        criteria: measure also what a setting can be chosen by without labels, see ``tasks.common.criteria``.
    Raises: ValueError for another part, a share or a seed out of range, or criteria on the rest.
    """

    def __init__(
        self, use: Literal["search", "rest"], share: float = 0.2, seed: int = 0, criteria: bool = False
    ) -> None:
        if use not in ("search", "rest"):
            raise ValueError(f"part: expected search or rest, got {use!r}")
        if not 0 < share < 1:
            raise ValueError(f"search_share: expected a number between 0 and 1, got {share!r}")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"search_seed: expected a whole number >= 0, got {seed!r}")
        if criteria and use != "search":
            raise ValueError("criteria=true is for part=search: nothing is chosen on the rest")
        self.use, self.share, self.seed, self.criteria = use, share, seed, criteria

    def __repr__(self) -> str:
        return f"DataPart({self.use!r}, {self.share!r}, {self.seed!r})"

    def size(self, total: int) -> int:
        """How many of ``total`` samples this part has. Raises ValueError where that is none or all of them."""
        searched = round(self.share * total)
        if not 0 < searched < total:
            raise ValueError(f"search_share={self.share:g} of {total} samples leaves one part empty")
        return searched if self.use == "search" else total - searched

    def choose(self, labels: Tensor) -> Tensor:
        """Positions of this part's samples, int64, ascending; the share of each class is the same but for rounding.

        Args:
            labels: (N,) integers; all alike where there are no classes.
        """
        total = len(labels)
        self.size(total)
        searched = round(self.share * total)
        order = torch.randperm(total, generator=generator("part", self.seed))
        order = order[labels[order].argsort(stable=True)]  # class by class, each in random order
        taken = torch.zeros(total, dtype=torch.bool)
        taken[(torch.arange(searched, dtype=torch.float64).add_(0.5) * total / searched).long()] = True
        return order[taken == (self.use == "search")].sort().values

    def block(self, total: int) -> Tensor:
        """Positions, int64, ascending, where neighbours are alike, as frames of a film are: the search has consecutive
        samples (round the end), the rest all others."""
        self.size(total)
        first = int(torch.randint(total, (1,), generator=generator("block", self.seed)))
        taken = torch.zeros(total, dtype=torch.bool)
        taken[(torch.arange(round(self.share * total)) + first) % total] = True
        return (taken == (self.use == "search")).nonzero()[:, 0]

    def note(self, what: str, total: int) -> Note:
        """The sentence that belongs beside the numbers of a split: ``what`` is "images of each domain"."""
        how = f"{self.share:.0%} by search_seed={self.seed}"
        if self.use == "search":
            text = f"judged on {self.size(total)} of {total} {what}, the part for the search of DEM* ({how})"
        else:
            text = f"judged on {self.size(total)} of {total} {what}: those that the search of DEM* has not seen ({how})"
        return Note("part", text)


class Around:
    """Wraps a dataset; everything not overridden is forwarded."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __getattr__(self, name: str) -> Any:
        if name == "data" or name.startswith("__"):  # not there yet, while an object is unpickled
            raise AttributeError(name)
        return getattr(self.data, name)


class PartOf(Around):
    """A data set of which only a part is shown."""

    def __init__(self, data: Any, part: DataPart) -> None:
        super().__init__(data)
        self.part = part


def without_default(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without the keys of the part where that is all of the data, and without those of ``UNSET`` that
    are not."""
    left_out = KEYS if config.get("part") == ALL else ()
    return {k: v for k, v in config.items() if k not in left_out and (k not in UNSET or v)}


def arguments(config: Mapping[str, Any], task: Any) -> dict[str, DataPart]:
    """What the task is given beside its configuration: ``part``, or nothing where it is judged on all of its data.

    Args:
        config: resolved, with the keys of the part or without them.
        task: the class of the task.
    Raises: ValueError where the task does not support parts, or for a share or a seed out of range.
    """
    if config.get("part", ALL) == ALL:
        return {}
    if "part" not in inspect.signature(task).parameters:
        raise ValueError(f"part={config['part']}: the task {config['choices']['task']} does not support it")
    return {"part": DataPart(*(config[key] for key in KEYS[:3]), criteria=config.get("criteria", False))}

"""What a task yields and what the runner relies on: events, and the Task and Method protocols.

A task is given a way to make a method and yields events; the runner writes them down. Nothing here
knows a dataset, a model or a configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor  # the report reads runs without PyTorch

PARTS = ("all", "search", "rest")  # of the data, see tasks.common.parts
PART_KEYS = ("part", "search_share", "search_seed", "criteria")  # of a configuration; absent where all is judged
PRECISIONS = ("fp32", "bf16")  # bf16: autocast where the task says so

SAVE = ("none", "last", "best_validation")  # weights that a run keeps, see tasks.common.keep


@dataclass(frozen=True, slots=True)
class Row:
    """One measured number: ``metric`` over the ``n`` samples of ``slice`` ("mean" is the mean over slices)."""

    slice: str
    metric: str
    value: float
    unit: str
    n: int


@dataclass(frozen=True, slots=True)
class Point:
    """One batch of a stream. ``entropy`` (nats) and ``loss`` are batch means, ``updated`` counts the samples that
    took part in an update; ``loss`` is None where the method optimises nothing."""

    step: int
    slice: str
    n: int
    correct: int
    entropy: float
    loss: float | None
    updated: int


@dataclass(frozen=True, slots=True)
class Scalars:
    """One step of a learning curve: named numbers at ``step``, such as environment steps or updates."""

    step: int
    slice: str
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts per class over one slice: what was predicted, and what was true."""

    slice: str
    predicted: tuple[int, ...]
    label: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Flag:
    """Something that forbids averaging this run in silently."""

    kind: Literal["collapse", "nan", "unlearned"]
    slice: str
    message: str


@dataclass(frozen=True, slots=True)
class Note:
    """What a reader of the numbers must know, such as a substitute for missing data; ``key`` names its topic."""

    key: str
    text: str


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file that belongs to the run, such as a picture; ``name`` is a plain file name."""

    name: str
    content: bytes


Event = Row | Point | Scalars | Histogram | Flag | Note | Artifact


class ConfigError(ValueError):
    """Something the user can put right; the message is one line."""


class Method(Protocol):
    """Adapts a model to the inputs that it is shown. Sees inputs, never labels."""

    forward_passes: int
    backward_passes: int
    updated: int  # samples that took part in an update
    last_loss: Tensor | None  # mean loss of the latest batch, on the device, or None

    def __call__(self, x: Tensor) -> Tensor:
        """Predicts one batch, (N, 3, H, W) in [0, 1] to logits (N, C), and learns from it."""
        ...

    def reset(self) -> None:
        """Back to the state of construction, bit for bit."""
        ...


class Task(Protocol):
    """A protocol over data and a model. ``len()`` is the number of Points and Scalars that ``run`` will yield.

    A class attribute ``auto_device`` of "cpu" keeps ``device=auto`` on the CPU where there is a GPU.
    """

    def __len__(self) -> int: ...

    def run(self, make_method: Callable[..., Method]) -> Iterator[Event]: ...

"""The streams of corruption TTA: which images come when, and where a method starts afresh.

An image's place depends on the order seed, the name and the severity of its corruption and its own number, by a hash;
neither on the other corruptions of the stream nor on how many there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from dembench.lookup import lookup
from dembench.tasks.common.corruptions import SEVERITIES
from dembench.tasks.common.corruptions.draws import Draws

LabelOrder = Literal["shuffled", "sorted", "dirichlet"]


@dataclass(frozen=True)
class Protocol:
    """Which domains come in which order, what a batch is, and what is forgotten in between.

    A domain is a corruption at a severity. Several severities come one after the other, each with all corruptions.

    Args:
        reset: True starts the method afresh before each domain (single-domain), False never does (continual).
        severity: 1 to 5, one or a list, each once.
        corruptions: names in the order of the stream, each once; None is all that the data has, in its order.
        batch_size: images a batch; the last of a domain may be smaller.
        order_seed: shuffles the images of each domain; None keeps the order of the data.
        episodic: the method starts afresh before each batch, too.
        gradual: each corruption climbs through the severities, which ascend, and down again.
        mixed: the images of all domains in one shuffled stream; the numbers are still reported for each domain.
        label_order: "shuffled" leaves the labels to the shuffle; "sorted" shows one class after the other; "dirichlet"
            cuts each class into as many chunks as there are classes, in proportions from Dirichlet(delta, ..., delta),
            and shows chunk after chunk, in each one class after the other in random order (as NOTE, Gong et al. 2022,
            without its rule that evens out the chunks).
        delta: of "dirichlet", > 0; the smaller, the longer the runs of one label. None for the other orders.
        window: each image is predicted in one batch with the ``window`` - 1 images before it, and the method learns
            from that batch once in ``window`` images; needs batch_size 1. None: plain batches.
        rho: >= 1; the class sizes of each domain fall exponentially from head to tail, rho to 1, as
            ``tasks.common.long_tail`` says; the head has as many images as the smallest class of the domain. Which
            images of a class stay follows from ``order_seed``. None keeps all images.
        reverse: of ``rho``: the last class is the head, not the first.
        visits: how often the whole stream of domains comes, each time in another order of the images; with more than
            one the numbers are those of each visit (recurring test-time adaptation, Hoang et al. 2024, has 20).
    Raises: ValueError for values outside these, and for settings that contradict each other.
    """

    reset: bool
    severity: int | Sequence[int] = 5
    corruptions: Sequence[str] | None = None
    batch_size: int = 200
    order_seed: int | None = 0
    episodic: bool = False
    gradual: bool = False
    mixed: bool = False
    label_order: LabelOrder = "shuffled"
    delta: float | None = None
    window: int | None = None
    rho: float | None = None
    reverse: bool = False
    visits: int = 1

    def __post_init__(self) -> None:
        self._check_severities()
        self._check_corruptions()
        if not _is_whole(self.batch_size) or self.batch_size < 1:
            raise ValueError(f"protocol: expected a whole batch_size >= 1, got {self.batch_size!r}")
        if self.order_seed is not None and not _is_whole(self.order_seed):
            raise ValueError(f"protocol: expected order_seed to be a whole number or null, got {self.order_seed!r}")
        for name in ("reset", "episodic", "gradual", "mixed", "reverse"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"protocol: expected {name} to be true or false, got {getattr(self, name)!r}")
        if self.gradual and self.mixed:
            raise ValueError("protocol: gradual and mixed are two streams; choose one")
        if self.reset and (self.gradual or self.mixed):
            raise ValueError(f"protocol: a {'gradual' if self.gradual else 'mixed'} stream is one; use reset=false")
        if self.mixed and self.order_seed is None:
            raise ValueError("protocol: a mixed stream is a shuffled one; give an order_seed")
        if not _is_whole(self.visits) or self.visits < 1:
            raise ValueError(f"protocol: expected a whole number of visits >= 1, got {self.visits!r}")
        if self.visits > 1 and (self.reset or self.mixed):
            raise ValueError("protocol: domains recur in a continual or gradual stream; use reset=false, mixed=false")
        self._check_labels()
        self._check_tail()
        if self.window is not None:
            if not _is_whole(self.window) or self.window < 2:
                raise ValueError(f"protocol: expected a whole window >= 2 or null, got {self.window!r}")
            if self.batch_size != 1:
                raise ValueError(f"protocol: a window takes images one by one; use batch_size=1, not {self.batch_size}")
            if self.episodic:
                raise ValueError("protocol: an episodic method keeps nothing, so a window does nothing; choose one")

    @property
    def severities(self) -> tuple[int, ...]:
        return (self.severity,) if isinstance(self.severity, int) else tuple(self.severity)

    def _check_severities(self) -> None:
        given = self.severity if isinstance(self.severity, Sequence) else (self.severity,)
        if isinstance(given, str) or not given or not all(_is_whole(s) and s in SEVERITIES for s in given):
            raise ValueError(f"protocol: expected severity 1 to 5, or a list of these, got {self.severity!r}")
        if len(set(given)) < len(given):
            raise ValueError(f"protocol: expected each severity once, got {', '.join(map(str, given))}")
        if self.gradual and (len(given) < 2 or list(given) != sorted(given)):
            raise ValueError(f"protocol: a gradual stream needs severities that ascend, got {self.severity!r}")

    def _check_corruptions(self) -> None:
        if self.corruptions is None:
            return
        if isinstance(self.corruptions, str) or not isinstance(self.corruptions, Sequence) or not self.corruptions:
            raise ValueError(f"protocol: expected a list of one or more corruptions, got {self.corruptions!r}")
        if len(set(self.corruptions)) < len(self.corruptions):
            raise ValueError(f"protocol: expected each corruption once, got {', '.join(self.corruptions)}")

    def _check_labels(self) -> None:
        lookup(self.label_order, get_args(LabelOrder), "protocol.label_order")
        if self.label_order != "dirichlet":
            if self.delta is not None:
                raise ValueError(f"protocol: delta belongs to label_order=dirichlet, not to {self.label_order}")
            return
        if self.order_seed is None:
            raise ValueError("protocol: label_order=dirichlet draws its chunks; give an order_seed")
        if not _is_number(self.delta) or not 0 < self.delta < math.inf:
            raise ValueError(f"protocol: label_order=dirichlet needs delta > 0, got {self.delta!r}")

    def _check_tail(self) -> None:
        if self.rho is None:
            if self.reverse:
                raise ValueError("protocol: reverse belongs to a long tail; give rho, too")
            return
        if not _is_number(self.rho) or not 1 <= self.rho < math.inf:
            raise ValueError(f"protocol: expected rho >= 1 or null, got {self.rho!r}")
        if self.order_seed is None:
            raise ValueError("protocol: rho draws the images that stay; give an order_seed")


@dataclass(frozen=True)
class Domain:
    """A corruption at a severity (None: the data has no severities); ``name`` is its slice in the results."""

    corruption: str
    severity: int | None
    name: str
    visit: int = 1


@dataclass(frozen=True)
class Part:
    """A stretch of the stream whose images are shuffled together; ``name`` is the slice of its points.

    Parts of one name that follow each other are measured as one.
    """

    name: str
    domains: tuple[Domain, ...]


def parts(protocol: Protocol, corruptions: Sequence[str], *, graded: bool = True) -> list[Part]:
    """The stream of ``protocol`` over ``corruptions``; data that is not ``graded`` has one domain for each.

    Raises: ValueError for a gradual stream over data without severities.
    """
    if not graded:
        if protocol.gradual:
            raise ValueError("protocol: a gradual stream needs data with severities")
        domains = [Domain(name, None, name) for name in corruptions]
    elif protocol.gradual:
        domains = [
            Domain(name, severity, f"{name}/{severity}{way}")
            for name in corruptions
            for way, severities in (("", protocol.severities), (" falling", protocol.severities[-2::-1]))
            for severity in severities
        ]
    else:
        domains = [Domain(name, s, f"{name}/{s}") for s in protocol.severities for name in corruptions]
    if protocol.mixed:
        return [Part("mixed", tuple(domains))]
    if protocol.visits > 1:
        domains = [replace(own, name=f"visit {k}", visit=k) for k in range(1, protocol.visits + 1) for own in domains]
    return [Part(domain.name, (domain,)) for domain in domains]


def image_order(protocol: Protocol, domains: Sequence[Domain], labels: Sequence[Tensor]) -> Tensor:
    """In which order the images of ``domains``, put one after the other, are shown; int64, each number once.

    Args:
        labels: of each domain, (N,) int64 each.
    """
    everything = torch.cat(list(labels))
    order = torch.arange(len(everything))
    if protocol.order_seed is not None:
        order = torch.cat([_keys(protocol.order_seed, *pair) for pair in zip(domains, labels, strict=True)]).argsort()
    if protocol.label_order == "sorted":
        order = order[everything[order].argsort(stable=True)]
    if protocol.label_order == "dirichlet":
        name = domains[0] if len(domains) == 1 else Domain("mixed", None, "mixed")
        seed = Draws(protocol.order_seed or 0, name.corruption, name.severity or 0, order[:0]).base
        chunks = dirichlet_chunks(everything[order].numpy(), float(protocol.delta or 0), seed)
        order = order[torch.from_numpy(np.concatenate(chunks))]
    return order


def _keys(seed: int, domain: Domain, labels: Tensor) -> Tensor:
    """A random number for each image, by hash: it is the same whatever else is in the stream."""
    purpose = "order" if domain.visit == 1 else f"order of visit {domain.visit}"
    return Draws(seed, domain.corruption, domain.severity or 0, torch.arange(len(labels))).bits(purpose)


def dirichlet_chunks(labels: np.ndarray, delta: float, seed: int) -> list[np.ndarray]:
    """Positions of ``labels`` (N,) in as many chunks as there are classes, see ``Protocol.label_order``.

    Within a class the given order is kept.
    """
    generator = np.random.default_rng(seed)
    classes = np.unique(labels)
    pieces = []  # per class its positions in each chunk
    for label in classes:
        own = np.flatnonzero(labels == label)
        shares = generator.dirichlet([delta] * len(classes))
        pieces.append(np.split(own, np.rint(shares.cumsum()[:-1] * len(own)).astype(int)))
    return [
        np.concatenate([pieces[k][chunk] for k in generator.permutation(len(classes))]) for chunk in range(len(classes))
    ]


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

"""Which training samples are labelled, unlabelled or held out: counts per class, and the choice by a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Positions in the training pool, int64, ascending."""

    labelled: Tensor
    unlabelled: Tensor
    validation: Tensor


def long_tail_counts(
    head: int, rho: float, num_classes: int, *, reverse: bool = False, tail: Literal["refuse", "clamp"] = "refuse"
) -> tuple[list[int], int]:
    """Samples per class, n_c = int(head * rho^(-c / (C - 1))), and how many classes were raised from 0 to 1.

    Args:
        head: samples of the first class.
        rho: head over tail; 1 is balanced.
        reverse: the last class is the head.
        tail: what to do where a class would be empty: "refuse", or "clamp" it to one sample.
    Raises: ValueError for rho < 1, head < 0, or an empty class that is refused.
    Source: Cao et al., Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss, 2019.
    """
    if rho < 1 or head < 0 or num_classes < 2:
        raise ValueError(
            f"long tail: expected rho >= 1, head >= 0, two classes or more, got {rho}, {head}, {num_classes}"
        )
    counts = [int(head * rho ** (-c / (num_classes - 1))) for c in range(num_classes - 1)] + [int(head / rho)]
    empty = sum(count == 0 for count in counts)
    if empty and tail == "refuse":
        raise ValueError(
            f"long tail: {empty} of {num_classes} classes would be empty with {head} at the head and rho {rho:g}; "
            "use a smaller rho, or data.tail=clamp, which gives each of them one sample"
        )
    counts = [max(count, 1) for count in counts]
    return (counts[::-1] if reverse else counts), empty


def choose(
    labels: Tensor,
    labelled: Sequence[int],
    unlabelled: Sequence[int] | None = None,
    *,
    validation: int = 0,
    include_labelled: bool = False,
    seed: int = 0,
) -> Split:
    """Chooses by a permutation of each class: first the validation samples, then the labelled, then the unlabelled.

    So a larger labelled set contains the smaller one of the same seed, and validation is the same for all of them.

    Args:
        labels: (N,) int64 of the pool, -1 where the class is not known.
        labelled: samples per class.
        unlabelled: samples per class; None takes all that are left, and those of unknown class.
        validation: samples per class held out.
        include_labelled: the labelled samples are among the unlabelled ones, too.
        seed: of the permutations.
    Raises: ValueError where a class has too few.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: tuple[list[Tensor], ...] = ([], [], [])
    for c, count in enumerate(labelled):
        own = (labels == c).nonzero()[:, 0]
        own = own[torch.randperm(len(own), generator=generator)]
        rest = len(own) - validation - count
        more = max(rest, 0) if unlabelled is None else unlabelled[c]
        if rest < more or rest < 0:
            need = f"{validation} validation + {count} labelled + {more} unlabelled"
            raise ValueError(f"class {c} has {len(own)} samples, {need} were asked for")
        kept, chosen, free = own[:validation], own[validation : validation + count], own[validation + count :][:more]
        for part, found in zip(parts, (chosen, free, kept), strict=True):
            part.append(found)
    if unlabelled is None:
        parts[1].append((labels < 0).nonzero()[:, 0])
    if include_labelled:
        parts[1].extend(parts[0])
    return Split(*(torch.cat(part).sort().values for part in parts))

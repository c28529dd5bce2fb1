"""Which training samples are labelled, unlabelled or held out: the choice by a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Positions in the training pool, int64, ascending."""

    labelled: Tensor
    unlabelled: Tensor
    validation: Tensor


def choose(
    labels: Tensor,
    labelled: Sequence[int],
    unlabelled: Sequence[int] | None = None,
    *,
    validation: int = 0,
    include_labelled: bool = False,
    seed: int = 0,
    names: Sequence[str] = (),
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
        names: of the classes, for the error.
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
            name = f"{c} ({names[c]})" if names and names[c] != str(c) else c
            raise ValueError(f"class {name} has {len(own)} samples, {need} were asked for")
        kept, chosen, free = own[:validation], own[validation : validation + count], own[validation + count :][:more]
        for part, found in zip(parts, (chosen, free, kept), strict=True):
            part.append(found)
    if unlabelled is None:
        parts[1].append((labels < 0).nonzero()[:, 0])
    if include_labelled:
        parts[1].extend(parts[0])
    return Split(*(torch.cat(part).sort().values for part in parts))

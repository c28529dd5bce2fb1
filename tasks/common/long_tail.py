"""Class sizes that fall exponentially from head to tail."""

from __future__ import annotations

from typing import Literal


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

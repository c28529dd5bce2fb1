"""AdaDEM's table by rows, for many classes: a class has a row of its own once it has been predicted.

All others have kept 1/C, and share row 0. Where the table is square, it is ``rows[slots]``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MANY = 1 << 13  # classes; with more the table, 256 MB by then, is kept by rows


class Rows(NamedTuple):
    """``rows`` (1 + K, C), 1/C where no class has the row; ``slots`` (C,), int64, the row of each class."""

    rows: Tensor
    slots: Tensor


Table = Tensor | Rows


def many(classes: int) -> bool:
    """Whether a table of so many classes is kept by rows, unless told otherwise."""
    return classes > MANY


def uniform_rows(classes: int, room: int, *, device: torch.device | str | None, dtype: torch.dtype) -> Rows:
    """Nothing predicted yet, and room for as many classes."""
    rows = torch.full((1 + min(room, classes), classes), 1 / classes, device=device, dtype=dtype)
    return Rows(rows, torch.zeros(classes, device=device, dtype=torch.int64))


def slots_with(slots: Tensor, named: Tensor) -> Tensor:
    """The slots once each named class, (C,) bool, has one of its own: new ones follow those in use."""
    fresh = named & (slots == 0)
    return torch.where(fresh, slots.amax() + fresh.cumsum(0), slots)


def with_room(rows: Tensor, slots: Tensor) -> Tensor:
    """The rows, or more of them where these are too few for the slots. Synchronises with the device."""
    needed, there, classes = int(slots.amax()) + 1, rows.shape[0], rows.shape[1]
    if needed <= there:
        return rows
    with torch.inference_mode(False):
        more = rows.new_full((min(max(needed, there + there // 4), classes + 1), classes), 1 / classes)
    more[:there] = rows
    return more


def by_rows(square: Tensor) -> Rows:
    """A square table by rows."""
    classes = square.shape[1]
    named = (square != square.new_tensor(1 / classes)).any(1)
    slots = slots_with(named.new_zeros(classes, dtype=torch.int64), named)
    return Rows(torch.cat([square.new_full((1, classes), 1 / classes), square[named]]), slots)

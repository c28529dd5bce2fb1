"""Seeds that follow from what they are for, and endless orders of samples that follow from a seed and a position."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def derived_seed(*parts: object) -> int:
    """A seed that follows from ``parts`` and shares nothing with those of others."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()) >> 1


def generator(*parts: object) -> torch.Generator:
    """A generator of torch that starts from ``derived_seed``."""
    return torch.Generator().manual_seed(derived_seed(*parts))


class Order:
    """An endless order of ``n`` samples, shuffled anew each time all have been drawn."""

    def __init__(self, n: int, *parts: object) -> None:
        self.n, self.parts = n, parts
        self._epochs: dict[int, Tensor] = {}

    def rows(self, first: int, count: int) -> Tensor:
        """Positions of draws ``first`` to ``first + count - 1``, int64."""
        found = []
        for epoch in range(first // self.n, (first + count - 1) // self.n + 1):
            if epoch not in self._epochs:
                self._epochs = {k: v for k, v in self._epochs.items() if k >= epoch - 1}
                self._epochs[epoch] = torch.randperm(self.n, generator=generator(*self.parts, epoch))
            start = epoch * self.n
            found.append(self._epochs[epoch][max(first - start, 0) : first + count - start])
        return torch.cat(found)

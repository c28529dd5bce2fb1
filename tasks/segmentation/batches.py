"""Batches that follow from a seed and an iteration: pairs of a source and a target image, divided over processes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from dembench.tasks.common.orders import Order, derived_seed
from dembench.tasks.segmentation.protocol import Protocol


class ImagePairs(Dataset):
    """The endless sequence of source and target images that follows from a seed; item i is the i-th pair.

    Whatever a dataset draws at random while it loads follows from the seed and i as well.
    """

    def __init__(self, source: Dataset, target: Dataset, seed: int):
        self.parts = {"source": source, "target": target}
        self.orders = {name: Order(len(part), seed, name) for name, part in self.parts.items()}
        self.seed = seed

    def __getitem__(self, draw: int) -> dict[str, Any]:
        found = {}
        for name, part in self.parts.items():
            seed = derived_seed(self.seed, draw, name)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.default_generator.manual_seed(seed)  # images are on the CPU; torch.manual_seed takes milliseconds
            found[name] = part[int(self.orders[name].rows(draw, 1))]
        return found


class Share(Sampler[int]):
    """The draws of one process from iteration ``start`` on: its part of each batch."""

    def __init__(self, start: int, protocol: Protocol, rank: int = 0):
        self.start, self.protocol, self.rank = start, protocol, rank

    def __iter__(self) -> Iterator[int]:
        batch = self.protocol.batch_size
        share = batch // self.protocol.devices
        for step in range(self.start, self.protocol.iterations):
            first = step * batch + self.rank * share
            yield from range(first, first + share)

    def __len__(self) -> int:
        return (self.protocol.iterations - self.start) * self.protocol.batch_size // self.protocol.devices


def collate(items: list[dict[str, Any]]) -> dict[str, dict[str, list[Any]]]:
    """Pairs to a batch of PackSegInputs for each domain; nothing is stacked."""
    return {name: {key: [item[name][key] for item in items] for key in ("inputs", "data_samples")} for name in items[0]}


def batches(pairs: ImagePairs, protocol: Protocol, start: int, rank: int = 0) -> Iterator[dict[str, Any]]:
    """One process's share of each batch, from iteration ``start`` on."""
    loader = DataLoader(
        pairs,
        batch_size=protocol.batch_size // protocol.devices,
        sampler=Share(start, protocol, rank),
        num_workers=protocol.workers,
        collate_fn=collate,
    )
    return iter(loader)

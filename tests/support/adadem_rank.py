"""One process of several that share AdaDEM's table, in a module that a spawned process finds."""

from __future__ import annotations

import os

import published_losses as published
import torch
import torch.distributed as dist
from torch.testing import assert_close

from dembench import core
from dembench.core import functional as F
from dembench.tasks.common.training import leave


def check_rank(rank, world, file, shape, by_rows=False):
    """Holds three steps of a share of the batch against one process that has the whole batch."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    generator = torch.Generator().manual_seed(0)
    loss, alone = core.AdaDEM(by_rows=by_rows), core.AdaDEM(shape[1])
    for _ in range(3):
        batch = torch.randn((world * shape[0], *shape[1:]), generator=generator)
        mask = torch.rand((world * shape[0], *shape[2:]), generator=generator) > 0.3
        mask[: shape[0]] = False  # the first rank has nothing to add
        part = slice(rank * shape[0], (rank + 1) * shape[0])
        value = loss(batch[part], mask[part])
        alone.table.copy_(published.step(alone.table.double(), batch.double(), 0.1, mask))
        alone.eval()
        assert_close(loss.rows[loss.slots] if by_rows else loss.table, alone.table)
        assert_close(value, F.adadem(batch, alone.table, mask=mask)[part])
    own = torch.randn(4, 5, generator=torch.Generator().manual_seed(rank))
    assert_close(F.adadem(own), published.adadem(own.requires_grad_(), published.step(F.uniform_table(5), own, 0.1)))
    if rank == 0:  # asks nobody, so it cannot wait for the other rank
        assert_close(core.AdaDEM(episodic=True)(own), F.adadem(own))
    dist.barrier()
    leave()

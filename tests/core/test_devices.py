"""AdaDEM over several processes and on a CUDA device."""

import os

import published_losses as published
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.testing import assert_close

import core
from core import functional as F


def _rank(rank, world, file, shape, by_rows):
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
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("shape", "by_rows"), [((6, 5), False), ((10, 150), False), ((1, 5, 4, 4), False), ((10, 150), True)]
)
def test_class_means_are_over_the_global_batch(tmp_path, shape, by_rows):
    mp.spawn(_rank, args=(2, tmp_path / "store", shape, by_rows), nprocs=2)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(64, 10), (64, 1000), (4, 19, 33, 17)])
def test_cuda_equals_cpu_and_is_captured_in_a_graph(shape):
    eager, captured = core.AdaDEM(shape[1]), core.AdaDEM(shape[1]).cuda()
    static = torch.randn(shape, device="cuda", requires_grad=True)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            torch.autograd.grad(captured(static).sum(), static)
    torch.cuda.current_stream().wait_stream(side)
    captured.reset()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = captured(static)
        (slope,) = torch.autograd.grad(value.sum(), static)
    captured.reset()
    for _ in range(3):
        z = torch.randn(shape, requires_grad=True)
        with torch.no_grad():
            static.copy_(z)
        graph.replay()
        expected = eager(z)
        assert_close(value.cpu(), expected, rtol=1e-5, atol=1e-5)
        assert_close(slope.cpu(), torch.autograd.grad(expected.sum(), z)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("num_classes", [None, 10])
def test_a_loss_built_on_the_cpu_takes_cuda_logits(num_classes):
    loss, there = core.AdaDEM(num_classes), core.AdaDEM(num_classes)
    for _ in range(2):
        z = torch.randn(30, 10)
        assert_close(loss(z.cuda()).cpu(), there(z))
        assert loss.table.is_cuda
    loss.reset()
    assert_close(loss.table.cpu(), F.uniform_table(10))


@pytest.mark.gpu
def test_nothing_waits_for_the_host():
    losses = [core.EM(), core.DEM(1.2, 0.5), core.AdaDEM(), core.AdaDEM(10).cuda()]
    z = torch.randn(64, 10, device="cuda", requires_grad=True)
    mask = torch.rand(64, device="cuda") > 0.5
    torch.cuda.set_sync_debug_mode("error")
    try:
        for loss in losses:
            loss(z, mask).mean().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")

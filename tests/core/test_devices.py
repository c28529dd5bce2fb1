"""AdaDEM over several processes and on a CUDA device."""

import pytest
import torch
import torch.multiprocessing as mp
from adadem_rank import check_rank
from torch.testing import assert_close

from dembench import core
from dembench.core import functional as F


@pytest.mark.parametrize(
    ("shape", "by_rows"), [((6, 5), False), ((10, 150), False), ((1, 5, 4, 4), False), ((10, 150), True)]
)
def test_class_means_are_over_the_global_batch(tmp_path, shape, by_rows):
    mp.spawn(check_rank, args=(2, tmp_path / "store", shape, by_rows), nprocs=2)


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

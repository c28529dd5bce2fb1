import copy
import io
import math
import os
import pickle

import published_losses as published
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.testing import assert_close

import core
from core import functional as F

ABLATIONS = [
    {},
    {"norm": False},
    {"mec": False},
    {"norm": False, "mec": False},
    {"norm_of": "em"},
    {"norm_type": 2},
    {"norm_type": math.inf},
    {"norm_of": "em", "mec": False},
    {"alpha": 0.5},
    {"alpha": 0.0},
    {"momentum": 1.0},
    {"momentum": 0.01},
]


def stream(shape, batches, seed=0):
    """Batches of float32 logits whose scale runs from near uniform to near one-hot, with ties."""
    generator = torch.Generator().manual_seed(seed)
    for number in range(batches):
        z = torch.randn(shape, generator=generator) * 10 ** (number % 5 - 2)
        if number % 7 == 0:
            z = z.round()  # ties, also at the maximum
        yield z


def both(loss, reference_options, z, table, mask=None):
    """Value and gradient of the module and of the published formula after the table's step."""
    weights = torch.rand(z.shape[:1] + z.shape[2:], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = z.requires_grad_()
    value = loss(z, mask)
    (slope,) = torch.autograd.grad((value * weights.to(value.dtype)).sum(), z)
    truth_z = z.detach().double().requires_grad_()
    options = dict(reference_options)
    table = published.step(table, truth_z, options.pop("momentum", 0.1), mask)
    truth = published.adadem(truth_z, table, **options)
    if mask is not None:
        truth = truth.where(mask.reshape(-1), 0)
    truth_slope = published.gradient(truth, truth_z, weights.reshape(-1))
    return (value.detach().reshape(-1), slope), (truth.detach(), truth_slope), table


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(64, 2), (64, 10), (9, 19), (40, 1000), (1100, 1000), (2, 19, 9, 9), (2, 150, 6, 5)])
def test_adadem_equals_the_published_formula_over_fifty_batches(shape, masked, dtype, tolerance):
    loss = core.AdaDEM()
    table = torch.full((shape[1], shape[1]), 1 / shape[1], dtype=torch.float64)
    for number, z in enumerate(stream(shape, 6 if shape[0] > 1000 else 50)):
        mask = torch.rand(shape[:1] + shape[2:]) > 0.3 if masked else None
        if masked and number == 3:
            mask = torch.zeros_like(mask)
        got, expected, table = both(loss, {}, z.to(dtype), table, mask)
        for ours, theirs in zip((*got, loss.table), (*expected, table), strict=True):
            assert published.worst(ours, theirs) < tolerance
        assert loss.table.dtype == dtype


@pytest.mark.parametrize("options", ABLATIONS, ids=str)
@pytest.mark.parametrize("shape", [(30, 7), (3, 5, 8, 8), (20, 140), (3, 5, 200, 200)])
def test_every_ablation_equals_the_published_formula(options, shape):
    loss = core.AdaDEM(shape[1], **options)
    tolerance = 1e-7 if options.get("norm_of") == "em" else 1e-10  # 1/delta magnifies rounding up to 10,000 times
    table = torch.full((shape[1], shape[1]), 1 / shape[1], dtype=torch.float64)
    for z in stream(shape, 5, seed=3):
        got, expected, stepped = both(loss, options, z.double(), table)
        table = stepped if options.get("mec", True) else table
        for ours, theirs in zip((*got, loss.table), (*expected, table), strict=True):
            assert published.worst(ours, theirs) < tolerance


@pytest.mark.parametrize("shape", [(500, 600), (4, 19, 100, 100), (20000, 10), (3000, 130)])
def test_large_inputs_walked_in_blocks_equal_the_published_formula(shape):
    loss = core.AdaDEM()
    table = torch.full((shape[1], shape[1]), 1 / shape[1], dtype=torch.float64)
    for number, z in enumerate(stream(shape, 3)):
        mask = torch.rand(shape[:1] + shape[2:]) > 0.5 if number == 1 else None
        got, expected, table = both(loss, {}, z.double(), table, mask)
        for ours, theirs in zip((*got, loss.table), (*expected, table), strict=True):
            assert published.worst(ours, theirs) < 1e-10


@pytest.mark.parametrize("options", ABLATIONS, ids=str)
def test_every_ablation_with_a_mask(options):
    z = torch.randn(40, 7, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(40) > 0.5
    loss = core.AdaDEM(7, **options)
    got, expected, _ = both(loss, options, z.detach(), torch.full((7, 7), 1 / 7, dtype=torch.float64), mask)
    for ours, theirs in zip(got, expected, strict=True):
        assert published.worst(ours, theirs) < 1e-7


@pytest.mark.parametrize("shape", [(2, 2, 512, 512), (131072, 2), (20000, 150), (2, 19, 256, 256)])
def test_a_float32_table_does_not_drift_over_many_like_samples(shape):
    one = torch.randn(shape[1])
    z = one.reshape(1, -1, *[1] * (len(shape) - 2)).expand(shape)
    loss = core.AdaDEM()
    got, expected, table = both(loss, {}, z.clone(), torch.full((shape[1],) * 2, 1 / shape[1], dtype=torch.float64))
    for ours, theirs in zip((*got, loss.table), (*expected, table), strict=True):
        assert published.worst(ours, theirs) < 1e-5


def test_float16_gradients_survive_loss_scaling():
    z = (4 * torch.randn(64, 1000)).half().requires_grad_()
    exact = z.detach().double().requires_grad_()
    for loss in (F.em, F.adadem):
        (slope,) = torch.autograd.grad((loss(z) * 1024).sum(), z)
        (truth,) = torch.autograd.grad((loss(exact) * 1024).sum(), exact)
        assert_close(slope.double(), truth, rtol=1e-3, atol=5e-6)  # half an ulp, and 1024 times float32's rounding


def test_batched_gradients():
    z = torch.randn(4, 5, requires_grad=True)
    for loss in (F.em, F.adadem):
        directions = torch.randn(3, 4)
        value = loss(z)
        (together,) = torch.autograd.grad(value, z, directions, is_grads_batched=True)
        one_by_one = [torch.autograd.grad(loss(z), z, direction)[0] for direction in directions]
        assert_close(together, torch.stack(one_by_one))


def test_a_first_batch_in_inference_mode_leaves_a_working_module():
    loss = core.AdaDEM()
    with torch.inference_mode():
        loss(torch.randn(4, 5))
    loss(torch.randn(4, 5))
    loss.reset()
    given = core.AdaDEM(5)
    with torch.inference_mode():
        given(torch.randn(4, 5, dtype=torch.float64))
    given(torch.randn(4, 5, dtype=torch.float64, requires_grad=True)).sum().backward()


def test_a_half_precision_state_dict_still_moves():
    loss = core.AdaDEM()
    loss.load_state_dict({"table": torch.full((5, 5), 0.2).half()})
    before = loss.table.clone()
    loss(torch.randn(40, 5))
    assert loss.table.dtype == torch.float32
    assert not torch.equal(loss.table, before)


def test_a_state_saved_before_the_first_batch_can_be_restored_after_it():
    net = torch.nn.Sequential(torch.nn.Linear(3, 5), core.AdaDEM())
    start = copy.deepcopy(net.state_dict())
    x = torch.randn(4, 3)
    first = net(x)
    net(torch.randn(4, 3))
    net.load_state_dict(start)
    assert torch.equal(net(x), first)


def test_a_loaded_table_follows_the_logits_device():
    loss = core.AdaDEM()
    loss.load_state_dict({"table": torch.full((200, 200), 1 / 200)})
    loss(torch.randn(4, 200, device="meta"))
    assert loss.table.device.type == "meta"


def test_function_equals_module():
    z = torch.randn(30, 7)
    loss = core.AdaDEM(7)
    first = loss(z)
    assert torch.equal(F.adadem(z), first)
    second = loss(z + 1)
    table = F.update_table(F.update_table(F.uniform_table(7), z), z + 1)
    assert_close(loss.table, table)
    assert_close(F.adadem(z + 1, table), second)
    assert torch.equal(core.EM()(z), F.em(z))
    assert torch.equal(core.CADF()(z), F.cadf(z))
    assert torch.equal(core.GMC()(z), F.gmc(z))
    assert torch.equal(core.DEM(1.2, 0.4)(z), F.dem(z, tau=1.2, alpha=0.4))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reductions(reduction):
    z = torch.randn(30, 7)
    for make in (core.EM, core.DEM, core.AdaDEM):
        each, reduced = make(), make(reduction=reduction)
        assert_close(reduced(z), getattr(each(z), reduction)())


def test_delta_is_at_least_one_and_bounded():
    for classes, most in ((2, 1.20), (10, 1.75), (100, 2.69), (1000, 3.73)):
        z = torch.cat([torch.randn(50, classes, dtype=torch.float64) * s for s in (0.01, 1, 5, 50, 1e4)])
        top = torch.zeros(400, classes, dtype=torch.float64)
        top[:, 0] = torch.linspace(0, 20, 400)
        z = torch.cat([z, top])
        y = z.clone().requires_grad_()
        (with_norm,) = torch.autograd.grad(F.adadem(y, mec=False).sum(), y)
        (without,) = torch.autograd.grad(F.adadem(y, mec=False, norm=False).sum(), y)
        moved = without.abs().sum(1) > 1e-9
        delta = without.abs().sum(1)[moved] / with_norm.abs().sum(1)[moved]
        assert delta.min() >= 1 - 1e-9
        assert delta.max() < most + 0.01


def test_eval_freezes_the_table_and_train_moves_it():
    loss = core.AdaDEM(5)
    z = torch.randn(20, 5)
    loss(z)
    before = loss.table.clone()
    loss.eval()
    value = loss(z + torch.randn(20, 5))
    assert value.isfinite().all()
    assert torch.equal(loss.table, before)
    loss.train()
    loss(z)
    assert not torch.equal(loss.table, before)


def test_rows_without_a_sample_stay():
    loss = core.AdaDEM(4)
    z = torch.zeros(3, 4)
    z[:, 2] = 5
    loss(z)
    assert (loss.table[[0, 1, 3]] == 0.25).all()
    assert_close(loss.table[2], 0.9 * 0.25 + 0.1 * z[0].softmax(0))


def test_reset_is_bit_exact_twice():
    for loss in (core.AdaDEM(6), core.AdaDEM()):
        z = torch.randn(8, 6)
        first = loss(z)
        for _ in range(2):
            loss(torch.randn(8, 6))
            loss.reset()
            assert torch.equal(loss.table, F.uniform_table(6))
            assert torch.equal(loss(z), first)


def test_episodic_forgets_every_batch():
    loss = core.AdaDEM(episodic=True)
    z = torch.randn(8, 6)
    first = loss(z)
    loss(torch.randn(8, 6))
    assert torch.equal(loss(z), first)
    assert loss.table is None


def test_the_table_may_move_between_forward_and_backward():
    for shape in [(12, 5), (12, 150), (300, 600), (2, 19, 100, 100)]:
        z, later = torch.randn(shape, requires_grad=True), torch.randn(shape)
        at_once, delayed = core.AdaDEM(shape[1]), core.AdaDEM(shape[1])
        (expected,) = torch.autograd.grad(at_once(z).sum(), z)
        value = delayed(z).sum()
        delayed(later)
        assert torch.equal(torch.autograd.grad(value, z)[0], expected)


def test_state_travels():
    loss = core.AdaDEM()
    assert "table" not in loss.state_dict()
    loss(torch.randn(9, 5))
    assert loss.state_dict()["table"].shape == (5, 5)
    twins = [copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), core.AdaDEM(5), core.AdaDEM()]
    for twin in twins[2:]:
        twin.load_state_dict(loss.state_dict())
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    twins.append(core.AdaDEM())
    twins[-1].load_state_dict(torch.load(file, weights_only=True))
    z = torch.randn(9, 5)
    expected = loss(z)
    for twin in twins:
        assert torch.equal(twin(z), expected)
        assert torch.equal(twin.table, loss.table)
        assert twin.table.data_ptr() != loss.table.data_ptr()
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), loss)
    fresh = torch.nn.Sequential(torch.nn.Linear(3, 5), core.AdaDEM())
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh[1].table, loss.table)


def test_state_of_another_class_count_is_refused():
    with pytest.raises(RuntimeError, match="size mismatch for table"):
        core.AdaDEM(4).load_state_dict(core.AdaDEM(5).state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        core.AdaDEM(4).load_state_dict({})
    with pytest.raises(ValueError, match="built for 4 classes"):
        core.AdaDEM(4)(torch.zeros(2, 5))


def test_the_table_follows_to_but_never_into_half_precision():
    loss = core.AdaDEM(3)
    assert loss.to(torch.float64).table.dtype == torch.float64
    assert loss.to("meta").table.device.type == "meta"
    for cast in (torch.nn.Module.half, torch.nn.Module.bfloat16):
        loss = cast(core.AdaDEM(3))
        assert loss.table.dtype == torch.float32
        assert loss(torch.randn(4, 3).half()).dtype == torch.float32


def test_float64_logits_meet_a_float32_table_exactly():
    z = torch.randn(9, 7, dtype=torch.float64)
    assert_close(core.AdaDEM(7)(z), F.adadem(z), rtol=1e-14, atol=1e-14)


def test_a_float64_table_takes_float32_logits():
    for shape in [(9, 7), (200, 150), (2, 7, 300, 300)]:
        z = torch.randn(shape, requires_grad=True)
        value = core.AdaDEM(shape[1]).double()(z)
        y = z.detach().double().requires_grad_()
        expected = core.AdaDEM(shape[1])(y)
        assert_close(value, expected)
        slope = torch.autograd.grad(value.sum(), z)[0]
        assert slope.dtype == torch.float32
        assert_close(slope, torch.autograd.grad(expected.sum(), y)[0].float())


def test_one_table_per_sample_under_vmap():
    for classes in (7, 150):
        losses = [core.AdaDEM(classes) for _ in range(4)]
        parameters, buffers = torch.func.stack_module_state(losses)
        base = core.AdaDEM(classes)

        def run(parameters, buffers, z, base=base):
            value = torch.func.functional_call(base, (parameters, buffers), (z,))
            return value, buffers["table"]

        z = torch.randn(4, 20, classes)
        values, tables = torch.func.vmap(run)(parameters, buffers, z)
        assert_close(values, torch.stack([loss(one) for loss, one in zip(losses, z, strict=True)]))
        assert_close(tables, torch.stack([loss.table for loss in losses]))


def test_one_table_for_many_samples_under_vmap_is_an_error():
    with pytest.raises(RuntimeError, match="episodic=True"):
        torch.func.vmap(core.AdaDEM(5))(torch.randn(3, 4, 5))
    values = torch.func.vmap(core.AdaDEM(episodic=True))(z := torch.randn(3, 4, 5))
    assert_close(values, torch.stack([F.adadem(one) for one in z]))
    frozen = core.AdaDEM(5).eval()
    assert_close(torch.func.vmap(frozen)(z), torch.stack([frozen(one) for one in z]))


def test_module_compiles_without_a_break_and_keeps_state():
    torch._dynamo.reset()
    loss, plain = core.AdaDEM(7), core.AdaDEM(7)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        z = torch.randn(20, 7, requires_grad=True)
        y = z.detach().clone().requires_grad_()
        value, expected = compiled(z), plain(y)
        assert_close(value, expected)
        assert_close(torch.autograd.grad(value.sum(), z)[0], torch.autograd.grad(expected.sum(), y)[0])
        assert_close(loss.table, plain.table)


def test_wrong_options():
    with pytest.raises(ValueError, match="Proposition A.1"):
        core.DEM(tau=2.1, alpha=1)
    with pytest.raises(ValueError, match="momentum"):
        core.AdaDEM(momentum=1.5)
    with pytest.raises(ValueError, match="num_classes"):
        core.AdaDEM(0)
    assert "alpha=0.5" in repr(core.AdaDEM(alpha=0.5))
    assert "tau=1.2" in repr(core.DEM(1.2))


def _rank(rank, world, file, shape):
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    generator = torch.Generator().manual_seed(0)
    loss, alone = core.AdaDEM(), core.AdaDEM(shape[1])
    for _ in range(3):
        batch = torch.randn((world * shape[0], *shape[1:]), generator=generator)
        mask = torch.rand((world * shape[0], *shape[2:]), generator=generator) > 0.3
        mask[: shape[0]] = False  # the first rank has nothing to add
        part = slice(rank * shape[0], (rank + 1) * shape[0])
        value = loss(batch[part], mask[part])
        alone.table.copy_(published.step(alone.table.double(), batch.double(), 0.1, mask))
        alone.eval()
        assert_close(loss.table, alone.table)
        assert_close(value, F.adadem(batch, alone.table, mask=mask)[part])
    own = torch.randn(4, 5, generator=torch.Generator().manual_seed(rank))
    assert_close(F.adadem(own), published.adadem(own.requires_grad_(), published.step(F.uniform_table(5), own, 0.1)))
    if rank == 0:  # asks nobody, so it cannot wait for the other rank
        assert_close(core.AdaDEM(episodic=True)(own), F.adadem(own))
    dist.destroy_process_group()


@pytest.mark.parametrize("shape", [(6, 5), (10, 150), (1, 5, 4, 4)])
def test_class_means_are_over_the_global_batch(tmp_path, shape):
    mp.spawn(_rank, args=(2, tmp_path / "store", shape), nprocs=2)


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
def test_nothing_waits_for_the_host():
    losses = [core.EM(), core.DEM(1.2, 0.5), core.AdaDEM(10).cuda()]
    z = torch.randn(64, 10, device="cuda", requires_grad=True)
    mask = torch.rand(64, device="cuda") > 0.5
    torch.cuda.set_sync_debug_mode("error")
    try:
        for loss in losses:
            loss(z, mask).mean().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")

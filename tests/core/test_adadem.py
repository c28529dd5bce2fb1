"""AdaDEM's value, gradient and table against the published formula: sizes, dtypes, masks, ablations."""

import math

import published_losses as published
import pytest
import torch
from torch.testing import assert_close

from dembench import core
from dembench.core import _kernels
from dembench.core import functional as F


def stream(shape, batches, seed=0):
    """Batches of float32 logits whose scale runs from near uniform to near one-hot, with ties."""
    generator = torch.Generator().manual_seed(seed)
    for number in range(batches):
        z = torch.randn(shape, generator=generator) * 10 ** (number % 5 - 2)
        if number % 7 == 0:
            z = z.round()  # ties, also at the maximum
        yield z


def square(loss):
    """The module's table, (C, C), in either form."""
    return loss.table if loss.rows is None else loss.rows[loss.slots]


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
@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("shape", [(64, 2), (64, 10), (9, 19), (40, 1000), (1100, 1000), (2, 19, 9, 9), (2, 150, 6, 5)])
def test_adadem_equals_the_published_formula_over_fifty_batches(shape, by_rows, masked, dtype, tolerance):
    loss = core.AdaDEM(by_rows=by_rows)
    if by_rows and dtype == torch.float32:
        tolerance = 5e-5  # rows move sample by sample, up to 50 times a batch here
    table = torch.full((shape[1], shape[1]), 1 / shape[1], dtype=torch.float64)
    for number, z in enumerate(stream(shape, 6 if shape[0] > 1000 else 50)):
        mask = torch.rand(shape[:1] + shape[2:]) > 0.3 if masked else None
        if masked and number == 3:
            mask = torch.zeros_like(mask)
        got, expected, table = both(loss, {}, z.to(dtype), table, mask)
        for ours, theirs in zip((*got, square(loss)), (*expected, table), strict=True):
            assert published.worst(ours, theirs) < tolerance
        assert square(loss).dtype == dtype


@pytest.mark.parametrize("options", published.ABLATIONS, ids=str)
@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("shape", [(30, 7), (3, 5, 8, 8), (20, 140), (3, 5, 200, 200)])
def test_every_ablation_equals_the_published_formula(options, shape, by_rows):
    loss = core.AdaDEM(shape[1], by_rows=by_rows, **options)
    tolerance = 1e-7 if options.get("norm_of") == "em" else 1e-10  # 1/delta magnifies rounding up to 10,000 times
    table = torch.full((shape[1], shape[1]), 1 / shape[1], dtype=torch.float64)
    for z in stream(shape, 5, seed=3):
        got, expected, stepped = both(loss, options, z.double(), table)
        if options.get("mec", True):
            table = stepped
            got, expected = (*got, square(loss)), (*expected, table)
        else:  # nothing reads a table
            assert loss.table is loss.rows is loss.slots is None
        for ours, theirs in zip(got, expected, strict=True):
            assert published.worst(ours, theirs) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("shape", [(500, 600), (70, 600), (4, 19, 60, 60), (20000, 10), (3000, 130)])
def test_large_inputs_walked_in_blocks_equal_the_published_formula(shape, by_rows, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(_kernels, "BLOCK", 1 << 14)
    loss = core.AdaDEM(by_rows=by_rows)
    table = torch.full((shape[1], shape[1]), 1 / shape[1], dtype=torch.float64)
    for number, z in enumerate(stream(shape, 3)):
        mask = torch.rand(shape[:1] + shape[2:]) > 0.5 if number == 1 else None
        got, expected, table = both(loss, {}, z.to(dtype), table, mask)
        for ours, theirs in zip((*got, square(loss)), (*expected, table), strict=True):
            assert published.worst(ours, theirs) < tolerance


@pytest.mark.parametrize("options", published.ABLATIONS, ids=str)
def test_every_ablation_walked_in_blocks_equals_itself_in_one(options, monkeypatch):
    z = torch.randn(300, 50, requires_grad=True)
    mask = torch.rand(300) > 0.3
    results = []
    for size in (1 << 20, 1 << 11):
        monkeypatch.setattr(_kernels, "BLOCK", size)
        loss = core.AdaDEM(50, **options)
        value = loss(z, mask)
        results.append((value, torch.autograd.grad(value.sum(), z)[0], loss.table))
        if loss.table is None:
            results[-1] = results[-1][:2]
    assert_close(*results)


@pytest.mark.parametrize("shape", [(300, 50), (2, 5, 60, 60)])
def test_with_several_threads_blocks_are_larger_and_results_the_same(shape, monkeypatch):
    monkeypatch.setattr(_kernels, "BLOCK", 1 << 9)
    z, before = torch.randn(shape, requires_grad=True), torch.get_num_threads()
    results, blocks = [], []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            loss = core.AdaDEM(shape[1])
            value = loss(z)
            results.append((value, torch.autograd.grad(value.sum(), z)[0], loss.table))
            blocks.append(len(_kernels.blocks_of(_kernels.canonical(z, False))))
    finally:
        torch.set_num_threads(before)
    assert_close(*results)
    assert blocks[0] > 10 * blocks[1] > 10


@pytest.mark.parametrize("shape", [(40, 7), (600, 50), (600, 700), (2, 5, 60, 60)])
@pytest.mark.parametrize("scale", [1e-3, 1, 1e4])
def test_the_pseudo_label_is_the_first_of_the_greatest_logits(shape, scale):
    z = scale * torch.randn(shape)
    top = z.amax(1)
    z[:, 0] = torch.nextafter(top, torch.tensor(-math.inf))  # one step below
    z[:, -1] = top
    table = F.uniform_table(shape[1])
    moved = (F.update_table(table, z) != table).any(1).nonzero().flatten()
    assert torch.equal(moved, z.argmax(1).unique())


@pytest.mark.parametrize("options", published.ABLATIONS, ids=str)
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


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("shape", [(8, 5), (64, 10), (600, 50), (20, 600), (700, 600), (2, 5, 90, 90), (2, 150, 6, 5)])
def test_a_sample_whose_logits_are_not_finite_breaks_nothing_but_itself(shape, by_rows, masked, monkeypatch):
    monkeypatch.setattr(_kernels, "BLOCK", 1 << 14)
    z = torch.randn(shape)
    mask = torch.rand(shape[:1] + shape[2:]) > 0.3 if masked else torch.ones(shape[:1] + shape[2:], dtype=torch.bool)
    broken = torch.zeros_like(mask)
    flat = z.movedim(1, -1)  # a view
    for place, logits in enumerate((math.nan, math.inf, -math.inf)):
        position = (-1, -1, -1 - place) if z.dim() > 2 else (place - 4,)
        flat[position] = logits if logits < 0 else flat[position].scatter(0, torch.tensor(3), logits)
        broken[position] = True
    loss, without = core.AdaDEM(by_rows=by_rows), core.AdaDEM(by_rows=by_rows)
    for _ in range(2):
        z.requires_grad_()
        value = loss(z, mask)
        expected = without(z.detach(), mask & ~broken)
        assert torch.equal(square(loss), square(without))
        assert square(loss).isfinite().all()
        assert value[broken & mask].isnan().all()
        assert torch.equal(value[~broken], expected[~broken])
        (slope,) = torch.autograd.grad(value.sum(), z)
        assert slope.movedim(1, -1)[broken & mask].isnan().all()
        assert slope.movedim(1, -1)[~broken].isfinite().all()


def test_a_broken_sample_under_vmap_and_compilation():
    z = torch.randn(3, 9, 5)
    z[1, 4, 2] = math.nan
    tables = torch.stack([F.update_table(F.uniform_table(5), one, mask=one.isfinite().all(1)) for one in z])
    uniform = F.uniform_table(5).expand(3, 5, 5)
    assert_close(torch.func.vmap(F.update_table)(uniform, z), tables)
    compiled = torch.compile(F.update_table, fullgraph=True, backend="aot_eager")
    for one, table in zip(z, tables, strict=True):
        assert_close(compiled(F.uniform_table(5), one), table)


def test_rows_without_a_sample_stay():
    loss = core.AdaDEM(4)
    z = torch.zeros(3, 4)
    z[:, 2] = 5
    loss(z)
    assert (loss.table[[0, 1, 3]] == 0.25).all()
    assert_close(loss.table[2], 0.9 * 0.25 + 0.1 * z[0].softmax(0))


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


def test_float16_gradients_survive_loss_scaling():
    z = (4 * torch.randn(64, 1000)).half().requires_grad_()
    exact = z.detach().double().requires_grad_()
    for loss in (F.em, F.adadem):
        (slope,) = torch.autograd.grad((loss(z) * 1024).sum(), z)
        (truth,) = torch.autograd.grad((loss(exact) * 1024).sum(), exact)
        assert_close(slope.double(), truth, rtol=1e-3, atol=5e-6)  # half an ulp, and 1024 times float32's rounding


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

"""The Triton kernels against the published formulas: run by ``test_triton.py`` in processes of their own.

On a CUDA device where ``TRITON_INTERPRET`` is not set, else on the CPU in Triton's interpreter.
"""

import math
import os

import published_losses as published
import pytest
import torch

from dembench import core
from dembench.core import _calibrator, _kernels, _triton
from dembench.core import functional as F

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
SHAPES = [(70, 10), (2, 19, 20), (40, 70), (20, 140), (150, 130)]


@pytest.fixture(autouse=True)
def switched_on(monkeypatch):
    """Every call goes to the kernels, and a test in which none does fails."""
    calls = []
    serves = _triton.serves

    def asked(*tensors):
        calls.append(serves(*tensors))
        return calls[-1]

    if DEVICE == "cpu":  # the interpreter's time goes by programs
        monkeypatch.setattr(_triton, "_PROGRAMS", 4)
        monkeypatch.setattr(_triton, "_SUMS", 4)
        monkeypatch.setattr(_calibrator, "_SHORT", 0)  # the CPU's direct path comes first
    monkeypatch.setattr(_kernels, "TRITON", (DEVICE,))
    monkeypatch.setattr(_triton, "serves", asked)
    torch.manual_seed(0)
    yield
    assert calls
    assert all(calls)


def logits(shape, dtype=torch.float32):
    z = (3 * torch.randn(shape)).to(dtype)
    if z.numel() > 100:
        z[1] = z[1].round()  # ties, also at the maximum
    return z.to(DEVICE).requires_grad_()


def compare(value, z, truth, tolerance=2e-5):
    """Value and gradient, weighted by position, with a function of float64 logits (M, C)."""
    weights = torch.rand(value.shape)
    (slope,) = torch.autograd.grad((value * weights.to(DEVICE)).sum(), z)
    y = z.detach().cpu().double().requires_grad_()
    expected = truth(y)
    assert slope.dtype == z.dtype
    assert published.worst(value.detach().cpu().reshape(-1), expected.detach()) < tolerance
    expected_slope = published.gradient(expected, y, weights.double().reshape(-1))
    assert published.worst(slope.cpu(), expected_slope) < max(tolerance, torch.finfo(z.dtype).eps)


@pytest.mark.parametrize(("tau", "alpha"), [(1, 1), (1, 0), (1.3, 0.7), (0.5, 2), (1.3, 0)])
@pytest.mark.parametrize("shape", SHAPES)
def test_dem(shape, tau, alpha):
    z = logits(shape)
    compare(F.dem(z, tau=tau, alpha=alpha), z, lambda y: published.dem(y, tau, alpha))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_adadem_and_its_table_over_some_batches(shape, masked):
    loss = core.AdaDEM()
    table = torch.full((shape[1], shape[1]), 1 / shape[1], dtype=torch.float64)
    for _ in range(2):
        z = logits(shape)
        mask = torch.rand(shape[:1] + shape[2:]) > 0.3 if masked else None
        table = published.step(table, z.detach().cpu().double(), 0.1, mask)
        value = loss(z, None if mask is None else mask.to(DEVICE))

        def truth(y, table=table, mask=mask):
            value = published.adadem(y, table)
            return value if mask is None else value.where(mask.reshape(-1), 0)

        compare(value, z, truth)
        assert published.worst(loss.table.cpu(), table) < 1e-5


@pytest.mark.parametrize("options", published.ABLATIONS, ids=str)
def test_ablations(options):
    for shape in [(30, 7), (20, 140), (2, 7, 20)]:
        momentum = options.get("momentum", 0.1)
        z = logits(shape)
        table = torch.full((shape[1], shape[1]), 1 / shape[1], dtype=torch.float64)
        table = published.step(table, z.detach().cpu().double(), momentum)
        rest = {key: value for key, value in options.items() if key != "momentum"}
        compare(F.adadem(z, **options), z, lambda y, table=table, rest=rest: published.adadem(y, table, **rest), 1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits(dtype):
    z = logits((20, 70), dtype)
    compare(F.em(z), z, lambda y: published.dem(y, 1, 1))
    value = F.adadem(z)
    assert value.dtype == torch.float32
    table = published.step(F.uniform_table(70, dtype=torch.float64), z.detach().cpu().double(), 0.1)
    compare(value, z, lambda y: published.adadem(y, table))


def slope_of(value, z):
    return torch.autograd.grad(value.square().sum(), z)[0]


@pytest.mark.parametrize("loss", [F.em, F.adadem])
def test_any_strides(loss):
    plain = logits((12, 40))
    value, slope = loss(plain), slope_of(loss(plain), plain)
    z = plain.detach()
    layouts = [z.t().contiguous().t(), torch.stack([z, z * math.nan], 2)[:, :, 0], torch.stack([z, z], 1)[:, 0]]
    for layout in layouts:
        layout.requires_grad_()
        assert not layout.is_contiguous()
        torch.testing.assert_close(loss(layout), value, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(slope_of(loss(layout), layout), slope, rtol=1e-5, atol=1e-6)
    one = z[:1].expand(12, 40)
    assert torch.equal(loss(one), loss(one.contiguous()))
    maps = logits((3, 7, 20)).detach()
    for view in (maps[:, :, ::2], maps[:, ::2], maps.transpose(0, 2)):
        flat = view.movedim(1, -1).reshape(-1, view.shape[1])
        got = _kernels.dem(view, 1.3, 0.7, None)
        torch.testing.assert_close(got.reshape(-1), F.dem(flat, tau=1.3, alpha=0.7), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(400, 5), (3, 5, 70), (300, 130)])
def test_sums_over_many_programs_segments_and_rounds(shape, monkeypatch):
    monkeypatch.setattr(_triton, "_SUMS", 2)
    monkeypatch.setattr(_triton, "_RUN", 64)
    z = logits(shape)
    with torch.no_grad():
        z[: shape[0] // 2, 3] += 20  # one class has more than a segment
    expected = published.step(F.uniform_table(shape[1], dtype=torch.float64), z.detach().cpu().double(), 0.1)
    loss = core.AdaDEM()
    loss(z)
    assert published.worst(loss.table.cpu(), expected) < 1e-5


@pytest.mark.parametrize("loss", [F.em, F.adadem])
def test_classes_masked_out(loss):
    z = logits((6, 140)).detach()
    z[:, 2] = -math.inf
    z.requires_grad_()
    value = loss(z)
    slope = slope_of(value, z)
    y = z.detach().cpu().double().requires_grad_()  # float64 is not for the kernels
    _kernels.TRITON = ()
    expected = loss(y)
    torch.testing.assert_close(value.cpu().double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(slope.cpu().double(), slope_of(expected, y), rtol=1e-5, atol=1e-5)
    assert (slope[:, 2] == 0).all()


def test_a_broken_sample_breaks_nothing_but_itself():
    for shape in [(6, 140), (70, 6), (4, 6, 9)]:
        z = logits(shape).detach()
        broken = torch.zeros(shape[:1] + shape[2:], dtype=torch.bool, device=DEVICE)
        for row, number in enumerate((math.nan, math.inf)):
            z[row, 3] = number
            broken[row] = True
        z[2] = -math.inf
        broken[2] = True
        loss, without = core.AdaDEM(), core.AdaDEM()
        value = loss(z)
        without(z, ~broken)
        assert value[broken].isnan().all()
        assert value[~broken].isfinite().all()
        assert torch.equal(loss.table, without.table)
        assert loss.table.isfinite().all()
        assert F.em(z)[broken].isnan().all()


def test_derivatives_of_the_gradient_and_many_gradients_at_once():
    table = torch.rand(7, 7).softmax(1).to(DEVICE)
    z = logits((5, 7))
    y = z.detach().cpu().double().requires_grad_()
    direction = torch.randn(5, 7)
    mask = torch.tensor([True, True, False, True, True])
    for ours, theirs in [
        (F.em(z, mask=mask.to(DEVICE)), published.dem(y, 1, 1).where(mask, 0)),
        (F.adadem(z, table, mask=mask.to(DEVICE)), published.adadem(y, table.cpu().double()).where(mask, 0)),
    ]:
        found = []
        for value, x in ((ours, z), (theirs, y)):
            (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
            found.append(torch.autograd.grad((slope * direction.to(x)).sum(), x)[0].cpu())
        torch.testing.assert_close(found[0].double(), found[1], rtol=1e-4, atol=1e-5)
    directions = torch.randn(3, 5, device=DEVICE)
    value = F.em(z)
    together = torch.autograd.grad(value, z, directions, is_grads_batched=True, retain_graph=True)[0]
    for one, slope in zip(directions, together, strict=True):
        torch.testing.assert_close(torch.autograd.grad(value, z, one, retain_graph=True)[0], slope)


@pytest.mark.parametrize("shape", [(90, 5), (12, 140), (150, 140), (3, 9, 40)])
def test_repeats_to_the_bit_and_the_table_may_move_on(shape):
    z, later = logits(shape), logits(shape)
    at_once, delayed = core.AdaDEM(shape[1]).to(DEVICE), core.AdaDEM(shape[1]).to(DEVICE)
    value = at_once(z)
    slope = slope_of(value, z)
    again = delayed(z)
    delayed(later)
    assert torch.equal(again, value)
    assert torch.equal(slope_of(again, z), slope)
    at_once(later)
    assert torch.equal(at_once.table, delayed.table)
    with torch.no_grad():
        assert torch.equal(at_once.eval()(z), F.adadem(z, at_once.table))

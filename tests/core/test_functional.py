import math

import numpy as np
import published_losses as published
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.testing import assert_close

from dembench.core import functional as F

LOSSES = {
    "em": F.em,
    "cadf": F.cadf,
    "gmc": F.gmc,
    "dem": lambda z, **options: F.dem(z, tau=1.3, alpha=0.7, **options),
    "dem_no_penalty": lambda z, **options: F.dem(z, tau=1.3, alpha=0, **options),
    "adadem": F.adadem,
}
SHAPES = [(1, 2), (7, 2), (64, 10), (3, 19, 5, 4), (2, 10, 3), (6, 1000), (0, 5), (0, 5, 4, 4), (5, 1)]
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
float64_logits = arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(2, 6)), elements=st.floats(-30, 30))


@pytest.mark.parametrize("shape", SHAPES)
def test_em_equals_scipy_and_categorical(shape):
    z = 4 * torch.randn(shape, dtype=torch.float64)
    got = F.em(z)
    assert_close(got, torch.from_numpy(scipy.stats.entropy(scipy.special.softmax(z.numpy(), axis=1), axis=1)))
    assert_close(got, torch.distributions.Categorical(logits=z.movedim(1, -1), validate_args=False).entropy())


@pytest.mark.parametrize("shape", SHAPES)
def test_em_is_cadf_plus_gmc(shape):
    z = 4 * torch.randn(shape, dtype=torch.float64)
    assert_close(F.em(z), F.cadf(z) + F.gmc(z))
    assert_close(F.gmc(z), z.logsumexp(1))
    assert_close(F.cadf(z), -(z.softmax(1) * z).sum(1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dem_at_one_one_is_em_to_the_last_bit(dtype):
    z = (4 * torch.randn(33, 10)).to(dtype).requires_grad_()
    assert torch.equal(F.dem(z), F.em(z))
    assert torch.equal(torch.autograd.grad(F.dem(z).sum(), z)[0], torch.autograd.grad(F.em(z).sum(), z)[0])


def test_em_gradient_is_the_closed_form():
    z = torch.randn(20, 7, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(F.em(z).sum(), z)
    p, log_p = z.softmax(1), z.log_softmax(1)
    assert_close(grad, -p * (log_p + F.em(z)[:, None]))


@pytest.mark.parametrize(("tau", "alpha"), [(1, 1), (1.1, 0), (0.5, 2), (2, 1), (1.4, 1.4), (1, 0.3), (7, 0)])
@pytest.mark.parametrize("shape", [(64, 10), (5, 19, 6, 7), (300, 1000), (2, 3, 300, 301)])
def test_dem_equals_the_published_formula(shape, tau, alpha):
    z = (3 * torch.randn(shape, dtype=torch.float64)).requires_grad_()
    weights = torch.rand(z.shape[:1] + z.shape[2:], dtype=torch.float64)
    expected = published.dem(z, tau, alpha)
    slope = published.gradient(expected, z, weights.reshape(-1))
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        y = z.detach().to(dtype).requires_grad_()
        got = F.dem(y, tau=tau, alpha=alpha)
        assert got.dtype == dtype
        # float32 logits are other logits, so the truth for them is the formula at those
        truth = published.dem(y.detach().double(), tau, alpha)
        assert published.worst(got.reshape(-1), truth) < tolerance
        assert published.worst(torch.autograd.grad((got * weights.to(dtype)).sum(), y)[0], slope) < tolerance


@pytest.mark.parametrize("samples", [12, 2400])  # few, and enough to be worth other ways of computing
def test_em_keeps_its_relative_precision_for_confident_predictions(samples):
    z = torch.zeros(samples, 10)
    z[:, 3] = torch.linspace(1, 60, samples)
    top = z[:, 3].double()
    others = 9 * (-top).exp()  # relative to the top class
    truth = others.log1p() + others * top / (1 + others)
    assert_close(F.em(z).double(), truth, rtol=1e-5, atol=0)


@each_loss
def test_gradcheck_and_second_derivatives(loss):
    for shape in [(5, 4), (2, 4, 2, 3)]:
        z = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        if loss is not F.adadem:  # its gradient is by definition not that of its value: delta and a_k are constants
            assert torch.autograd.gradcheck(loss, (z,))
            assert torch.autograd.gradgradcheck(loss, (z,))


def test_adadem_second_derivative_is_that_of_the_gradient():
    z = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    table = torch.rand(4, 4, dtype=torch.float64).softmax(1)
    (ours,) = torch.autograd.grad(F.adadem(z, table).sum(), z, create_graph=True)
    (theirs,) = torch.autograd.grad(published.adadem(z, table).sum(), z, create_graph=True)
    weights = torch.rand_like(z)
    assert_close(torch.autograd.grad((ours * weights).sum(), z)[0], torch.autograd.grad((theirs * weights).sum(), z)[0])


@given(z=float64_logits, c=st.floats(-50, 50), tau=st.floats(0.5, 1), alpha=st.floats(0, 2))
def test_dem_shifts_by_a_known_amount(z, c, tau, alpha):
    z = torch.from_numpy(z)
    move = F.dem(z + c, tau=tau, alpha=alpha) - F.dem(z, tau=tau, alpha=alpha)
    assert_close(move, torch.full_like(move, (alpha - 1) * c), atol=1e-9, rtol=1e-9)


@given(z=float64_logits, c=st.floats(-50, 50))
def test_em_and_adadem_do_not_shift(z, c):
    z = torch.from_numpy(z)
    table = F.uniform_table(z.shape[1], dtype=torch.float64)
    assert_close(F.em(z + c), F.em(z), atol=1e-9, rtol=1e-9)
    assert_close(F.adadem(z + c, table), F.adadem(z, table), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@each_loss
def test_finite_for_any_finite_logits(loss, dtype):
    most = 6e4 if dtype == torch.float16 else 1e4
    one_hot = torch.eye(10) * 2 * most - most
    for z in [torch.randn(6, 10) * most, torch.zeros(4, 10), one_hot, torch.full((3, 10), most), torch.ones(2, 1)]:
        z = z.clamp(-most, most).to(dtype).requires_grad_()
        value = loss(z)
        value.sum().backward()
        assert value.isfinite().all()
        assert z.grad.isfinite().all()
        assert z.grad.dtype == dtype
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@each_loss
def test_empty_batches(loss):
    for shape in [(0, 10), (0, 10, 3, 3), (2, 10, 0)]:
        z = torch.randn(shape, requires_grad=True)
        value = loss(z)
        assert value.shape == shape[:1] + shape[2:]
        for reduction in ("mean", "sum"):
            total = loss(z, reduction=reduction)
            assert total.item() == 0
            total.backward()
        assert z.grad.shape == shape


@each_loss
@pytest.mark.parametrize("shape", [(9, 5), (2, 5, 4, 3), (2, 200, 3, 3), (3, 5, 200, 200)])
def test_mask_equals_taking_the_subset(loss, shape):
    z = torch.randn(shape, dtype=torch.float64)
    mask = torch.rand(shape[:1] + shape[2:]) > 0.4
    poisoned = z.masked_fill(~mask.unsqueeze(1), math.nan).requires_grad_()
    subset = published.samples(z)[mask.reshape(-1)].requires_grad_()
    value = loss(poisoned, mask=mask)
    expected = torch.zeros(mask.shape, dtype=torch.float64)
    expected[mask] = loss(subset).detach()
    assert_close(value.detach(), expected)
    for reduction in ("sum", "mean"):
        got, want = loss(poisoned, mask=mask, reduction=reduction), loss(subset, reduction=reduction)
        assert_close(got, want)
        slope = torch.autograd.grad(got, poisoned, retain_graph=True)[0]
        assert_close(published.samples(slope)[mask.reshape(-1)], torch.autograd.grad(want, subset)[0])
        assert (published.samples(slope)[~mask.reshape(-1)] == 0).all()


@each_loss
def test_nothing_selected_is_a_zero_with_a_graph(loss):
    z = torch.randn(4, 3, requires_grad=True)
    for reduction in ("mean", "sum"):
        value = loss(z, mask=torch.zeros(4, dtype=torch.bool), reduction=reduction)
        assert value.item() == 0
        assert value.requires_grad
        (slope,) = torch.autograd.grad(value, z)
        assert (slope == 0).all()


@each_loss
def test_map_equals_its_pixels_in_any_memory_layout(loss):
    z = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    flat = loss(published.samples(z)).reshape(2, 5, 7)
    for layout in (z, z.contiguous(memory_format=torch.channels_last), z.transpose(2, 3).contiguous().transpose(2, 3)):
        layout = layout.detach().requires_grad_()
        value = loss(layout)
        assert_close(value, flat)
        pixels = z.clone().requires_grad_()
        assert_close(torch.autograd.grad(value.sum(), layout)[0], torch.autograd.grad(loss(pixels).sum(), pixels)[0])


@each_loss
def test_classes_masked_out_take_no_part(loss):
    z = torch.randn(8, 6, dtype=torch.float64)
    z[:, 2] = -math.inf
    legal = [0, 1, 3, 4, 5]
    z.requires_grad_()
    value = loss(z)
    (slope,) = torch.autograd.grad(value.sum(), z)
    assert value.isfinite().all()
    assert slope.isfinite().all()
    assert (slope[:, 2] == 0).all()
    if loss is not F.adadem:  # its calibrator has a share for every class, masked out or not
        assert_close(value, loss(z[:, legal]))
        assert_close(slope[:, legal], torch.autograd.grad(loss(z[:, legal]).sum(), z)[0][:, legal])


def test_adadem_of_masked_classes_is_the_formula_over_the_others():
    z = torch.randn(8, 6, dtype=torch.float64)
    z[:, 2] = -math.inf
    table = torch.rand(6, 6, dtype=torch.float64).softmax(1)
    legal = [0, 1, 3, 4, 5]
    y = z[:, legal].clone().requires_grad_()
    p = y.softmax(1)
    reward = torch.autograd.grad((p * y).sum(), y, retain_graph=True)[0]
    expected = -((p - table[z.argmax(1)][:, legal]) * y).sum(1) / reward.abs().sum(1).detach()
    assert_close(F.adadem(z, table), expected.detach())
    x = z.clone().requires_grad_()
    assert_close(
        torch.autograd.grad(F.adadem(x, table).sum(), x)[0][:, legal], torch.autograd.grad(expected.sum(), y)[0]
    )


@each_loss
def test_a_broken_model_cannot_hide(loss):
    for shape in [(4, 3), (4, 300), (3000, 300), (4, 3, 300, 300)]:
        z = torch.randn(shape)
        z[1, 2] = math.nan
        assert loss(z)[1].isnan().all()


@each_loss
def test_vmap_over_an_extra_axis(loss):
    for shape in [(5, 4), (3, 4, 2, 3), (3, 150)]:
        z = torch.randn(6, *shape, dtype=torch.float64)
        each = z.clone().requires_grad_()
        expected = torch.stack([loss(one) for one in each])
        (slope,) = torch.autograd.grad(expected.sum(), each)
        assert_close(torch.func.vmap(loss)(z), expected.detach())
        assert_close(torch.func.vmap(torch.func.grad(lambda one: loss(one).sum()))(z), slope)
        together = z.clone().requires_grad_()
        assert_close(torch.autograd.grad(torch.func.vmap(loss)(together).sum(), together)[0], slope)


@each_loss
def test_compiles_without_a_break(loss):
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for shape in [(8, 5), (2, 5, 3, 3), (8, 150)]:
        z = torch.randn(shape, requires_grad=True)
        y = z.detach().clone().requires_grad_()
        value, expected = compiled(z), loss(y)
        assert_close(value, expected)
        assert_close(torch.autograd.grad(value.sum(), z)[0], torch.autograd.grad(expected.sum(), y)[0])


@each_loss
def test_compiles_around_torch_func(loss):
    torch._dynamo.reset()
    z = torch.randn(3, 4, 5, requires_grad=True)

    def summed(z):
        return torch.func.vmap(loss)(z).sum() + z.square().sum()

    compiled = torch.compile(summed, fullgraph=True, backend="aot_eager")
    assert_close(torch.autograd.grad(compiled(z), z)[0], torch.autograd.grad(summed(z), z)[0])
    slopes = torch.func.vmap(torch.func.grad(lambda z: loss(z).sum()))
    compiled = torch.compile(slopes, fullgraph=True, backend="aot_eager")
    assert_close(compiled(z.detach()), slopes(z.detach()))


@pytest.mark.slow
@each_loss
def test_compiles_to_machine_code(loss):
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True)
    z = torch.randn(8, 5, requires_grad=True)
    y = z.detach().clone().requires_grad_()
    value, expected = compiled(z), loss(y)
    assert_close(value, expected)
    assert_close(torch.autograd.grad(value.sum(), z)[0], torch.autograd.grad(expected.sum(), y)[0])


@each_loss
def test_under_autocast(loss):
    layer = torch.nn.Linear(6, 5)
    x = torch.randn(9, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = layer(x)
        value = loss(logits)
    assert logits.dtype == torch.bfloat16
    assert value.dtype == torch.float32
    value.mean().backward()
    assert_close(value, loss(logits.float()))
    assert layer.weight.grad.isfinite().all()


@each_loss
def test_may_be_called_twice_before_one_backward(loss):
    z = torch.randn(6, 5, requires_grad=True)
    both = loss(z).sum() + loss(2 * z).sum()
    both.backward(retain_graph=True)
    first = z.grad.clone()
    z.grad = None
    both.backward()
    assert torch.equal(z.grad, first)


@each_loss
def test_without_gradients(loss):
    z = torch.randn(6, 5)
    with torch.no_grad():
        quiet = loss(z)
    assert not quiet.requires_grad
    assert torch.equal(quiet, loss(z.requires_grad_()).detach())


@pytest.mark.parametrize("shape", [(2, 7, 200, 200), (600, 1000)])
def test_gradients_in_half_precision_are_rounded_once(shape):
    for dtype in (torch.bfloat16, torch.float16):
        z = torch.randn(shape).to(dtype).requires_grad_()
        exact = z.detach().double().requires_grad_()
        for loss in (F.em, F.adadem):
            (slope,) = torch.autograd.grad(loss(z).sum(), z)
            (truth,) = torch.autograd.grad(loss(exact).sum(), exact)
            assert slope.dtype == dtype
            assert_close(slope.double(), truth, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: F.em(torch.zeros(3, 4, dtype=torch.long)), "em: expected floating-point logits"),
        (lambda: F.em(torch.zeros(3)), r"em: expected logits \(N, C, ...\)"),
        (lambda: F.gmc(torch.zeros(3, 0)), "gmc: expected logits"),
        (lambda: F.em(torch.zeros(3, 4), mask=torch.ones(4, dtype=torch.bool)), r"em: expected a boolean mask \(3,\)"),
        (lambda: F.em(torch.zeros(3, 4), mask=torch.ones(3)), "em: expected a boolean mask"),
        (lambda: F.em(torch.zeros(3, 4), reduction="avg"), "em: expected reduction in"),
        (lambda: F.dem(torch.zeros(3, 4), tau=2.1), "Proposition A.1"),
        (lambda: F.dem(torch.zeros(3, 4), tau=0), "Proposition A.1"),
        (lambda: F.dem(torch.zeros(3, 4), tau=1, alpha=2.1), "Proposition A.1"),
        (lambda: F.dem(torch.zeros(3, 4), alpha=-1), "dem: expected a finite alpha >= 0"),
        (lambda: F.dem(torch.zeros(3, 4), tau=math.nan), "Proposition A.1"),
        (lambda: F.adadem(torch.zeros(3, 4), torch.zeros(3, 3)), r"adadem: expected a floating-point table \(4, 4\)"),
        (lambda: F.adadem(torch.zeros(3, 4), momentum=0), "adadem: expected 0 < momentum <= 1"),
        (lambda: F.adadem(torch.zeros(3, 4), norm_type=3), "adadem: expected norm_type 1, 2 or infinity"),
        (lambda: F.adadem(torch.zeros(3, 4), norm_of="dem"), "adadem: expected norm_of 'cadf' or 'em'"),
    ],
)
def test_wrong_arguments(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_dem_takes_all_of_the_valid_region_and_its_border():
    z = torch.randn(3, 4)
    for alpha in np.arange(0, 2.05, 0.1):
        for tau in np.arange(0.1, 2.05, 0.1):
            if tau * alpha <= 2:
                assert F.dem(z, tau=float(tau), alpha=float(alpha)).isfinite().all()
    F.dem(z, tau=2 / 0.3, alpha=0.3)

"""The losses under torch.func, torch.compile and both modes of automatic differentiation."""

import copy

import pytest
import torch
from torch.autograd import forward_ad
from torch.testing import assert_close

from dembench import core
from dembench.core import _rows
from dembench.core import functional as F


def textbook_entropy(z):
    return -(z.softmax(1) * z.log_softmax(1)).sum(1)


def adadem(z):
    """AdaDEM that keeps nothing, whose derivative by definition is its gradient."""
    return F.adadem(z, F.uniform_table(z.shape[1], dtype=z.dtype))


def tangent_of(loss, z, t):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(loss(forward_ad.make_dual(z, t))).tangent


@pytest.mark.parametrize("shape", [(6, 5), (2, 5, 4, 3), (30, 400)])
def test_forward_mode_equals_the_textbook(shape):
    z, t = torch.randn(2, *shape, dtype=torch.float64)
    expected = torch.func.jvp(textbook_entropy, (z,), (t,))[1]
    assert_close(torch.func.jvp(F.em, (z,), (t,))[1], expected)
    assert_close(tangent_of(F.em, z, t), expected)
    assert_close(tangent_of(F.em, z.clone().requires_grad_(), t).detach(), expected)
    with torch.no_grad():
        assert_close(torch.func.jvp(F.em, (z,), (t,))[1], expected)
    mask = torch.rand(expected.shape) > 0.5
    assert_close(tangent_of(lambda z: F.em(z, mask=mask), z, t), expected * mask)


@pytest.mark.parametrize("loss", [F.em, lambda z: F.dem(z, tau=1.3, alpha=0.7), adadem, core.AdaDEM(5)])
def test_forward_mode_equals_reverse_mode(loss):
    z, t = torch.randn(2, 6, 5, dtype=torch.float64)
    z.requires_grad_()
    if isinstance(loss, core.AdaDEM):
        loss.eval()
    value = loss(z)
    rows = [torch.autograd.grad(one, z, retain_graph=True)[0] for one in value]
    assert_close(tangent_of(loss, z.detach(), t), torch.stack([(row * t).sum() for row in rows]))
    assert_close(torch.func.jacfwd(loss)(z.detach()), torch.stack(rows))


def test_second_derivatives_in_mixed_modes():
    z = torch.randn(4, 5, dtype=torch.float64)

    def hessian(outer, inner, loss):
        return outer(inner(lambda z: loss(z).sum()))(z)

    forward, reverse = torch.func.jacfwd, torch.func.jacrev
    expected = hessian(forward, reverse, textbook_entropy)
    for outer, inner in ((forward, reverse), (reverse, forward), (reverse, reverse)):
        assert_close(hessian(outer, inner, F.em), expected)
    with pytest.raises(RuntimeError, match="take one of the two in reverse mode"):
        hessian(forward, forward, F.em)


@pytest.mark.parametrize("loss", [F.em, F.gmc, lambda z: F.dem(z, tau=1.3, alpha=0.7), F.adadem])
@pytest.mark.parametrize("shape", [(6, 5), (2, 5, 4, 3)])
def test_logits_changed_in_place_before_the_backward_pass_are_an_error(loss, shape):
    z = torch.randn(shape, requires_grad=True) * 1
    value = loss(z).sum()
    z.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_batched_gradients():
    z = torch.randn(4, 5, requires_grad=True)
    for loss in (F.em, F.adadem):
        directions = torch.randn(3, 4)
        value = loss(z)
        (together,) = torch.autograd.grad(value, z, directions, is_grads_batched=True)
        one_by_one = [torch.autograd.grad(loss(z), z, direction)[0] for direction in directions]
        assert_close(together, torch.stack(one_by_one))


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


def test_many_classes_under_vmap_and_compilation(monkeypatch):
    torch._dynamo.reset()
    z = torch.randn(3, 4, 9)
    expected = torch.stack([F.adadem(one) for one in z])
    trained = core.AdaDEM(by_rows=True)
    trained(z[0])
    frozen = torch.stack([copy.deepcopy(trained).eval()(one) for one in z])
    monkeypatch.setattr(_rows, "MANY", 8)
    assert_close(torch.stack([F.adadem(one) for one in z]), expected)
    assert_close(torch.func.vmap(core.AdaDEM(episodic=True))(z), expected)
    slopes = torch.func.vmap(torch.func.grad(lambda one: F.adadem(one).sum()))
    assert_close(slopes(z), torch.stack([torch.func.grad(lambda one: F.adadem(one).sum())(one) for one in z]))
    assert_close(torch.compile(F.adadem, fullgraph=True, backend="aot_eager")(z[0]), expected[0])
    for call in (torch.func.vmap(trained), torch.func.vmap(core.AdaDEM())):
        with pytest.raises(RuntimeError, match="by_rows=False"):
            call(z)
    trained.eval()
    assert_close(torch.func.vmap(trained)(z), frozen)
    assert_close(torch.compile(trained, fullgraph=True, backend="aot_eager")(z[0]), frozen[0])


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

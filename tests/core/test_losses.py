"""The modules: options, and the state that AdaDEM holds."""

import copy
import io
import pickle

import pytest
import torch
from torch.testing import assert_close

from dembench import core
from dembench.core import _calibrator, _kernels, _rows
from dembench.core import functional as F
from dembench.scripts.bench.timing import peak_bytes


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


def test_a_table_follows_the_logits_device():
    lazy = core.AdaDEM()
    lazy.load_state_dict({"table": torch.full((200, 200), 1 / 200)})
    for loss in (lazy, core.AdaDEM(200)):
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
    for shape in [(12, 5), (12, 150), (900, 600), (2, 19, 130, 130)]:
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


@pytest.mark.parametrize("num_classes", [None, 30])
def test_either_form_of_the_table_loads_into_the_other(num_classes):
    stream = torch.randn(4, 9, 30)
    squares, rows = core.AdaDEM(by_rows=False), core.AdaDEM(by_rows=True)
    for z in stream:
        assert_close(squares(z), rows(z))
    assert list(rows.state_dict()) == ["rows", "slots"]
    assert rows.rows.shape[0] <= 1 + len(stream.flatten(0, 1).argmax(1).unique()) * 5 / 4
    z = torch.randn(9, 30)
    expected = None
    for source in (squares, rows):
        for by_rows in (False, True):
            for used in (False, True):
                loss = core.AdaDEM(num_classes, by_rows=by_rows)
                if used:
                    loss(torch.randn(9, 30))
                loss.load_state_dict(copy.deepcopy(source.state_dict()))
                assert (loss.table is None) == by_rows
                table = loss.rows[loss.slots] if by_rows else loss.table
                assert_close(table, squares.table)
                value = copy.deepcopy(loss)(z)
                expected = value if expected is None else expected
                assert_close(value, expected)
    with pytest.raises(RuntimeError, match="size mismatch for rows"):
        core.AdaDEM(31, by_rows=True).load_state_dict(rows.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        core.AdaDEM(30, by_rows=True).load_state_dict({})
    for options in ({"mec": False}, {"episodic": True}):  # which read none, but may have saved one
        core.AdaDEM(30, **options).load_state_dict(squares.state_dict())
        assert not core.AdaDEM(30, **options).state_dict()


def test_a_table_by_rows_resets_in_place():
    for reset in (lambda loss: loss.reset(), lambda loss: loss.reset_where(torch.tensor(True))):
        loss = core.AdaDEM(by_rows=True)
        z = torch.randn(8, 6)
        first = loss(z)
        for _ in range(2):
            loss(torch.randn(8, 6))
            reset(loss)
            assert torch.equal(loss.rows[loss.slots], F.uniform_table(6))
            assert torch.equal(loss(z), first)
        loss.reset_where(torch.tensor(False))
        assert not torch.equal(loss.rows[loss.slots], F.uniform_table(6))


def test_many_classes_are_kept_by_rows(monkeypatch):
    assert core.AdaDEM(9000).rows.shape == (1, 9000)
    monkeypatch.setattr(_rows, "MANY", 200)
    z = torch.randn(6, 300)
    loss, told = core.AdaDEM(), core.AdaDEM(by_rows=False)
    assert_close(loss(z), told(z))
    assert_close(loss(z + 1), told(z + 1))
    assert loss.table is told.rows is None
    assert loss.rows.shape == (1 + 6, 300)
    assert_close(loss.rows[loss.slots], told.table)
    assert_close(loss.double()(z.double()), told.double()(z.double()))
    assert loss.half().rows.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_classes_take_no_more_memory_than_rows_and_gradient(dtype, monkeypatch):
    """Beside the logits: the rows, and what is kept for the gradient, in float32 at least; whatever else is small."""
    monkeypatch.setattr(_kernels, "BLOCK", 1 << 15)
    monkeypatch.setattr(_calibrator, "_LARGE", 1 << 15)
    z = torch.randn(64, 20000).to(dtype).requires_grad_()
    loss, plain = core.AdaDEM(), core.AdaDEM()
    plain(z.detach())
    peak = peak_bytes(lambda: loss(z).sum().backward(), "cpu")
    gradient = 0 if dtype == torch.float32 else z.numel() * z.element_size()  # float32 takes the memory of what is kept
    assert peak < 2.4 * 4 * z.numel() + gradient
    monkeypatch.setattr(_calibrator, "_LARGE", z.numel())  # as many at a time as there are
    whole = core.AdaDEM()
    whole(z.detach())
    assert torch.equal(whole.rows, plain.rows)


def test_a_first_batch_in_inference_mode_leaves_rows_that_move():
    loss, plain = core.AdaDEM(by_rows=True), core.AdaDEM(by_rows=True)
    for number in range(3):
        z = torch.randn(4, 5)
        with torch.inference_mode(number < 2):
            value = loss(z)
        assert torch.equal(value, plain(z))


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


def test_wrong_options():
    with pytest.raises(ValueError, match="Proposition A.1"):
        core.DEM(tau=2.1, alpha=1)
    with pytest.raises(ValueError, match="momentum"):
        core.AdaDEM(momentum=1.5)
    with pytest.raises(ValueError, match="num_classes"):
        core.AdaDEM(0)
    assert "alpha=0.5" in repr(core.AdaDEM(alpha=0.5))
    assert "tau=1.2" in repr(core.DEM(1.2))

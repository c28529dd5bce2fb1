"""Source, NORM and Tent against what their papers' code does, written out here."""

from collections import namedtuple
from copy import deepcopy
from functools import partial

import published_losses as published
import pytest
import torch
from small_models import CLASSES, Mixed, SmallNet, image_batches
from torch import nn
from torch.testing import assert_close

from dembench import core
from dembench.tasks.common.digits_nets import DigitsTransformer, Normalized
from dembench.tasks.tta.methods.norm import Norm
from dembench.tasks.tta.methods.source import Source
from dembench.tasks.tta.methods.tent import Tent
from dembench.tasks.tta.task import Bfloat16

OPTIMIZERS = ("adam", "momentum", "sgd")
LOSSES = {"em": core.EM, "dem": lambda: core.DEM(1.2, 0.9), "adadem": core.AdaDEM}
RATES = {"adam": 1e-3, "momentum": 1e-2, "sgd": 3e-2}
Walk = namedtuple("Walk", "logits losses parameters")


def tent_with(make_loss, model):
    """Tent with a loss that no other method holds."""
    return Tent(model, make_loss())


METHODS = {"source": Source, "norm": Norm, **{name: partial(tent_with, make) for name, make in LOSSES.items()}}


def entropy(logits):
    p = logits.softmax(1)
    return -(p * p.log()).sum(1)


def published_loss(name):
    """The loss by its published formula; AdaDEM's carries its table from call to call."""
    if name == "em":
        return entropy
    if name == "dem":
        return lambda logits: published.dem(logits, 1.2, 0.9)
    table = torch.full((CLASSES, CLASSES), 1 / CLASSES, dtype=torch.float64)

    def adadem(logits):
        nonlocal table
        table = published.step(table, logits, 0.1)
        return published.adadem(logits, table)

    return adadem


def textbook_tent(model, batches, loss, kind, lr, steps):
    """Tent as its authors' code has it, its optimizers as equations."""
    model.train()
    model.requires_grad_(False)
    learned = []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(True)
            module.track_running_stats = False
            module.running_mean = module.running_var = None
            learned += [module.weight, module.bias]
    first, second = ([torch.zeros_like(p) for p in learned] for _ in range(2))
    logits_seen, losses, t = [], [], 0
    for x in batches:
        for _ in range(steps):
            logits = model(x)
            objective = loss(logits).mean()
            gradients = torch.autograd.grad(objective, learned)
            t += 1
            with torch.no_grad():
                for p, g, m, v in zip(learned, gradients, first, second, strict=True):
                    if kind == "adam":
                        m.copy_(0.9 * m + 0.1 * g)
                        v.copy_(0.999 * v + 0.001 * g * g)
                        p.copy_(p - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8))
                    else:
                        m.copy_(0.9 * m + g if kind == "momentum" else g)
                        p.copy_(p - lr * m)
        logits_seen.append(logits.detach())
        losses.append(objective.detach())
    return Walk(torch.stack(logits_seen), torch.stack(losses), weights(model))


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def walk(method, batches):
    logits, losses = [], []
    for x in batches:
        logits.append(method(x))
        losses.append(torch.tensor(0.0) if method.last_loss is None else method.last_loss)
    return Walk(torch.stack(logits), torch.stack(losses), weights(method.model))


def moved(before, after):
    return [name for name in before if not torch.equal(before[name], after[name])]


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_tent_is_the_textbook_loop(loss, kind, steps):
    batches = image_batches(12, dtype=torch.float64)
    model = SmallNet().double()
    start = weights(model)
    truth = textbook_tent(deepcopy(model), batches, published_loss(loss), kind, RATES[kind], steps)
    method = Tent(model, LOSSES[loss](), optimizer=kind, lr=RATES[kind], steps=steps)
    got = walk(method, batches)
    assert_close(got.logits, truth.logits, rtol=0, atol=1e-6)
    assert_close(got.losses, truth.losses, rtol=0, atol=1e-6)
    assert_close(got.parameters, truth.parameters, rtol=0, atol=1e-6)
    assert moved(start, got.parameters) == ["norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"]
    assert max((start[name] - got.parameters[name]).abs().max() for name in start) > 5e-3  # far beyond the tolerance
    assert (method.forward_passes, method.backward_passes, method.updated) == (12 * steps, 12 * steps, 12 * 16)


@pytest.mark.parametrize("loss", LOSSES)
def test_tent_is_the_textbook_loop_in_single_precision(loss):
    batches = image_batches(12)
    model = SmallNet()
    truth = textbook_tent(deepcopy(model), batches, published_loss(loss), "momentum", 1e-2, 1)
    got = walk(Tent(model, LOSSES[loss](), optimizer="momentum", lr=1e-2), batches)
    assert_close(got.parameters, truth.parameters, rtol=0, atol=1e-6)
    assert_close(got.logits, truth.logits, rtol=1e-5, atol=1e-5)


def test_tent_returns_the_logits_from_before_the_update():
    x = image_batches(1)[0]
    model = SmallNet()
    with torch.no_grad():
        before = deepcopy(model).train()(x)
    method = Tent(model, core.EM(), lr=0.1)
    first = method(x)
    assert torch.equal(first, before)
    assert not first.requires_grad
    assert_close(method.last_loss, entropy(before).mean())
    assert (method(x) - before).abs().max() > 0.1


def test_tent_lowers_the_entropy_of_a_batch_it_stays_on():
    x = image_batches(1)[0]
    method = Tent(SmallNet(), core.EM(), lr=1e-2)
    values = [entropy(method(x)).mean().item() for _ in range(20)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.8 * values[0]


def test_tent_learns_where_the_caller_has_switched_gradients_off():
    batches = image_batches(3)
    free, held = (Tent(SmallNet(), core.EM()) for _ in range(2))
    with torch.no_grad():
        inside = walk(held, batches)
    assert torch.equal(inside.logits, walk(free, batches).logits)


def test_a_plain_function_stands_where_the_loss_does():
    batches = image_batches(10, dtype=torch.float64)
    as_function, as_module = (walk(Tent(SmallNet().double(), loss), batches) for loss in (entropy, core.EM()))
    assert_close(as_function.parameters, as_module.parameters, rtol=0, atol=1e-9)
    method = Tent(SmallNet(), entropy)
    method.reset()  # a function has no state


MODELS = {
    "batch": (SmallNet, ["norm1", "norm2"]),
    "group": (partial(SmallNet, partial(nn.GroupNorm, 2)), ["norm1", "norm2"]),
    "layer": (
        lambda: Normalized((0.5,) * 3, (0.2,) * 3, Padded(DigitsTransformer(16, 2)), num_classes=10, weights_id="none"),
        ["model.net.blocks.0.norm1", "model.net.blocks.0.norm2", "model.net.norm"],
    ),
    "mixed": (Mixed, ["batch2d"]),  # LayerNorm and GroupNorm stay where there is a BatchNorm2d
}


class Padded(nn.Module):
    """A 32x32 network shown 12x12 images on black."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(nn.functional.pad(x, (10, 10, 10, 10)))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", MODELS)
def test_only_the_norm_layers_weights_and_biases_move(name, loss):
    make, layers = MODELS[name]
    torch.manual_seed(0)
    model = make()
    before = weights(model)
    method = Tent(model, LOSSES[loss](), lr=1e-2)
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    for x in image_batches(4):
        method(x)
    assert moved(before, weights(model)) == [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]
    assert moved(buffers, dict(model.named_buffers())) == []


def test_a_model_without_norm_layers_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES))
    with pytest.raises(ValueError, match="has no BatchNorm, LayerNorm or GroupNorm parameters to adapt"):
        Tent(model, core.EM())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "tent: expected steps >= 1, got 0"),
        ({"optimizer": "adamw"}, "unknown tent optimizer 'adamw'; nearest: adam; valid: adam, momentum, sgd"),
        ({"lr": 0}, "learning rate > 0, got 0"),
    ],
)
def test_tent_refuses_wrong_settings(options, message):
    with pytest.raises(ValueError, match=message):
        Tent(SmallNet(), core.EM(), **options)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_reset_starts_afresh_bit_for_bit_twice(loss, kind):
    batches = image_batches(8)
    method = Tent(SmallNet(), LOSSES[loss](), optimizer=kind, lr=1e-2)
    start = weights(method.model)
    first = walk(method, batches)
    for seed in (7, 8):
        walk(method, image_batches(3, seed=seed))
        method.reset()
        assert moved(start, weights(method.model)) == []
        again = walk(method, batches)  # with moments or a table left over these would differ
        assert torch.equal(again.logits, first.logits)
        assert torch.equal(again.losses, first.losses)
        assert moved(first.parameters, again.parameters) == []
        method.reset()


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_episodic_is_a_fresh_method_for_each_batch(loss, steps):
    options = {"lr": 1e-2, "steps": steps}
    episodic = Tent(SmallNet(), LOSSES[loss](), episodic=True, **options)
    for x in image_batches(5):
        fresh = Tent(SmallNet(), LOSSES[loss](), **options)
        assert torch.equal(episodic(x), fresh(x))
        assert moved(weights(fresh.model), weights(episodic.model)) == []
        assert torch.equal(episodic.last_loss, fresh.last_loss)


def by_batch_statistics(model, x):
    """SmallNet's forward pass with each BatchNorm as (x - mean) / sqrt(var + eps) over the batch, in float64."""

    def normalise(y, norm):
        variance, mean = torch.var_mean(y, (0, 2, 3), correction=0, keepdim=True)
        scale, shift = (part.view(1, -1, 1, 1) for part in (norm.weight, norm.bias))
        return (y - mean) / (variance + norm.eps).sqrt() * scale + shift

    model = deepcopy(model).double()
    with torch.no_grad():
        y = normalise(model.conv1(x.double()), model.norm1).relu()
        y = normalise(model.conv2(y), model.norm2).relu()
        return 4 * model.linear(y.mean((2, 3)))


@pytest.mark.parametrize("eps", [1e-5, 1e-2])
def test_norm_normalises_by_the_statistics_of_the_batch(eps):
    model = SmallNet(partial(nn.BatchNorm2d, eps=eps))
    method = Norm(deepcopy(model))
    for x in image_batches(3):
        got = method(x)
        assert_close(got, by_batch_statistics(model, x).float(), rtol=1e-4, atol=1e-4)
        assert not got.requires_grad
        half = method(x[:8])  # its own statistics, not those of the batch
        assert_close(half, by_batch_statistics(model, x[:8]).float(), rtol=1e-4, atol=1e-4)
        assert (half - got[:8]).abs().max() > 1e-2
    assert moved(weights(model), weights(method.model)) == []
    assert (method.forward_passes, method.backward_passes, method.updated, method.last_loss) == (6, 0, 0, None)


@pytest.mark.parametrize("make", [Norm, partial(Tent, loss=core.EM(), lr=1e-2)], ids=["norm", "tent"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_batch_statistics_outlive_a_call_of_eval_or_train(make, mode):
    called, left = make(SmallNet()), make(SmallNet())
    for x in image_batches(4):
        getattr(called.model, mode)()
        want = by_batch_statistics(called.model, x)
        got = called(x)
        assert_close(got, want.float(), rtol=1e-4, atol=1e-4)
        assert torch.equal(got, left(x))


def test_source_uses_the_running_statistics_whatever_else_is_in_the_batch():
    model = SmallNet()
    method = Source(deepcopy(model).train())
    first, second = image_batches(2)
    together = method(torch.cat([first, second]))
    with torch.no_grad():
        want = model.eval()(first)
    assert_close(together[:16], want, rtol=1e-5, atol=1e-5)
    assert_close(torch.cat([method(x[None]) for x in first]), want, rtol=1e-5, atol=1e-5)
    assert_close(method(first.flip(0)).flip(0), want, rtol=1e-5, atol=1e-5)
    assert (want - by_batch_statistics(model, first)).abs().max() > 0.1  # the two kinds of statistics differ here
    assert not together.requires_grad
    assert {key: value.tolist() for key, value in model.state_dict().items()} == {
        key: value.tolist() for key, value in method.model.state_dict().items()
    }


@pytest.mark.parametrize("make", [Source, Norm])
def test_the_loss_is_taken_and_never_called(make):
    def loss(logits):
        raise AssertionError("called")

    batches = image_batches(2)
    given, without = walk(make(SmallNet(), loss=loss), batches), walk(make(SmallNet()), batches)
    assert torch.equal(given.logits, without.logits)


@pytest.mark.parametrize("name", METHODS)
def test_bfloat16_stays_near_single_precision(name):
    batches = image_batches(4)
    half, single = METHODS[name](Bfloat16(SmallNet(), "cpu")), METHODS[name](SmallNet())
    start = weights(half.model)
    got, truth = walk(half, batches), walk(single, batches)
    assert got.logits.dtype == torch.float32
    assert not torch.equal(got.logits, truth.logits)
    assert_close(got.logits, truth.logits, rtol=0.05, atol=0.1)
    assert bool(moved(start, got.parameters)) == isinstance(half, Tent)
    assert {value.dtype for value in got.parameters.values()} == {torch.float32}
    half.reset()
    assert moved(start, weights(half.model)) == []


def test_a_loss_sees_single_precision_logits_under_bfloat16():
    seen = []

    def loss(logits):
        seen.append(logits.dtype)
        return entropy(logits)

    Tent(Bfloat16(SmallNet(), "cpu"), loss)(image_batches(1)[0])
    assert seen == [torch.float32]


@pytest.mark.gpu
@pytest.mark.parametrize("name", METHODS)
def test_cuda_agrees_with_the_cpu(name, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    walks = []
    for device in ("cpu", "cuda"):
        method = METHODS[name](SmallNet().to(device))
        walks.append(walk(method, [x.to(device) for x in image_batches(10)]))
    cpu, cuda = walks
    assert cuda.logits.is_cuda
    assert_close(cuda.logits.cpu(), cpu.logits, rtol=1e-3, atol=1e-3)
    assert_close({key: value.cpu() for key, value in cuda.parameters.items()}, cpu.parameters, rtol=1e-3, atol=1e-3)

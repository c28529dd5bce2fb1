"""Choosing what learns, stepping on it, and putting it back bit for bit."""

from copy import deepcopy

import pytest
import torch
from small_models import Mixed, SmallNet, image_batches
from torch import nn
from torch.testing import assert_close

from dembench import core
from dembench.core.adapt import Learner, ascended, norm_affine, require_grad_only, use_batch_statistics

ADAPTED = ["norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"]


def group_norm(channels):
    return nn.GroupNorm(2, channels)


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map."""

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def bits(tensors):
    """Copies that later steps do not reach."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def same_bits(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def moments(optimizer):
    """The optimizer's tensors by parameter number and name."""
    state = optimizer.state_dict()["state"]
    return {f"{k}.{name}": torch.as_tensor(value).clone() for k, part in state.items() for name, value in part.items()}


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, group_norm, ChannelLayerNorm])
def test_the_affine_parameters_of_the_norm_layers_are_chosen(norm):
    model = SmallNet(norm)
    found = norm_affine(model)
    assert list(found) == ADAPTED
    assert all(found[name] is dict(model.named_parameters())[name] for name in found)


def test_layer_and_group_norm_learn_only_where_there_is_no_batch_norm():
    assert list(norm_affine(Mixed())) == ["batch2d.weight", "batch2d.bias"]
    both = nn.Sequential(nn.GroupNorm(1, 3), nn.Flatten(), nn.LayerNorm(12), nn.BatchNorm1d(12))
    assert list(norm_affine(both)) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_a_norm_layer_alone_and_subclasses_of_one_count():
    class Own(nn.BatchNorm2d):
        pass

    assert list(norm_affine(nn.BatchNorm2d(3))) == ["weight", "bias"]
    assert list(norm_affine(nn.Sequential(Own(3)))) == ["0.weight", "0.bias"]
    assert list(norm_affine(nn.Sequential(nn.LayerNorm(3, bias=False)))) == ["0.weight"]


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(12, 3)),
        nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.Flatten(), nn.LayerNorm(12)),
    ],
    ids=["none", "without weights"],
)
def test_a_model_without_such_parameters_is_refused(model):
    with pytest.raises(ValueError, match=r"^Sequential has no BatchNorm, LayerNorm or GroupNorm parameters"):
        norm_affine(model)


def test_a_model_for_vectors_or_volumes_gives_its_batch_norms():
    assert list(norm_affine(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))) == ["1.weight", "1.bias"]
    assert list(norm_affine(nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2)), (nn.LayerNorm,))) == [
        "1.weight",
        "1.bias",
    ]


def test_gradients_are_required_of_the_given_parameters_alone():
    model = SmallNet()
    model.norm1.weight.requires_grad_(False)
    require_grad_only(model, norm_affine(model).values())
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == ADAPTED


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.BatchNorm1d, (9, 4)), (nn.BatchNorm2d, (5, 4, 3, 2)), (nn.BatchNorm3d, (5, 4, 3, 2, 2))]
)
def test_batch_statistics_are_used_in_train_and_eval_alike(layer, shape, training):
    norm = layer(4, eps=1e-3)
    model = nn.Sequential(norm)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.copy_(torch.rand(4) + 0.5)
    x = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(2)) + 1
    assert use_batch_statistics(model).train(training) is model
    axes = [axis for axis in range(x.dim()) if axis != 1]
    variance, mean = torch.var_mean(x.double(), axes, correction=0, keepdim=True)
    column = [-1, *[1] * (x.dim() - 2)]
    want = (x - mean) / (variance + 1e-3).sqrt() * norm.weight.view(column) + norm.bias.view(column)
    for _ in range(2):  # nothing is remembered
        assert_close(model(x), want.float(), rtol=1e-5, atol=1e-5)


def by_hand(kind, lr, gradients, start):
    """Adam (Kingma and Ba 2015, algorithm 1), SGD and momentum on given gradients, written out."""
    p, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for t, g in enumerate(gradients, 1):
        if kind == "adam":
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            p = p - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        else:
            m = 0.9 * m + g if kind == "momentum" else g
            p = p - lr * m
    return p


@pytest.mark.parametrize("kind", ["adam", "momentum", "sgd"])
def test_steps_follow_the_optimizers_equations_and_forget_old_gradients(kind):
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(7, generator=generator, dtype=torch.float64)
    gradients = torch.randn(15, 7, generator=generator, dtype=torch.float64)
    parameter = nn.Parameter(start.clone())
    learner = Learner({"p": parameter}, core.EM(), optimizer=kind, lr=0.03)
    for gradient in gradients:
        learner.step((parameter * gradient).sum())
    assert_close(parameter.detach(), by_hand(kind, 0.03, gradients, start), rtol=1e-12, atol=1e-12)


LOSSES = {"em": core.EM, "dem": lambda: core.DEM(1.2, 0.9), "adadem": core.AdaDEM}


@pytest.mark.parametrize("kind", ["adam", "momentum", "sgd"])
@pytest.mark.parametrize("loss", LOSSES)
def test_reset_restores_every_bit_twice(loss, kind):
    model = use_batch_statistics(SmallNet()).train()
    parameters = norm_affine(model)
    require_grad_only(model, parameters.values())
    learner = Learner(parameters, LOSSES[loss](), optimizer=kind, lr=0.05)
    start, first_options = bits(model.state_dict()), deepcopy(learner.optimizer.state_dict()["param_groups"])

    def walk(batches):
        outputs = []
        for x in batches:
            logits = model(x)
            learner.step(learner.loss(logits).mean())
            outputs.append(logits.detach())
        state = {**bits(model.state_dict()), **moments(learner.optimizer), **bits(learner.loss.state_dict())}
        return torch.stack(outputs), state

    batches = image_batches(6)
    outputs, end = walk(batches)
    assert all(not torch.equal(start[name], end[name]) for name in ADAPTED)
    assert any("exp_avg" in name or "momentum" in name for name in end) == (kind != "sgd")
    for detour in (image_batches(3, seed=9), image_batches(4, seed=10)):
        walk(detour)
        for group in learner.optimizer.param_groups:
            group["lr"] = 1.0
        learner.reset()
        assert same_bits(bits(model.state_dict()), start)
        assert moments(learner.optimizer) == {}
        assert learner.optimizer.state_dict()["param_groups"] == first_options
        assert all(parameter.grad is None for parameter in model.parameters())
        assert all(parameters[name] is dict(model.named_parameters())[name] for name in parameters)
        if loss == "adadem":
            assert torch.equal(learner.loss.table, torch.full((5, 5), 1 / 5))
        again, state = walk(batches)
        assert torch.equal(again, outputs)
        assert same_bits(state, end)


def test_ascended_steps_along_the_whole_gradient_and_comes_back_to_the_bit():
    parameters = [nn.Parameter(torch.randn(shape)) for shape in [(3, 2), (5,), ()]]
    start = [parameter.detach().clone() for parameter in parameters]
    gradients = [torch.randn_like(parameter) for parameter in parameters]
    length = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    with ascended(parameters, gradients, 0.05):
        for parameter, before, gradient in zip(parameters, start, gradients, strict=True):
            assert_close(parameter.detach(), before + 0.05 * gradient / length)
    assert all(torch.equal(parameter, before) for parameter, before in zip(parameters, start, strict=True))


def test_a_plain_function_is_a_loss_and_has_nothing_to_reset():
    parameter = nn.Parameter(torch.ones(3))
    learner = Learner({"p": parameter}, lambda logits: logits.square().sum(1), optimizer="sgd", lr=0.25)
    learner.step(learner.loss(parameter[None]).mean())
    assert_close(parameter.detach(), torch.full((3,), 0.5), rtol=0, atol=0)
    learner.reset()
    assert_close(parameter.detach(), torch.ones(3), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adm", "lr": 0.1}, r"unknown optimizer 'adm'; valid: adam, momentum, sgd"),
        ({"optimizer": "adam", "lr": 0.0}, r"learning rate > 0, got 0.0"),
        ({"optimizer": "adam", "lr": -1e-3}, r"learning rate > 0, got -0.001"),
        ({"optimizer": "sgd", "lr": float("nan")}, r"learning rate > 0, got nan"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Learner({"p": nn.Parameter(torch.ones(1))}, core.EM(), **options)

"""What a step asks of a device: no wait of the host, few operations, and resets that copy only what adapts."""

from functools import cache

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from tta_pairs import method_class

from dembench import core
from dembench.scripts.bench import textbook_tta
from dembench.scripts.bench.operations import count, host_counters
from dembench.tasks.common.digits_nets import CIFARResNet

GATES = {"margin": 1.0, "d": 1.1}  # every sample passes
OPTIONS = {
    "Tent": {},
    "ETA": GATES,
    "EATA": {**GATES, "fisher_alpha": 1.0},
    "SAR": {"margin": 1.0, "reset_below": 0.0, "freeze": "none"},
    "TTC": {"accumulate": None},
}
PULLED = ("Tent", "ETA", "EATA", "SAR")


def images():
    return torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def made(name, *, loss=core.EM, optimizer="momentum", **options):
    torch.manual_seed(0)
    method = method_class(name)(CIFARResNet(20), loss(), lr=1e-3, optimizer=optimizer, **{**OPTIONS[name], **options})
    if getattr(method, "source_images", 0):
        method.see_source(images())
    return method


@cache
def counted(name, optimizer="momentum", loss=core.EM, **options):
    """Counts of the third step: what is made once has been made."""
    method = made(name, loss=loss, optimizer=optimizer, **options)
    method(images()), method(images())
    return count(lambda: method(images()), host_counters(method.learner.optimizer))


@pytest.mark.parametrize("loss", [core.EM, core.DEM, core.AdaDEM])
@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
@pytest.mark.parametrize("name", PULLED)
def test_a_step_never_waits_for_the_device(name, optimizer, loss):
    assert not counted(name, optimizer, loss).waits


@pytest.mark.parametrize("name", PULLED)
def test_nor_does_a_step_that_selects_nothing(name):
    method = made(name, **({} if name == "Tent" else {"margin": 0.0}))
    method(images()), method(images())
    assert not count(lambda: method(images()), host_counters(method.learner.optimizer)).waits


def test_a_wait_would_be_counted():
    z = torch.randn(6, 3, requires_grad=True)
    for call in (
        lambda: z.sum().item(),
        lambda: float(z.detach().max()),
        lambda: z[z > 0],
        lambda: z.nonzero(),
        lambda: torch.where(z > 0),
        lambda: z.masked_select(z > 0),
        lambda: bool((z > 0).any()),
        lambda: z.argmax(1).unique(),
    ):
        assert count(call).waits, call
    assert not count(lambda: torch.where(z > 0, z, 0).sum().backward()).waits


def test_eata_costs_hardly_more_than_eta():
    """The published code walks over all parameters inside autograd, at 2.7 times ETA's operations."""
    eta, eata = (counted(name).calls.total() for name in ("ETA", "EATA"))
    assert eta < eata <= 1.15 * eta
    torch.manual_seed(0)
    net, classes = CIFARResNet(20), torch.tensor(10.0)
    loops = textbook_tta.EATA(
        net, margin=float(classes.log()), d=1.1, alpha=1.0, images=[images()], optimizer="momentum"
    )
    loops(images()), loops(images())
    assert count(lambda: loops(images())).calls.total() > 2 * eata


def test_sar_costs_little_more_than_two_steps_of_tent():
    assert counted("SAR").calls.total() <= 2.6 * counted("Tent").calls.total()


def test_operations_beside_the_model_do_not_grow_with_its_layers():
    """Optimizer, pull and perturbation are a few calls over all parameters, not a few for each of them."""
    for name in PULLED:
        beside = []
        for depth in (8, 32):
            torch.manual_seed(0)
            net = CIFARResNet(depth)
            method = method_class(name)(net, core.EM(), lr=1e-3, optimizer="momentum", **OPTIONS[name])
            if getattr(method, "source_images", 0):
                method.see_source(images())
            passes = 2 if name == "SAR" else 1
            method(images()), method(images())
            whole = count(lambda: method(images())).calls.total()  # noqa: B023
            learned = list(method.adapted.values())

            def bare(net=net, learned=learned):
                for parameter in learned:
                    parameter.grad = None
                net(images()).sum().backward()

            beside.append(whole - passes * count(bare).calls.total())
        assert abs(beside[1] - beside[0]) <= 20, name


class Copied(TorchDispatchMode):
    """Numbers written by copies and fills while it is entered."""

    def __init__(self):
        super().__init__()
        self.written = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if name in ("copy_", "zero_", "fill_", "clone", "_to_copy", "where", "lerp_", "mul_"):
            self.written += result.numel()
        elif name.startswith("_foreach_") and name.endswith("_"):
            self.written += sum(tensor.numel() for tensor in args[0])
        return result


@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_reset_copies_only_what_adapts(name, optimizer):
    """The published code reloads the whole model: here 272,474 numbers for the 1,376 that learn."""
    method = made(name, optimizer=optimizer)
    method(images())
    with Copied() as copied:
        method.reset()
    learned = sum(parameter.numel() for parameter in method.adapted.values())
    whole = sum(parameter.numel() for parameter in method.model.parameters())
    assert learned == 1376
    assert learned <= copied.written <= 6 * learned < whole / 20
    loops = textbook_tta.Tent(CIFARResNet(20))
    with Copied() as copied:
        loops.reset()
    assert copied.written >= whole


@pytest.mark.parametrize("name", OPTIONS)
def test_nothing_of_the_model_but_what_adapts_is_kept_twice(name):
    net = CIFARResNet(20)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    with Copied() as copied:
        method_class(name)(net, core.EM(), **OPTIONS[name])
    assert copied.written <= 6 * 1376


def test_gradients_are_asked_of_what_adapts_only():
    method = made("Tent")
    method(images())
    learned = set(map(id, method.adapted.values()))
    assert all(parameter.grad is None for parameter in method.model.parameters() if id(parameter) not in learned)
    convolutions = [module.weight for module in method.model.modules() if isinstance(module, nn.Conv2d)]
    assert not any(weight.requires_grad for weight in convolutions)

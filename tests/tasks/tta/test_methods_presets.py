"""The widely used collection's way of running a method: ``eval()``, all norm layers, Nesterov."""

import pytest
import torch
from small_models import Mixed, image_batches
from torch import nn
from torch.testing import assert_close

from dembench import core
from dembench.scripts.bench.textbook_tta import entropy
from dembench.tasks.tta.methods.eta import ETA
from dembench.tasks.tta.methods.tent import Tent


class Dropping(nn.Module):
    """Mixed behind a dropout, which acts in ``train()`` only."""

    def __init__(self):
        super().__init__()
        self.drop, self.net = nn.Dropout(0.5), Mixed()

    def forward(self, x):
        return self.net(self.drop(x))


def by_hand(batches, lr, *, margin=None):
    """Tent, or ETA with its first gate alone, in ``eval()`` with batch statistics; Nesterov momentum as equations."""
    net = Dropping().double().eval()
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm)]
    for module in norms:
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.train()
            module.momentum = 0.0  # the running statistics stay; nothing reads them
    learned = [parameter for module in norms for parameter in (module.weight, module.bias)]
    velocity = [torch.zeros_like(parameter) for parameter in learned]
    seen = []
    for x in batches:
        z = net(x)
        h = entropy(z)
        value = h.mean()
        if margin is not None:
            low = h < margin
            value = (torch.exp(margin - h[low]).detach() * h[low]).mean()
        gradients = torch.autograd.grad(value, learned)
        with torch.no_grad():
            for parameter, speed, gradient in zip(learned, velocity, gradients, strict=True):
                speed.copy_(0.9 * speed + gradient)
                parameter -= lr * (gradient + 0.9 * speed)
        seen.append(z.detach())
    return net, seen


@pytest.mark.parametrize("name", ["tent", "eta"])
def test_the_collections_preset(name):
    batches = image_batches(12, dtype=torch.float64)
    net = Dropping().double()
    options = {"preset": "mariodoebler", "optimizer": "nesterov", "lr": 1e-2}
    if name == "tent":
        method, margin = Tent(net, core.EM(), **options), None
    else:
        method = ETA(net, core.EM(), **options, margin=0.95, d=1.1)
        margin = 0.95 * torch.tensor(5.0, dtype=torch.float64).log().item()
    truth, seen = by_hand(batches, 1e-2, margin=margin)
    for x, expected in zip(batches, seen, strict=True):
        assert_close(method(x), expected, rtol=0, atol=1e-6)
    for (key, ours), (_, theirs) in zip(net.named_parameters(), truth.named_parameters(), strict=True):
        assert_close(ours, theirs, rtol=0, atol=1e-6, msg=key)
    assert len(method.adapted) == 8


def test_the_official_preset_lets_dropout_act():
    x = image_batches(1)[0]
    official, collection = (Tent(Dropping(), core.EM(), preset=preset) for preset in ("official", "mariodoebler"))
    torch.manual_seed(1)
    first = official.peek(x)
    assert not torch.equal(first, official.peek(x))
    assert torch.equal(collection.peek(x), collection.peek(x))

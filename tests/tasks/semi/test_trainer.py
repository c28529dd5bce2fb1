"""The loop: same batches for all, averaged weights, schedule, and resuming as if nothing had happened."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dembench.core import DEM, EM, AdaDEM
from dembench.tasks.common.orders import generator
from dembench.tasks.semi import augment
from dembench.tasks.semi.data import SemiData
from dembench.tasks.semi.methods.abc import ABC
from dembench.tasks.semi.methods.base import SemiMethod
from dembench.tasks.semi.methods.darp import DARP
from dembench.tasks.semi.methods.ent_min import EntMin
from dembench.tasks.semi.methods.fixmatch import FixMatch
from dembench.tasks.semi.methods.freematch import FreeMatch
from dembench.tasks.semi.methods.mixmatch import MixMatch
from dembench.tasks.semi.methods.pseudo_label import PseudoLabel
from dembench.tasks.semi.methods.remixmatch import ReMixMatch
from dembench.tasks.semi.methods.supervised import Supervised
from dembench.tasks.semi.methods.vat import VAT
from dembench.tasks.semi.nets import ConvNet
from dembench.tasks.semi.protocol import Protocol, parameter_groups
from dembench.tasks.semi.sources import Digits
from dembench.tasks.semi.trainer import Order, Trainer

METHODS = (PseudoLabel, EntMin, VAT, MixMatch, FixMatch, FreeMatch, ReMixMatch, ABC)
FEW = Protocol(6, batch_size=4, unlabelled_ratio=2, lr=0.05, ema=0.9, eval_every=2)


@pytest.fixture(scope="module")
def data() -> SemiData:
    return SemiData(Digits(), validation_per_class=2)


def trainer(
    data: SemiData, method: SemiMethod, protocol: Protocol = FEW, seed: int = 0, checkpoint: Path | None = None
) -> Trainer:
    torch.manual_seed(0)
    net = nn.Sequential(ConvNet(10, 4), nn.Dropout(0.1))  # dropout draws from the global generator
    method.prepare(data.num_unlabelled, data.training_counts)
    return Trainer(data, method.equip(net), method, protocol, seed=seed, checkpoint=checkpoint)


def weights(of: Trainer) -> list[Tensor]:
    return [t.detach().clone() for t in [*of.model.parameters(), *of.model.buffers(), *of.average]]


def assert_same(mine: list[Tensor], other: list[Tensor]) -> None:
    assert len(mine) == len(other)
    assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))


def test_an_order_goes_through_all_samples_before_any_comes_again() -> None:
    order = Order(7, 0, "labelled")
    drawn = torch.cat([order.rows(3 * step, 3) for step in range(7)]).view(3, 7)
    for epoch in drawn:
        assert sorted(epoch.tolist()) == list(range(7))
    assert len({tuple(epoch.tolist()) for epoch in drawn}) == 3
    assert torch.equal(Order(7, 0, "labelled").rows(9, 5), drawn.flatten()[9:14])
    assert not torch.equal(Order(7, 1, "labelled").rows(0, 21), drawn.flatten())
    assert len(Order(2, 0).rows(1, 9)) == 9


def test_a_seed_changes_the_batches_and_a_method_does_not(data: SemiData) -> None:
    first = trainer(data, FixMatch(None)).batch(3)
    same = trainer(data, FreeMatch(AdaDEM(), num_classes=10)).batch(3)
    assert torch.equal(first.images, same.images)
    assert torch.equal(first.views["strong"], same.views["strong"])
    assert not torch.equal(first.images, trainer(data, FixMatch(None), seed=1).batch(3).images)


def test_views_are_of_the_same_samples(data: SemiData) -> None:
    """Without crop, mirror or operations the strong view is the weak one."""
    plain = trainer(data, FixMatch(None))
    plain.recipe = type(plain.recipe)(pad=0, hflip=False, slots=0, cutout=0.0)
    batch = plain.batch(2)
    assert torch.equal(batch.views["weak"], batch.views["strong"])
    index = Order(len(data.unlabelled), 0, "unlabelled").rows(16, 8)
    expected = (data.unlabelled[index].double() / 255 - 0.35) / 0.2
    torch.testing.assert_close(batch.views["weak"].double(), expected, rtol=1e-5, atol=1e-5)
    assert batch.progress == pytest.approx(2 / 6)


def test_strong_views_are_drawn_anew_from_the_same_samples(data: SemiData) -> None:
    batch = trainer(data, FixMatch(None, strong_views=3)).batch(2)
    assert torch.equal(batch.views["strong"], trainer(data, FixMatch(None)).batch(2).views["strong"])
    assert torch.equal(batch.views["weak"], trainer(data, FixMatch(None)).batch(2).views["weak"])
    assert not torch.equal(batch.views["strong"], batch.views["strong2"])
    assert not torch.equal(batch.views["strong3"], batch.views["strong2"])
    plain = trainer(data, FixMatch(None, strong_views=2))
    plain.recipe = type(plain.recipe)(pad=0, hflip=False, slots=0, cutout=0.0)
    assert torch.equal(plain.batch(2).views["strong2"], plain.batch(2).views["weak"])


def test_the_strong_view_begins_with_the_weak_or_with_the_image(data: SemiData) -> None:
    """A crop of the whole area is the whole image, as other shapes of that area do not fit into it."""
    run = trainer(data, FixMatch(None))
    options = {"pad": 2, "hflip": False, "cutout": 0.3}
    index = Order(len(data.unlabelled), 0, "unlabelled").rows(16, 8)
    for scale in (None, (1.0, 1.0)):
        run.recipe = recipe = augment.Recipe(**options, strong_scale=scale)
        draws = generator(0, 2, "strong")
        draw = (augment.draw_resized if scale else augment.draw_weak)(recipe, 8, 16, 16, draws)
        start = data.unlabelled[index] if scale else augment.weak(data.unlabelled[index], recipe, draw)
        x = augment.strong(start, recipe, augment.draw_strong(recipe, 8, draws))
        assert torch.equal(run.batch(2).views["strong"], augment.to_float(x, run.mean, run.std))


@pytest.mark.parametrize("kind", METHODS)
def test_weight_zero_trains_the_base_bit_for_bit(data: SemiData, kind: type[SemiMethod]) -> None:
    runs = []
    for loss, options in ((None, {}), (AdaDEM(), {"loss_weight": 0.0})):
        run = trainer(data, kind(loss, num_classes=10, **options))
        list(run.run())
        runs.append(run)
    assert_same(weights(runs[0]), weights(runs[1]))
    assert runs[0].history == runs[1].history


def test_ent_min_without_a_loss_trains_as_supervised(data: SemiData) -> None:
    runs = [trainer(data, method) for method in (EntMin(None), Supervised(EM()))]
    for run in runs:
        list(run.run())
    assert_same(weights(runs[0]), weights(runs[1]))


def test_dem_of_one_and_one_trains_as_em(data: SemiData) -> None:
    runs = [trainer(data, FixMatch(loss)) for loss in (EM(), DEM(1.0, 1.0))]
    for run in runs:
        list(run.run())
    for a, b in zip(weights(runs[0]), weights(runs[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert runs[0].history[-1]["accuracy"] == pytest.approx(runs[1].history[-1]["accuracy"], abs=0.01)


@pytest.mark.parametrize(("kind", "optimizer", "cuts"), [
    (FreeMatch, "sgd", range(1, 7)), (MixMatch, "adamw", (1, 3, 5)), (VAT, "sgd", (4,)), (ReMixMatch, "adamw", (2, 3)),
    (ABC, "sgd", (4,)), (partial(DARP, every=2, start=0.2, threshold=0.1), "sgd", (3, 4)),
])  # fmt: skip
def test_resumed_is_uninterrupted_bit_for_bit(
    data: SemiData, kind: Callable[..., SemiMethod], optimizer: Any, cuts: Sequence[int], tmp_path: Path
) -> None:
    protocol = Protocol(7, 4, 2, optimizer, lr=0.01, ema=0.9, eval_every=3, checkpoint_every=1)

    def run(path: Path | None) -> Trainer:
        return trainer(data, kind(AdaDEM(), num_classes=10), protocol, checkpoint=path)

    whole = run(None)
    list(whole.run())
    for cut in cuts:
        file = tmp_path / f"{cut}.pt"
        first = run(file)
        first.load()
        for _ in range(cut):
            first.advance()
            if protocol.evaluates(first.done):
                first.evaluate_all()
        first.save()
        second = run(file)
        seen = list(second.run())
        assert second.resumed_at == cut
        assert [done for done, _ in seen] == [3, 6, 7]
        assert_same(weights(whole), weights(second))
        assert second.history == whole.history
        assert torch.equal(second.method.slot.loss.table, whole.method.slot.loss.table)
        assert second.method.forward_passes == whole.method.forward_passes
        assert torch.equal(second.final[0].counts, whole.final[0].counts)


def test_a_consumer_that_stops_loses_nothing(data: SemiData, tmp_path: Path) -> None:
    whole = trainer(data, FixMatch(AdaDEM()))
    list(whole.run())
    cut = trainer(data, FixMatch(AdaDEM()), checkpoint=tmp_path / "c.pt")
    assert [done for done, _ in itertools.islice(cut.run(), 2)] == [2, 4]
    again = trainer(data, FixMatch(AdaDEM()), checkpoint=tmp_path / "c.pt")
    assert [done for done, _ in again.run()] == [2, 4, 6]
    assert_same(weights(whole), weights(again))


def test_a_finished_checkpoint_gives_the_result_without_a_step(data: SemiData, tmp_path: Path) -> None:
    first = trainer(data, EntMin(EM()), checkpoint=tmp_path / "c.pt")
    list(first.run())
    second = trainer(data, EntMin(EM()), checkpoint=tmp_path / "c.pt")
    second.step = None  # type: ignore[method-assign]
    list(second.run())
    assert torch.equal(first.final[0].counts, second.final[0].counts)


def test_a_checkpoint_of_something_else_is_refused(data: SemiData, tmp_path: Path) -> None:
    list(trainer(data, EntMin(EM()), checkpoint=tmp_path / "c.pt").run())
    other = trainer(data, FreeMatch(EM(), num_classes=10), checkpoint=tmp_path / "c.pt")
    with pytest.raises(ValueError, match="does not fit .*force=true"):
        list(other.run())


@pytest.mark.parametrize("content", [b"", b"abc", b"\x80\x04K\x01."])
def test_a_damaged_checkpoint_is_named(data: SemiData, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.pt").write_bytes(content)
    with pytest.raises(ValueError, match="c.pt does not fit .*force=true"):
        list(trainer(data, EntMin(EM()), checkpoint=tmp_path / "c.pt").run())


def test_the_average_is_the_recurrence(data: SemiData) -> None:
    run = trainer(data, Supervised())
    average = [p.detach().clone() for p in run.parameters]
    for _ in range(5):
        run.advance()
        average = [0.9 * a + 0.1 * p.detach() for a, p in zip(average, run.parameters, strict=True)]
    for mine, expected in zip(run.average, average, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-7)


def test_the_averaged_weights_are_evaluated_with_live_statistics(data: SemiData) -> None:
    run = trainer(data, Supervised())
    list(run.run())
    before = weights(run)
    copy = nn.Sequential(ConvNet(10, 4), nn.Dropout(0.1)).eval()
    copy.load_state_dict(run.model.state_dict())
    with torch.no_grad():
        for p, a in zip(copy.parameters(), run.average, strict=True):
            p.copy_(a)
        x = (data.test.images.float() / 255 - 0.35) / 0.2
        expected = (copy(x).argmax(1) == data.test.labels).double().mean()
    assert run.evaluate("test")[0].accuracy() == pytest.approx(float(expected), abs=3e-3)
    assert_same(before, weights(run))
    assert run.model.training


def test_curve_values_are_means_since_the_last_evaluation(data: SemiData) -> None:
    run = trainer(data, EntMin(EM()))
    seen: list[float] = []
    original = run.method.terms
    run.method.terms = lambda *args: (
        seen.append(  # type: ignore[method-assign]
            (found := original(*args))["supervised"].item()
        )
        or found
    )
    values = [values["supervised"] for _, values in run.run()]
    assert values == pytest.approx([sum(seen[i : i + 2]) / 2 for i in (0, 2, 4)], rel=1e-5)


def test_costs_are_counted(data: SemiData) -> None:
    run = trainer(data, VAT(EM()))
    list(run.run())
    assert run.method.backward_passes == 6
    assert run.method.forward_passes == 4 * 6
    assert run.method.updated == (4 + 8) * 6


def test_the_rate_is_a_cosine_after_a_warm_up() -> None:
    protocol = Protocol(110, warmup=10, eval_every=1)
    assert [protocol.rate(t) for t in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    late = Protocol(110, warmup=10, warmup_from=0, eval_every=1)
    assert [late.rate(t) for t in (0, 4, 9)] == pytest.approx([0.0, 0.4, 0.9])  # USB: t / warm-up, then the cosine
    assert protocol.rate(10) == late.rate(10) == 1.0
    assert protocol.rate(60) == pytest.approx(math.cos(7 * math.pi / 32))
    assert Protocol(1 << 20).rate(1 << 20) == pytest.approx(0.19509, abs=1e-5)
    assert Protocol(100, schedule="constant").rate(99) == 1.0


def test_decay_and_layer_decay_by_parameter() -> None:
    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cls_token, self.pos_embed = nn.Parameter(torch.zeros(1, 1, 4)), nn.Parameter(torch.zeros(1, 3, 4))
            self.patch_embed = nn.Linear(4, 4)
            self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
            self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 2)

    net = Transformer()
    found = {
        id(p): (group["base_lr"], group["weight_decay"])
        for group in parameter_groups(net, 1.0, 0.1, 0.5)
        for p in group["params"]
    }
    assert len(found) == len(list(net.parameters()))
    expected = {
        net.cls_token: (1 / 16, 0.0), net.pos_embed: (1 / 16, 0.0), net.patch_embed.weight: (1 / 16, 0.1),
        net.blocks[0].weight: (1 / 8, 0.1), net.blocks[2].weight: (1 / 2, 0.1), net.blocks[2].bias: (1 / 2, 0.0),
        net.norm.weight: (1 / 2, 0.0), net.head.weight: (1.0, 0.1), net.head.bias: (1.0, 0.0),
    }  # fmt: skip
    for parameter, pair in expected.items():
        assert found[id(parameter)] == pytest.approx(pair)
    with pytest.raises(ValueError, match="no blocks"):
        parameter_groups(ConvNet(10, 4), 1.0, 0.1, 0.5)


@pytest.mark.parametrize(
    "wrong", [{"iterations": 0}, {"batch_size": 5, "devices": 2}, {"ema": 1.0}, {"lr": 0.0}, {"layer_decay": 0.0}]
)
def test_wrong_schedules_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Protocol(**{"iterations": 10, **wrong})


def test_bf16_keeps_losses_in_float32(data: SemiData) -> None:
    torch.manual_seed(0)
    seen: list[torch.dtype] = []

    class Watch(EM):
        def forward(self, logits: Tensor, mask: Tensor | None = None) -> Tensor:
            seen.append(logits.dtype)
            return super().forward(logits, mask)

    net = ConvNet(10, 4)
    inner: list[torch.dtype] = []
    net.features[0].register_forward_hook(lambda module, inputs, output: inner.append(output.dtype))
    run = Trainer(data, net, VAT(Watch()), FEW, seed=0, precision="bf16")
    run.advance()
    assert seen == [torch.float32]
    half, full = torch.bfloat16, torch.float32
    assert inner == [half, half, full, full, half]  # VAT's probe is exact, and so is the prediction that it starts from
    assert all(p.dtype == torch.float32 for p in net.parameters())

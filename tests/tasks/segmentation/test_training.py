"""The loop: ADVENT's schedule, batches by seed and position, and resuming as if nothing had happened."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_domains import Blocks
from torch import Tensor

from dembench.core import EM, AdaDEM
from dembench.tasks.base import Note
from dembench.tasks.common.cache import load_state
from dembench.tasks.segmentation.batches import ImagePairs, Share, collate
from dembench.tasks.segmentation.data import NORMALISATIONS
from dembench.tasks.segmentation.methods.adv_ent import AdvEnt
from dembench.tasks.segmentation.methods.base import UDAMethod
from dembench.tasks.segmentation.methods.fda import FDA
from dembench.tasks.segmentation.methods.min_ent import MinEnt
from dembench.tasks.segmentation.methods.source_only import SourceOnly
from dembench.tasks.segmentation.nets import deeplab_v2, deeplab_v3
from dembench.tasks.segmentation.protocol import Protocol
from dembench.tasks.segmentation.task import Segmentation
from dembench.tasks.segmentation.trainer import Trainer, thin_shortcuts

THIN = {"depth": 18, "width": 4, "output_stride": 4}
NET = deeplab_v2(**THIN, stages=3, dilations=(1, 2), style="pytorch", freeze_norm=False)
DROPOUT = deeplab_v3(**THIN, stages=3, dilations=(1, 2), channels=8, dropout=0.5)  # draws from the global generator
FEW = Protocol(6, batch_size=2, lr=0.02, eval_every=3, checkpoint_every=2, pictures=0)


@pytest.fixture(scope="module")
def data() -> Blocks:
    return Blocks()


def trainer(
    data: Blocks,
    kind: Callable[..., UDAMethod],
    schedule: Protocol = FEW,
    checkpoint: Path | None = None,
    seed: int = 0,
    net: Any = NET,
) -> Trainer:
    torch.manual_seed(0)
    method = kind(network=net(3, data.preprocessor()), num_classes=3)
    return Trainer(data, method, schedule, seed=seed, device="cpu", checkpoint=checkpoint)


def test_repeated_steps_are_those_of_advents_generator_of_parameters(data: Blocks) -> None:
    """The published code, transcribed: a list in which a weight stands once for each module that yields it, and SGD of
    one weight after the other, with one momentum for all its places."""
    schedule = Protocol(3, batch_size=2, lr=0.02, eval_every=3, pictures=0, repeated_backbone=True)
    run = trainer(data, SourceOnly, schedule)
    network, start = run.method.network, state(run)
    names = {id(p): name for name, p in network.named_parameters() if p.requires_grad}
    backbone = next(module for name, module in network.named_modules() if name.split(".")[-1] == "backbone")
    yielded = [names[id(p)] for child in backbone.children() for m in child.modules() for p in m.parameters()]
    places = {name: max(yielded.count(name), 1) for name in names.values()}
    assert set(places.values()) >= {1, 3, 4}
    value = {name: p.detach().clone() for name, p in network.named_parameters() if p.requires_grad}
    momentum: dict[str, Tensor] = {}
    for i in range(3):
        run.advance()
        decay = (1 - i / 3) ** 0.9
        for name, parameter in network.named_parameters():
            if not parameter.requires_grad:
                continue
            rate = 0.02 * decay * (10 if "_head." in name else 1)
            for _ in range(places[name]):
                gradient = parameter.grad + 5e-4 * value[name]
                momentum[name] = gradient if name not in momentum else 0.9 * momentum[name] + gradient
                value[name] = value[name] - rate * momentum[name]
            torch.testing.assert_close(parameter.detach(), value[name], rtol=1e-4, atol=1e-6)
    once = trainer(data, SourceOnly, Protocol(3, batch_size=2, lr=0.02, eval_every=3, pictures=0))
    assert all(torch.equal(a, b) for a, b in zip(state(once).values(), start.values(), strict=True))
    note = {n.key: n.text for n in notes_of(data, schedule)}["rates"]
    assert "a step for each module that holds it, as in ADVENT's code" in note
    assert "protocol=advent_original" in {n.key: n.text for n in notes_of(data, FEW)}["rates"]


def notes_of(data: Blocks, schedule: Protocol) -> list[Note]:
    task = Segmentation.__new__(Segmentation)
    task.data, task.protocol = data, schedule
    torch.manual_seed(0)
    return [*task.notes(MinEnt(EM(), network=NET(3, data.preprocessor()), num_classes=3))]


def adadem(**arguments: Any) -> MinEnt:
    return MinEnt(AdaDEM(), weight=0.3, aux_weight=0.1, **arguments)


def fourier(**arguments: Any) -> FDA:
    return FDA(AdaDEM(), weight=0.3, aux_weight=0.1, **arguments)


def adversarial(**arguments: Any) -> AdvEnt:
    return AdvEnt(AdaDEM(), weight=0.3, adversarial=0.1, discriminator_width=4, **arguments)


def state(of: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in of.method.state_dict().items()}


def assert_same(mine: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert mine.keys() == other.keys()
    assert [name for name in mine if not torch.equal(mine[name], other[name])] == []


def test_the_rate_is_advents_in_every_iteration(data: Blocks) -> None:
    """lr (1 - i / horizon) ** 0.9 with i from 0, for the network's groups and for the discriminators."""
    schedule = Protocol(4, batch_size=1, lr=2.5e-4, horizon=9, eval_every=4, pictures=0)
    run = trainer(data, adversarial, schedule)
    seen: list[list[float]] = []
    gradients = run.method.gradients

    def watched(batch: Any) -> Any:
        groups = [group for optimizer in run.optimizers.values() for group in optimizer.param_groups]
        seen.append([group["lr"] for group in groups])
        return gradients(batch)

    run.method.gradients = watched
    list(run.run())
    for i, rates in enumerate(seen):
        factor = (1 - i / 9) ** 0.9
        assert rates == pytest.approx([2.5e-4 * factor, 2.5e-3 * factor, 1e-4 * factor, 1e-4 * factor], rel=1e-12)
    assert len(seen) == 4


def test_advents_schedule_to_the_digit() -> None:
    """The rule of ADVENT at 120,000 of 250,000 iterations, and mmengine's recursion to the last bit."""
    from mmengine.optim import PolyLR

    schedule = Protocol(120000, horizon=250000)
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.5e-4)
    poly = PolyLR(sgd, power=0.9, eta_min=0.0, end=250001, by_epoch=False)
    rate = 2.5e-4
    for i in range(1, 1001):
        sgd.step()
        poly.step()
        rate *= schedule.decay(i)
        assert rate == sgd.param_groups[0]["lr"]
        assert rate == pytest.approx(2.5e-4 * (1 - i / 250000) ** 0.9, rel=1e-12)


def test_a_batch_follows_from_seed_and_position(data: Blocks) -> None:
    first, other = (ImagePairs(data.source_train, data.target_train, seed) for seed in (0, 1))
    names = [first[i]["source"]["data_samples"].img_path for i in range(10)]
    assert sorted(names[:5]) == sorted(names[5:]) == [f"0-{i}" for i in range(5)]  # each image once an epoch
    assert names != [other[i]["source"]["data_samples"].img_path for i in range(10)]
    assert list(Share(2, FEW)) == [4, 5, 6, 7, 8, 9, 10, 11]
    halves = [list(Share(0, Protocol(2, batch_size=4, devices=2), rank)) for rank in (0, 1)]
    assert halves == [[0, 1, 4, 5], [2, 3, 6, 7]]
    batch = collate([first[0], first[1]])
    assert len(batch["target"]["inputs"]) == 2
    assert not any("gt_sem_seg" in sample for sample in batch["target"]["data_samples"])


@pytest.mark.parametrize("kind", [SourceOnly, adadem, adversarial])
def test_the_same_seed_gives_the_same_bits_and_another_does_not(data: Blocks, kind: Any) -> None:
    runs = [trainer(data, kind, Protocol(2, batch_size=1, eval_every=2), seed=seed) for seed in (0, 0, 1)]
    curves = [list(run.run()) for run in runs]
    assert curves[0] == curves[1]
    assert_same(state(runs[0]), state(runs[1]))
    assert any(not torch.equal(a, b) for a, b in zip(state(runs[0]).values(), state(runs[2]).values(), strict=True))


class Killed(Exception):
    """The process ends here."""


@pytest.mark.parametrize(("kind", "net"), [(adadem, DROPOUT), (adversarial, NET), (fourier, NET)])
def test_a_run_that_was_killed_goes_on_as_if_nothing_had_happened(
    data: Blocks, tmp_path: Path, kind: Any, net: Any
) -> None:
    """Killed in iteration 5, after the checkpoints at 2 and 4 and the evaluation at 3; all optimisers have momentum."""
    whole = trainer(data, kind, net=net)
    curve = list(whole.run())
    broken = trainer(data, kind, checkpoint=tmp_path / "c.pt", net=net)
    gradients, calls = broken.method.gradients, []

    def dies(batch: Any) -> Any:
        calls.append(None)
        if len(calls) == 6:
            raise Killed
        return gradients(batch)

    broken.method.gradients = dies
    with pytest.raises(Killed):
        list(broken.run())
    resumed = trainer(data, kind, checkpoint=tmp_path / "c.pt", net=net)
    assert list(resumed.run()) == curve
    assert resumed.resumed_at == 4
    assert_same(state(resumed), state(whole))
    assert any(name.startswith("term.main.") and name.endswith("table") for name in state(whole))
    for name in ("forward_passes", "backward_passes", "updated"):
        assert getattr(resumed.method, name) == getattr(whole.method, name)
    again = trainer(data, kind, checkpoint=tmp_path / "c.pt", net=net)  # killed after the last checkpoint
    assert list(again.run()) == curve
    assert again.final().rows() == whole.final().rows()


def test_checkpoints_load_safely_and_wrong_ones_say_what_to_do(data: Blocks, tmp_path: Path) -> None:
    file = tmp_path / "c.pt"
    list(trainer(data, adadem, Protocol(1, batch_size=1, eval_every=1), file).run())
    assert load_state(file)["done"] == 1  # which torch loads as weights only
    wide = deeplab_v2(depth=18, width=8, stages=3, dilations=(1, 2), style="pytorch", freeze_norm=False)
    with pytest.raises(ValueError, match="c.pt does not fit .*remove it or say force=true"):
        list(trainer(data, adadem, checkpoint=file, net=wide).run())
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="c.pt does not fit .*force=true"):
        list(trainer(data, adadem, checkpoint=file).run())
    torch.save({"done": 3}, file)
    with pytest.raises(ValueError, match="c.pt does not fit .*force=true"):
        list(trainer(data, adadem, checkpoint=file).run())


def test_a_term_that_is_not_finite_ends_the_training(data: Blocks) -> None:
    run = trainer(data, SourceOnly, Protocol(6, batch_size=2, lr=1e30, eval_every=2, pictures=0))
    curve = list(run.run())
    assert not run.finite
    assert run.done < 6
    assert len(curve) == run.done // 2


def test_bf16_trains_near_to_fp32_and_keeps_its_weights_in_fp32(data: Blocks) -> None:
    found = {}
    for precision in ("fp32", "bf16"):
        run = trainer(data, lambda p=precision, **a: adadem(precision=p, **a), Protocol(2, batch_size=2, eval_every=2))
        (_, values), *_ = run.run()
        found[precision] = values["source"]
        assert all(p.dtype is torch.float32 for p in run.method.parameters())
    assert found["bf16"] == pytest.approx(found["fp32"], rel=0.02)
    assert found["bf16"] != found["fp32"]


def test_workers_load_the_same_batches_and_move_no_random_numbers(data: Blocks) -> None:
    curves = [
        list(trainer(data, SourceOnly, Protocol(2, batch_size=2, eval_every=2, workers=workers), net=DROPOUT).run())
        for workers in (0, 1)
    ]
    assert curves[0] == curves[1]


def test_the_loop_says_nothing_and_leaves_nothing(data: Blocks, capfd: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    before = torch.multiprocessing.get_start_method(allow_none=True), os.environ.get("OMP_NUM_THREADS")
    list(trainer(data, lambda **a: MinEnt(EM(), **a), Protocol(1, batch_size=1, eval_every=1)).run())
    assert capfd.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []
    assert before == (torch.multiprocessing.get_start_method(allow_none=True), os.environ.get("OMP_NUM_THREADS"))


def test_global_pooling_needs_two_images(data: Blocks) -> None:
    with pytest.raises(ValueError, match="protocol.batch_size of 2 or more"):
        list(trainer(data, SourceOnly, Protocol(1, batch_size=1, eval_every=1), net=DROPOUT).run())


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"iterations": 0}, "expected iterations >= 1, got 0"),
        ({"horizon": 3}, "expected horizon >= iterations = 4"),
        ({"lr": 0.0}, "expected lr > 0"),
        ({"momentum": 1.0}, r"momentum in \[0, 1\)"),
        ({"batch_size": 3, "devices": 2}, "batch_size 3 does not divide over 2 devices"),
    ],
)
def test_a_schedule_out_of_range_is_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Protocol(**{"iterations": 4, **settings})


@pytest.mark.parametrize(("width", "thin"), [(4, True), (8, False)])
def test_thin_shortcuts_keep_the_plain_format(width: int, thin: bool) -> None:
    """Channels last, their backward pass breaks the process on some CPUs."""
    net = deeplab_v2(depth=18, width=width, stages=3, dilations=(1, 2), style="pytorch", freeze_norm=False)
    assert thin_shortcuts(net(5, dict(NORMALISATIONS["imagenet"]))) == thin

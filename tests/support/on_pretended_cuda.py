"""Steps of every task, method and loss on the pretended device; ``tests/tasks/test_pretended_cuda.py`` runs them.

``TTA_WAITS`` says how often a step may make the host wait, where that is not never.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pretended_cuda
import pytest
import torch
from made_domains import Blocks
from made_stream import MadeData
from small_models import SmallNet, image_batches
from tiny_clip import NAMES, tiny_clip
from torch import nn
from tta_made import LEARNERS, WITHOUT_GRADIENT, make
from tta_models import FeatureNet
from tta_pairs import LOSSES as TTA_LOSSES

from dembench import core
from dembench.harness.experiment import make_repeatable, without_fixed_order
from dembench.tasks.base import Flag, Row
from dembench.tasks.longtail.data import LongTailData
from dembench.tasks.longtail.task import LongTail
from dembench.tasks.prompt.data import Digits as PromptDigits
from dembench.tasks.prompt.methods.ensemble import Ensemble
from dembench.tasks.prompt.methods.marginal import Marginal
from dembench.tasks.prompt.methods.tda import TDA
from dembench.tasks.prompt.methods.tpt import TPT
from dembench.tasks.prompt.methods.zero import Zero
from dembench.tasks.prompt.methods.zero_shot import ZeroShot
from dembench.tasks.prompt.task import PromptTuning
from dembench.tasks.prompt.task import Protocol as PromptProtocol
from dembench.tasks.prompt.text import ENCODINGS, Prompts
from dembench.tasks.prompt.views import Views
from dembench.tasks.semi.augment import Recipe
from dembench.tasks.semi.data import SemiData
from dembench.tasks.semi.methods.abc import ABC
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
from dembench.tasks.semi.protocol import Protocol as SemiProtocol
from dembench.tasks.semi.sources import Digits
from dembench.tasks.semi.trainer import Trainer
from dembench.tasks.tta.methods.tent import Tent
from dembench.tasks.tta.task import CorruptionTTA, Protocol

LOSSES: dict[str, Callable[[], Any]] = {
    "em": core.EM,
    "dem": lambda: core.DEM(1.2, 0.9),
    "adadem": core.AdaDEM,
    "adadem of 10": lambda: core.AdaDEM(10),  # its table is there before the device is known
}
TTA_WAITS = {"T3A": 1, "DeYO": 1}  # a batch; they need the number of samples that pass a gate


@pytest.fixture(autouse=True)
def repeatable() -> Iterator[None]:
    """As in a run."""
    make_repeatable(threads=1)
    yield
    torch.use_deterministic_algorithms(False)


def counted(step: Callable[[], object], *, waits: int = 0) -> None:
    """One step: so many waits, no blocking copy, and no operation whose bits may differ from run to run."""
    pretended_cuda.clear()
    step()
    assert pretended_cuda.waits.total() == waits, dict(pretended_cuda.waits)
    assert not pretended_cuda.blocking, dict(pretended_cuda.blocking)
    assert not pretended_cuda.unrepeatable, dict(pretended_cuda.unrepeatable)


def test_devices_and_generators_are_not_mixed() -> None:
    on_device, on_cpu = torch.ones(3, device="cuda"), torch.ones(3)
    with pytest.raises(RuntimeError, match="two devices"):
        on_device + on_cpu
    with pytest.raises(RuntimeError, match="two devices"):
        torch.cat([on_device, on_cpu])
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, device="cuda", generator=torch.Generator())
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, generator=torch.Generator("cuda"))
    with pytest.raises(TypeError, match="numpy"):
        on_device.numpy()
    assert (on_device + torch.tensor(2.0)).is_cuda  # a number may come from anywhere


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x[0].item(),
        lambda x: x.cpu(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: bool((x > 0).all()),
        lambda x: x.long().bincount(),
        lambda x: x.tolist(),
        lambda x: torch.zeros(3).copy_(x),
    ],
)
def test_a_question_to_the_device_is_a_wait(waits: Callable[[torch.Tensor], object]) -> None:
    x = torch.ones(3, device="cuda")
    assert not pretended_cuda.waits
    waits(x)
    assert pretended_cuda.waits.total() == 1


def test_a_copy_blocks_unless_it_is_pinned_and_told_not_to() -> None:
    x = torch.arange(3.0)
    torch.tensor([1.0, 2.0], device="cuda")
    x.cuda()
    x.to("cuda", non_blocking=True)  # pageable: the driver has to stage it
    x.pin_memory().to("cuda")
    assert pretended_cuda.blocking.total() == 4
    x.pin_memory().to("cuda", non_blocking=True)
    torch.empty(3, pin_memory=True).to("cuda", non_blocking=True)
    assert pretended_cuda.blocking.total() == 4
    assert not pretended_cuda.waits


def test_gradients_have_the_values_of_the_cpu() -> None:
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        net = SmallNet().to(device)
        core.AdaDEM(reduction="mean")(net(image_batches(1)[0].to(device))).backward()
        found.append([parameter.grad.cpu() for parameter in net.parameters()])
    for cpu, cuda in zip(*found, strict=True):
        torch.testing.assert_close(cuda, cpu)


def test_a_run_says_which_operations_have_no_fixed_order() -> None:
    with without_fixed_order() as found:
        for _ in range(2):
            torch.histc(torch.rand(9, device="cuda"))
        with pytest.warns(UserWarning, match="other"):
            warnings.warn("other", stacklevel=1)
    assert found == ["histc"]


# --- corruption TTA


@pytest.mark.parametrize("loss", [*TTA_LOSSES, "adadem of 5"])
@pytest.mark.parametrize("name", [*LEARNERS, *WITHOUT_GRADIENT])
def test_tta(name: str, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TTA_LOSSES, "adadem of 5", lambda: core.AdaDEM(5))
    method = make(name, loss, net=FeatureNet().cuda())
    first, *others = [x.cuda() for x in image_batches(4)]
    method(first)
    for x in others:
        counted(lambda x=x: method(x), waits=TTA_WAITS.get(name, 0))
    method.reset()


@pytest.mark.parametrize("mixed", [False, True])
def test_tta_task(mixed: bool) -> None:
    """The host looks at the numbers of 16 batches at once, and three times at those of a domain when it ends: at its
    metrics, its histogram and what tells a collapse."""
    domains, copies = ("fog", "snow"), []
    for batch_size in (10, 5):
        pretended_cuda.clear()
        protocol = Protocol(reset=False, batch_size=batch_size, corruptions=domains, mixed=mixed)
        task = CorruptionTTA(MadeData([k % 5 for k in range(40)]), SmallNet(), protocol, device="cuda")
        events = list(task.run(partial(Tent, loss=core.AdaDEM(5))))
        assert not [e for e in events if isinstance(e, Flag) and e.kind == "nan"]
        looks = 1 if mixed else 2
        assert pretended_cuda.waits.total() == looks + 3 * len(domains), dict(pretended_cuda.waits)
        copies.append(pretended_cuda.blocking.total())
    assert copies[0] == copies[1], dict(pretended_cuda.blocking)  # of model and labels; none of a batch


# --- semi-supervised and long-tail learning

FEW = SemiProtocol(8, batch_size=4, unlabelled_ratio=2, lr=0.05, ema=0.9, eval_every=8)
SEMI = (Supervised, PseudoLabel, EntMin, VAT, MixMatch, FixMatch, FreeMatch, ReMixMatch, ABC)


@pytest.fixture(scope="module")
def digits() -> SemiData:
    return SemiData(Digits(), validation_per_class=2)


def semi_trainer(
    data: SemiData, kind: Callable[..., Any], loss: Any, protocol: SemiProtocol = FEW, net: Any = None
) -> Trainer:
    method = kind(loss, num_classes=10)
    method.prepare(data.num_unlabelled, data.training_counts)
    return Trainer(data, method.equip(net or ConvNet(10, 4)), method, protocol, seed=0, device="cuda")


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", SEMI)
def test_semi(kind: Callable[..., Any], loss: str, digits: SemiData) -> None:
    trainer = semi_trainer(digits, kind, LOSSES[loss]())
    for _ in range(3):
        counted(trainer.advance)


def test_darp_waits_where_it_refines_alone(digits: SemiData) -> None:
    trainer = semi_trainer(digits, partial(DARP, every=2, start=0.0), None)
    for waits in (0, 0, 1, 0, 1):
        counted(trainer.advance, waits=waits)


def test_semi_by_adamw_with_resized_crops_of_all_operations(digits: SemiData) -> None:
    trainer = semi_trainer(digits, FixMatch, None, SemiProtocol(8, batch_size=32, optimizer="adamw", eval_every=8))
    trainer.recipe = Recipe(size=8, pad=0, strong_scale=(0.3, 1.0))
    for _ in range(2):
        counted(trainer.advance)


def test_longtail_task() -> None:
    data = LongTailData(Digits(), 8, 40, rho=4)
    task = LongTail(data, lambda num_classes: ConvNet(num_classes, 4), FEW, device="cuda")
    events = list(task.run(lambda **given: FreeMatch(core.AdaDEM(10), **given)))
    assert {"recall_head", "recall_tail"} <= {e.metric for e in events if isinstance(e, Row)}


# --- prompt tuning

PROMPT = {"zero_shot": ZeroShot, "ensemble": Ensemble, "marginal": Marginal, "zero": Zero, "tda": TDA, "tpt": TPT}


def features(images: int, width: int = 24) -> torch.Tensor:
    x = nn.functional.normalize(torch.randn(images, 10, width), dim=-1)
    return x.cuda()


@pytest.mark.parametrize("name", PROMPT)
@pytest.mark.parametrize("loss", ["em", "adadem", "adadem of 6"])
def test_prompt(name: str, loss: str) -> None:
    clip = tiny_clip()
    clip.to("cuda")
    prompts = Prompts(clip, NAMES, "a photo of a {}.", ("a {}.", "the {}."))
    method = PROMPT[name](prompts, core.AdaDEM(6) if loss == "adadem of 6" else LOSSES[loss]())
    method(features(3))
    views = features(3)
    counted(lambda: method(views))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("aggregate", ["marginal", "mean_logits", "per_view"])
def test_tpt_of_several_steps(aggregate: Any, encoding: Any) -> None:
    found = []
    for device in ("cpu", "cuda"):
        clip = tiny_clip()
        clip.to(device)
        prompts = Prompts(clip, NAMES, "a photo of a {}.", encoding=encoding)
        method = TPT(prompts, core.DEM(1.2, 0.9), aggregate=aggregate, steps=2, selected=0.3)
        torch.manual_seed(1)
        views = features(3)
        if device == "cuda":
            method(views)
            counted(lambda method=method, views=views: found.append(method(views)))
            found[-1] = found[-1].cpu()
        else:
            found.append(method(views.cpu()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)


def test_prompt_task(tmp_path: Path) -> None:
    """The host looks at the numbers of 16 blocks at once, and at those of a set when it ends."""
    views, clip, counts = Views(count=4, scale=(0.5, 1.0), flip=0.0), tiny_clip(), []
    for block_size in (8, 4, 2):  # the first run encodes the views
        pretended_cuda.clear()
        data = PromptDigits(num_images=8, corruptions=("noise",))
        task = PromptTuning(data, clip, PromptProtocol(views, block_size=block_size, cache=tmp_path), device="cuda")
        events = list(task.run(lambda **given: TPT(loss=core.AdaDEM(10), **given)))
        assert len([e for e in events if isinstance(e, Row) and e.metric == "accuracy"]) == 4
        counts.append((pretended_cuda.waits.total(), pretended_cuda.blocking.total()))
    assert counts[1] == counts[2], (dict(pretended_cuda.waits), dict(pretended_cuda.blocking))


# --- segmentation


def segmentation_nets() -> dict[str, Any]:
    from dembench.tasks.segmentation.nets import deeplab_v2, deeplab_v3

    thin = {"depth": 18, "width": 8, "stages": 3, "output_stride": 8, "dilations": (1, 2)}
    v2 = deeplab_v2(**thin, style="pytorch", freeze_norm=False)
    return {"v2": v2, "v3": deeplab_v3(**thin, channels=8, dropout=0.1)}


def segmentation_trainer(kind: str, loss: Any, net: str = "v2", **schedule: Any) -> Any:
    from dembench.tasks.segmentation.methods.adv_ent import AdvEnt
    from dembench.tasks.segmentation.methods.fda import FDA
    from dembench.tasks.segmentation.methods.min_ent import MinEnt
    from dembench.tasks.segmentation.methods.source_only import SourceOnly
    from dembench.tasks.segmentation.methods.tent_seg import TentSeg
    from dembench.tasks.segmentation.protocol import Protocol
    from dembench.tasks.segmentation.trainer import Trainer

    data = Blocks()
    network = segmentation_nets()[net](3, data.preprocessor())
    adversarial = {"discriminator_width": 4} if kind == "adv_ent" else {}
    kinds = {"source_only": SourceOnly, "min_ent": MinEnt, "fda": FDA, "adv_ent": AdvEnt, "tent_seg": TentSeg}
    method = kinds[kind](loss, network=network, num_classes=3, **adversarial)
    settings = {"batch_size": 2, "eval_every": 8, "pictures": 0, **schedule}
    return Trainer(data, method, Protocol(3, **settings), seed=0, device="cuda")


@pytest.mark.parametrize(("loss", "net"), [("em", "v2"), ("dem", "v2"), ("adadem", "v2"), ("adadem of 3", "v3")])
@pytest.mark.parametrize("kind", ["source_only", "min_ent", "fda", "adv_ent"])
def test_segmentation(kind: str, loss: str, net: str) -> None:
    trainer = segmentation_trainer(kind, core.AdaDEM(3) if loss == "adadem of 3" else LOSSES[loss](), net)
    for _ in range(3):
        counted(trainer.advance)


@pytest.mark.parametrize("kind", ["source_only", "tent_seg"])
def test_segmentation_evaluates_without_a_wait_but_one(kind: str) -> None:
    trainer = segmentation_trainer(kind, core.AdaDEM(3))
    list(trainer.run())
    if kind == "tent_seg":
        trainer.method.prepare_test()
        trainer.evaluate(trainer.data.target_test, adapt=True)
    found = []
    adapt = kind == "tent_seg"
    counted(lambda: found.append(trainer.evaluate(trainer.data.target_test, adapt=adapt)))
    counted(found[0].rows, waits=1)
    counted(found[0].rows)


# --- reinforcement learning, which by default stays on the CPU


@pytest.mark.parametrize("fast", [True, False])
def test_minigrid_task(fast: bool) -> None:
    from dembench.tasks.minigrid.envs import Environment
    from dembench.tasks.minigrid.methods import PPO
    from dembench.tasks.minigrid.task import Minigrid
    from dembench.tasks.minigrid.task import Protocol as MinigridProtocol

    environment = Environment("MiniGrid-Empty-Random-5x5-v0", steps=64, n_steps=16)
    protocol = MinigridProtocol(fast=fast, episodes=10, points=1, picture=False)
    task = Minigrid(environment, protocol, device="cuda")
    events = list(task.run(partial(PPO, core.AdaDEM(7), n_envs=4, n_epochs=1)))
    assert any(isinstance(e, Row) and e.metric == "return" for e in events)

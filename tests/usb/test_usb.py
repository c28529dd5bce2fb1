"""Against USB itself (semilearn 0.3.2), in an environment of its own: ``make test-usb``.

USB trains on GPUs alone; here ``.cuda()`` leaves tensors on the CPU, and nothing else of USB is replaced. Its
algorithms are built without a data set (``dataset="none"``), and given batches of noise; those that need one are built
on images of noise that torchvision's CIFAR-10 gives, and take batches as USB's data sets make them.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import runpy
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("semilearn", reason="make test-usb makes an environment with USB's package")
import semilearn
import torchvision
from semilearn.core import AlgorithmBase
from semilearn.core.utils import ALGORITHMS, IMB_ALGORITHMS
from semilearn.datasets.augmentation import randaugment
from torch.utils.data import default_collate

from dembench import EM, AdaDEM
from dembench.tasks.semi import augment, operators
from dembench.tasks.semi.methods.abc import ABC
from dembench.tasks.semi.methods.base import Batch, SemiMethod
from dembench.tasks.semi.methods.darp import DARP
from dembench.tasks.semi.methods.fixmatch import FixMatch
from dembench.tasks.semi.methods.flexmatch import FlexMatch
from dembench.tasks.semi.methods.freematch import FreeMatch
from dembench.tasks.semi.methods.mixmatch import MixMatch
from dembench.tasks.semi.methods.pseudo_label import PseudoLabel
from dembench.tasks.semi.methods.remixmatch import ReMixMatch
from dembench.tasks.semi.methods.softmatch import SoftMatch
from dembench.tasks.semi.methods.uda import UDA
from dembench.tasks.semi.methods.vat import VAT
from dembench.tasks.semi.nets import WideResNet, vit
from dembench.tasks.semi.protocol import Protocol
from dembench.tasks.semi.published import CIFAR

EXAMPLE = Path(__file__).parents[2] / "examples" / "usb" / "added_loss.py"
C, LABELLED, UNLABELLED, STEPS, STEP = 10, 4, 8, 100, 10
NO_UNLABELLED = {"fullysupervised", "supervised"}
NEEDS_DATA = {"comatch", "crmatch", "dash", "remixmatch", "simmatch"}  # memories of a data set's size, rotations


class Net(nn.Module):
    """As USB's networks answer: a dictionary of logits (N, C) and features."""

    def __init__(self, num_classes: int, **_: Any) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
        self.head = nn.Linear(24, num_classes)
        self.num_features = 24

    def forward(self, x: Tensor, only_feat: bool = False, only_fc: bool = False, **_: Any) -> Any:
        if only_fc:
            return 3 * self.head(x)
        feat = self.body(x)
        return feat if only_feat else {"logits": 3 * self.head(feat), "feat": feat}

    def group_matcher(self, **_: Any) -> dict[str, Any]:
        return {"stem": "^body", "blocks": []}

    def no_weight_decay(self) -> list[str]:
        return []


class NetOfParts(Net):
    """Also in parts, as some algorithms of USB call its networks."""

    def __init__(self, num_classes: int, **_: Any) -> None:
        super().__init__(num_classes)
        self.body, self.head = nn.Sequential(nn.Conv2d(3, 6, 3, 4, 1), nn.BatchNorm2d(6)), nn.Linear(6, num_classes)
        self.num_features = 6

    def extract(self, x: Tensor) -> Tensor:
        return self.body(x).relu()

    def forward(self, x: Tensor, only_feat: bool = False, only_fc: bool = False, **_: Any) -> Any:
        feat = x if only_fc else self.extract(x).mean((2, 3))
        logits = 3 * self.head(feat)
        return logits if only_fc else feat if only_feat else {"logits": logits, "feat": feat}

    def group_matcher(self, *_: Any, prefix: str = "", **__: Any) -> dict[str, Any]:
        return {"stem": f"^{prefix}body", "blocks": []}


class Logits(nn.Module):
    """The same network as ours answer."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)["logits"]


class TwoHeaded(nn.Module):
    """The same network with USB's second head, side by side, as ours answer in training."""

    def __init__(self, net: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.net, self.second = net, second

    def forward(self, x: Tensor) -> Tensor:
        found = self.net(x)
        return torch.cat([found["logits"], self.second(found["feat"])], 1)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self, *_, **__: self)
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> np.ndarray:
    """Images (60, 32, 32, 3) that take the place of CIFAR-10, six of each class."""
    images = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3)).astype(np.uint8)
    data = SimpleNamespace(data=images, targets=[number % C for number in range(60)])
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", lambda *_, **__: data)
    monkeypatch.setattr("semilearn.datasets.utils.base_dir", str(tmp_path))  # where USB writes whom it chose
    return images


@pytest.fixture
def with_counts(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Labelled samples of each class, which USB reads from its data set; it has 40 unlabelled ones."""
    counts = torch.arange(C, 0, -1)
    parts = {"train_lb": Namespace(targets=torch.arange(C).repeat_interleave(counts).tolist()), "train_ulb": range(40)}
    monkeypatch.setattr(AlgorithmBase, "set_dataset", lambda self: parts)
    monkeypatch.setattr(AlgorithmBase, "set_data_loader", lambda self: None)
    return counts


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example, and USB's algorithms put back afterwards."""
    monkeypatch.setattr(ALGORITHMS, "_dict", dict(ALGORITHMS._dict))
    spec = importlib.util.spec_from_file_location("added_loss", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def built(name: str, kind: type | None = None, net: type[Net] = Net, **settings: Any) -> Any:
    """One of USB's algorithms, with the options that its own parser gives it."""
    given = {
        "algorithm": name, "dataset": "none", "num_classes": C, "num_train_iter": STEPS, "num_eval_iter": STEPS,
        "num_log_iter": 1, "epoch": 1, "optim": "SGD", "lr": 0.03, "batch_size": LABELLED, "uratio": 2,
        "distributed": False, "rank": 0, "world_size": 1, "lb_dest_len": 20, "ulb_dest_len": 40, **settings,
    }  # fmt: skip
    args = semilearn.get_config(given)
    algorithm = (kind or ALGORITHMS[name])(args=args, net_builder=net, logger=logging.getLogger("usb"))
    algorithm.model.train()
    algorithm.it, algorithm.epoch = STEP, 0
    return algorithm


def batches(count: int = 1) -> list[dict[str, Tensor]]:
    found = []
    for number in range(count):
        unlabelled = {key: torch.randn(UNLABELLED, 3, 8, 8) for key in ("x_ulb_w", "x_ulb_s")}
        labelled = {"x_lb": torch.randn(LABELLED, 3, 8, 8), "x_lb_s": torch.randn(LABELLED, 3, 8, 8)}
        idx = {"idx_lb": torch.arange(LABELLED), "idx_ulb": torch.arange(UNLABELLED) + number}
        found.append({**labelled, "y_lb": torch.arange(LABELLED) % C, **unlabelled, **idx})
    return found


def step(algorithm: Any, batch: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, float]]:
    """What USB's own loop does with a batch, hooks for time and evaluation apart."""
    algorithm.out_dict, algorithm.log_dict = algorithm.train_step(**algorithm.process_batch(**batch))
    return algorithm.out_dict, algorithm.log_dict


# The example -------------------------------------------------------------------------------------------------------


def from_noise(algorithm: Any) -> dict[str, Tensor]:
    """A batch of the algorithm's own data sets, with the views that they choose for it."""
    parts = [("train_lb", LABELLED), ("train_ulb", UNLABELLED)]
    found = [default_collate([algorithm.dataset_dict[name][i] for i in range(count)]) for name, count in parts]
    batch = {**found[0], **found[1]}
    if algorithm.algorithm == "crmatch":  # the one whose own loop adds to a batch
        turns = next(iter(algorithm.loader_dict["train_ulb_rot"]))
        batch |= {"x_ulb_rot": torch.cat(turns[:4]), "rot_v": turns[4].T.flatten()}
    return batch


@pytest.mark.parametrize("name", sorted(set(ALGORITHMS.keys()) - NO_UNLABELLED))
def test_the_term_is_in_the_loss_and_in_the_logged_total_of_any_algorithm(
    name: str, example: ModuleType, noise: np.ndarray
) -> None:
    make = built
    if name in NEEDS_DATA:
        make = partial(built, net=NetOfParts, dataset="cifar10", num_labels=20, num_workers=0)
    plain = make(name)
    batch = from_noise(plain) if name in NEEDS_DATA else batches()[0]
    start = copy.deepcopy(plain.model.state_dict())
    kind = example.plug_in(name)
    assert ALGORITHMS[name] is kind
    added = make(name)
    added.model.load_state_dict(start)
    if added.ema_model is not None:
        added.ema_model.load_state_dict(plain.ema_model.state_dict())

    losses = []
    for algorithm in (plain, added):
        if name == "dash":  # after its warm-up, from which it has the loss that its threshold falls from
            algorithm.rho_init, algorithm.it = 2.0, 0
        algorithm.ema = semilearn.core.utils.EMA(algorithm.model, 0.999)
        algorithm.ema.register()
        torch.manual_seed(1)
        np.random.seed(1)
        losses.append(step(algorithm, batch))
    (own, own_log), (out, log) = losses
    after = {key: value for key, value in added.model.state_dict().items() if "running" in key}
    assert all(torch.equal(value, plain.model.state_dict()[key]) for key, value in after.items())

    with torch.no_grad():
        term = 0.1 * AdaDEM(num_classes=C, reduction="mean")(copy.deepcopy(plain.model)(batch["x_ulb_w"])["logits"])
    assert float(out["loss"]) == pytest.approx(float(own["loss"]) + float(term), abs=1e-6)
    assert log["train/total_loss"] == pytest.approx(own_log["train/total_loss"] + float(term), abs=1e-6)
    assert log["train/added_loss"] == pytest.approx(float(term), abs=1e-6)
    assert {key: log[key] for key in own_log if key != "train/total_loss"} == pytest.approx(
        {key: value for key, value in own_log.items() if key != "train/total_loss"}, abs=1e-6
    )


def test_every_algorithm_of_usb_takes_the_loss_or_says_why_not(example: ModuleType) -> None:
    for name in sorted(ALGORITHMS.keys()):
        if name in NO_UNLABELLED:
            with pytest.raises(ValueError, match="is shown no unlabelled samples"):
                example.with_loss(ALGORITHMS[name])
        else:
            assert issubclass(example.with_loss(ALGORITHMS[name]), ALGORITHMS[name])


def test_some_steps_of_a_training_and_its_checkpoint(
    example: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    example.plug_in("fixmatch")
    algorithm = built("fixmatch", ema_m=0.9, p_cutoff=0.2)
    caplog.set_level("INFO", logger="usb")
    algorithm.call_hook("before_run", "EMAHook")
    before = copy.deepcopy(algorithm.model.state_dict())
    for batch in batches(3):
        _, log = step(algorithm, batch)
        for hook in ("ParamUpdateHook", "EMAHook", "LoggingHook"):
            algorithm.call_hook("after_train_step", hook)
        algorithm.it += 1
    assert not torch.equal(before["head.weight"], algorithm.model.state_dict()["head.weight"])
    assert f"train/total_loss: {log['train/total_loss']:.4f}" in caplog.text  # what USB writes
    assert f"train/added_loss: {log['train/added_loss']:.4f}" in caplog.text
    assert not torch.allclose(algorithm.added_loss.table, torch.full((C, C), 1 / C))

    algorithm.save_model("latest_model.pth", str(tmp_path))
    other = built("fixmatch")
    other.load_model(str(tmp_path / "latest_model.pth"))
    assert torch.equal(other.added_loss.table, algorithm.added_loss.table)


def test_under_one_of_usbs_imbalanced_algorithms(example: ModuleType) -> None:
    example.plug_in("fixmatch", lambda _: EM(reduction="mean"), weight=0.5)

    class Both(IMB_ALGORITHMS["debiaspl"], ALGORITHMS["fixmatch"]):  # as USB's get_imb_algorithm does
        pass

    algorithm = built("fixmatch", Both, imb_algorithm="debiaspl")
    algorithm.call_hook("before_train_step", "NORMAL")  # the name that USB gives its hook
    _, log = step(algorithm, batches()[0])
    parts = log["train/sup_loss"] + log["train/unsup_loss"] + log["train/added_loss"]
    assert log["train/total_loss"] == pytest.approx(parts, abs=1e-5)
    assert log["train/added_loss"] > 0


# Ours against theirs -----------------------------------------------------------------------------------------------


def ours(method: SemiMethod, net: nn.Module, batch: dict[str, Tensor], second: str = "strong") -> dict[str, float]:
    views = {"weak": batch["x_ulb_w"], second: batch["x_ulb_s"]}
    terms = method.terms(
        net if isinstance(net, TwoHeaded) else Logits(net),
        Batch(batch["x_lb"], batch["y_lb"], views, STEP / STEPS, batch["idx_ulb"]),
    )
    return {name: float(value.detach()) for name, value in terms.items()}


def same(mine: dict[str, float], log: dict[str, float], weight: float = 1.0, tolerance: float = 1e-6) -> None:
    """The supervised term, and the sum of all; ``weight`` is that of USB's logged ``unsup_loss``."""
    assert mine["supervised"] == pytest.approx(log["train/sup_loss"], abs=tolerance)
    assert sum(mine.values()) == pytest.approx(log["train/total_loss"], abs=tolerance)
    assert log["train/unsup_loss"] > 1e-3  # there is something to compare
    if weight:
        second = next(value for name, value in mine.items() if name != "supervised")
        assert second == pytest.approx(weight * log["train/unsup_loss"], abs=tolerance)


@pytest.mark.parametrize("cutoff", [0.0, 0.2, 0.3])
def test_fixmatch(cutoff: float) -> None:
    theirs, batch = built("fixmatch", p_cutoff=cutoff, hard_label=True, ulb_loss_ratio=1.5), batches()[0]
    mine = ours(FixMatch(None, threshold=cutoff, unlabelled_weight=1.5), copy.deepcopy(theirs.model), batch)
    same(mine, step(theirs, batch)[1], 1.5)


def test_freematch_over_three_batches() -> None:
    theirs = built("freematch", hard_label=True, ema_p=0.7, ent_loss_ratio=0.5, use_quantile=False)
    method = FreeMatch(None, num_classes=C, momentum=0.7, fairness_weight=0.5)
    for batch in batches(3):
        mine = ours(method, copy.deepcopy(theirs.model), batch)
        _, log = step(theirs, batch)
        same(mine, log)
        assert mine["fairness"] != 0
        assert float(method.confidence) == pytest.approx(float(theirs.time_p), abs=1e-6)
        torch.testing.assert_close(method.marginal, theirs.p_model)
        torch.testing.assert_close(method.histogram, theirs.label_hist)


def test_flexmatch_over_three_batches() -> None:
    theirs = built("flexmatch", hard_label=True, p_cutoff=0.25, thresh_warmup=True)
    method = FlexMatch(None, num_classes=C, threshold=0.25)
    method.prepare(theirs.args.ulb_dest_len, torch.ones(C))
    for batch in batches(3):
        mine = ours(method, copy.deepcopy(theirs.model), batch)
        same(mine, step(theirs, batch)[1])
        hook = theirs.hooks_dict["MaskingHook"]
        assert torch.equal(method.learned, hook.selected_label)
        torch.testing.assert_close(method.status, hook.classwise_acc)


def test_softmatch_over_three_batches() -> None:
    options = {"dist_align": True, "dist_uniform": True, "per_class": False}
    theirs = built("softmatch", hard_label=True, ema_p=0.7, n_sigma=2, **options)
    method = SoftMatch(None, num_classes=C, momentum=0.7, n_sigma=2)
    for batch in batches(3):
        mine = ours(method, copy.deepcopy(theirs.model), batch)
        same(mine, step(theirs, batch)[1])


@pytest.mark.parametrize("schedule", ["none", "linear", "log", "exp"])
def test_uda(schedule: str) -> None:
    theirs, batch = built("uda", p_cutoff=0.2, tsa_schedule=schedule, T=0.4), batches()[0]
    method = UDA(None, threshold=0.2, annealing=schedule, num_classes=C)
    mine = ours(method, copy.deepcopy(theirs.model), batch)
    same(mine, step(theirs, batch)[1])


def test_pseudo_label() -> None:
    theirs, batch = built("pseudolabel", p_cutoff=0.3, unsup_warm_up=0.4), batches()[0]
    mine = ours(PseudoLabel(None, threshold=0.3, ramp=0.4), copy.deepcopy(theirs.model), batch)
    same(mine, step(theirs, batch)[1], STEP / STEPS / 0.4)


@pytest.mark.parametrize("factor", [0.2, 0.9])
def test_mixmatch(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np.random, "beta", lambda *_: factor)
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda *_: torch.tensor(factor, dtype=torch.float64))
    theirs, batch = built("mixmatch", unsup_warm_up=0.4, ulb_loss_ratio=10.0, T=0.5), batches()[0]
    results = []
    for run in (
        lambda: ours(MixMatch(None, chunks="batch", ramp=0.4), copy.deepcopy(theirs.model), batch, "weak2"),
        lambda: step(theirs, batch)[1],
    ):
        torch.manual_seed(3)
        results.append(run())
    same(*results, 10 * STEP / STEPS / 0.4, tolerance=2e-6)


def test_remixmatch_over_three_batches(with_counts: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np.random, "beta", lambda *_: 0.3)
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda *_: torch.tensor(0.3, dtype=torch.float64))
    weights = {"ulb_loss_ratio": 1.5, "kl_loss_ratio": 0.7, "rot_loss_ratio": 0.5}
    theirs = built("remixmatch", unsup_warm_up=0.4, T=0.5, **weights)
    method = ReMixMatch(None, num_classes=C, chunks="batch", ramp=0.4, anchor_weight=0.7)
    method.prepare(40, with_counts)
    for plain in batches(3):
        first, second, turns = plain["x_ulb_s"], torch.randn_like(plain["x_ulb_s"]), torch.randint(4, (UNLABELLED,))
        rotated = [torch.rot90(x, int(k), (1, 2)) for x, k in zip(first, turns, strict=True)]
        net = copy.deepcopy(theirs.model)
        batch = {key: plain[key] for key in ("x_lb", "y_lb", "x_ulb_w")}
        batch |= {"x_ulb_s_0": first, "x_ulb_s_1": second, "x_ulb_s_0_rot": torch.stack(rotated), "rot_v": turns}
        torch.manual_seed(3)
        log = step(theirs, batch)[1]
        views = {"weak": plain["x_ulb_w"], "strong": first, "strong2": second}
        model = TwoHeaded(net.backbone, net.rot_classifier)
        torch.manual_seed(3)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randint", lambda *_, turns=turns: turns)
            terms = method.terms(model, Batch(plain["x_lb"], plain["y_lb"], views, STEP / STEPS))
        same({name: float(term.detach()) for name, term in terms.items()}, log, 1.5 * STEP / STEPS / 0.4, 2e-6)
        torch.testing.assert_close(method.marginal, theirs.hooks_dict["DistAlignHook"].p_model)


def imbalanced(name: str, **settings: Any) -> Any:
    """One of USB's imbalanced algorithms on FixMatch, as its get_imb_algorithm makes it."""
    kind = type(name, (IMB_ALGORITHMS[name], ALGORITHMS["fixmatch"]), {})
    return built("fixmatch", kind, imb_algorithm=name, p_cutoff=0.2, hard_label=True, epoch=STEPS, **settings)


def test_abc(with_counts: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "bernoulli", lambda p: (torch.linspace(0, 1, len(p)) < p).double())  # theirs are double
    theirs, batch = imbalanced("abc", abc_p_cutoff=0.2, abc_loss_ratio=0.8), batches()[0]
    theirs.epoch = STEP  # an epoch is an iteration
    net = copy.deepcopy(theirs.model)
    theirs.model = nn.DataParallel(theirs.model)  # .module, as USB expects it
    method = ABC(None, num_classes=C, threshold=0.2, balanced_weight=0.8, hard=True, strong_views=1)
    method.prepare(40, with_counts)
    mine, log = ours(method, TwoHeaded(net.backbone, net.aux_classifier), batch), step(theirs, batch)[1]
    assert mine["supervised"] == pytest.approx(log["train/sup_loss"], abs=1e-6)
    assert mine["consistency"] == pytest.approx(log["train/unsup_loss"], abs=1e-6)
    assert mine["balanced"] == pytest.approx(0.8 * log["train/abc_loss"], abs=1e-6)
    assert min(mine.values()) > 1e-3


def test_darp_refines_as_usb(with_counts: Tensor) -> None:
    theirs = imbalanced("darp", darp_warmup_epochs=0).hooks_dict["PseudoLabelingHook"]
    method = DARP(None, num_classes=C, start=0.0)
    method.prepare(40, with_counts)
    theirs.pseudo_orig = torch.randn(40, C).softmax(1)  # among equals, both keep any
    method.predicted.copy_(theirs.pseudo_orig)
    for number in range(1, 31):
        rows, weak = torch.randperm(40)[:UNLABELLED], 2 * torch.randn(UNLABELLED, C)
        found = theirs.refine_pseudo_labels(rows, weak.softmax(1), number, 1)
        target, _ = method.targets(weak, Batch(weak, rows, {}, number / 31, rows, number))
        if number >= 10:
            torch.testing.assert_close(method.refined, theirs.pseudo_refine, rtol=0, atol=1e-6)
            assert torch.equal(target, found.argmax(1))


def test_vat(monkeypatch: pytest.MonkeyPatch) -> None:
    """With our probe, 1e-2, in both: with USB's 1e-6 the direction is noise in float32."""
    batch = batches()[0]
    direction = torch.randn_like(batch["x_ulb_w"])
    monkeypatch.setattr(torch, "randn_like", lambda *_, **__: direction.clone())
    monkeypatch.setattr(torch.Tensor, "normal_", lambda self: self.copy_(direction))
    theirs = built("vat", vat_eps=2.0, unsup_warm_up=0.4, ent_loss_ratio=0.06)
    real = theirs.vat_loss
    monkeypatch.setattr(theirs, "vat_loss", lambda model, x, y, eps: real(model, x, y, xi=1e-2, eps=eps))
    mine = ours(VAT(EM(), eps=2.0, ramp=0.4), copy.deepcopy(theirs.model), batch)
    _, log = step(theirs, batch)
    same(mine, log, 0, tolerance=2e-5)
    assert mine["entropy_term"] == pytest.approx(0.06 * log["train/loss_entmin"], abs=1e-6)
    assert mine["adversarial"] == pytest.approx(log["train/unsup_loss"] * STEP / STEPS / 0.4, abs=2e-5)


@pytest.mark.parametrize(
    ("name", "options"), [("wrn_28_2", {}), ("wrn_var_37_2", {"depth": 37, "stages": 4, "stride": 2})]
)
def test_the_wide_residual_networks(name: str, options: dict[str, int]) -> None:
    theirs = semilearn.get_net_builder(name, from_name=False)(num_classes=C)
    mine = WideResNet(C, usb=True, **options)
    unused = {f"block{stage}.layer.0.bn1" for stage in (2, 3, 4)}  # norms of USB's that nothing passes through
    kept = {key: value for key, value in theirs.state_dict().items() if key.rpartition(".")[0] not in unused}
    assert [value.shape for value in kept.values()] == [value.shape for value in mine.state_dict().values()]
    mine.load_state_dict(dict(zip(mine.state_dict(), kept.values(), strict=True)))
    x = torch.randn(4, 3, 32, 32)
    for training in (True, False):
        assert torch.equal(mine.train(training)(x), theirs.train(training)(x)["logits"])


def test_the_example_runs_as_it_says(capsys: pytest.CaptureFixture[str], example: ModuleType) -> None:
    sys.argv = ["added_loss.py", "fixmatch", "mixmatch"]
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "mixmatch: MixMatchWithLoss" in capsys.readouterr().out


# Augmentation, warm-up, head ----------------------------------------------------------------------------------------


def test_the_operations_and_their_ranges_are_usbs() -> None:
    theirs = [(name.__name__.lower(), (low, high)) for name, low, high in randaugment.augment_list()]
    ours = [(name.replace("_", ""), operators.RANGES[name]) for name in operators.OPERATIONS]
    assert [name for name, _ in ours] == [name for name, _ in theirs]
    unused = {"autocontrast", "equalize", "identity"}
    assert [pair for pair in ours if pair[0] not in unused] == [pair for pair in theirs if pair[0] not in unused]


def test_weak_and_strong_views_are_usbs_to_the_pixel(noise: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """All draws of a batch are ours, put where USB's transforms draw."""
    noise[30:] = (noise[30:] // 64) * 20 + 90  # low contrast, few levels
    theirs = built("fixmatch", dataset="cifar10", num_labels=20, num_workers=0).dataset_dict["train_ulb"]
    images = torch.from_numpy(theirs.data).permute(0, 3, 1, 2).contiguous()
    n, recipe, generator = len(images), augment.Recipe(), torch.Generator().manual_seed(0)
    firsts = [augment.draw_weak(recipe, n, 32, 32, generator) for _ in range(2)]
    second = augment.draw_strong(recipe, n, generator)
    expected = [
        augment.view(images, augment.plan(recipe, 32, 32, firsts[0])),
        augment.view(images, augment.plan(recipe, 32, 32, firsts[1], second)),
    ]

    crops, mirrors, places = [], [], []
    monkeypatch.setattr(torchvision.transforms.RandomCrop, "get_params", lambda *_: (*crops.pop(0), 32, 32))
    drawn = SimpleNamespace(choices=lambda found, k: chosen, random=lambda: share)
    monkeypatch.setattr(randaugment, "random", drawn)
    monkeypatch.setattr(randaugment.np.random, "uniform", lambda side: side * places.pop(0))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "rand", lambda *_: torch.tensor([0.0 if mirrors.pop(0) else 1.0]))
        found = []
        for i in range(n):
            crops += [(int(draw.top[i]), int(draw.left[i])) for draw in firsts]
            mirrors += [bool(draw.hflip[i]) for draw in firsts]
            operations = randaugment.augment_list()
            chosen = [
                (operations[number][0], magnitude, magnitude)
                for number, magnitude in zip(
                    second.operation[:, i].tolist(), second.magnitude[:, i].tolist(), strict=True
                )
            ]
            cut, *centre = second.cutout[:, i].tolist()
            share = 2 * cut  # USB halves it
            places += centre
            sample = theirs[i]
            found.append((sample["x_ulb_w"], sample["x_ulb_s"]))
            places.clear()
            assert not crops
            assert not mirrors
    mean, std = (torch.tensor(values) for values in (CIFAR.mean, CIFAR.std))
    for mine, other in zip(expected, zip(*found, strict=True), strict=True):
        other = torch.stack(other)
        torch.testing.assert_close(augment.to_float(mine, mean, std), other, rtol=0, atol=2e-6)
        pixels = ((other * std.view(-1, 1, 1) + mean.view(-1, 1, 1)) * 255).round().to(torch.uint8)
        assert torch.equal(mine, pixels)


@pytest.mark.parametrize("warmup", [0, 1, 50])
def test_the_rate_of_every_iteration(warmup: int) -> None:
    theirs = built("fixmatch", num_train_iter=400, num_warmup_iter=warmup, lr=0.5)
    ours = Protocol(400, lr=0.5, warmup=warmup, warmup_from=0, eval_every=1)
    optimizer = ours.make_optimizer(theirs.model)
    for step in range(400):
        ours.set_rate(optimizer, step)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(theirs.optimizer.param_groups[0]["lr"], abs=1e-15)
        theirs.optimizer.step()
        theirs.scheduler.step()


def test_the_vision_transformer_and_its_head() -> None:
    theirs = semilearn.get_net_builder("vit_tiny_patch2_32", from_name=False)(num_classes=100)
    mine = vit("vit_tiny_patch2_32", None, head="usb")(100)
    for part in ("weight", "bias"):
        own, other = (getattr(net.head, part).detach() for net in (mine, theirs))
        assert own.shape == other.shape
        assert own.abs().max() == pytest.approx(float(other.abs().max()), rel=0.05)
        assert own.std() == pytest.approx(float(other.std()), rel=0.2 if part == "bias" else 0.02)
    mine.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(mine.eval()(x), theirs.eval()(x)["logits"], rtol=0, atol=1e-5)

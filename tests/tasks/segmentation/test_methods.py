"""Objectives against ADVENT's published expressions, whole steps against a textbook loop, and what stays outside."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from made_domains import Blocks
from torch import Tensor, nn
from torch.nn import functional as F

from dembench.core import DEM, EM, AdaDEM
from dembench.harness.compose import compose, options
from dembench.tasks.segmentation.batches import ImagePairs, collate
from dembench.tasks.segmentation.methods.adv_ent import AdvEnt, Discriminator, self_information
from dembench.tasks.segmentation.methods.base import EntropyTerm, Logits, UDAMethod, cross_entropy, padding_mask
from dembench.tasks.segmentation.methods.fda import FDA, Robust, swap
from dembench.tasks.segmentation.methods.min_ent import MinEnt
from dembench.tasks.segmentation.methods.source_only import SourceOnly
from dembench.tasks.segmentation.methods.tent_seg import TentSeg
from dembench.tasks.segmentation.nets import Network, deeplab_v2
from dembench.tasks.segmentation.protocol import Protocol
from dembench.tasks.segmentation.trainer import make_optimizers

C = 3
NET = deeplab_v2(depth=18, width=4, stages=3, output_stride=4, dilations=(1, 2), style="pytorch", freeze_norm=False)
MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]))  # ImageNet's
SCHEDULE = Protocol(4, batch_size=2, lr=0.02, head_multiplier=3.0)


@pytest.fixture(scope="module")
def data() -> Blocks:
    return Blocks()


def network(data: Blocks) -> Network:
    torch.manual_seed(0)
    return NET(C, data.preprocessor())


def batches(data: Blocks, steps: int, progress: float = 0.5) -> list[dict[str, Any]]:
    draws = ImagePairs(data.source_train, data.target_train, seed=0)
    return [collate([draws[2 * i], draws[2 * i + 1]]) | {"progress": progress} for i in range(steps)]


def train(method: UDAMethod, data: Blocks, steps: int = 3) -> dict[str, Tensor]:
    """Steps at constant rates; the values of the last one."""
    optimizers = make_optimizers(method.train(), SCHEDULE).values()
    for batch in batches(data, steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        values = method.gradients(batch)
        for optimizer in optimizers:
            optimizer.step()
    return values


def weights(method: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in method.state_dict().items()}


def logits_of(shape: tuple[int, ...] = (2, 19, 5, 7), size: tuple[int, int] = (33, 49), mask: Any = None) -> Logits:
    return Logits(3 * torch.randn(shape), 3 * torch.randn(shape), size, mask, True)


def advents_entropy(logits: Tensor) -> Tensor:
    """The code of ADVENT in words: -sum P log2(P + 1e-30) / (n h w log2 C)."""
    p = F.softmax(logits, dim=1)
    n, c, h, w = p.size()
    return -torch.sum(torch.mul(p, torch.log2(p + 1e-30))) / (n * h * w * math.log2(c))


def test_min_ent_is_the_published_expression() -> None:
    z = logits_of()
    term = EntropyTerm(EM(), 0.001, 0.0002, "log_c", "full", 0.0)(z)
    up = [F.interpolate(head, (33, 49), mode="bilinear", align_corners=True) for head in (z.main, z.aux)]
    torch.testing.assert_close(term, 0.001 * advents_entropy(up[0]) + 0.0002 * advents_entropy(up[1]))


@pytest.mark.parametrize(("unit", "nats"), [("log_c", math.log(19)), ("bits", math.log(2)), ("nats", 1.0)])
def test_unit_and_resolution_of_the_loss(unit: str, nats: float) -> None:
    z = logits_of()
    p = z.main.double().softmax(1)
    expected = -(p * p.log()).sum(1).mean() / nats
    term = EntropyTerm(EM(), 2.0, 0.0, unit, "logit", 0.0)(z)
    assert term.item() == pytest.approx(2 * expected.item(), rel=1e-5)


LOSSES = sorted(set(options("loss")) - {"none", "dem_star"})


def loss_named(name: str) -> Any:
    return instantiate(compose(["task=segmentation", f"loss={name}"]).loss)


@pytest.mark.parametrize("name", LOSSES)
def test_pixels_are_samples_of_every_loss(name: str) -> None:
    z = logits_of()
    flat = z.full(z.main).permute(0, 2, 3, 1).reshape(-1, 19)
    expected = loss_named(name)(flat).mean()
    torch.testing.assert_close(EntropyTerm(loss_named(name), 1.0, 0.0, "nats", "full", 0.0)(z), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_every_method_takes_every_loss(data: Blocks, name: str) -> None:
    """Its gradients are those without a loss, and beside them those of the loss's mean over the target's pixels."""
    (batch,) = batches(data, 1)
    settings = {"weight": 0.5, "resolution": "logit"}
    for kind, more in ((MinEnt, {}), (AdvEnt, {"discriminator_width": 4}), (FDA, {"beta": 0.1})):
        found = []
        for loss in (None, loss_named(name)):
            torch.manual_seed(0)
            method = kind(loss, network=network(data).double(), num_classes=C, **settings, **more).double().train()
            method.gradients(batch)
            parameters = list(method.network.segmentor.decode_head.parameters())
            found.append(torch.cat([p.grad.flatten() for p in parameters]))
        main = method.target_logits(batch["target"]).main
        value = loss_named(name)(main.movedim(1, -1).flatten(0, 2)) / math.log(C)
        if kind is FDA:
            h = EM()(main.detach()).flatten() / math.log(C)
            value = value * 4 * h * (h**2 + 1e-8)
        added = torch.autograd.grad(0.5 * value.mean(), parameters)
        torch.testing.assert_close(found[1] - found[0], torch.cat([g.flatten() for g in added]), msg=f"{kind}")


@pytest.mark.parametrize("name", LOSSES)
def test_tent_takes_every_loss(data: Blocks, name: str) -> None:
    image = data.target_test[0]["inputs"]
    method = TentSeg(loss_named(name), network=network(data), num_classes=C, lr=0.1, optimizer="sgd").double().eval()
    method.prepare_test()
    parameters = list(method.learner.parameters.values())
    logits = method.test_logits(image)
    expected = torch.autograd.grad(loss_named(name)(logits.movedim(1, -1).flatten(0, 2)).mean(), parameters)
    start = [p.detach().clone() for p in parameters]
    method.predict(image)
    for before, gradient, after in zip(start, expected, parameters, strict=True):
        torch.testing.assert_close(after.detach(), before - 0.1 * gradient)


def test_each_head_has_a_state_of_its_own() -> None:
    z = logits_of()
    term = EntropyTerm(AdaDEM(), 1.0, 1.0, "nats", "full", 0.0)
    term(z)
    for mine, head in ((term.main, z.main), (term.aux, z.aux)):
        alone = AdaDEM()
        alone(z.full(head))
        assert torch.equal(mine.table, alone.table)
    assert not torch.equal(term.main.table, term.aux.table)


def test_padded_pixels_are_outside_of_the_loss() -> None:
    z = logits_of((2, 19, 33, 49))
    mask = torch.ones(2, 33, 49, dtype=torch.bool)
    mask[1, 20:], mask[1, :, 30:] = False, False
    inside = torch.cat([z.main[0].reshape(19, -1), z.main[1, :, :20, :30].reshape(19, -1)], 1).T
    for loss in (EM(), AdaDEM()):
        expected = copy.deepcopy(loss)(inside).mean()
        for resolution in ("full", "logit"):
            term = EntropyTerm(copy.deepcopy(loss), 1.0, 0.0, "nats", resolution, 0.0)
            torch.testing.assert_close(term(Logits(z.main, None, (33, 49), mask, True)), expected)


def test_images_of_two_sizes_are_padded_and_the_padding_is_masked(data: Blocks) -> None:
    small, large = Blocks(1, (16, 24)), Blocks(1, (32, 40))
    items = [pair.target_train[0] for pair in (small, large)]
    batch = {key: [item[key] for item in items] for key in ("inputs", "data_samples")}
    logits, _ = SourceOnly(network=network(data), num_classes=C).passes(batch)
    assert logits.size == (32, 40)
    assert logits.mask is not None
    assert logits.mask.sum(dim=(1, 2)).tolist() == [16 * 24, 32 * 40]
    assert logits.mask[0, :16, :24].all()
    same = SourceOnly(network=network(data), num_classes=C).passes({k: [v[1]] for k, v in batch.items()})[0]
    assert same.mask is None
    assert padding_mask(batch["data_samples"][1:], torch.zeros(1, 3, 32, 40)) is None


def test_the_source_term_is_a_mean_over_labelled_pixels(data: Blocks) -> None:
    method = SourceOnly(network=network(data), num_classes=C, source_aux=0.1)
    batch = batches(data, 1)[0]["source"]
    labels = torch.stack([s.gt_sem_seg.data[0] for s in batch["data_samples"]])
    term, logits = method.source_term(batch)
    expected = 0.0
    for weight, head in ((1.0, logits.main), (0.1, logits.aux)):
        up = F.interpolate(head, (32, 48), mode="bilinear", align_corners=True)
        log_p = up.log_softmax(1).permute(0, 2, 3, 1)[labels != 255]
        expected += -weight * log_p.gather(1, labels[labels != 255][:, None]).mean()
    torch.testing.assert_close(term, expected)
    assert (
        cross_entropy(logits.main, torch.full((2, *logits.main.shape[2:]), 255)).item() == 0.0
    )  # torch's mean is not a number


def test_maps_are_the_published_self_information() -> None:
    z = 3 * torch.randn(2, 19, 8, 9)
    p = z.softmax(1)
    torch.testing.assert_close(self_information(z), -p * torch.log2(p + 1e-30) / math.log2(19))
    torch.testing.assert_close(self_information(z).sum(1).mean(), advents_entropy(z))


def test_the_discriminator_is_the_published_one() -> None:
    d = Discriminator(19)
    convs = [m for m in d if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels) for m in convs] == [(19, 64), (64, 128), (128, 256), (256, 512), (512, 1)]
    assert {(m.kernel_size, m.stride, m.padding, m.bias is not None) for m in convs} == {((4, 4), (2, 2), (1, 1), True)}
    assert [m.negative_slope for m in d if isinstance(m, nn.LeakyReLU)] == [0.2] * 4
    assert d(torch.zeros(1, 19, 64, 96)).shape == (1, 1, 2, 3)


def fdas_image(source: np.ndarray, target: np.ndarray, beta: float) -> np.ndarray:
    """FDA's four corners of the whole spectrum in NumPy; then the real inverse, which reads its left half."""
    h, w = source.shape[-2:]
    b = math.floor(beta * min(h, w))
    spectrum, other = np.fft.fft2(source), np.fft.fft2(target)
    amplitude, phase = np.abs(spectrum), np.angle(spectrum)
    for y in [*range(b), *range(h - b, h)]:
        for x in [*range(b), *range(w - b, w)]:
            amplitude[..., y, x] = np.abs(other[..., y, x])
    half = (amplitude * np.exp(1j * phase))[..., : w // 2 + 1]
    return np.fft.irfft(np.fft.ifft(half, axis=-2), n=w, axis=-1)


def fdas_entropy(logits: Tensor, eta: float) -> Tensor:
    """FDA's penalised entropy of each pixel, (N, C, H, W) to (N, H, W)."""
    p = logits.softmax(1)
    entropy = -(p * p.log()).sum(1) / math.log(logits.shape[1])
    return (entropy**2.0 + 1e-8) ** eta


@pytest.mark.parametrize(("h", "w", "beta"), [(32, 48, 0.05), (33, 40, 0.09), (40, 33, 0.3), (8, 8, 0.49)])
def test_source_images_take_the_amplitudes_of_low_frequencies(h: int, w: int, beta: float) -> None:
    source, target = (255 * torch.rand(2, 3, h, w, dtype=torch.float64) for _ in range(2))
    found = swap(source, target, beta)
    np.testing.assert_allclose(found, fdas_image(source.numpy(), target.numpy(), beta), atol=1e-9)
    torch.testing.assert_close(found.mean((2, 3)), target.mean((2, 3)))  # the frequency 0
    torch.testing.assert_close(swap(source, source, beta), source)
    assert swap(source, target, 0.0) is source
    with pytest.raises(ValueError, match="beta 0.01 of .* pixels is less than one frequency"):
        swap(source, target, 0.01)


@pytest.mark.parametrize("eta", [0.5, 1.5, 2.0])
def test_the_penalised_entropy_has_fdas_value_and_gradient(eta: float) -> None:
    z = (3 * torch.randn(2, 19, 5, 7, dtype=torch.float64)).requires_grad_()
    mask = torch.rand(2, 5, 7) > 0.3
    expected = fdas_entropy(z, eta)
    torch.testing.assert_close(Robust(EM(), eta)(z), expected)
    torch.testing.assert_close(Robust(EM(), eta)(z, mask), expected * mask)
    (theirs,) = torch.autograd.grad((expected * mask).sum(), z)
    (mine,) = torch.autograd.grad(Robust(EM(), eta)(z, mask).sum(), z)
    torch.testing.assert_close(mine, theirs)


def test_another_loss_under_the_penalty_keeps_its_direction() -> None:
    """The entropy weighs its gradient, whatever its value and sign are."""
    z = (3 * torch.randn(2, 19, 5, 7, dtype=torch.float64)).requires_grad_()
    p = z.detach().softmax(1)
    h = -(p * p.log()).sum(1) / math.log(19)
    slope = 4 * h * (h**2 + 1e-8)
    for loss in (DEM(1.2, 0.8), lambda z: EM()(z) - 100):
        (mine,) = torch.autograd.grad(Robust(loss, 2.0)(z).sum(), z)
        (theirs,) = torch.autograd.grad((slope * loss(z)).sum() / math.log(19), z)
        torch.testing.assert_close(mine, theirs)


def test_images_of_two_sizes_are_cut_to_their_common_part_with_their_labels(data: Blocks) -> None:
    """The red of a block says its class, and still does so in the cut."""
    wide, high = Blocks(3, (32, 64)), Blocks(3, (48, 56))
    batch, other = batches(wide, 1)[0], batches(high, 1)[0]
    method = FDA(EM(), network=network(data), num_classes=C, beta=0.0)
    torch.manual_seed(0)
    cuts = [method.in_style(batch["source"], other["target"]) for _ in range(4)]
    for images in (found["inputs"] for found in cuts):
        assert [image.shape for image in images] == [(3, 32, 56)] * 2
    assert any(not torch.equal(found["inputs"][0], cuts[0]["inputs"][0]) for found in cuts)
    for found in cuts:
        for image, sample in zip(found["inputs"], found["data_samples"], strict=True):
            label = sample.gt_sem_seg.data[0]
            assert (label != 255).sum() == 30 * 56
            assert ((image[0] / 80).round() == label)[label != 255].float().mean() > 0.99
    assert batch["source"]["inputs"][0].shape == (3, 32, 64)  # the batch itself is left alone


@pytest.mark.parametrize("settings", [{"beta": 0.5}, {"beta": -0.1}, {"eta": 0.0}])
def test_settings_of_fda_out_of_range_are_refused(data: Blocks, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected beta from 0 to below 0.5 and eta > 0"):
        FDA(EM(), network=network(data), num_classes=C, **settings)


class Textbook:
    """ADVENT's loop as its paper and code have it, written anew: plain modules, plain optimisers."""

    def __init__(self, net: Network, discriminators: list[nn.Module]):
        self.net, self.ds = net, discriminators
        backbone = [p for n, p in net.named_parameters() if "backbone" in n]
        heads = [p for n, p in net.named_parameters() if "backbone" not in n]
        groups = [{"params": backbone, "lr": 0.02}, {"params": heads, "lr": 0.06}]
        self.sgd = torch.optim.SGD(groups, lr=0.02, momentum=0.9, weight_decay=5e-4)
        self.adams = [torch.optim.Adam(d.parameters(), lr=1e-2, betas=(0.9, 0.99)) for d in self.ds]

    def heads(self, batch: dict[str, Any]) -> list[Tensor]:
        x = (torch.stack(batch["inputs"]) - MEAN.double()) / STD.double()
        features = self.net.segmentor.backbone(x)
        z = [self.net.segmentor.decode_head(features), self.net.segmentor.auxiliary_head(features)]
        return [F.interpolate(each, x.shape[2:], mode="bilinear", align_corners=True) for each in z]

    def source(self, batch: dict[str, Any]) -> list[Tensor]:
        labels = torch.stack([s.gt_sem_seg.data[0] for s in batch["data_samples"]])
        z = self.heads(batch)
        (
            F.cross_entropy(z[0], labels, ignore_index=255) + 0.1 * F.cross_entropy(z[1], labels, ignore_index=255)
        ).backward()
        return z

    def min_ent_step(self, batch: dict[str, Any]) -> None:
        self.sgd.zero_grad()
        self.source(batch["source"])
        z = self.heads(batch["target"])
        (0.3 * advents_entropy(z[0]) + 0.2 * advents_entropy(z[1])).backward()
        self.sgd.step()

    def fda_step(self, batch: dict[str, Any], beta: float) -> None:
        self.sgd.zero_grad()
        pairs = zip(batch["source"]["inputs"], batch["target"]["inputs"], strict=True)
        styled = [torch.from_numpy(fdas_image(a.numpy(), b.numpy(), beta)).float() for a, b in pairs]
        self.source({**batch["source"], "inputs": styled})
        features = self.net.segmentor.backbone((torch.stack(batch["target"]["inputs"]) - MEAN.double()) / STD.double())
        main, aux = self.net.segmentor.decode_head(features), self.net.segmentor.auxiliary_head(features)
        (0.3 * fdas_entropy(main, 2.0).mean() + 0.2 * fdas_entropy(aux, 2.0).mean()).backward()
        self.sgd.step()

    def adv_ent_step(self, batch: dict[str, Any], added: float) -> None:
        for optimizer in (self.sgd, *self.adams):
            optimizer.zero_grad()
        for d in self.ds:
            d.requires_grad_(False)
        source = self.source(batch["source"])
        target = self.heads(batch["target"])
        total = 0.0
        for weight, d, z in zip((0.3, 0.2), self.ds, target, strict=True):
            score = d(self.map(z))
            total += weight * F.binary_cross_entropy_with_logits(score, torch.zeros_like(score))
            total += added * advents_entropy(z)
        total.backward()
        for d, zs, zt in zip(self.ds, source, target, strict=True):
            d.requires_grad_(True)
            for z, label in ((zs, 0.0), (zt, 1.0)):
                score = d(self.map(z.detach()))
                (F.binary_cross_entropy_with_logits(score, torch.full_like(score, label)) / 2).backward()
        for optimizer in (self.sgd, *self.adams):
            optimizer.step()

    @staticmethod
    def map(z: Tensor) -> Tensor:
        p = z.softmax(1)
        return -p * torch.log2(p + 1e-30) / math.log2(z.shape[1])


def assert_same(mine: nn.Module, other: nn.Module) -> None:
    """To rounding in float64: nothing in a step is in another order or at another scale."""
    for (name, value), expected in zip(mine.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}")


def test_three_steps_of_min_ent_are_those_of_a_textbook_loop(data: Blocks) -> None:
    book = Textbook(network(data).double().train(), [])
    for batch in batches(data, 3):
        book.min_ent_step(batch)
    method = MinEnt(EM(), network=network(data), num_classes=C, weight=0.3, aux_weight=0.2).double()
    train(method, data)
    assert_same(method.network, book.net)


def test_three_steps_of_fda_are_those_of_a_textbook_loop(data: Blocks) -> None:
    book = Textbook(network(data).double().train(), [])
    for batch in batches(data, 3):
        book.fda_step(batch, 0.1)
    method = FDA(EM(), network=network(data), num_classes=C, beta=0.1, weight=0.3, aux_weight=0.2).double()
    train(method, data)
    assert_same(method.network, book.net)


@pytest.mark.parametrize("added", [0.0, 0.4])
def test_three_steps_of_adv_ent_are_those_of_a_textbook_loop(data: Blocks, added: float) -> None:
    settings = {"adversarial": 0.3, "adversarial_aux": 0.2, "discriminator_lr": 1e-2, "discriminator_width": 4}
    method = AdvEnt(EM(), network=network(data), num_classes=C, weight=added, aux_weight=added, **settings)
    method.double()
    book = Textbook(network(data).double().train(), [copy.deepcopy(method.d_main), copy.deepcopy(method.d_aux)])
    for batch in batches(data, 3):
        book.adv_ent_step(batch, added)
    values = train(method, data)
    assert_same(method.network, book.net)
    assert_same(method.d_main, book.ds[0])
    assert_same(method.d_aux, book.ds[1])
    assert ("entropy_term" in values) == (added > 0)


def test_min_ent_without_weight_or_loss_is_source_only(data: Blocks) -> None:
    plain = SourceOnly(network=network(data), num_classes=C)
    train(plain, data)
    for method in (
        MinEnt(EM(), network=network(data), num_classes=C, weight=0.0, aux_weight=0.0),
        MinEnt(None, network=network(data), num_classes=C),
        TentSeg(AdaDEM(), network=network(data), num_classes=C),
    ):
        train(method, data)
        mine, theirs = (m.network.state_dict() for m in (method, plain))
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_dem_at_one_one_is_em_and_others_differ(data: Blocks) -> None:
    found = []
    for loss in (EM(), DEM(1.0, 1.0), DEM(1.2, 0.9), AdaDEM()):
        method = MinEnt(loss, network=network(data), num_classes=C, weight=0.3, aux_weight=0.2)
        train(method, data)
        found.append(torch.cat([p.detach().flatten() for p in method.network.parameters()]))
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])
    assert not torch.allclose(found[0], found[3])


def test_target_statistics_move_running_statistics_and_no_weight(data: Blocks) -> None:
    plain = SourceOnly(network=network(data), num_classes=C)
    moved = SourceOnly(network=network(data), num_classes=C, target_statistics=True)
    train(plain, data)
    train(moved, data)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), moved.parameters(), strict=True))
    name = "segmentor.backbone.bn1.running_mean"
    assert not torch.equal(plain.network.state_dict()[name], moved.network.state_dict()[name])


def test_labels_of_the_target_are_not_read(data: Blocks) -> None:
    method = MinEnt(EM(), network=network(data), num_classes=C, weight=0.3)
    batch = batches(data, 1)[0]
    assert not any("gt_sem_seg" in sample for sample in batch["target"]["data_samples"])
    method.gradients(batch)


def test_a_ramp_raises_the_weight() -> None:
    z = logits_of()
    term = EntropyTerm(EM(), 1.0, 0.0, "nats", "logit", 0.5)
    full = term(z, 1.0).item()
    assert [term(z, progress).item() for progress in (0.0, 0.25, 0.5)] == pytest.approx([0.0, full / 2, full])


def test_rates_of_the_groups(data: Blocks) -> None:
    method = AdvEnt(EM(), network=network(data), num_classes=C, discriminator_lr=0.5)
    found = make_optimizers(method, Protocol(4, lr=0.1, head_multiplier=10.0, backbone_multiplier=3.0))
    body, heads = found["network"].param_groups
    names = {id(p): n for n, p in method.network.named_parameters()}
    assert {names[id(p)].split(".")[1] for p in body["params"]} == {"backbone"}
    assert {names[id(p)].split(".")[1] for p in heads["params"]} == {"decode_head", "auxiliary_head"}
    assert len(body["params"]) + len(heads["params"]) == len(names)
    assert (body["lr"], heads["lr"], heads["weight_decay"]) == pytest.approx((0.3, 1.0, 5e-4))
    assert found["d_aux"].defaults["betas"] == (0.9, 0.99)
    assert found["d_main"].param_groups[0]["lr"] == 0.5


def test_tent_predicts_before_its_step_and_moves_affine_weights_alone(data: Blocks) -> None:
    method = TentSeg(EM(), network=network(data), num_classes=C, lr=0.1, optimizer="sgd")
    train(method, data)
    before = weights(method.network)
    reference = copy.deepcopy(method.network).train()  # where BatchNorm normalises by the image
    method.prepare_test()
    method.eval()
    image = data.target_test[0]["inputs"]
    with torch.no_grad():
        first, after, second = method.predict(image), weights(method.network), method.predict(image)
    x = (image - MEAN) / STD
    z = F.interpolate(reference(x[None])[0], (32, 48), mode="bilinear", align_corners=True)
    torch.testing.assert_close(first, z.detach())  # statistics of the image, weights from before the step
    p = z.softmax(1)
    (-(p * p.log()).sum(1).mean()).backward()
    for (name, value), old in zip(method.network.named_parameters(), reference.parameters(), strict=True):
        if "bn" in name or "downsample.1" in name:
            torch.testing.assert_close(after[name], (old - 0.1 * old.grad).detach(), rtol=1e-4, atol=1e-6)
        else:
            assert torch.equal(value, before[name])
    assert not torch.equal(first, second)


def test_tent_without_a_loss_is_statistics_alone_and_episodic_forgets(data: Blocks) -> None:
    images = [data.target_test[i]["inputs"] for i in range(3)]
    none = TentSeg(None, network=network(data), num_classes=C)
    forgets = TentSeg(AdaDEM(), network=network(data), num_classes=C, lr=0.1, episodic=True)
    learns = TentSeg(AdaDEM(), network=network(data), num_classes=C, lr=0.1)
    for method in (none, forgets, learns):
        method.prepare_test()
        method.eval()
    for i, image in enumerate(images):
        assert torch.equal(none.predict(image), forgets.predict(image))
        assert torch.equal(none.predict(image), learns.predict(image)) == (i == 0)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"unit": "bit"}, "unknown unit of the loss 'bit'; nearest: bits; valid: log_c, bits, nats"),
        ({"resolution": "half"}, "unknown resolution of the loss 'half'.*full, logit"),
        ({"weight": -1.0}, "weights of the loss >= 0"),
        ({"ramp": 2.0}, "ramp from 0 to 1"),
        ({"source_aux": -0.1}, "source_aux >= 0"),
    ],
)
def test_settings_out_of_range_are_refused(data: Blocks, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        MinEnt(EM(), network=network(data), num_classes=C, **settings)
    if "unit" not in settings and "resolution" not in settings:
        return
    with pytest.raises(ValueError, match=reason):
        AdvEnt(EM(), network=network(data), num_classes=C, **settings)

"""Networks: sizes as published, weights of other sizes, and makers that say what they start from."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dembench.harness.compose import compose
from dembench.tasks.common.cache import file_hash
from dembench.tasks.semi import nets


def test_wide_resnets_have_the_published_sizes() -> None:
    small = nets.wide_resnet()(num_classes=10)
    assert nets.count_parameters(small) == pytest.approx(1.47e6, rel=0.005)
    assert small(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert small.bn.momentum == 0.001
    large = nets.wide_resnet(37, 2, stages=4, stride=2)(num_classes=10)
    assert nets.count_parameters(large) == pytest.approx(5.93e6, rel=0.005)
    with pytest.raises(ValueError, match="depth 29"):
        nets.wide_resnet(29)


def wide_by_hand(state: dict[str, Tensor], x: Tensor, stages: int, stride: int, block: str) -> Tensor:
    """The formulas of a wide residual network with batch statistics, from names of tensors alone."""

    def norm(name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
        scaled = (x - mean) / (var + eps).sqrt() * state[f"{name}.weight"].view(-1, 1, 1)
        return scaled + state[f"{name}.bias"].view(-1, 1, 1)

    def leaky(x: Tensor) -> Tensor:
        return x.clamp(min=0) + 0.1 * x.clamp(max=0)

    x = F.conv2d(x, state["conv.weight"], state["conv.bias"], padding=1)
    for number in range(4 * stages):
        first, name, step = number % 4 == 0, f"stages.{number}", 1
        if first:
            step = stride if number == 0 else 2
        bare = first and number > 0 and block == "usb"
        y = x if bare else leaky(norm(f"{name}.bn1", x))
        shortcut = F.conv2d(y if number == 0 else x, state[f"{name}.shortcut.weight"], stride=step) if first else x
        y = F.conv2d(y, state[f"{name}.conv1.weight"], stride=step, padding=1)
        x = shortcut + F.conv2d(leaky(norm(f"{name}.bn2", y)), state[f"{name}.conv2.weight"], padding=1)
    return leaky(norm("bn", x, 1e-3)).mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]


@pytest.mark.parametrize("block", ["fixmatch", "usb"])
@pytest.mark.parametrize(("depth", "stages", "stride"), [(28, 3, 1), (37, 4, 2)])
def test_wide_resnets_have_the_block_that_they_say(depth: int, stages: int, stride: int, block: str) -> None:
    torch.manual_seed(0)
    net = nets.wide_resnet(depth, 2, stages, stride, block=block)(5).double()
    for name, parameter in net.named_parameters():
        if ".bn" in name or name.startswith("bn"):
            nn.init.uniform_(parameter, 0.5, 1.5)
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    found = {name: wide_by_hand(net.state_dict(), x, stages, stride, name) for name in (block, "usb")}
    torch.testing.assert_close(net(x), found[block], rtol=1e-9, atol=1e-11)
    if block == "fixmatch":
        assert (found["usb"] - found[block]).std() > 0.03 * found["usb"].std()


def test_presets_name_the_block_of_their_tables() -> None:
    for task in ("semi", "longtail"):
        for name, block in (("wrn_28_2", None), ("wrn_28_2_usb", "usb"), ("wrn_37_2", None), ("wrn_37_2_usb", "usb")):
            model = compose([f"task={task}", f"model={name}"]).model
            assert (model.get("block"), model.width, model.bn_momentum) == (block, 2, 0.001)
    with pytest.raises(ValueError, match="unknown block of wide_resnet 'google'"):
        nets.wide_resnet(block="google")


def test_a_head_as_in_usb_is_uniform_within_one_over_the_root_of_its_width() -> None:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    heads = {
        name: nets.vit("vit_tiny_patch2_32", None, name)(100).head.requires_grad_(False) for name in ("usb", "timm")
    }
    bound = 192**-0.5
    assert heads["usb"].weight.abs().max() == pytest.approx(bound, rel=1e-3)
    assert heads["usb"].weight.std() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert heads["usb"].bias.abs().max() > 0.9 * bound
    assert heads["timm"].weight.std() == pytest.approx(0.02, rel=0.02)
    assert not heads["timm"].bias.any()
    presets = [compose(["task=semi", f"model={name}", "model.weights=null"]).model.head for name in nets.VITS]
    assert presets == ["usb"] * 4


def test_the_same_seed_builds_the_same_network() -> None:
    nets_made = []
    for _ in range(2):
        torch.manual_seed(3)
        nets_made.append(nets.convnet(4)(num_classes=5))
    for a, b in zip(*(net.parameters() for net in nets_made), strict=True):
        assert torch.equal(a, b)


def test_vit_takes_weights_of_another_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    options = {"embed_dim": 24, "num_heads": 2, "depth": 2, "patch_size": 4}
    monkeypatch.setitem(nets.VITS, "vit_tiny_patch2_32", {**options, "img_size": 16})
    source = timm.models.vision_transformer.VisionTransformer(**options, img_size=32, num_classes=7)
    torch.save({"model": source.state_dict()}, tmp_path / "w.pth")
    maker = nets.vit("vit_tiny_patch2_32", tmp_path / "w.pth")
    assert maker.weights_id != "untrained"
    net = maker(num_classes=3)
    assert net.head.out_features == 3
    assert torch.equal(net.blocks[1].attn.qkv.weight, source.blocks[1].attn.qkv.weight)
    assert torch.equal(net.pos_embed[:, 0], source.pos_embed[:, 0])
    assert net.pos_embed.shape == (1, 17, 24)
    assert net(torch.randn(1, 3, 16, 16)).shape == (1, 3)
    torch.save({"blocks.0.norm1.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="lacks cls_token"):
        nets.vit("vit_tiny_patch2_32", tmp_path / "other.pth")
    with pytest.raises(FileNotFoundError, match="weights=null"):
        nets.vit("vit_tiny_patch2_32", tmp_path / "none.pth")
    with pytest.raises(ValueError, match="nearest: vit_tiny_patch2_32"):
        nets.vit("vit_tiny", None)


def test_usbs_transformers_have_the_published_sizes() -> None:
    pytest.importorskip("timm")
    for name, millions in (("vit_tiny_patch2_32", 5.4), ("vit_small_patch2_32", 21.4), ("vit_base_patch16_96", 85.7)):
        with torch.device("meta"):
            net = nets.vit(name, None)(num_classes=10)
        assert nets.count_parameters(net) / 1e6 == pytest.approx(millions, abs=0.15)


@pytest.mark.parametrize(("stem", "side"), [(2, 16), (4, 8)])
def test_the_stem_of_the_small_network_divides_the_image(stem: int, side: int) -> None:
    net = nets.convnet(8, stem)(5)
    maps = [maps for maps in _outputs(net.features, torch.randn(2, 3, 32, 32)) if isinstance(maps[0], nn.Conv2d)]
    assert [tuple(x.shape[1:]) for _, x in maps] == [
        (8, side, side), (16, side, side), (16, side // 2, side // 2), (32, side // 2, side // 2),
    ]  # fmt: skip
    weights = 3 * 8 * (stem + 1) ** 2 + 9 * (8 * 16 + 16 * 16 + 16 * 32)
    assert nets.count_parameters(net) == weights + 2 * (8 + 16 + 16 + 32) + 5 * 33


def _outputs(layers: nn.Sequential, x: torch.Tensor) -> Iterator[tuple[nn.Module, torch.Tensor]]:
    for layer in layers:
        x = layer(x)
        yield layer, x


@pytest.mark.parametrize("wrong", [{"width": 0}, {"stem": 0}])
def test_a_small_network_of_nothing_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected width >= 1 and stem >= 1, got"):
        nets.convnet(**wrong)


@pytest.mark.parametrize(("library", "arch", "options", "head"), [
    ("torchvision", "resnet18", {}, "fc"), ("torchvision", "squeezenet1_1", {}, "classifier.1"),
    ("timm", "resnet18", {}, "fc"), ("timm", "vit_tiny_patch16_224", {"img_size": 32}, "head"),
])  # fmt: skip
def test_any_backbone_keeps_all_but_its_head(
    library: str, arch: str, options: dict[str, int], head: str, tmp_path: Path
) -> None:
    pytest.importorskip(library)
    torch.manual_seed(0)
    source = nets.backbone(library, arch, None, options)
    assert source.weights_id == "untrained"
    state = source(num_classes=7).state_dict()
    torch.save(state, tmp_path / "w.pth")
    maker = pickle.loads(pickle.dumps(nets.backbone(library, arch, tmp_path / "w.pth", options)))
    assert maker.weights_id == file_hash(tmp_path / "w.pth")
    net = maker(num_classes=3)
    own = net.state_dict()
    assert {name for name, value in own.items() if not torch.equal(value, state[name])} <= {
        f"{head}.weight", f"{head}.bias",
    }  # fmt: skip
    assert len(own[f"{head}.weight"]) == 3
    assert net.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 3)


def test_backbones_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="does not fit the model: it lacks bn1.weight"):
        nets.backbone("torchvision", "resnet18", tmp_path / "w.pth")
    with pytest.raises(ValueError, match="unknown library 'keras'"):
        nets.backbone("keras", "resnet18")
    with pytest.raises(ValueError, match="unknown torchvision model 'resnet19'"):
        nets.backbone("torchvision", "resnet19")
    for task in ("semi", "longtail"):
        for library in ("timm", "torchvision"):
            model = compose([f"task={task}", f"model={library}", "model.arch=resnet18"]).model
            assert (model.library, model.weights) == (library, "DEFAULT")

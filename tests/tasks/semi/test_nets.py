"""Networks: sizes as published, weights of other sizes, and makers that say what they start from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

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

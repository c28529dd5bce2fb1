"""Networks: ADVENT's architecture by its numbers and by hand, weights under other names, clear errors."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import mmseg
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from dembench.tasks.common import trust
from dembench.tasks.segmentation import nets, ops
from dembench.tasks.segmentation.nets import DeepLabV2Head, count_parameters, deeplab_v2, deeplab_v3, from_config

PRE = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
SMALL = {"depth": 18, "width": 4, "dilations": (1, 2), "style": "pytorch", "freeze_norm": False}


@pytest.fixture(scope="module")
def advent() -> nets.Network:
    return deeplab_v2()(19, PRE)


def test_a_compiled_operation_says_what_to_install() -> None:
    if ops.has_compiled_ops():
        pytest.skip("mmcv with its compiled operations is installed")
    import mmcv.ops  # finds the stand-in, which the import of the task put there

    with pytest.raises(RuntimeError, match="'nms' of mmcv is compiled.*replace mmcv-lite"):
        mmcv.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)


def test_advents_network_has_the_published_number_of_parameters(advent: nets.Network) -> None:
    assert count_parameters(advent) == 44_601_560
    assert count_parameters(advent, trainable=True) == 44_496_216  # BatchNorm's weights and biases are frozen
    assert not any(p.requires_grad for m in advent.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
    advent.train()
    assert all(m.training for m in advent.modules() if isinstance(m, nn.BatchNorm2d))  # but normalise by the batch


def test_advents_stages_have_the_published_sizes(advent: nets.Network) -> None:
    """1024x512 gives 257x129 after the pooling, which rounds up, and 129x65 from the second stage on."""
    backbone = copy.deepcopy(advent.segmentor.backbone).to("meta")
    sizes = [tuple(f.shape[1:]) for f in backbone(torch.empty(1, 3, 512, 1024, device="meta"))]
    assert sizes == [(256, 129, 257), (512, 65, 129), (1024, 65, 129), (2048, 65, 129)]


def test_advents_bottlenecks_stride_first_and_dilate(advent: nets.Network) -> None:
    backbone = advent.segmentor.backbone
    for stage, stride, dilation in ((2, 2, 1), (3, 1, 2), (4, 1, 4)):
        for i, block in enumerate(getattr(backbone, f"layer{stage}")):
            assert block.conv1.stride == ((stride, stride) if i == 0 else (1, 1))  # caffe: in the 1x1
            assert block.conv2.stride == (1, 1)
            assert block.conv2.dilation == block.conv2.padding == (dilation, dilation)
    assert [len(getattr(backbone, f"layer{i}")) for i in (1, 2, 3, 4)] == [3, 4, 23, 3]
    head, aux = advent.segmentor.decode_head, advent.segmentor.auxiliary_head
    for each, channels in ((head, 2048), (aux, 1024)):
        assert [b.dilation[0] for b in each.branches] == [b.padding[0] for b in each.branches] == [6, 12, 18, 24]
        assert all(b.weight.shape == (19, channels, 3, 3) and b.bias is not None for b in each.branches)
        assert 0.009 < torch.stack([b.weight.detach().std() for b in each.branches]).mean() < 0.011


def test_the_head_is_the_sum_of_its_branches_by_hand() -> None:
    """One channel, an impulse: each branch puts its taps at its dilation, plus every branch's bias everywhere."""
    head = DeepLabV2Head((1, 2), in_channels=1, in_index=0, num_classes=3)
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 2, 2] = 2.0
    expected = torch.zeros(1, 3, 5, 5)
    for branch, dilation in zip(head.branches, (1, 2), strict=True):
        for i in range(3):
            for j in range(3):  # a correlation: tap (i, j) sees the impulse from the opposite side
                expected[0, :, 2 + dilation * (1 - i), 2 + dilation * (1 - j)] += 2 * branch.weight[:, 0, i, j].detach()
        expected += branch.bias.detach()[:, None, None]
    torch.testing.assert_close(head([x]).detach(), expected)


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_output_stride_heads_and_width(stride: int) -> None:
    net = deeplab_v2(output_stride=stride, pool=False, **SMALL)(5, PRE)
    main, aux = net(torch.zeros(2, 3, 64, 32))
    assert main.shape == (2, 5, 64 // stride, 32 // stride)
    assert aux.shape[2] == (main.shape[2] if stride < 16 else 2 * main.shape[2])  # 16: the last stage strides too
    assert net(torch.zeros(2, 3, 64, 32), aux=False)[1] is None
    assert not deeplab_v2(multi_level=False, **SMALL)(5, PRE).has_aux


def test_deeplab_v3_of_the_registry_has_two_heads() -> None:
    net = deeplab_v3(depth=18, width=4, channels=8)(5, PRE)
    main, aux = net(torch.zeros(2, 3, 32, 32))
    assert main.shape == aux.shape == (2, 5, 4, 4)
    assert type(net.segmentor.decode_head).__name__ == "ASPPHead"


def resnet_state(net: nets.Network) -> dict[str, Tensor]:
    """The backbone's weights under torchvision's names, other values, with a classifier of ImageNet."""
    state = net.segmentor.backbone.state_dict()
    return {name: torch.full_like(v, 0.5) for name, v in state.items()} | {"fc.weight": torch.ones(10, 4)}


def test_weights_of_torchvision_fill_the_backbone_alone(tmp_path: Path) -> None:
    net = deeplab_v2(**SMALL)(5, PRE)
    torch.save(resnet_state(net), tmp_path / "w.pth")
    maker = deeplab_v2(**SMALL, weights=tmp_path / "w.pth")
    loaded = maker(5, PRE)
    assert all((p == 0.5).all() for p in loaded.segmentor.backbone.parameters())
    assert not any((p == 0.5).all() for b in loaded.segmentor.decode_head.branches for p in [b.weight])
    assert maker.weights_id
    assert deeplab_v2(**SMALL).weights_id is None


def test_names_of_torchvisions_resnet_fit() -> None:
    torchvision = pytest.importorskip("torchvision")
    theirs = torchvision.models.resnet18(weights=None).state_dict()
    ours = deeplab_v2(depth=18, style="pytorch")(5, PRE).segmentor.backbone.state_dict()
    assert {n: v.shape for n, v in theirs.items() if not n.startswith("fc.")} == {n: v.shape for n, v in ours.items()}


def test_a_trained_network_of_advent_gives_the_same_output_under_our_names(tmp_path: Path) -> None:
    """Weights in ADVENT's names; layer5 works on the third stage, layer6 on the fourth."""
    net = deeplab_v2(**SMALL)(5, PRE).eval()
    state = {name: torch.randn_like(v) * 0.1 for name, v in net.segmentor.backbone.named_parameters()}
    for layer, channels in (("layer5", 16), ("layer6", 32)):
        for i in range(2):
            state[f"{layer}.conv2d_list.{i}.weight"] = torch.randn(5, channels, 3, 3)
            state[f"{layer}.conv2d_list.{i}.bias"] = torch.randn(5)
    buffers = {n: v for n, v in net.segmentor.backbone.named_buffers() if not n.endswith("tracked")}  # old files
    torch.save({f"module.{name}": value for name, value in (state | buffers).items()}, tmp_path / "advent.pth")
    loaded = deeplab_v2(**SMALL, weights=tmp_path / "advent.pth")(5, PRE).eval()
    x = torch.randn(1, 3, 32, 32)
    features = loaded.segmentor.backbone(x)
    for logits, layer, stage in ((loaded(x)[1], "layer5", 2), (loaded(x)[0], "layer6", 3)):
        expected = sum(
            F.conv2d(
                features[stage], *(state[f"{layer}.conv2d_list.{i}.{p}"] for p in ("weight", "bias")), 1, i + 1, i + 1
            )
            for i in range(2)
        )
        torch.testing.assert_close(logits, expected)
    assert torch.equal(loaded.segmentor.backbone.conv1.weight, state["conv1.weight"])


def test_advents_imagenet_file_leaves_both_heads_alone(tmp_path: Path) -> None:
    net = deeplab_v2(**SMALL)(5, PRE)
    state = {f"Scale.{name}": value for name, value in resnet_state(net).items() if not name.startswith("fc.")}
    state["Scale.layer5.conv2d_list.0.weight"] = torch.ones(21, 32, 3, 3)
    torch.save(state, tmp_path / "imagenet.pth")
    loaded = deeplab_v2(**SMALL, weights=tmp_path / "imagenet.pth")(5, PRE)
    assert (loaded.segmentor.backbone.conv1.weight == 0.5).all()
    assert (loaded.segmentor.auxiliary_head.branches[0].weight.abs() < 0.1).all()


def test_weights_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="model.weights: no file"):
        deeplab_v2(weights=tmp_path / "none.pth")
    state = resnet_state(deeplab_v2(**SMALL)(5, PRE))
    cases = {
        "lacks backbone.layer1": {n: v for n, v in state.items() if not n.startswith("layer1")},
        "has another shape for backbone.conv1": state | {"conv1.weight": torch.zeros(8, 3, 7, 7)},
        "beyond the network, backbone.layer1.9": state | {"layer1.9.weight": torch.zeros(1)},
        "holds no state dict": torch.zeros(3),
        "loads as weights only": {"state_dict": state, "loop": nets.NetMaker},
    }
    for reason, content in cases.items():
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(ValueError, match=reason):
            deeplab_v2(**SMALL, weights=tmp_path / "w.pth")(5, PRE)


def test_unknown_sizes_name_the_valid_ones() -> None:
    with pytest.raises(ValueError, match="unknown model.depth '19'.*18, 34, 50"):
        deeplab_v2(depth=19)
    with pytest.raises(ValueError, match="unknown model.output_stride '5'.*4, 8, 16, 32"):
        deeplab_v3(output_stride=5)
    with pytest.raises(ValueError, match="stages from 2 to 4"):
        deeplab_v2(stages=1)


CONFIG = """
norm = dict(type="SyncBN", requires_grad=True)
model = dict(
    type="EncoderDecoder",
    pretrained="open-mmlab://resnet18_v1c",
    data_preprocessor=dict(type="SegDataPreProcessor", mean=[1., 2., 3.], std=[2., 2., 2.], bgr_to_rgb=%s),
    backbone=dict(type="ResNetV1c", depth=18, base_channels=4, stem_channels=4, norm_cfg=norm),
    decode_head=dict(type="FCNHead", in_channels=32, in_index=3, channels=8, num_classes=150, norm_cfg=norm),
)
"""


@pytest.mark.parametrize("bgr_to_rgb", [True, False])
def test_a_configuration_file_keeps_its_network_and_normalisation(tmp_path: Path, bgr_to_rgb: bool) -> None:
    trust.trust_folder(tmp_path)
    file = tmp_path / "fcn.py"
    file.write_text(CONFIG % bgr_to_rgb)
    maker = from_config(file)
    net = maker(7, {"mean": [100.0] * 3, "std": [1.0] * 3, "rgb_to_bgr": False})
    assert net(torch.zeros(2, 3, 64, 64))[0].shape == (2, 7, 2, 2)
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in net.modules())
    image = torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1)  # red, green, blue
    pixel = net.preprocess({"inputs": [image]})["inputs"].flatten().tolist()
    rgb = [(10 - 1) / 2, (20 - 2) / 2, (30 - 3) / 2]
    assert pixel == pytest.approx(rgb if bgr_to_rgb else [(30 - 1) / 2, (20 - 2) / 2, (10 - 3) / 2])
    other = tmp_path / "other.py"
    other.write_text((CONFIG % bgr_to_rgb).replace("channels=8", "channels=9"))
    assert maker.weights_id != from_config(other).weights_id


PLAIN = {
    "type": "EncoderDecoder",
    "backbone": {"type": "ResNetV1c", "depth": 18, "base_channels": 4, "stem_channels": 4},
    "decode_head": {"type": "FCNHead", "in_channels": 32, "in_index": 3, "channels": 8, "num_classes": 9},
}


@pytest.mark.parametrize("kind", ["yaml", "yml", "json"])
def test_a_configuration_of_data_is_the_network_of_the_same_python_file(tmp_path: Path, kind: str) -> None:
    trust.trust_folder(tmp_path)
    (tmp_path / "net.py").write_text(f"model = {PLAIN!r}\n")
    file = tmp_path / f"net.{kind}"
    file.write_text((json.dumps if kind == "json" else yaml.safe_dump)({"model": PLAIN}))
    maker, other = from_config(file), from_config(tmp_path / "net.py")
    assert maker.weights_id == other.weights_id
    assert maker.build(7) == other.build(7)


def test_a_python_file_is_run_from_mmsegmentation_and_trusted_folders_only(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(trust, "_folders", {})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(f"__import__('os').system('touch marker')\nmodel = {PLAIN!r}\n")
    for path in ("net.py", tmp_path / "net.py"):
        with pytest.raises(ValueError, match="is Python code.*--config-dir"):
            from_config(path)
    assert not (tmp_path / "marker").exists()
    own = next((Path(mmseg.__file__).parent / ".mim" / "configs").rglob("fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py"))
    assert from_config(own).weights_id
    trust.trust_folder(tmp_path)
    assert from_config("net.py").weights_id
    assert (tmp_path / "marker").exists()


HOSTILE = {
    "tag": "model: !!python/object/apply:os.system ['touch marker']",
    "new": "model: !!python/object/new:os.system ['touch marker']",
    "imports": "custom_imports: {imports: [evil]}\nmodel: {type: EncoderDecoder, backbone: {type: evil.Net}}",
    "type": "model: {type: EncoderDecoder, decode_head: {type: os.system, command: touch marker}}",
    "scope": "model: {type: EncoderDecoder, neck: [{type: 'evil.Net'}]}",
    "module": "model: {type: EncoderDecoder, decode_head: {type: evil}}",
    "weights": "model: {type: EncoderDecoder, decode_head: {init_cfg: {type: Pretrained, checkpoint: x}}}",
    "base": "_base_: evil.py\nmodel: {type: EncoderDecoder}",
    "list": "[1, 2]", "scalar": "3", "empty": "", "cut": "model: {type: [", "binary": "\x00\x01",
    "deep": "model: " + "[" * 5000,
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_configuration_of_data_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil.py").write_text("import pathlib\npathlib.Path('marker').touch()\n")
    (tmp_path / "x.yaml").write_text(HOSTILE[kind])
    with pytest.raises(ValueError, match="x.yaml") as caught:
        from_config("x.yaml")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "marker").exists()


def test_a_configuration_file_that_is_none_says_so(tmp_path: Path) -> None:
    trust.trust_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="model.config_file: no file"):
        from_config(tmp_path / "none.py")
    file = tmp_path / "x.py"
    for content, reason in {
        "model = dict(type='CascadeEncoderDecoder')": "expected a model of type 'EncoderDecoder', got 'Cascade",
        "model = dict(type='EncoderDecoder', decode_head=dict(type='MaskFormerHead'))": "gives masks with classes",
        "custom_imports = dict(imports='none_such.models')": "a package that is not here: .*none_such.models[^,]*$",
    }.items():
        file.write_text(content)
        with pytest.raises(ValueError, match=reason):
            from_config(file)


@pytest.mark.slow
def test_networks_of_mmsegmentation_are_as_the_page_says() -> None:
    page = (Path(__file__).parents[3] / "docs" / "fidelity.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w/.-]+\.py)` \| ([\d.]+) \| (\d+)(?:; auxiliary (\d+))?", page, re.MULTILINE)
    assert len(rows) == 10
    for name, millions, side, auxiliary in rows:
        net = from_config(Path(mmseg.__file__).parent / ".mim" / "configs" / name)(5, PRE).train()
        found = net(torch.randn(2, 3, 64, 64))
        assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(float(millions), abs=0.051), name
        shapes = [tuple(logits.shape) for logits in found if logits is not None]
        assert shapes == [(2, 5, int(size), int(size)) for size in (side, auxiliary) if size], name

"""Which parameters learn: SAR and DeYO leave the top of every architecture alone, the others adapt all of a kind."""

import pytest
import timm
import torch
import torchvision.models as zoo
from small_models import Mixed, image_batches
from torch import nn

from dembench import core
from dembench.tasks.common.cifar_nets import CIFARResNeXt, WideResNet
from dembench.tasks.common.digits_nets import CIFARResNet, Normalized
from dembench.tasks.tta.methods.deyo import DeYO
from dembench.tasks.tta.methods.eta import ETA
from dembench.tasks.tta.methods.sar import SAR
from dembench.tasks.tta.methods.tent import Tent
from dembench.tasks.tta.methods.ttc import TTC

NORMS = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)


def timm_net(name, **options):
    return lambda: timm.create_model(name, **options)


# what is frozen, and of the rest the number of tensors and of parameters, counted from the architectures' papers
EXPECTED = {
    "torchvision resnet50": (zoo.resnet50, ["layer4"], 86, 30_592),
    "torchvision wide_resnet50_2": (zoo.wide_resnet50_2, ["layer4"], 86, None),
    "torchvision resnext50_32x4d": (zoo.resnext50_32x4d, ["layer4"], 86, None),
    "timm resnet50": (timm_net("resnet50"), ["layer4"], 86, 30_592),
    "timm resnet50_gn": (timm_net("resnet50_gn"), ["layer4"], 86, 30_592),
    "timm resnext50_32x4d": (timm_net("resnext50_32x4d"), ["layer4"], 86, None),
    "torchvision vit_b_16": (
        zoo.vit_b_16,
        [*(f"encoder.layers.encoder_layer_{i}" for i in (9, 10, 11)), "encoder.ln"],
        36,
        27_648,
    ),
    "timm vit_base": (
        timm_net("vit_base_patch16_224"),
        ["blocks.9", "blocks.10", "blocks.11", "norm"],
        36,
        27_648,
    ),
    "timm vit_tiny": (
        timm_net("vit_tiny_patch16_224"),
        ["blocks.9", "blocks.10", "blocks.11", "norm"],
        36,
        36 * 192,
    ),
    "torchvision swin_t": (zoo.swin_t, ["features.6", "features.7", "norm"], None, None),
    "timm swin_tiny": (timm_net("swin_tiny_patch4_window7_224"), ["layers.3", "norm"], None, None),
    "WRN-28-10": (lambda: WideResNet(28, 10), ["block3", "bn1"], 2 * 16, 2 * (16 + 7 * 160 + 160 + 7 * 320)),
    "WRN-40-2": (lambda: WideResNet(40, 2), ["block3", "bn1"], 2 * 24, 2 * (16 + 11 * 32 + 32 + 11 * 64)),
    "ResNeXt-29": (CIFARResNeXt, ["stage_3"], 2 * 21, None),
    "CIFAR ResNet-20": (lambda: CIFARResNet(20), ["layer3"], 26, 608),
}


def affine(net):
    return [
        f"{name}.{part}"
        for name, module in net.named_modules()
        if isinstance(module, NORMS)
        for part, _ in module.named_parameters(recurse=False)
    ]


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", EXPECTED)
def test_the_top_is_frozen(name, wrapped):
    """The published rule by names finds nothing in a wrapped, a CIFAR or a torchvision transformer model."""
    make, tops, tensors, parameters = EXPECTED[name]
    with torch.device("meta"):
        net = make()
        if wrapped:
            net = Normalized((0.5,) * 3, (0.5,) * 3, net, num_classes=10, weights_id="none")
    prefix = "model." if wrapped else ""
    expected = [full for full in affine(net) if not full.startswith(tuple(f"{prefix}{top}." for top in tops))]
    for method in (SAR, DeYO):
        made = method(net, core.EM())
        assert list(made.frozen) == [prefix + top for top in tops]
        assert list(made.adapted) == expected
        assert {full for full, parameter in net.named_parameters() if parameter.requires_grad} == set(expected)
        assert tensors is None or len(made.adapted) == tensors
        assert parameters is None or sum(p.numel() for p in made.adapted.values()) == parameters
        texts = " ".join(note.text for note in made.notes)
        assert all(prefix + top in texts for top in tops)


@pytest.mark.parametrize("method", [SAR, DeYO])
def test_nothing_is_frozen_where_that_is_asked(method):
    net = CIFARResNet(20)
    made = method(net, core.EM(), freeze="none")
    assert list(made.adapted) == affine(net)
    assert not made.frozen


@pytest.mark.parametrize("method", [SAR, DeYO])
def test_the_published_names_are_an_option(method):
    with torch.device("meta"):
        net = zoo.resnet50()
    made = method(net, core.EM(), freeze="names")
    assert list(made.adapted) == [name for name in affine(net) if "layer4" not in name]


@pytest.mark.parametrize("method", [SAR, DeYO])
def test_the_collection_adapts_the_last_norm_of_a_wrapped_transformer(method):
    """Its rule looks for "norm" alone, and its ViTs are called "model", as ours are."""
    expected = {"names": False, "full_names": True}
    for rule, adapts in expected.items():
        with torch.device("meta"):
            net = timm.create_model("vit_tiny_patch16_224")
            net = Normalized((0.5,) * 3, (0.5,) * 3, net, num_classes=10, weights_id="none")
        made = method(net, core.EM(), freeze=rule, preset="mariodoebler")
        assert ("model.norm.weight" in made.adapted) == adapts
        blocks = {name.split(".")[2] for name in made.adapted if name.startswith("model.blocks")}
        assert blocks == {str(i) for i in range(9)}


@pytest.mark.parametrize(
    ("method", "options", "layers"),
    [
        (Tent, {}, ["batch2d"]),
        (ETA, {}, ["batch2d"]),
        (TTC, {}, ["batch2d"]),
        (SAR, {"freeze": "none"}, ["batch2d", "group", "layer"]),
        (DeYO, {"freeze": "none"}, ["batch2d", "group", "layer"]),
        (Tent, {"preset": "mariodoebler"}, ["batch2d", "group", "batch1d", "layer"]),
        (SAR, {"preset": "mariodoebler", "freeze": "none"}, ["batch2d", "group", "batch1d", "layer"]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_kinds_of_layers_that_learn(method, options, layers):
    net = Mixed()
    made = method(net, core.EM(), lr=0.05, **options)
    expected = {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    assert set(made.adapted) == expected
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    for x in image_batches(6):
        made(x)
    moved = {name for name, parameter in net.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved <= expected
    assert method is not Tent or moved == expected
    assert made.model.training == ("preset" not in options)

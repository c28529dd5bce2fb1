"""Tent on networks of mmsegmentation's families: what adapts, what each BatchNorm normalises by, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mmseg
import pytest
import torch
import yaml
from made_domains import Blocks
from torch import nn

from dembench.core import AdaDEM
from dembench.tasks.segmentation.methods.tent_seg import TentSeg, adapting, use_image_statistics
from dembench.tasks.segmentation.nets import Network, from_config
from dembench.tasks.segmentation.protocol import Protocol
from dembench.tasks.segmentation.trainer import Trainer

SHIPPED = Path(mmseg.__file__).parent / ".mim" / "configs"
CGNET = "cgnet/cgnet_fcn_4xb4-60k_cityscapes-680x680.py"  # every BatchNorm is synchronised
DDRNET = "ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py"  # two outputs in training
FASTSCNN = "fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024.py"  # global pooling before BatchNorm
VIT = {
    "type": "VisionTransformer",
    "img_size": 32,
    "patch_size": 8,
    "embed_dims": 16,
    "num_layers": 2,
    "num_heads": 2,
    "out_indices": [1],
    "final_norm": True,
}
RESNET = {"type": "ResNet", "depth": 18, "base_channels": 4, "stem_channels": 4}
FCN = {"type": "FCNHead", "num_convs": 0}


def network(folder: Path, backbone: str | dict[str, Any], head: dict[str, Any] | None = None) -> Network:
    """Of a shipped file, or of a backbone and a head that take each other's 16 or 32 channels."""
    if isinstance(backbone, str):
        file = SHIPPED / backbone
    else:
        channels = {"in_channels": backbone.get("embed_dims", 32), "channels": 16, "num_classes": 9}
        model = {"type": "EncoderDecoder", "backbone": backbone, "decode_head": {**channels, **(head or FCN)}}
        file = folder / "net.yaml"
        file.write_text(yaml.safe_dump({"model": model}))
    torch.manual_seed(0)
    return from_config(file)(3, Blocks().preprocessor())


@pytest.mark.parametrize(
    ("backbone", "layers"),
    [(CGNET, "54 BatchNorm2d"), (DDRNET, "57 BatchNorm2d"), (FASTSCNN, "45 BatchNorm2d"), (VIT, "5 LayerNorm")],
)
def test_tent_trains_and_adapts_every_family(tmp_path: Path, backbone: Any, layers: str) -> None:
    """From a step of training to a step on a single image, which moves the weights that reach the prediction, all of
    the layers named, and nothing else."""
    data, net = Blocks(2, (64, 64)), network(tmp_path, backbone)
    assert adapting(net) == layers
    method = TentSeg(AdaDEM(), network=net, num_classes=3, lr=0.1)
    trainer = Trainer(data, method, Protocol(1, batch_size=2, eval_every=9, pictures=0), seed=0)
    trainer.advance()
    method.prepare_test()
    start = {name: value.detach().clone() for name, value in net.named_parameters()}
    metrics = trainer.evaluate(data.target_test, adapt=True)
    assert metrics.finite
    moved = {name.rpartition(".")[0] for name, value in net.named_parameters() if not torch.equal(value, start[name])}
    wanted = {name.rpartition(".")[0] for name, value in net.named_parameters() if value.requires_grad}
    training_only = ("auxiliary_head", "aux_head", "aux_layer")
    reached = {name for name in wanted if not any(part in name for part in training_only)}
    assert reached <= moved <= wanted


def test_one_value_is_normalised_by_the_statistics_of_training() -> None:
    """Behind a global pooling an image has one value per channel; everywhere else it gives the statistics."""
    norms = [nn.BatchNorm2d(2).double(), nn.BatchNorm2d(2).double()]
    for norm in norms:
        norm.running_mean.copy_(torch.tensor([0.3, -0.2]))
        norm.running_var.copy_(torch.tensor([2.0, 0.5]))
    net = nn.Sequential(norms[0], nn.AdaptiveAvgPool2d(1), norms[1]).eval()
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64)
    use_image_statistics(net)
    for _ in range(2):
        inner = norms[0](x)
        torch.testing.assert_close(inner.mean((0, 2, 3)), torch.zeros(2, dtype=torch.float64))
        expected = torch.stack([(0 - 0.3) / (2.0 + 1e-5) ** 0.5 + torch.zeros(()), torch.tensor(0.2 / 0.50001**0.5)])
        torch.testing.assert_close(net(x).flatten(), expected.double(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("backbone", "head"),
    [
        (DDRNET, None),
        ("pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py", None),
        (RESNET, {"type": "DAHead", "in_index": 3, "pam_channels": 4}),
        (
            RESNET,
            {
                "type": "EncHead",
                "in_channels": [16, 32],
                "in_index": [2, 3],
                "num_codes": 4,
                "norm_cfg": {"type": "SyncBN"},
            },
        ),
    ],
)
def test_of_several_outputs_the_one_that_predicts_is_trained(tmp_path: Path, backbone: Any, head: Any) -> None:
    """Backbone and head in training, with all that is inside of them as in a test, give mmsegmentation's prediction."""
    net = network(tmp_path, backbone, head).eval()
    image = torch.randn(1, 3, 64, 64)
    expected = net.segmentor.decode_head.predict(net.segmentor.extract_feat(image), [{"img_shape": (64, 64)}], {})
    net.segmentor.backbone.training = net.segmentor.decode_head.training = True
    main, _ = net(image)
    found = nn.functional.interpolate(main, (64, 64), mode="bilinear", align_corners=net.align_corners)
    torch.testing.assert_close(found, expected)


def test_what_cannot_adapt_is_refused_before_the_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no BatchNorm, LayerNorm or GroupNorm parameters to adapt"):
        TentSeg(AdaDEM(), network=nn.Conv2d(3, 3, 1), num_classes=3)
    beit = network(tmp_path, {**VIT, "type": "BEiT", "out_indices": [0, 1]}, {**FCN, "in_index": 1})
    assert beit(torch.zeros(2, 3, 32, 32))[0].shape == (2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"BEiT takes images of \(32, 32\) only.*got \(32, 64\)"):
        beit(torch.zeros(2, 3, 32, 64))

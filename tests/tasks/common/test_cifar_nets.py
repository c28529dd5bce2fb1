"""WRN and ResNeXt: sizes and names as published, forward passes written out anew, checkpoints as they are shared."""

import re

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from dembench.tasks.common.cifar_nets import CIFARResNeXt, WideResNet
from dembench.tasks.tta.models import cifar_resnext, wide_resnet

PARAMETERS = {(28, 10): 36_479_194, (40, 2): 2_243_546}  # 36.5 and 2.2 million in the paper


def drawn(net, seed=0):
    """``net`` in eval mode with statistics and weights that no layer has by default."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in net.state_dict().items():
        if "running_var" in name or ("bn" in name and name.endswith("weight")):
            value.copy_(0.7 + 0.5 * torch.rand(value.shape, generator=generator))
        elif "running_mean" in name or name.endswith("bias"):
            value.copy_(0.2 * torch.randn(value.shape, generator=generator))
    return net.eval()


def batch_norm(state, name, x):
    parts = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, *parts)


def wrn_by_hand(state, x):
    """From the paper's table 1 and the tensors' names alone; a shortcut where the number of channels changes."""
    x = F.conv2d(x, state["conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        blocks = {
            int(re.match(rf"block{stage}\.layer\.(\d+)", key)[1]) for key in state if key.startswith(f"block{stage}.")
        }
        for k in sorted(blocks):
            at, stride = f"block{stage}.layer.{k}", 2 if stage > 1 and k == 0 else 1
            active = batch_norm(state, f"{at}.bn1", x).relu()
            y = F.conv2d(active, state[f"{at}.conv1.weight"], stride=stride, padding=1)
            y = F.conv2d(batch_norm(state, f"{at}.bn2", y).relu(), state[f"{at}.conv2.weight"], padding=1)
            shortcut = state.get(f"{at}.convShortcut.weight")
            x = y + (x if shortcut is None else F.conv2d(active, shortcut, stride=stride))
    x = F.adaptive_avg_pool2d(batch_norm(state, "bn1", x).relu(), 1).flatten(1)
    return F.linear(x, state["fc.weight"], state["fc.bias"])


def resnext_by_hand(state, x):
    x = batch_norm(state, "bn_1", F.conv2d(x, state["conv_1_3x3.weight"], padding=1)).relu()
    for stage in (1, 2, 3):
        for k in range(3):
            at, stride = f"stage_{stage}.{k}", 2 if stage > 1 and k == 0 else 1
            y = batch_norm(state, f"{at}.bn_reduce", F.conv2d(x, state[f"{at}.conv_reduce.weight"])).relu()
            y = F.conv2d(y, state[f"{at}.conv_conv.weight"], stride=stride, padding=1, groups=4)
            y = F.conv2d(batch_norm(state, f"{at}.bn", y).relu(), state[f"{at}.conv_expand.weight"])
            y = batch_norm(state, f"{at}.bn_expand", y)
            if f"{at}.downsample.0.weight" in state:
                x = batch_norm(
                    state, f"{at}.downsample.1", F.conv2d(x, state[f"{at}.downsample.0.weight"], stride=stride)
                )
            x = (x + y).relu()
    return F.linear(F.adaptive_avg_pool2d(x, 1).flatten(1), state["classifier.weight"], state["classifier.bias"])


@pytest.mark.parametrize(("depth", "width"), PARAMETERS)
def test_wide_resnets_have_the_size_of_the_paper(depth, width):
    with torch.device("meta"):
        net = WideResNet(depth, width)
    assert sum(parameter.numel() for parameter in net.parameters()) == PARAMETERS[depth, width]
    norms = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(norms) == depth - 3  # one before each 3x3 convolution but the first, and the last
    if (depth, width) == (28, 10):  # 25 layers, 17,952 numbers that Tent adapts
        assert (len(norms), sum(2 * norm.num_features for norm in norms)) == (25, 17_952)


def test_resnext_has_the_size_of_the_paper():
    with torch.device("meta"):
        net = CIFARResNeXt(num_classes=100)
    assert sum(parameter.numel() for parameter in net.parameters()) == 6_900_132  # 6.9 million
    with torch.device("meta"):  # the paper's own: 8 groups of 64, 34.4 million
        assert round(sum(p.numel() for p in CIFARResNeXt(29, 8, 64).parameters()) / 1e6, 1) == 34.4


def test_wide_resnet_is_what_its_names_say():
    net = drawn(WideResNet(16, 2, 7))
    x = torch.rand(2, 3, 32, 32)
    assert_close(net(x), wrn_by_hand(net.state_dict(), x), rtol=1e-4, atol=1e-5)


def test_resnext_is_what_its_names_say():
    net = drawn(CIFARResNeXt(num_classes=7))
    x = torch.rand(2, 3, 32, 32)
    assert_close(net(x), resnext_by_hand(net.state_dict(), x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model."])
@pytest.mark.parametrize("own", [False, True])
def test_shared_checkpoints_load_whatever_wraps_them(prefix, own, tmp_path):
    net = drawn(WideResNet(10, 1))
    state = {prefix + key: value for key, value in net.state_dict().items()}
    if own:  # as RobustBench keeps AugMix: the normalisation is in the file
        state |= {f"{prefix}mu": torch.full((1, 3, 1, 1), 0.4), f"{prefix}sigma": torch.full((1, 3, 1, 1), 0.3)}
    state[f"{prefix}sub_block1.layer.0.bn1.weight"] = torch.ones(3)  # TRADES has one that it never uses
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "net.pt")
    model = wide_resnet(10, 1, tmp_path / "net.pt", mean=[0.5] * 3, std=[0.25] * 3)
    x = torch.rand(2, 3, 32, 32)
    mean, std = (0.4, 0.3) if own else (0.5, 0.25)
    assert_close(model(x), net((x - mean) / std), rtol=1e-4, atol=1e-5)
    assert (model.num_classes, model.training) == (10, False)
    assert (model.preprocess.resize, model.preprocess.crop) == (32, 32)  # of image folders


def test_checkpoints_of_something_else_are_refused(tmp_path):
    torch.save(WideResNet(10, 1).state_dict(), tmp_path / "net.pt")
    with pytest.raises(ValueError, match="has 10 classes, but num_classes=100"):
        wide_resnet(10, 1, tmp_path / "net.pt", num_classes=100)
    with pytest.raises(ValueError, match="does not fit the model"):
        wide_resnet(16, 1, tmp_path / "net.pt")
    with pytest.raises(ValueError, match="does not fit the model"):
        wide_resnet(10, 2, tmp_path / "net.pt")
    with pytest.raises(ValueError, match=r"holds no ResNeXt-29 \(4x32d\): its first names are conv1.weight"):
        cifar_resnext(weights=tmp_path / "net.pt")
    with pytest.raises(FileNotFoundError, match="no file .*gone.pt"):
        wide_resnet(10, 1, tmp_path / "gone.pt")
    with pytest.raises(ValueError, match="expected a depth of 6n \\+ 4, got 18"):
        wide_resnet(18, 1)
    with pytest.raises(ValueError, match="expected a depth of 9n \\+ 2, got 28"):
        cifar_resnext(28)

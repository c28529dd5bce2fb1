"""Wide residual networks and ResNeXt for 32x32 images, with the parameter names of their widely shared checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class WideBlock(nn.Module):
    """Pre-activation: BatchNorm, ReLU and a 3x3 convolution, twice; a 1x1 convolution where the width changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        short = x if self.convShortcut is None else self.convShortcut(y)
        return short + self.conv2(F.relu(self.bn2(self.conv1(y))))


class WideStage(nn.Module):
    """Blocks in a row, of which the first changes width and size."""

    def __init__(self, blocks: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        rest = (WideBlock(outputs, outputs, 1) for _ in range(blocks - 1))
        self.layer = nn.Sequential(WideBlock(inputs, outputs, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """WRN-depth-width: depth 6n + 4, 16-32-64 channels times ``width``, no dropout; (N, 3, 32, 32) to logits (N, C).

    Parameter names are conv1, block1.layer.0.bn1, ..., bn1, fc, those of TRADES, AugMix and RobustBench.
    Raises: ValueError where depth is not 6n + 4.
    Source: Zagoruyko and Komodakis, Wide Residual Networks, 2016.
    """

    def __init__(self, depth: int, width: int, num_classes: int = 10) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"WideResNet: expected a depth of 6n + 4, got {depth}")
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.block1 = WideStage(blocks, 16, 16 * width, 1)
        self.block2 = WideStage(blocks, 16 * width, 32 * width, 2)
        self.block3 = WideStage(blocks, 32 * width, 64 * width, 2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        y = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(y)).mean((2, 3)))


class ResNeXtBlock(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolution, each with BatchNorm; four times as many channels out as ``planes``."""

    def __init__(self, inputs: int, planes: int, groups: int, base_width: int, stride: int) -> None:
        super().__init__()
        inner, outputs = planes * base_width // 64 * groups, 4 * planes
        self.conv_reduce = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn_reduce = nn.BatchNorm2d(inner)
        self.conv_conv = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(inner)
        self.conv_expand = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn_expand = nn.BatchNorm2d(outputs)
        self.downsample = None
        if inputs != outputs or stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn_reduce(self.conv_reduce(x)))
        y = F.relu(self.bn(self.conv_conv(y)))
        y = self.bn_expand(self.conv_expand(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class CIFARResNeXt(nn.Module):
    """ResNeXt of depth 9n + 2 for 32x32 images, stages of 64, 128 and 256 planes; (N, 3, 32, 32) to logits (N, C).

    Parameter names are conv_1_3x3, bn_1, stage_1.0.conv_reduce, ..., classifier, those of AugMix and RobustBench.
    Raises: ValueError where depth is not 9n + 2.
    Source: Xie et al., Aggregated Residual Transformations for Deep Neural Networks, 2017.
    """

    def __init__(self, depth: int = 29, groups: int = 4, base_width: int = 32, num_classes: int = 10) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 9)
        if rest or blocks < 1:
            raise ValueError(f"CIFARResNeXt: expected a depth of 9n + 2, got {depth}")
        self.conv_1_3x3 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn_1 = nn.BatchNorm2d(64)
        inputs, stages = 64, []
        for planes, stride in ((64, 1), (128, 2), (256, 2)):
            widths = [inputs, *[4 * planes] * (blocks - 1)]
            steps = [stride, *[1] * (blocks - 1)]
            made = (ResNeXtBlock(w, planes, groups, base_width, s) for w, s in zip(widths, steps, strict=True))
            stages.append(nn.Sequential(*made))
            inputs = 4 * planes
        self.stage_1, self.stage_2, self.stage_3 = stages
        self.classifier = nn.Linear(inputs, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn_1(self.conv_1_3x3(x)))
        return self.classifier(self.stage_3(self.stage_2(self.stage_1(y))).mean((2, 3)))


@torch.no_grad()
def initialise(net: nn.Module) -> None:
    """He et al. 2015 by fan-out for convolutions; a linear layer without bias."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

"""The networks that are built here: no files, no weights. All take float images in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dembench.tasks.common.images import Preprocess


class Normalized(nn.Module):
    """``model`` behind its own input normalisation, (x - mean) / std per channel; takes (N, 3, H, W) in [0, 1].

    ``mean`` and ``std`` are buffers of shape (3, 1, 1). ``num_classes`` and ``weights_id`` say what is inside;
    ``preprocess`` how a photograph becomes an input, None where the model is not for photographs.
    Raises: ValueError where mean and std are not three numbers each or a std is not positive.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        model: nn.Module,
        *,
        num_classes: int,
        weights_id: str,
        preprocess: Preprocess | None = None,
    ) -> None:
        super().__init__()
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"Normalized: expected three means and three stds > 0, got {tuple(mean)} and {tuple(std)}")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1))
        self.model = model
        self.num_classes = num_classes
        self.weights_id = weights_id
        self.preprocess = preprocess

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x - self.mean) / self.std)


def keep_classes(model: Normalized, index: Sequence[int]) -> Normalized:
    """A copy whose logits are those of the classes ``index``, in that order: the others are cut from the classifier.

    So logits, probabilities and the classifier's weights have these classes and no others.
    Raises: ValueError where the classifier is not a linear layer or a 1x1 convolution with an output for each class.
    """
    cut = deepcopy(model)
    rows = torch.tensor(index)
    for layer in cut.modules():
        linear = isinstance(layer, nn.Linear) and layer.out_features == model.num_classes
        pointwise = isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1
        if linear or (pointwise and layer.out_channels == model.num_classes):
            layer.weight = nn.Parameter(layer.weight.detach()[rows].clone())
            if layer.bias is not None:
                layer.bias = nn.Parameter(layer.bias.detach()[rows].clone())
            setattr(layer, "out_features" if linear else "out_channels", len(rows))
    side = 224 if model.preprocess is None else model.preprocess.crop
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model.eval()(x)[:, rows]
        same = cut.eval()(x)
    if same.shape != whole.shape or not torch.allclose(same, whole, rtol=1e-4, atol=1e-4):
        raise ValueError(f"{type(model.model).__name__}: cannot keep {len(rows)} of its {model.num_classes} classes")
    cut.num_classes = len(rows)
    return cut


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters: every second pixel, zeros for the new channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.new = stride, outputs - inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        short = x[:, :, :: self.stride, :: self.stride]
        if self.new:
            before = self.new // 2
            short = F.pad(short, (0, 0, 0, 0, before, self.new - before))
        return F.relu(y + short)


class CIFARResNet(nn.Module):
    """Residual network for 32x32 images, depth 6n + 2, 16-32-64 channels, shortcuts of option A; logits (N, C).

    Parameter names are conv1, bn1, layer1.0.conv1, ..., linear, those of the widely shared CIFAR-10 checkpoints.
    Raises: ValueError where depth is not 6n + 2.
    Source: He et al., Deep Residual Learning for Image Recognition, 2016, section 4.2.
    """

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"CIFARResNet: expected a depth of 6n + 2, got {depth}")
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1, blocks)
        self.layer2 = self._stage(16, 32, 2, blocks)
        self.layer3 = self._stage(32, 64, 2, blocks)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int, blocks: int) -> nn.Sequential:
        first = BasicBlock(inputs, outputs, stride)
        return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.layer3(self.layer2(self.layer1(y)))
        return self.linear(y.mean((2, 3)))


class DigitsConvNet(nn.Module):
    """Four convolutions with BatchNorm for 32x32 digits; logits (N, 10)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        channels = (3, width, 2 * width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        for inputs, outputs, stride in zip(channels, channels[1:], (2, 1, 2, 1), strict=False):
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x).mean((2, 3)))


class TransformerBlock(nn.Module):
    """Pre-norm attention and MLP, the block of a vision transformer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)  # (N, heads, patches, width / heads)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class DigitsTransformer(nn.Module):
    """A small vision transformer with LayerNorm for 32x32 digits: 8x8 patches of 4x4 pixels; logits (N, 10)."""

    def __init__(self, width: int = 48, heads: int = 4, depth: int = 1) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.position = nn.Parameter(torch.randn(1, 64, width) * 0.02)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.linear(self.norm(self.blocks(y)).mean(1))

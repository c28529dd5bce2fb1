"""Networks for small images, and makers that give them the classes of a dataset. Inputs are normalised (N, 3, H, W)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dembench.lookup import lookup
from dembench.tasks.common import zoo
from dembench.tasks.common.cache import file_hash
from dembench.tasks.common.own import Maker, object_of
from dembench.tasks.common.weights import read_state


class NetMaker:
    """``maker(num_classes)`` builds a network by torch's global generator; ``weights_id`` says what it starts from."""

    def __init__(self, build: Callable[..., nn.Module], weights_id: str = "untrained") -> None:
        self._build, self.weights_id = build, weights_id

    def __call__(self, num_classes: int) -> nn.Module:
        return self._build(num_classes=num_classes)


def own(network: Callable[..., nn.Module] | str, weights: str | Path | None = None) -> NetMaker:
    """A network of one's own, which is trained: ``network(num_classes=C)`` makes it.

    Args: as for ``tasks.common.own.network``. An object that was given in Python is where each training begins.
    """
    if isinstance(network, str):
        maker = NetMaker(partial(_copy, object_of(network, weights)), str(weights))
        maker.weights_note = f"{network}, given as an object in Python: it starts from {weights}"
        return maker
    made = Maker(network, weights, num_classes=2)
    return NetMaker(made, made.weights_id)


def _copy(net: nn.Module, num_classes: int) -> nn.Module:
    return deepcopy(net).to(torch.empty(0).device)  # meta, where only shapes are asked for


def convnet(width: int = 16, stem: int = 2) -> NetMaker:
    """``ConvNet``, for CPUs."""
    if width < 1 or stem < 1:
        raise ValueError(f"convnet: expected width >= 1 and stem >= 1, got {width} and {stem}")
    return NetMaker(partial(ConvNet, width=width, stem=stem))


def wide_resnet(
    depth: int = 28,
    width: int = 2,
    stages: int = 3,
    stride: int = 1,
    bn_momentum: float = 0.001,
    block: Literal["fixmatch", "usb"] = "fixmatch",
) -> NetMaker:
    """``WideResNet``: 28, 2 for 32x32; depth 37, 4 stages, stride 2 for 96x96.

    Args:
        block: "usb" leaves out norm and activation before the first convolution where the channels change, but in the
            first stage, as the code of TorchSSL and USB does; "fixmatch" has them everywhere, as google-research's.
    Raises: ValueError for another block, or where depth is not a whole number of blocks for the stages.
    """
    lookup(block, ("fixmatch", "usb"), "block of wide_resnet")
    options: dict[str, Any] = {"depth": depth, "width": width, "stages": stages, "stride": stride}
    options |= {"bn_momentum": bn_momentum, "usb": block == "usb"}
    with torch.device("meta"):
        WideResNet(num_classes=2, **options)  # complains now
    return NetMaker(partial(WideResNet, **options))


VITS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch2_32": {"img_size": 32, "patch_size": 2, "embed_dim": 192, "num_heads": 3, "drop_path_rate": 0.1},
    "vit_small_patch2_32": {"img_size": 32, "patch_size": 2, "embed_dim": 384, "num_heads": 6, "drop_path_rate": 0.2},
    "vit_base_patch16_96": {"img_size": 96, "patch_size": 16, "embed_dim": 768, "num_heads": 12, "drop_path_rate": 0.2},
    "vit_small_patch16_224": {
        "img_size": 224,
        "patch_size": 16,
        "embed_dim": 384,
        "num_heads": 6,
        "drop_path_rate": 0.2,
    },
}


def vit(arch: str, weights: str | Path | None, head: Literal["timm", "usb"] = "timm") -> NetMaker:
    """A vision transformer of USB's usb_cv, of timm's parts: 12 blocks, class token.

    Args:
        arch: a name of ``VITS``.
        weights: a state dict (USB's release v.0.0.0, or a file that holds one under "model" or "state_dict"): its head
            is dropped, its position embedding resized where needed. None is the random initialisation.
        head: how the linear head starts: "usb" by torch's default, weights and bias uniform within 1 / sqrt(width);
            "timm" with normal weights of 0.02 and no bias.
    Raises: ValueError for an unknown name or a file that does not fit; FileNotFoundError; ModuleNotFoundError.
    """
    lookup(arch, VITS, "vit")
    lookup(head, ("timm", "usb"), "head of vit")
    try:
        from timm.models.vision_transformer import VisionTransformer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("vision transformers need the package timm: pip install dembench[timm]") from error
    build = partial(_with_head, VisionTransformer, head, **VITS[arch])
    if weights is None:
        return NetMaker(build)
    path = Path(weights).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"weights: no file {path}; get it from release v.0.0.0 of microsoft/Semi-supervised-learning on GitHub "
            "(dembench list names the file), or give model.weights=null for an untrained network"
        )
    state = read_state(path)
    with torch.device("meta"):
        expected = build(num_classes=1)
    maker = NetMaker(partial(_loaded, build, fit_state(state, expected, str(path))), file_hash(path))
    maker.weights_note = state.note
    return maker


def backbone(
    library: Literal["timm", "torchvision"],
    arch: str,
    weights: str | Path | None = "DEFAULT",
    options: Mapping[str, Any] | None = None,
) -> NetMaker:
    """Any classification network of timm or torchvision; its head is new, of the classes of the dataset.

    Args:
        arch: a name of the library's list.
        weights: what the rest starts from: "DEFAULT" (downloaded once), the path of a state dict, or None for the
            random initialisation. Images come normalised by the dataset's mean and std, not by those of the weights.
        options: of the network's constructor, such as img_size for timm's transformers.
    Raises: ValueError for an unknown name or a file that does not fit; FileNotFoundError, also where a download fails;
        ModuleNotFoundError where timm is not installed.
    """
    lookup(library, ("timm", "torchvision"), "library")
    given = dict(options or {})
    found = zoo.timm_weights(arch, weights, **given) if library == "timm" else zoo.torchvision_weights(arch, weights)
    build = partial(zoo.build, library, arch, **given)
    state = found.net.state_dict() if found.net is not None else found.state
    if state is None:
        return NetMaker(build, found.weights_id)
    with torch.device("meta"):
        shapes = [{name: t.shape for name, t in build(num_classes=c).state_dict().items()} for c in (2, 3)]
    head = {name for name, shape in shapes[0].items() if shapes[1][name] != shape}
    maker = NetMaker(partial(_headless, build, state, head, found.origin), found.weights_id)
    with torch.device("meta"):
        maker(num_classes=2)  # complains now
    return maker


def _headless(
    build: Callable[..., nn.Module], state: Mapping[str, Tensor], head: set[str], origin: object, num_classes: int
) -> nn.Module:
    net = build(num_classes=num_classes)
    own = net.state_dict()
    zoo.load(
        net, {name: t for name, t in state.items() if name not in head} | {name: own[name] for name in head}, origin
    )
    return net


def fit_state(state: dict[str, Tensor], net: nn.Module, origin: str) -> dict[str, Tensor]:
    """``state`` without a head, its position embedding of the network's size; ValueError where it does not fit."""
    own = {name: value.shape for name, value in net.state_dict().items() if not name.startswith("head.")}
    state = {name: value for name, value in state.items() if name in own}
    if missing := [name for name in own if name not in state]:
        raise ValueError(f"{origin} does not fit the model: it lacks {', '.join(missing[:3])}")
    tokens, wanted = state["pos_embed"], own["pos_embed"]
    if tokens.shape != wanted:
        side, new = int((tokens.shape[1] - 1) ** 0.5), int((wanted[1] - 1) ** 0.5)
        grid = tokens[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2).float()
        grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
        state["pos_embed"] = torch.cat([tokens[:, :1], grid.flatten(2).transpose(1, 2).to(tokens.dtype)], 1)
    if wrong := [name for name in own if state[name].shape != own[name]]:
        raise ValueError(f"{origin} does not fit the model: {wrong[0]} has another shape")
    return state


def _with_head(make: Callable[..., nn.Module], head: str, **options: Any) -> nn.Module:
    net = make(**options)
    if head == "usb":
        net.head.reset_parameters()
    return net


def _loaded(build: Callable[..., nn.Module], state: dict[str, Tensor], num_classes: int) -> nn.Module:
    net = build(num_classes=num_classes)
    own = net.state_dict()
    zoo.load(net, {name: state.get(name, own[name]) for name in own}, "weights")  # all but the head, see fit_state
    return net


class ConvNet(nn.Module):
    """Four convolutions with BatchNorm, the first of stride ``stem``, the third of stride 2; logits (N, C)."""

    def __init__(self, num_classes: int, width: int = 16, stem: int = 2) -> None:
        super().__init__()
        channels = (3, width, 2 * width, 2 * width, 4 * width)
        kernels, strides = (stem + 1, 3, 3, 3), (stem, 1, 2, 1)  # a kernel of the stem overlaps its neighbours by 1
        layers: list[nn.Module] = []
        for inputs, outputs, kernel, stride in zip(channels, channels[1:], kernels, strides, strict=False):
            layers += [nn.Conv2d(inputs, outputs, kernel, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x).mean((2, 3)))


class WideBlock(nn.Module):
    """Norm, activation, convolution, twice, beside a shortcut; ``bare`` leaves out the first norm and activation."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, momentum: float, share_activation: bool, bare: bool = False
    ) -> None:
        super().__init__()
        self.share_activation = share_activation  # the shortcut, too, begins behind norm and activation
        self.bn1 = None if bare else nn.BatchNorm2d(inputs, momentum=momentum)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs, momentum=momentum)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        same = inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.bn1 is None else F.leaky_relu(self.bn1(x), 0.1)
        x = y if self.share_activation else x
        y = self.conv2(F.leaky_relu(self.bn2(self.conv1(y)), 0.1))
        return self.shortcut(x) + y


class WideResNet(nn.Module):
    """Wide residual network with leaky ReLU 0.1; 16 channels at first, then 16, 32, 64, ... times ``width``.

    Args:
        usb: the block of USB, see ``wide_resnet``. USB keeps the unused norms as parameters without a gradient.
    Raises: ValueError where depth is not a whole number of blocks for the stages.
    Source: Zagoruyko and Komodakis 2016, as in the code of FixMatch or of USB.
    """

    def __init__(
        self,
        num_classes: int,
        depth: int = 28,
        width: int = 2,
        stages: int = 3,
        stride: int = 1,
        bn_momentum: float = 0.001,
        usb: bool = False,
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - (4 if stages == 3 else 5), 2 * stages)
        if rest or blocks < 1:
            raise ValueError(f"wide_resnet: depth {depth} is no whole number of blocks in {stages} stages")
        channels = [16, *(16 * width * 2**stage for stage in range(stages))]
        self.conv = nn.Conv2d(3, channels[0], 3, 1, 1)  # with a bias, as in USB's code, though a norm follows
        parts = []
        for stage, (inputs, outputs) in enumerate(zip(channels, channels[1:], strict=False)):
            first = WideBlock(inputs, outputs, stride if stage == 0 else 2, bn_momentum, stage == 0, usb and stage > 0)
            parts += [first, *(WideBlock(outputs, outputs, 1, bn_momentum, False) for _ in range(blocks - 1))]
        self.stages = nn.Sequential(*parts)
        self.bn = nn.BatchNorm2d(channels[-1], momentum=bn_momentum, eps=1e-3)
        self.linear = nn.Linear(channels[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")
        nn.init.xavier_normal_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.bn(self.stages(self.conv(x))), 0.1)
        return self.linear(y.mean((2, 3)))


def count_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())

"""Segmentation networks from mmsegmentation's registry: DeepLab-V2 as ADVENT has it, DeepLab-V3, any config file.

A network maker knows an architecture; the task calls it with what follows from the data. Sizes of all networks are
those of their publications unless ``width`` says otherwise.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import mmseg
import yaml
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import WEIGHT_INITIALIZERS
from mmengine.structures import PixelData
from mmseg.models import EncoderDecoder, SegDataPreProcessor
from mmseg.models.backbones import BEiT
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import Tensor, nn

from dembench.lookup import lookup
from dembench.records import read_plain
from dembench.tasks.common.cache import file_hash, short_hash
from dembench.tasks.common.devices import send
from dembench.tasks.common.trust import is_trusted_file
from dembench.tasks.segmentation.weights import load_weights

Build = Callable[[int], dict[str, Any]]  # number of classes to the configuration of an EncoderDecoder
STAGES = {  # strides and dilations of the four stages of a ResNet, by output stride; its stem has a stride of 4
    4: ((1, 1, 1, 1), (1, 1, 2, 4)),
    8: ((1, 2, 1, 1), (1, 1, 2, 4)),
    16: ((1, 2, 2, 1), (1, 1, 1, 2)),
    32: ((1, 2, 2, 2), (1, 1, 1, 1)),
}
MOST_CONFIG = 1_000_000  # bytes of a YAML or JSON file
DEPTHS = (18, 34, 50, 101, 152)
PREDICTS = {  # the output that a head predicts with, where it gives others to losses of its own
    "DAHead": 0,
    "DDRHead": 0,
    "EncHead": 0,
    "IterativeDecodeHead": -1,
    "PIDHead": 1,
}
MASKS = ("Mask2FormerHead", "MaskFormerHead")  # heads that give masks with classes, and are mmdetection's


@MODELS.register_module()
class DeepLabV2Head(BaseDecodeHead):
    """Parallel dilated 3x3 convolutions with bias, from one feature map to the classes, and their sum.

    Args:
        dilations: one branch for each; padding is equal to it.
    Source: Chen et al., DeepLab, 2018; Vu et al., ADVENT, 2019, which sums all branches (AdaptSegNet's two alone).
    """

    def __init__(self, dilations: Sequence[int] = (6, 12, 18, 24), **kwargs: Any):
        init = {"type": "Normal", "layer": "Conv2d", "std": 0.01}
        super().__init__(channels=kwargs["in_channels"], dropout_ratio=0, init_cfg=init, **kwargs)
        del self.conv_seg
        self.branches = nn.ModuleList(
            nn.Conv2d(self.in_channels, self.out_channels, 3, padding=dilation, dilation=dilation)
            for dilation in dilations
        )

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        x = self._transform_inputs(inputs)
        total = self.branches[0](x)
        for branch in self.branches[1:]:
            total = total + branch(x)
        return total


class Preprocessor(SegDataPreProcessor):
    """Images and labels of a batch go to the device in one copy that the host does not wait for, nor for the channels'
    order; all else is mmsegmentation's."""

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.reverse, self.channel_conversion = self.channel_conversion, False

    def cast_data(self, data: dict[str, Any]) -> dict[str, Any]:
        samples = [sample.new() for sample in data.get("data_samples", ())]
        labels = {i: sample.gt_sem_seg.data for i, sample in enumerate(samples) if "gt_sem_seg" in sample}
        images, labels = send((tuple(data["inputs"]), labels), self.device)
        for i, own in labels.items():
            samples[i].gt_sem_seg = PixelData(data=own)
        return {"inputs": [x.flip(0) if self.reverse else x for x in images], "data_samples": samples}


class Network(nn.Module):
    """An EncoderDecoder as a function from normalised images (N, 3, H, W) to logits (N, C, h, w) of each head.

    Args:
        segmentor: of mmsegmentation.
        preprocess: turns a list of images (3, H, W) uint8 RGB into the batch that ``forward`` takes.
    """

    def __init__(self, segmentor: EncoderDecoder, preprocess: SegDataPreProcessor):
        super().__init__()
        self.segmentor, self.preprocess = segmentor, preprocess
        self.align_corners = bool(segmentor.decode_head.align_corners)

    @property
    def has_aux(self) -> bool:
        return self.segmentor.with_auxiliary_head

    def forward(self, images: Tensor, aux: bool = True) -> tuple[Tensor, Tensor | None]:
        """Logits of the main head, and of the auxiliary one (None where there is none, or ``aux`` is False).

        Raises: ValueError for images of another size than BEiT and MAE were made for, and heads that give no logits.
        """
        backbone, size = self.segmentor.backbone, tuple(images.shape[2:])
        if isinstance(backbone, BEiT) and size != tuple(backbone.img_size):
            raise ValueError(
                f"{type(backbone).__name__} takes images of {tuple(backbone.img_size)} only, its backbone.img_size, "
                f"got {size}"
            )
        features = self.segmentor.extract_feat(images)
        main = _logits(self.segmentor.decode_head, features)
        if not (aux and self.has_aux):
            return main, None
        return main, _logits(self.segmentor.auxiliary_head, features)


def _logits(head: nn.Module, features: Any) -> Tensor:
    found, name = head(features), type(head).__name__
    if isinstance(found, Tensor):
        return found
    if name not in PREDICTS:
        raise ValueError(f"model: {name} gives several outputs, and which of them are logits is not known here")
    return found[PREDICTS[name]]


class NetMaker:
    """Builds a network for a number of classes.

    Args:
        build: gives the configuration for a number of classes.
        weights: file of pretrained weights, see ``tasks.segmentation.weights``; None starts from random ones.
        pool: keep the max-pooling behind the first convolution.
        ceil_mode: of it: 129x65 instead of 128x64 for an input of 1024x512.
        preprocess: arguments of SegDataPreProcessor; None takes the data's.
        origin: what the identity of the network has in place of a path.
    """

    def __init__(
        self,
        build: Build,
        *,
        weights: str | Path | None = None,
        pool: bool = True,
        ceil_mode: bool = False,
        preprocess: dict[str, Any] | None = None,
        origin: str | None = None,
    ):
        self.build, self.pool, self.ceil_mode, self.preprocess = build, pool, ceil_mode, preprocess
        self.weights = None if weights is None else Path(weights).expanduser()
        if self.weights is not None and not self.weights.is_file():
            raise FileNotFoundError(f"model.weights: no file {self.weights}")
        parts = [origin] if origin else []
        parts += [file_hash(self.weights)] if self.weights else []
        self.weights_id = "-".join(parts) or None

    def __call__(self, num_classes: int, preprocess: dict[str, Any]) -> Network:
        """A network with the weights that torch's generator gives, or those of the file.

        Args:
            preprocess: the data's arguments of SegDataPreProcessor: mean and std by channel, and the channels' order.
        Raises: ValueError where the weights do not fit.
        """
        given = self.preprocess or preprocess
        preprocessor = Preprocessor(**given, size_divisor=1)
        with quiet():
            segmentor = MODELS.build(copy.deepcopy(self.build(num_classes)))
            segmentor.init_weights()
        if not self.pool:
            segmentor.backbone.maxpool = nn.Identity()
        elif self.ceil_mode:
            segmentor.backbone.maxpool.ceil_mode = True
        if self.weights is not None:
            self.weights_note = load_weights(self.weights, segmentor)
        return Network(segmentor, preprocessor)


def deeplab_v2(
    depth: int = 101,
    width: int = 64,
    stages: int = 4,
    output_stride: int = 8,
    dilations: Sequence[int] = (6, 12, 18, 24),
    multi_level: bool = True,
    style: Literal["caffe", "pytorch"] = "caffe",
    pool: bool = True,
    ceil_mode: bool = True,
    freeze_norm: bool = True,
    weights: str | Path | None = None,
) -> NetMaker:
    """DeepLab-V2 on a ResNet; the defaults are ADVENT's network, 44,601,560 parameters for 19 classes.

    Args:
        depth: 18, 34, 50, 101 or 152.
        width: channels of stem and first stage, 64 in a ResNet.
        stages: of the ResNet, 2 to 4; the head is on the last one.
        output_stride: 4, 8, 16 or 32 pixels of the input for one of the logits.
        dilations: of the head's branches, whose sum it is.
        multi_level: a second head on the last stage but one, for the auxiliary terms.
        style: "caffe" strides in the first 1x1 convolution of a bottleneck, "pytorch" in its 3x3.
        pool: the max-pooling behind the first convolution; without it the stages stride once more.
        ceil_mode: of the max-pooling.
        freeze_norm: BatchNorm's weights and biases do not learn; it still normalises by the batch in training.
        weights: file of ADVENT (which needs the data normalised as ADVENT does), torchvision or mmsegmentation.
    Raises: ValueError for another depth or output stride; FileNotFoundError for missing weights.
    Source: Vu et al., ADVENT, 2019.
    """

    def build(num_classes: int) -> dict[str, Any]:
        def head(stage: int) -> dict[str, Any]:
            channels = _channels(depth, width, stage)
            return _head("DeepLabV2Head", channels, stage, num_classes, dilations=tuple(dilations))

        return {
            "type": "EncoderDecoder",
            "backbone": _resnet(depth, width, stages, output_stride if pool else 2 * output_stride, style, freeze_norm),
            "decode_head": head(stages - 1),
            "auxiliary_head": head(stages - 2) if multi_level else None,
        }

    _check(depth, width, stages, output_stride)
    if not pool and output_stride == 32:
        raise ValueError("model: without pooling the output stride is 4, 8 or 16")
    return NetMaker(build, weights=weights, pool=pool, ceil_mode=ceil_mode)


def deeplab_v3(
    depth: int = 101,
    width: int = 64,
    stages: int = 4,
    output_stride: int = 8,
    dilations: Sequence[int] = (1, 12, 24, 36),
    multi_level: bool = True,
    channels: int = 512,
    dropout: float = 0.1,
    freeze_norm: bool = False,
    weights: str | Path | None = None,
) -> NetMaker:
    """DeepLab-V3 on a ResNet: atrous spatial pyramid pooling, and an FCN as auxiliary head, as mmsegmentation has them.

    Args:
        dilations, channels, dropout: of the pyramid; the others as in ``deeplab_v2``.
    Raises: as ``deeplab_v2``.
    Source: Chen et al., Rethinking Atrous Convolution, 2017; mmsegmentation's configs/_base_/models/deeplabv3_r50-d8.
    """

    def build(num_classes: int) -> dict[str, Any]:
        norm = {"type": "BN", "requires_grad": True}
        last = stages - 1
        main = _head("ASPPHead", _channels(depth, width, last), last, num_classes, dilations=tuple(dilations))
        aux = _head(
            "FCNHead", _channels(depth, width, last - 1), last - 1, num_classes, num_convs=1, concat_input=False
        )
        main |= {"channels": channels, "dropout_ratio": dropout, "norm_cfg": norm, "align_corners": False}
        aux |= {"channels": channels // 2, "dropout_ratio": dropout, "norm_cfg": norm, "align_corners": False}
        return {
            "type": "EncoderDecoder",
            "backbone": _resnet(depth, width, stages, output_stride, "pytorch", freeze_norm),
            "decode_head": main,
            "auxiliary_head": aux if multi_level else None,
        }

    _check(depth, width, stages, output_stride)
    return NetMaker(build, weights=weights)


def from_config(config_file: str | Path, weights: str | Path | None = None) -> NetMaker:
    """The ``model`` of one of mmsegmentation's configuration files, with heads for the data's classes.

    A Python file is code: it has to be one of mmsegmentation's own or be in a folder of ``--config-dir``. A YAML or
    JSON file is read as data; it inherits from none, and names registered classes only.

    Its normalisation and channel order are kept. Its losses are not used (the task's are), and weights come from
    ``weights`` alone: nothing is fetched. Of several auxiliary heads the first is kept, and of several outputs of a
    head the one that it predicts with. Synchronised BatchNorm becomes BatchNorm.

    Raises: FileNotFoundError; ValueError where the model is no EncoderDecoder or its head gives masks, where the file
        needs a package that is not here, and where code would run.
    """
    path = Path(config_file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"model.config_file: no file {path}")
    config = _read_config(path)
    model = config.get("model")
    if model is None or model.get("type") != "EncoderDecoder":
        got = "none" if model is None else repr(model.get("type"))
        raise ValueError(f"{path}: expected a model of type 'EncoderDecoder', got {got}")
    if (head := model.decode_head.get("type")) in MASKS:
        raise ValueError(f"{path}: {head} gives masks with classes; expected a head that gives logits of pixels")
    model = model.to_dict()
    given = model.pop("data_preprocessor", None) or {}
    heads = model.get("auxiliary_head")
    model["auxiliary_head"] = heads[0] if isinstance(heads, list) else heads
    model["pretrained"] = model["init_cfg"] = None
    for node in _nodes(model):
        if (node.get("init_cfg") or {}).get("type") == "Pretrained":
            node["init_cfg"] = None

    def build(num_classes: int) -> dict[str, Any]:
        for head in filter(None, (model["decode_head"], model["auxiliary_head"])):
            for node in [node for node in _nodes(head) if "num_classes" in node] or [head]:
                node["num_classes"] = num_classes
                node.pop("out_channels", None)
                if "loss_decode" in node:
                    node["loss_decode"] = {"type": "CrossEntropyLoss"}
        return model

    text = config.pretty_text  # with what it inherits from
    return _Unsynchronised(build, weights=weights, preprocess=_preprocess(given), origin=short_hash(text))


def _read_config(path: Path) -> Config:
    if path.suffix == ".py":
        shipped = Path(mmseg.__file__).resolve().parent
        if not (path.resolve().is_relative_to(shipped) or is_trusted_file(path)):
            raise ValueError(
                f"model.config_file: {path} is Python code, which would be run: give one of mmsegmentation's own, or "
                "one in a folder that --config-dir names"
            )
        try:
            return Config.fromfile(str(path))
        except ImportError as error:
            reason = str(error).partition(", the current sys.path")[0]
            raise ValueError(f"model.config_file: {path} needs a package that is not here: {reason}") from None
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise ValueError(f"model.config_file: expected a .py, .yaml or .json file, got {path}")
    try:
        content = yaml.safe_load(read_plain(path, MOST_CONFIG))  # JSON is YAML, too
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no plain YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict) or "_base_" in content:
        raise ValueError(f"{path}: expected the key model with key: value pairs, and no _base_")
    _check_types(content["model"], "model", path)
    return Config({"model": content["model"]})


def _check_types(node: Any, place: str, path: Path) -> None:
    """Raises ValueError for a type that is not registered (mmengine would import it), and for weights to be loaded."""
    known = set().union(*(registry.module_dict for registry in (MODELS, ROOT_MODELS, WEIGHT_INITIALIZERS)))
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if key == "type" and (not isinstance(value, str) or value not in known or value == "Pretrained"):
            raise ValueError(f"{path}: {place}.type: expected the name of a registered class, got {value!r}")
        _check_types(value, f"{place}.{key}", path)


def _nodes(config: Any) -> Iterator[dict[str, Any]]:
    """All dicts of a configuration, itself included."""
    if isinstance(config, dict):
        yield config
    for value in config.values() if isinstance(config, dict) else config if isinstance(config, list | tuple) else ():
        yield from _nodes(value)


def _preprocess(given: dict[str, Any]) -> dict[str, Any] | None:
    """The file's normalisation for images that come as RGB; mmsegmentation reads them as BGR."""
    if given.get("mean") is None:
        return None
    return {"mean": given["mean"], "std": given["std"], "rgb_to_bgr": not given.get("bgr_to_rgb", False)}


class _Unsynchronised(NetMaker):
    def __call__(self, num_classes: int, preprocess: dict[str, Any]) -> Network:
        network = super().__call__(num_classes, preprocess)
        for module in network.modules():
            if isinstance(module, nn.SyncBatchNorm):
                module.__class__ = nn.BatchNorm2d  # which mmengine's own conversion does not give: Tent looks for it
        return network


@contextmanager
def quiet() -> Iterator[None]:
    """Holds mmengine's loggers to errors: initialising weights says three lines for each parameter."""
    if not MMLogger.check_instance_created("dembench"):
        MMLogger.get_instance("dembench", log_level="ERROR")
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*(avg_non_ignore|build_loss).*"
        )  # the heads' own losses are not used
        yield


def _head(kind: str, in_channels: int, stage: int, num_classes: int, **options: Any) -> dict[str, Any]:
    return {
        "type": kind,
        "in_channels": in_channels,
        "in_index": stage,
        "num_classes": num_classes,
        "align_corners": True,
        **options,
    }


def _resnet(depth: int, width: int, stages: int, output_stride: int, style: str, freeze_norm: bool) -> dict[str, Any]:
    strides, dilations = STAGES[output_stride]
    return {
        "type": "ResNet",
        "depth": depth,
        "stem_channels": width,
        "base_channels": width,
        "num_stages": stages,
        "out_indices": tuple(range(stages)),
        "strides": strides[:stages],
        "dilations": dilations[:stages],
        "style": style,
        "contract_dilation": False,
        "norm_cfg": {"type": "BN", "requires_grad": not freeze_norm},
        "norm_eval": False,
        "zero_init_residual": False,  # with frozen weights of BatchNorm the branches would stay at zero
    }


def _channels(depth: int, width: int, stage: int) -> int:
    return width * 2**stage * (1 if depth < 50 else 4)


def _check(depth: int, width: int, stages: int, output_stride: int) -> None:
    lookup(str(depth), map(str, DEPTHS), "model.depth")
    lookup(str(output_stride), map(str, STAGES), "model.output_stride")
    if width < 1 or not 2 <= stages <= 4:
        raise ValueError(f"model: expected width >= 1 and stages from 2 to 4, got {width} and {stages}")


def count_parameters(module: nn.Module, trainable: bool = False) -> int:
    """Number of weights in a module, or of those that learn."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)

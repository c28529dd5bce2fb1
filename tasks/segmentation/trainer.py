"""One run of training: SGD on the network, Adam on discriminators, evaluations on the target's test images.

The rest of the machinery is ``common.training``. mmsegmentation gives networks, pipelines and the metric, no loop.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dembench.tasks.common import training
from dembench.tasks.common.criteria import Criteria
from dembench.tasks.common.orders import derived_seed
from dembench.tasks.common.training import Values, rank
from dembench.tasks.segmentation.batches import ImagePairs, batches
from dembench.tasks.segmentation.methods.base import UDAMethod
from dembench.tasks.segmentation.metrics import SegMetrics
from dembench.tasks.segmentation.protocol import Protocol

Optimizers = dict[str, torch.optim.Optimizer]
HEADS = ("decode_head", "auxiliary_head")


class Pictures(typing.Protocol):
    """Keeps some of the test images with their predictions."""

    def add(self, i: int, image: torch.Tensor, labels: torch.Tensor, logits: torch.Tensor) -> None:
        """Image (3, H', W') uint8, labels (H, W) and logits (C, H, W) of test image i."""


class Trainer(training.Trainer):
    """Trains a method on a pair of domains; one per process.

    Args:
        data: see ``tasks.segmentation.data``.
        method: holds the network; moved to the device.
        protocol, seed, device, checkpoint: see ``training.Trainer``.
        pictures: is given the test images that it wants, with the predictions of the last iterate.
    """

    method: UDAMethod

    def __init__(
        self,
        data: Any,
        method: UDAMethod,
        protocol: Protocol,
        *,
        seed: int,
        device: str = "cpu",
        checkpoint: Path | None = None,
        pictures: Pictures | None = None,
    ) -> None:
        super().__init__(method, protocol, seed=seed, device=device, checkpoint=checkpoint)
        self.data, self.pictures = data, pictures
        self.metrics: SegMetrics | None = None  # of the latest evaluation
        if self.device.type != "cpu" or not thin_shortcuts(method.network):
            method.network.to(memory_format=torch.channels_last)
        self.optimizers = make_optimizers(method, protocol)
        self._batches: Iterator[dict[str, Any]] | None = None

    def network(self) -> nn.Module:
        return self.method.network

    def parts(self) -> dict[str, Any]:
        return {"method": self.method, **{f"optimizer of {name}": o for name, o in self.optimizers.items()}}

    def step(self) -> dict[str, Tensor]:
        if self._batches is None:
            pairs = ImagePairs(self.data.source_train, self.data.target_train, self.seed)
            self._batches = batches(pairs, self.protocol, self.done, rank())
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        data = next(self._batches)
        data["progress"] = self.done / self.protocol.iterations
        torch.manual_seed(derived_seed(self.seed, self.done, "model", rank()))
        try:
            values = self.method.gradients(data)
        except (ValueError, RuntimeError) as error:
            if "Output size is too small" in str(error):
                raise ValueError(f"the images are too small for a pooling of the network: {error}") from error
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                "the network normalises one value per channel (global pooling before BatchNorm), which needs "
                "protocol.batch_size of 2 or more on each device"
            ) from error
        for optimizer in self.optimizers.values():
            self.average_gradients(p for group in optimizer.param_groups for p in group["params"])
            optimizer.step()
            for group in optimizer.param_groups:
                group["lr"] *= self.protocol.decay(self.done + 1)
        return values

    def final(self) -> SegMetrics:
        """Of the last iterate on the target's test images."""
        if self.metrics is None:  # a run that was cut off after its last checkpoint
            self.metrics = self.evaluate(self.data.target_test, pictures=self.pictures)
        return self.metrics

    def measure(self) -> Values:
        last = self.done == self.protocol.iterations or not self.finite
        self.metrics = self.evaluate(self.data.target_test, pictures=self.pictures if last else None)
        return {"iou": self.metrics.miou}

    def evaluate(
        self, dataset: Any, *, adapt: bool = False, pictures: Pictures | None = None, criteria: Criteria | None = None
    ) -> SegMetrics:
        """Metrics over a labelled dataset, at the size of its labels.

        Args:
            adapt: predict by the method, which may learn from each image; else by the network as it is.
            pictures: is given the images that it wants.
            criteria: are shown the predictions of every pixel, and those of the mirrored image mirrored back.
        """
        method, passes = self.method, self.method.forward_passes
        self.average_statistics()
        method.eval()
        data = self.data
        metrics = SegMetrics(data.classes, data.tail, data.ignore_index, data.subsets)
        for i in range(len(dataset)):
            item = dataset[i]
            labels = item["data_samples"].gt_sem_seg.data.to(torch.int64)
            with torch.no_grad():
                other = None if criteria is None else method.test_logits(item["inputs"].flip(2)).flip(3)
                logits = method.predict(item["inputs"]) if adapt else method.test_logits(item["inputs"])
            if criteria is not None:
                criteria.update(logits, other)
            if logits.shape[2:] != labels.shape[1:]:
                corners = method.network.align_corners
                logits = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=corners)
            metrics.update(logits, labels)
            if pictures is not None:
                pictures.add(i, item["inputs"], labels[0], logits[0])
        method.train()
        if not adapt:
            method.forward_passes = passes  # the cost counts training
        return metrics


def make_optimizers(method: UDAMethod, protocol: Protocol) -> Optimizers:
    """SGD for the network, heads at their own rate, as "network"; Adam for each discriminator, under its name."""
    heads: list[nn.Parameter] = []
    body: dict[int, list[nn.Parameter]] = {} if protocol.repeated_backbone else {1: []}
    for name, parameter in method.network.named_parameters():
        if parameter.requires_grad:
            times = depth(name) if protocol.repeated_backbone else 1
            (heads if any(f"{head}." in name for head in HEADS) else body.setdefault(times, [])).append(parameter)
    own = protocol.lr * protocol.backbone_multiplier
    groups: list[dict[str, Any]] = [{"params": body[times], "lr": own, "times": times} for times in sorted(body)]
    groups.append({"params": heads, "lr": protocol.lr * protocol.head_multiplier, "times": 1})
    settings = {"lr": protocol.lr, "momentum": protocol.momentum, "weight_decay": protocol.weight_decay}
    if protocol.repeated_backbone:
        found: Optimizers = {"network": Repeated(groups, **settings)}
    else:
        found = {"network": torch.optim.SGD([{k: g[k] for k in ("params", "lr")} for g in groups], **settings)}
    for name, (module, lr) in method.discriminators().items():
        found[name] = torch.optim.Adam(module.parameters(), lr=lr, betas=(0.9, 0.99))
    return found


class Repeated(torch.optim.SGD):
    """SGD that takes ``times`` steps of each of its groups along the same gradient."""

    def step(self) -> None:  # type: ignore[override]
        groups = self.param_groups
        try:
            for turn in range(max(group["times"] for group in groups)):
                self.param_groups = [group for group in groups if group["times"] > turn]
                super().step()
        finally:
            self.param_groups = groups


def depth(name: str) -> int:
    """How many modules inside the backbone hold a parameter: "backbone.layer1.0.conv1.weight" 3, of a shortcut 4."""
    return max(name.partition("backbone.")[2].count("."), 1)


def thin_shortcuts(network: nn.Module) -> bool:
    """Whether there is a strided 1x1 convolution of fewer than 8 channels.

    In channels-last format its backward pass writes beyond its memory on CPUs without AVX-512 (oneDNN in PyTorch 2.15),
    and the process dies.
    """
    return any(
        isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and max(m.stride) > 1 and m.in_channels < 8
        for m in network.modules()
    )

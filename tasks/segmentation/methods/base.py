"""What the methods share: batches, passes through the network, the source term and the term of the loss.

A method makes the gradients of a step from a pair of batches; the trainer has the optimisers. Logits are (N, C, H, W),
every pixel is a sample.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dembench.core import functional
from dembench.lookup import lookup
from dembench.tasks.common.training import autocast

IGNORED = 255  # label of pixels that are in no loss
RESOLUTIONS = ("full", "logit")
UNITS = ("log_c", "bits", "nats")

Values = dict[str, Tensor]
Data = Mapping[str, Any]  # "source" and "target": batches of PackSegInputs; "progress": share of the training, 0..1


@dataclass(frozen=True)
class Logits:
    """Of one batch, float32, at the resolution of the heads.

    Args:
        main, aux: (N, C, h, w); ``aux`` is None where the network has one head.
        size: (H, W) of the images.
        mask: (N, H, W) bool, False where an image was padded; None where none was.
        align_corners: of the interpolation to ``size``.
    """

    main: Tensor
    aux: Tensor | None
    size: tuple[int, int]
    mask: Tensor | None
    align_corners: bool

    def heads(self) -> dict[str, Tensor]:
        return {"main": self.main} | ({} if self.aux is None else {"aux": self.aux})

    def full(self, logits: Tensor) -> Tensor:
        """Logits of a head, bilinearly interpolated to the images' size."""
        return F.interpolate(logits, self.size, mode="bilinear", align_corners=self.align_corners)

    def mask_at(self, size: tuple[int, int]) -> Tensor | None:
        """The mask at another size, by nearest neighbours."""
        if self.mask is None or size == self.size:
            return self.mask
        return F.interpolate(self.mask[:, None].float(), size, mode="nearest")[:, 0].bool()


class EntropyTerm(nn.Module):
    """The place of the entropy: ``sum over heads of weight * mean over pixels of loss(logits) / unit``.

    The aux head has its own copy of the loss, so that a state of the loss is that of one head.

    Args:
        loss: logits (N, C, H, W) and a mask to a loss per pixel (N, H, W); None leaves the term out.
        weight, aux_weight: of the heads. With both 0 the term is left out as well.
        unit: "log_c" divides by the natural logarithm of the number of classes, so that an entropy is from 0 to 1;
            "bits" divides by log 2; "nats" by nothing.
        resolution: "full" interpolates logits to the images' size before the loss, "logit" does not.
        ramp: share of the training over which the weights rise linearly from 0; 0 is no ramp.
    Raises: ValueError for negative weights, a ramp outside 0..1, an unknown unit or resolution.
    Source: Vu et al., ADVENT, 2019, eq. 2-3; its code has log_c and full, and no ramp.
    """

    def __init__(self, loss: Any, weight: float, aux_weight: float, unit: str, resolution: str, ramp: float):
        super().__init__()
        lookup(unit, UNITS, "unit of the loss")
        lookup(resolution, RESOLUTIONS, "resolution of the loss")
        if weight < 0 or aux_weight < 0 or not 0 <= ramp <= 1:
            got = f"{weight}, {aux_weight} and {ramp}"
            raise ValueError(f"expected weights of the loss >= 0 and a ramp from 0 to 1, got {got}")
        self.main, self.aux = loss, copy.deepcopy(loss)
        self.weights = {"main": weight, "aux": aux_weight}
        self.unit, self.resolution, self.ramp = unit, resolution, ramp

    @property
    def active(self) -> bool:
        return self.main is not None and any(self.weights.values())

    def forward(self, logits: Logits, progress: float = 1.0) -> Tensor:
        """The weighted sum, a scalar."""
        terms = []
        for name, z in logits.heads().items():
            if weight := self.weights[name]:
                z = logits.full(z) if self.resolution == "full" else z
                per_pixel = masked(getattr(self, name), z, logits.mask_at(z.shape[2:]))
                terms.append(weight * self.rise(progress) * per_pixel / self.scale(z.shape[1]))
        return torch.stack(terms).sum() if terms else logits.main.new_zeros(())

    def scale(self, classes: int) -> float:
        """Nats in the unit."""
        return {"log_c": math.log(classes), "bits": math.log(2), "nats": 1.0}[self.unit]

    def rise(self, progress: float) -> float:
        """From 0 to 1 while progress goes from 0 to ``ramp``; 1 from then on."""
        return 1.0 if self.ramp <= 0 else min(progress / self.ramp, 1.0)


def masked(loss: Callable[..., Tensor], logits: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of a loss over the pixels that count; without a mask the loss is not given one."""
    if mask is None:
        return loss(logits).mean()
    return loss(logits, mask).sum() / mask.sum().clamp(min=1)


class UDAMethod(nn.Module, ABC):
    """Base of all methods: a network that learns from labelled source and unlabelled target images.

    Args:
        network: see ``tasks.segmentation.nets.Network``.
        num_classes: C.
        precision: "bf16" runs the network under autocast; losses are in float32.
        source_aux: weight of the aux head's cross entropy.
        term: where the loss enters.
    """

    name: ClassVar[str]
    replaces_entropy: ClassVar[bool] = False  # the loss replaces the method's own entropy; else it is added
    adapts_at_test: ClassVar[bool] = False
    repeated_in: ClassVar[tuple[str, str] | None] = None  # whose code repeats steps of the backbone, and our preset

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        precision: Literal["fp32", "bf16"] = "fp32",
        *,
        source_aux: float = 0.1,
        term: EntropyTerm | None = None,
    ):
        super().__init__()
        if source_aux < 0:
            raise ValueError(f"method: expected source_aux >= 0, got {source_aux}")
        self.network, self.num_classes, self.precision, self.source_aux = network, num_classes, precision, source_aux
        self.term = term
        self.forward_passes = self.backward_passes = self.updated = 0

    @abstractmethod
    def gradients(self, data: Data) -> Values:
        """Adds those of one step; returns what is to be logged, scalars on the device."""

    def discriminators(self) -> dict[str, tuple[nn.Module, float]]:
        """Networks with an optimiser of their own, by name, and its learning rate."""
        return {}

    def source_term(self, batch: Data) -> tuple[Tensor, Logits]:
        """Cross entropy over the labelled pixels, nats, of the main head and ``source_aux`` times the aux head."""
        logits, samples = self.passes(batch)
        labels = torch.stack([sample.gt_sem_seg.data[0] for sample in samples]).long()
        weights = {"main": 1.0, "aux": self.source_aux}
        terms = [weights[name] * cross_entropy(logits.full(z), labels) for name, z in logits.heads().items()]
        return torch.stack(terms).sum(), logits

    def target_logits(self, batch: Data) -> Logits:
        return self.passes(batch)[0]

    def passes(self, batch: Data) -> tuple[Logits, list[Any]]:
        """One pass of a batch through the network."""
        network = self.network
        device = next(network.parameters()).device
        with torch.no_grad():
            ready = network.preprocess.to(device)(dict(batch), training=True)
        images = ready["inputs"]
        with autocast(self.precision, device):
            main, aux = self.network(images)
        self.forward_passes += 1
        self.updated += len(images)
        mask = padding_mask(ready["data_samples"], images)
        size = tuple(images.shape[2:])
        aux = None if aux is None else single(aux)
        return Logits(single(main), aux, size, mask, network.align_corners), ready["data_samples"]

    def prepare_test(self) -> None:
        """Called once between training and the final evaluation."""

    @torch.no_grad()
    def predict(self, image: Tensor) -> Tensor:
        """Logits (1, C, H, W), float32 at the size of one image (3, H, W) uint8 RGB; the network is in ``eval()``."""
        return self.test_logits(image)

    def test_logits(self, image: Tensor, resolution: str = "full") -> Tensor:
        """One pass of one image: the main head's logits, float32, at the image's size ("full") or the head's."""
        network = self.network
        device = next(network.parameters()).device
        images = network.preprocess.to(device)({"inputs": [image]})["inputs"]
        with autocast(self.precision, device):
            main = single(network(images, aux=False)[0])
        size = tuple(images.shape[2:])
        return Logits(main, None, size, None, network.align_corners).full(main) if resolution == "full" else main

    def backward(self, term: Tensor) -> Tensor:
        """Adds the gradients of a scalar; returns it without its graph."""
        term.backward()
        self.backward_passes += 1
        return term.detach()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the labelled pixels, nats; 0 where there are none (torch would give NaN)."""
    count = (labels != IGNORED).sum().clamp(min=1)
    if logits.is_cuda:  # of maps it adds in no fixed order there
        logits, labels = logits.movedim(1, -1).flatten(0, -2), labels.flatten()
    total = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    return total / count


def padding_mask(samples: list[Any], images: Tensor) -> Tensor | None:
    """False where ``stack_batch`` filled an image up to the size of the largest, (N, H, W); None where it did not."""
    paddings = [sample.metainfo.get("padding_size", (0, 0, 0, 0)) for sample in samples]
    if not any(any(padding) for padding in paddings):
        return None
    mask = torch.ones(len(images), *images.shape[2:], dtype=torch.bool, device=images.device)
    for row, (_, right, _, bottom) in zip(mask, paddings, strict=True):
        row[row.shape[0] - bottom :, :] = False
        row[:, row.shape[1] - right :] = False
    return mask


def pixel_entropy(logits: Tensor) -> Tensor:
    """Mean entropy over the pixels of a head's logits, nats, without gradient."""
    return functional.em(logits.detach()).mean()


def single(logits: Tensor) -> Tensor:
    """Half precision as float32; float64 stays."""
    return logits if logits.dtype is torch.float64 else logits.float()

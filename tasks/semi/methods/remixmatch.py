"""ReMixMatch (Berthelot et al. 2020): MixMatch with aligned guesses, strong views anchored to the weak one, rotations.

As USB's code (semilearn 0.3.2): the guesses' mean is a moving one, where the authors' is over the last 128 batches; one
mixing factor per batch; each view normalised by its own batch, and BatchNorm's running statistics from the mixed rows
that start with a labelled sample.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dembench.tasks.common.devices import send
from dembench.tasks.common.heads import add_head
from dembench.tasks.semi.methods.base import Batch, Terms, align, frozen_statistics, passes, rise
from dembench.tasks.semi.methods.consistency import strong_names
from dembench.tasks.semi.methods.mixmatch import MixMatch, sharpen


class ReMixMatch(MixMatch):
    """Cross entropies of the mixed labelled and unlabelled rows, of one strong view as it is, and of its rotation.

    A guess is the prediction on the weak view, aligned to the labelled samples' class shares and sharpened; it is the
    target of all strong views. A second head tells by how many quarters the first strong view was turned.
    State: ``marginal`` (C,), the moving mean of predictions; ``shares`` (C,) of the labelled samples' classes.

    Args:
        mix, unlabelled_weight, ramp, temperature, chunks: as in ``MixMatch``; the weight is that of the mixed rows.
        strong_views: strong views of each sample.
        anchor_weight: of the strong view that is not mixed; it rises with ``ramp``, too.
        rotation_weight: of the rotation; 0 leaves out the second head.
        momentum: share that the moving mean keeps.
    Raises: ValueError for a number out of range, or where images to be turned are not square.
    """

    name = "remixmatch"
    slot_views: ClassVar[tuple[str, ...]] = ("weak", "strong", "mixed")

    def __init__(
        self,
        loss: Any = None,
        *,
        num_classes: int = 0,
        mix: float = 0.75,
        unlabelled_weight: float = 1.5,
        ramp: float = 1 / 64,
        strong_views: int = 2,
        anchor_weight: float = 0.5,
        rotation_weight: float = 0.5,
        momentum: float = 0.999,
        **settings: Any,
    ) -> None:
        super().__init__(
            loss, num_classes=num_classes, mix=mix, unlabelled_weight=unlabelled_weight, ramp=ramp, **settings
        )
        self.check_classes(num_classes)
        self.check_range(1, math.inf, strong_views=strong_views)
        self.check_range(0, math.inf, anchor_weight=anchor_weight, rotation_weight=rotation_weight)
        self.check_range(0, 1, momentum=momentum)
        self.anchor_weight, self.rotation_weight, self.momentum = anchor_weight, rotation_weight, momentum
        self.views = (*strong_names(strong_views), "weak")  # type: ignore[misc]
        self.register_buffer("marginal", torch.zeros(num_classes))  # zeros: no batch was seen
        self.register_buffer("shares", torch.full((num_classes,), 1 / num_classes))

    def prepare(self, num_unlabelled: int, counts: Tensor) -> None:
        self.shares.copy_(counts / counts.sum())

    def equip(self, model: nn.Module) -> nn.Module:
        return add_head(model, self.num_classes, 4) if self.rotation_weight else model

    def terms(self, model: nn.Module, batch: Batch) -> Terms:
        b, c = len(batch.images), self.num_classes
        strong = batch.views["strong"]
        with frozen_statistics(model):
            with torch.set_grad_enabled(self.slot.wants("weak")):
                weak = passes(model, {"weak": batch.views["weak"]})["weak"][:, :c]
            anchored = passes(model, {"strong": strong})["strong"][:, :c]
        p = align(weak.detach().softmax(1), self.marginal, self.shares, self.momentum)
        guess = sharpen(p, self.temperature)

        inputs = [batch.images, *(batch.views[view] for view in self.views)]
        known = F.one_hot(batch.labels, c).to(guess.dtype)
        mixed, targets = self._mix(torch.cat(inputs), torch.cat([known, *[guess] * len(self.views)]))
        logits = self._mixed_logits(model, mixed, b)[:, :c]
        risen = rise(batch.progress, self.ramp)
        self.watch(weak)
        return {
            "supervised": F.cross_entropy(logits[:b], targets[:b]),
            "consistency": self.unlabelled_weight * risen * F.cross_entropy(logits[b:], targets[b:]),
            "anchor": self.anchor_weight * risen * F.cross_entropy(anchored, guess),
            **self.rotation(model, strong),
            **self.slot.terms({"weak": weak, "strong": anchored, "mixed": logits[b:]}, batch.progress),
        }

    def rotation(self, model: nn.Module, images: Tensor) -> Terms:
        """Cross entropy of the second head to the quarters by which each image is turned."""
        if not self.rotation_weight:
            return {}
        turns = send(torch.randint(4, (len(images),)), images.device)
        with frozen_statistics(model):
            logits = passes(model, {"turned": turned(images, turns)})["turned"][:, self.num_classes :]
        return {"rotation": self.rotation_weight * F.cross_entropy(logits, turns)}


def turned(images: Tensor, turns: Tensor) -> Tensor:
    """Images (M, 3, S, S), each turned anticlockwise by ``turns`` (M,) quarters, 0 to 3."""
    height, width = images.shape[2:]
    if height != width:
        raise ValueError(f"remixmatch: only square images can be turned, got {height} x {width}; rotation_weight=0")
    every = torch.stack([images.rot90(quarters, (2, 3)) for quarters in range(4)])
    return every[turns, torch.arange(len(images), device=images.device)]

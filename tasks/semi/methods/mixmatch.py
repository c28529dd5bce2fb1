"""MixMatch (Berthelot et al. 2019): guessed labels, sharpened, and everything mixed with everything.

As in USB: one mixing factor per batch, a squared error that is the mean over samples and classes, and BatchNorm's
running statistics only from the rows that start with a labelled sample. ``chunks`` says which of the other rows
BatchNorm normalises together.
"""

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dembench.lookup import lookup
from dembench.tasks.common.devices import send
from dembench.tasks.semi.methods.base import Batch, SemiMethod, Terms, couples_samples, frozen_statistics, passes, rise


class MixMatch(SemiMethod):
    """Soft cross entropy on mixed labelled rows, squared error of probabilities on mixed unlabelled rows.

    Args:
        temperature: of sharpening.
        mix: both parameters of the Beta distribution of the mixing factor.
        unlabelled_weight: of the squared error, reached linearly over ``ramp`` of the training.
        chunks: "views" passes the mixed rows of each unlabelled view together; "batch" passes as many rows at a time as
            there are labelled ones, as USB does. With as many unlabelled as labelled samples, or without BatchNorm,
            both are the same.
    """

    name = "mixmatch"
    views: ClassVar[tuple[str, ...]] = ("weak", "weak2")
    slot_views: ClassVar[tuple[str, ...]] = ("weak", "mixed")

    def __init__(
        self,
        loss: Any = None,
        *,
        temperature: float = 0.5,
        mix: float = 0.5,
        unlabelled_weight: float = 10.0,
        ramp: float = 0.4,
        chunks: Literal["views", "batch"] = "views",
        **slot: Any,
    ) -> None:
        super().__init__(loss, **slot)
        if temperature <= 0 or mix <= 0:
            raise ValueError(f"mixmatch: expected temperature > 0 and mix > 0, got {temperature} and {mix}")
        lookup(chunks, ("views", "batch"), "chunks of mixmatch")
        self.check_range(0, 1, ramp=ramp)
        self.check_range(0, math.inf, unlabelled_weight=unlabelled_weight)
        self.temperature, self.mix, self.unlabelled_weight, self.ramp = temperature, mix, unlabelled_weight, ramp
        self.chunks = chunks

    def terms(self, model: nn.Module, batch: Batch) -> Terms:
        first, second = batch.views["weak"], batch.views["weak2"]
        weak = self._weak_logits(model, first, second)
        guess = sharpen((weak["weak"].softmax(1) + weak["weak2"].softmax(1)).detach() / 2, self.temperature)
        known = F.one_hot(batch.labels, guess.shape[1]).to(guess.dtype)
        inputs, targets = torch.cat([batch.images, first, second]), torch.cat([known, guess, guess])
        mixed, mixed_targets = self._mix(inputs, targets)

        b = len(batch.images)
        logits = self._mixed_logits(model, mixed, b)
        error = (logits[b:].softmax(1) - mixed_targets[b:]).square().mean()
        self.watch(weak["weak"])
        return {
            "supervised": F.cross_entropy(logits[:b], mixed_targets[:b]),
            "consistency": self.unlabelled_weight * rise(batch.progress, self.ramp) * error,
            **self.slot.terms({**weak, "mixed": logits[b:]}, batch.progress),
        }

    def _weak_logits(self, model: nn.Module, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        """Each view normalised by its own batch, where there is BatchNorm; with a graph where the slot wants one."""
        with frozen_statistics(model):
            with torch.set_grad_enabled(self.slot.wants("weak")):
                logits = passes(model, {"weak": first})
            with torch.no_grad():
                return logits | passes(model, {"weak2": second})

    def _mix(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Each row of both with another one, by one factor of at least 1/2."""
        factor = float(torch.distributions.Beta(self.mix, self.mix).sample())
        factor = max(factor, 1 - factor)
        order = send(torch.randperm(len(inputs)), inputs.device)
        return factor * inputs + (1 - factor) * inputs[order], factor * targets + (1 - factor) * targets[order]

    def _mixed_logits(self, model: nn.Module, mixed: Tensor, labelled: int) -> Tensor:
        """In one pass; with BatchNorm in several, of which the first alone moves its running statistics."""
        if not couples_samples(model):
            return model(mixed).float()
        size = labelled if self.chunks == "batch" else (len(mixed) - labelled) // len(self.views)
        first, rest = mixed[:labelled], mixed[labelled:].split(size)
        logits = [model(first)]
        with frozen_statistics(model):
            logits += [model(x) for x in rest]
        return torch.cat(logits).float()


def sharpen(p: Tensor, temperature: float) -> Tensor:
    """p^(1/T), scaled to sum 1 over classes."""
    powered = p ** (1 / temperature)
    return powered / powered.sum(1, keepdim=True)

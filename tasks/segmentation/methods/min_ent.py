"""MinEnt: minimise the entropy of the target pixels (Vu et al., ADVENT, 2019, eq. 3), where a loss replaces it."""

from __future__ import annotations

from typing import Any, Literal

from dembench.tasks.segmentation.methods.base import Data, EntropyTerm, UDAMethod, Values, pixel_entropy


class MinEnt(UDAMethod):
    """Cross entropy on source pixels plus a weighted mean of the loss over target pixels, one pass for each domain.

    With weight 0 or without a loss it is ``SourceOnly``, bit for bit.

    Args:
        loss: logits (N, C, H, W) to a loss per pixel; ``EM`` is the published method.
        weight, aux_weight, unit, resolution, ramp: see ``EntropyTerm``.
    """

    name = "min_ent"
    repeated_in = ("ADVENT", "advent_original")
    replaces_entropy = True

    def __init__(
        self,
        loss: Any = None,
        *,
        weight: float = 0.001,
        aux_weight: float = 0.0002,
        unit: Literal["log_c", "bits", "nats"] = "log_c",
        resolution: Literal["full", "logit"] = "full",
        ramp: float = 0.0,
        **settings: Any,
    ):
        super().__init__(term=EntropyTerm(loss, weight, aux_weight, unit, resolution, ramp), **settings)

    def gradients(self, data: Data) -> Values:
        source, _ = self.source_term(data["source"])
        values = {"source": self.backward(source)}
        if self.term.active:
            target = self.target_logits(data["target"])
            values["entropy_term"] = self.backward(self.term(target, data["progress"]))
            values["entropy"] = pixel_entropy(target.main)
        return values

"""Images one by one: each is predicted in a batch with those just before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Window:
    """The last ``size`` images as one batch; the method learns from it each time all of it is new.

    In between, the batch is predicted by the method's ``peek``, which learns nothing. The first images are predicted
    in the smaller batches that there are.
    Source: the single-sample setting of Doebler et al., github.com/mariodoebler/test-time-adaptation.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._images: Tensor | None = None
        self._seen = 0

    def __call__(self, method: Any, x: Tensor) -> tuple[Tensor, bool]:
        """Logits (1, C) of one image (1, 3, H, W), and whether the method has learned."""
        if self._images is None:
            self._images = x.new_empty((self.size, *x.shape[1:])).contiguous(memory_format=torch.channels_last)
        place = self._seen % self.size
        self._images[place] = x[0]
        self._seen += 1
        batch = self._images[: self._seen]
        learns = place == self.size - 1
        logits = method(batch) if learns else method.peek(batch)
        return logits[place : place + 1], learns

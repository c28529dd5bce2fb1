"""Tent (Wang et al. 2021) on a segmentation network: test-time adaptation, one target image at a time.

The network is trained on source images alone. Then, on the test images in their order, BatchNorm normalises by the one
image, and each image is one step on BatchNorm's weights and biases that lowers the mean loss over its pixels. A network
without BatchNorm adapts its LayerNorm and GroupNorm instead. A BatchNorm behind a global pooling has one value per
channel and image; it keeps the statistics of training.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dembench.core.adapt import Learner, batch_norms, norm_affine, require_grad_only, use_batch_statistics
from dembench.tasks.segmentation.methods.base import EntropyTerm
from dembench.tasks.segmentation.methods.source_only import SourceOnly


class TentSeg(SourceOnly):
    """A prediction is from before the step on its image, as Tent reports. Target images of training are not used.

    Args:
        loss: logits (N, C, H, W) to a loss per pixel; None leaves the batch statistics alone.
        lr, optimizer: of the adaptation; see ``core.adapt.Learner``.
        steps: on each image; the prediction is from before the last one.
        episodic: every image starts from the trained network.
        resolution: see ``EntropyTerm``.
    Raises: ValueError for steps below 1, and for a network that has no weights to adapt.
    """

    name = "tent_seg"
    replaces_entropy = True
    adapts_at_test = True

    def __init__(
        self,
        loss: Any = None,
        *,
        lr: float = 1e-4,
        optimizer: str = "adam",
        steps: int = 1,
        episodic: bool = False,
        resolution: Literal["full", "logit"] = "full",
        **settings: Any,
    ):
        super().__init__(**settings)
        if steps < 1:
            raise ValueError(f"tent_seg: expected steps >= 1, got {steps}")
        self.term = EntropyTerm(loss, 1.0, 0.0, "nats", resolution, 0.0)
        self.lr, self.optimizer, self.steps, self.episodic = lr, optimizer, steps, episodic
        self.learner: Learner | None = None
        norm_affine(self.network)

    def prepare_test(self) -> None:
        network = self.network
        use_image_statistics(network)
        parameters = norm_affine(network)
        require_grad_only(network, parameters.values())
        if self.term.active:
            self.learner = Learner(parameters, self.term.main, optimizer=self.optimizer, lr=self.lr)

    @torch.enable_grad()
    def predict(self, image: Tensor) -> Tensor:
        if self.learner is None:
            return super().predict(image)
        self.term.train()  # the network is in eval(), where AdaDEM would not move its table
        if self.episodic:
            self.learner.reset()
        for _ in range(self.steps):
            logits = self.test_logits(image)
            at = logits if self.term.resolution == "full" else self.test_logits(image, "logit")
            self.learner.step(self.term.main(at).mean())
            self.forward_passes += 1
            self.backward_passes += 1
        return logits.detach()


def use_image_statistics(network: nn.Module) -> None:
    """Makes every BatchNorm normalise by the image it sees, or by its running statistics where that is one value."""
    for norm in batch_norms(network):
        trained = norm.running_mean, norm.running_var
        use_batch_statistics(norm)

        def choose(norm: nn.Module, inputs: tuple[Tensor], trained: tuple[Any, Any] = trained) -> None:
            single = inputs[0].numel() == inputs[0].shape[1]
            norm.running_mean, norm.running_var = trained if single else (None, None)

        norm.register_forward_pre_hook(choose)


def adapting(network: nn.Module) -> str:
    """The layers whose weights and biases Tent adapts, as "2 BatchNorm2d"; of a layer that is used twice, one."""
    layers = {name.rpartition(".")[0] for name in norm_affine(network)}
    kinds = Counter(type(network.get_submodule(name)).__name__ for name in layers)
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))

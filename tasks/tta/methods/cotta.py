"""CoTTA (Wang et al. 2022): a student learns from its average over augmented copies, and forgets a little at random.

As mariodoebler/test-time-adaptation 8b2ed63, which runs the authors' rules in ``eval()`` with batch statistics.
"""

from typing import Any

import torch
from torch import Tensor, nn

from dembench.core.adapt import use_batch_statistics
from dembench.tasks.tta.methods.base import Optimizer, Preset
from dembench.tasks.tta.methods.teacher import MeanTeacher, cross_entropy
from dembench.tasks.tta.methods.views import drawing_from, jittered


class CoTTA(MeanTeacher):
    """Lowers the cross entropy with the teacher, of which each weight is then put back with a small probability.

    Where the source model is unsure of the batch, the teacher's logits are the mean over augmented batches; that needs
    the mean confidence on the host, once a batch.

    Args:
        views: augmented batches that the teacher averages over.
        confidence: mean confidence of the source model below which it does.
        restore: probability that a weight of the student is put back to the source's after a step.
        symmetric: mean of both cross entropies, with a gradient to the student only (ImageNet).
        momentum: of the teacher.
        optimizer, lr: CIFAR-10: Adam, 1e-3, restore 0.01, confidence 0.92; ImageNet: Nesterov, 0.01, 0.001, 0.1.
    Raises: ValueError for views < 1, or a probability outside 0..1.
    """

    presets = ("mariodoebler",)

    def __init__(
        self,
        model: nn.Module,
        loss: Any = None,
        *,
        views: int = 32,
        confidence: float = 0.92,
        restore: float = 0.01,
        symmetric: bool = False,
        momentum: float = 0.999,
        optimizer: Optimizer = "adam",
        lr: float = 1e-3,
        preset: Preset = "mariodoebler",
    ):
        if views < 1 or not (0 <= restore <= 1 and 0 <= momentum <= 1):
            given = f"{views}, {restore}, {momentum}"
            raise ValueError(f"cotta: expected views >= 1, restore and momentum from 0 to 1, got {given}")
        self.views, self.confidence, self.restore, self.symmetric = views, confidence, restore, symmetric
        use_batch_statistics(model.eval())
        learned = dict(model.named_parameters())
        super().__init__(model, loss, learned, optimizer=optimizer, lr=lr, momentum=momentum, preset=preset)

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            logits = self.forward(x)
        taught = self.target(x)
        with torch.enable_grad():
            losses = cross_entropy(logits, taught)
            if self.symmetric:
                losses = (losses + cross_entropy(taught, logits)) / 2
            self.learn(losses.mean(), len(x))
        self.forget()
        return taught

    def target(self, x: Tensor) -> Tensor:
        """What the teacher says, by rule of the source model's confidence."""
        self.forward_passes += 1
        source = torch.func.functional_call(self.model, dict(zip(self.adapted, self.learner.start, strict=True)), (x,))
        if float(source.softmax(1).amax(1).mean()) >= self.confidence:
            return self.taught(x)
        with drawing_from(self.generator):
            return torch.stack([self.taught(jittered(x)) for _ in range(self.views)]).mean(0)

    def forget(self) -> None:
        """Each weight of the student goes back to the source's with probability ``restore``."""
        if self.restore:
            for value, start in zip(self.learner.values, self.learner.start, strict=True):
                drawn = torch.rand(value.shape, generator=self.generator, device=value.device)
                value.copy_(torch.where(drawn < self.restore, start, value))

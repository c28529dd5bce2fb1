"""NORM (Schneider et al. 2020; Nado et al. 2020): BatchNorm statistics of the test data, no gradient.

The code that Tent published beside its own also sets every BatchNorm's eps to 1e-5; here the checkpoint's eps stays,
which for models trained with PyTorch's default is the same. The mixed and the moving statistics are those of
mariodoebler/test-time-adaptation 8b2ed63.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dembench.core.adapt import batch_norms, use_batch_statistics
from dembench.lookup import lookup
from dembench.tasks.tta.methods.base import Preset, TTAMethod

STATISTICS = ("batch", "mixed", "ema")


class Norm(TTAMethod):
    """Predicts in ``eval()`` with other statistics than the training data's.

    Args:
        statistics: "batch" are those of each batch; "mixed" are (1 - alpha) times the source's plus alpha times the
            batch's, the variance over N - 1; "ema" are the running ones, which a first pass over each batch moves by
            the layers' own momentum, and a second pass predicts.
        alpha: weight of the batch, 0 to 1, for "mixed".
    Raises: ValueError for other statistics, an alpha outside 0..1, or "mixed" and "ema" without running statistics.
    """

    uses_loss = False

    def __init__(
        self,
        model: nn.Module,
        loss: Any = None,
        *,
        statistics: Literal["batch", "mixed", "ema"] = "batch",
        alpha: float = 0.1,
        preset: Preset = "official",
    ):
        lookup(statistics, STATISTICS, "norm statistics")
        if not 0 <= alpha <= 1:
            raise ValueError(f"norm: expected alpha from 0 to 1, got {alpha}")
        super().__init__(model.eval().requires_grad_(False), loss, preset=preset)
        self.statistics, self.alpha = statistics, alpha
        self.layers = batch_norms(model)
        if statistics == "batch":
            use_batch_statistics(model)
            self.layers = []
        elif any(layer.running_mean is None for layer in self.layers):
            raise ValueError(f"norm: statistics={statistics} needs a model whose BatchNorms have running statistics")
        self._buffers = [buffer for layer in self.layers for buffer in layer.buffers()]
        self._start = [buffer.clone() for buffer in self._buffers]
        if statistics == "mixed":
            mix_statistics(self.layers, alpha)

    @property
    def looks_at_batch(self) -> bool:
        """Whether ``layers`` take statistics of a batch in, beside their own."""
        return self.statistics == "ema" or (self.statistics == "mixed" and self.alpha > 0)

    def predict(self, x: Tensor) -> Tensor:
        if self.statistics == "ema":
            for layer in self.layers:
                layer.train()
            super().predict(x)
            for layer in self.layers:
                layer.eval()
        return super().predict(x)

    def reset(self) -> None:
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._start)


def mix_statistics(layers: Iterable[nn.BatchNorm2d], alpha: float) -> None:
    """Has BatchNorms in ``eval()`` use (1 - alpha) times their statistics of now plus alpha times each batch's.

    The variance is that over N - 1; statistics are constants in the backward pass.
    """
    for layer in layers:
        mean, var = layer.running_mean.clone(), layer.running_var.clone()
        layer.register_forward_pre_hook(partial(_mix, mean=mean, var=var, alpha=alpha))


@torch.no_grad()
def _mix(layer: nn.BatchNorm2d, args: tuple[Tensor], mean: Tensor, var: Tensor, alpha: float) -> None:
    x = args[0]
    axes = [axis for axis in range(x.dim()) if axis != 1]
    batch_var, batch_mean = torch.var_mean(x.to(mean.dtype), axes)
    layer.running_mean.copy_((1 - alpha) * mean + alpha * batch_mean)
    layer.running_var.copy_((1 - alpha) * var + alpha * batch_var)

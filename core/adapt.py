"""What methods that learn at test time share: choose what learns, take steps on it, and put it back bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor], Tensor]

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda parameters, lr: torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.999)),
    "momentum": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr),
}


def use_batch_statistics(model: nn.Module) -> nn.Module:
    """Makes every BatchNorm normalise by the batch it sees, in ``train()`` and in ``eval()`` alike; returns the model.

    The running statistics are taken away, since a BatchNorm that still has them uses them in ``eval()``.
    """
    for module in model.modules():
        if isinstance(module, _BATCH_NORMS):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return model


def norm_affine(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights and biases, by name, of the BatchNorm2d layers, or if there are none of LayerNorm and GroupNorm layers.

    Raises: ValueError where the model has none of these, or none with weights.
    """
    kinds: tuple[type[nn.Module], ...] = (nn.BatchNorm2d,)
    if not any(isinstance(module, kinds) for module in model.modules()):
        kinds = (nn.LayerNorm, nn.GroupNorm)
    found = {
        f"{name}.{part}" if name else part: parameter
        for name, module in model.named_modules()
        if isinstance(module, kinds)
        for part, parameter in module.named_parameters(recurse=False)
    }
    if not found:
        raise ValueError(f"{type(model).__name__} has no BatchNorm2d, LayerNorm or GroupNorm parameters to adapt")
    return found


def require_grad_only(model: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Gradients for the given parameters and for no other of the model."""
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)


class Learner:
    """Parameters, a loss and an optimizer that belong together: steps on them, and resets all three.

    Args:
        parameters: what learns, by name.
        loss: maps logits (N, C) to a loss per sample (N,). If it has ``reset()``, that is called on reset.
        optimizer: "adam" (betas 0.9, 0.999), "momentum" (SGD, 0.9) or "sgd"; no weight decay.
        lr: learning rate, above 0.
    Raises: ValueError for an unknown optimizer or lr <= 0.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], loss: Loss, *, optimizer: str, lr: float):
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"unknown optimizer {optimizer!r}; valid: {', '.join(OPTIMIZERS)}")
        if not lr > 0:
            raise ValueError(f"expected a learning rate > 0, got {lr}")
        self.parameters, self.loss = parameters, loss
        self.optimizer = OPTIMIZERS[optimizer](list(parameters.values()), lr)
        self._start = [parameter.detach().clone() for parameter in parameters.values()]
        self._optimizer_start = deepcopy(self.optimizer.state_dict())

    def step(self, objective: Tensor) -> None:
        """One update that lowers a scalar; gradients of an earlier step are forgotten first."""
        self.optimizer.zero_grad()
        objective.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    @torch.no_grad()
    def reset(self) -> None:
        """Back to construction: parameters, momentum and moments, and the loss's own state."""
        for parameter, start in zip(self.parameters.values(), self._start, strict=True):
            parameter.copy_(start)
        self.optimizer.load_state_dict(deepcopy(self._optimizer_start))  # it keeps the tensors it is given
        self.optimizer.zero_grad()
        reset = getattr(self.loss, "reset", None)
        if reset is not None:
            reset()

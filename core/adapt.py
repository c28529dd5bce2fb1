"""What methods that learn at test time share: choose what learns, take steps on it, and put it back bit for bit.

No function here synchronises with the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor], Tensor]
Kinds = tuple[type[nn.Module], ...]

_BATCH_NORMS: Kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
ALL_NORMS: Kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {  # fused ones can be told on the device to skip a step
    "adam": lambda parameters, lr: torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.999), fused=True),
    "momentum": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9, fused=True),
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, fused=True),
    "nesterov": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9, nesterov=True, fused=True),
}


def use_batch_statistics(model: nn.Module) -> nn.Module:
    """Makes every BatchNorm normalise by the batch it sees, in ``train()`` and in ``eval()`` alike; returns the model.

    The running statistics are taken away, since a BatchNorm that still has them uses them in ``eval()``.
    """
    for module in batch_norms(model):
        module.track_running_stats = False
        module.running_mean = module.running_var = module.num_batches_tracked = None
    return model


def batch_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """The BatchNorm layers of every dimension, in the order of ``modules()``."""
    return [module for module in model.modules() if isinstance(module, _BATCH_NORMS)]  # type: ignore[misc]


def norm_affine(model: nn.Module, kinds: Kinds | None = None) -> dict[str, nn.Parameter]:
    """Weights and biases, by name, of the layers of the given kinds.

    Args:
        kinds: classes of layers; None is BatchNorm2d, or in a model that has none LayerNorm and GroupNorm. A model with
            none of these, as for vectors or volumes, gives its BatchNorm1d and BatchNorm3d.
    Raises: ValueError where the model has none of these, or none with weights.
    """
    chosen: Kinds = kinds or (nn.BatchNorm2d,)
    if kinds is None and not any(isinstance(module, chosen) for module in model.modules()):
        chosen = (nn.LayerNorm, nn.GroupNorm)
    found = _parameters_of(model, chosen) or _parameters_of(model, (nn.BatchNorm1d, nn.BatchNorm3d))
    if not found:
        raise ValueError(f"{type(model).__name__} has no BatchNorm, LayerNorm or GroupNorm parameters to adapt")
    return found


def _parameters_of(model: nn.Module, kinds: Kinds) -> dict[str, nn.Parameter]:
    return {
        f"{name}.{part}" if name else part: parameter
        for name, module in model.named_modules()
        if isinstance(module, kinds)
        for part, parameter in module.named_parameters(recurse=False)
    }


def require_grad_only(model: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Gradients for the given parameters and for no other of the model."""
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)


def top_layers(model: nn.Module, kinds: Kinds = ALL_NORMS) -> list[str]:
    """Names of the modules at the top of the network, by depth: all that comes after the first three quarters.

    The trunk is found by opening the one child that holds several normalisation layers until several of its
    children do: the stages of a ResNet or Swin, the blocks of a ViT. The top is what comes after all but the last
    max(1, T // 4) of these T: one of three or four stages, three of twelve blocks, and the layers before and behind
    them. In a network without blocks, the layers themselves are counted.
    """
    units = [("", model)]
    while len(several := [unit for unit in units if _count(unit[1], kinds) > 1]) == 1:
        name, module = several[0]
        inside = [(f"{name}.{key}" if name else key, child) for key, child in module.named_children()]
        if not inside:
            break
        place = units.index(several[0])
        units[place : place + 1] = [unit for unit in inside if _count(unit[1], kinds)]
    trunk = several or units
    if len(trunk) < 2:
        return []
    last = trunk[-1 - max(1, len(trunk) // 4)]
    return [name for name, _ in units[units.index(last) + 1 :]]


def _count(module: nn.Module, kinds: Kinds) -> int:
    return sum(isinstance(part, kinds) for part in module.modules())


@contextmanager
def ascended(parameters: Sequence[Tensor], gradients: Sequence[Tensor], rho: float) -> Iterator[None]:
    """Inside, parameters stand at theta + rho g / (||g|| + 1e-12), g taken as one vector; outside, where they were.

    Source: Foret et al., Sharpness-Aware Minimization, 2021, eq. 2.
    """
    start = torch._foreach_mul([parameter.detach() for parameter in parameters], 1.0)  # copies, in few operations
    with torch.no_grad():
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradients))))
        torch._foreach_add_(list(parameters), torch._foreach_mul(list(gradients), rho / (norm + 1e-12)))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(parameters), start)


@torch.no_grad()
def put_where(condition: Tensor, tensors: Sequence[Tensor], values: Sequence[Tensor] | None = None) -> None:
    """Overwrites tensors, of one dtype and device, by values (None: zeros) where a 0-dim bool on the device is True."""
    if not tensors:
        return
    now = torch.cat([tensor.flatten() for tensor in tensors])
    then = now.new_zeros(()) if values is None else torch.cat([value.flatten() for value in values])
    parts = torch.split(torch.where(condition, then, now), [tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)])


class Learner:
    """Parameters, a loss and an optimizer that belong together: steps on them, and resets all three.

    Args:
        parameters: what learns, by name.
        loss: maps logits (N, C) to a loss per sample (N,). If it has ``reset()``, that is called on reset.
        optimizer: "adam" (betas 0.9, 0.999), "momentum" (SGD, 0.9), "nesterov" (the same in Nesterov's form) or "sgd";
            no weight decay.
        lr: learning rate, above 0.
        buffers: tensors that the steps change besides, such as running statistics; reset puts them back.
    Raises: ValueError for an unknown optimizer or lr <= 0.
    """

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        loss: Loss,
        *,
        optimizer: str,
        lr: float,
        buffers: Iterable[Tensor] = (),
    ):
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"unknown optimizer {optimizer!r}; valid: {', '.join(OPTIMIZERS)}")
        if not lr > 0:
            raise ValueError(f"expected a learning rate > 0, got {lr}")
        self.parameters, self.loss = parameters, loss
        self.optimizer = OPTIMIZERS[optimizer](list(parameters.values()), lr)
        self.values: list[Tensor] = list(parameters.values())
        self.start = [value.detach().clone() for value in self.values]
        self._buffers = list(buffers)
        self._buffers_start = [buffer.clone() for buffer in self._buffers]
        self._optimizer_start = deepcopy(self.optimizer.state_dict())

    def step(self, objective: Tensor, *, skip: Tensor | None = None) -> None:
        """One update that lowers a scalar; gradients of an earlier step are forgotten first. ``skip`` as in update."""
        self.optimizer.zero_grad()
        self.backward(objective)
        self.update(skip=skip)

    def backward(self, objective: Tensor) -> None:
        """Adds the gradients of a scalar to those that are there."""
        objective.backward()  # type: ignore[no-untyped-call]

    def update(self, *, skip: Tensor | None = None) -> None:
        """Steps along the gradients, then forgets them.

        Args:
            skip: 0-dim bool on the parameters' device; True leaves parameters and optimizer as they are, to the bit.
        """
        if skip is not None:
            self._fill_momentum()
            self.optimizer.found_inf = skip.to(torch.float32)  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad()
        if skip is not None:
            del self.optimizer.found_inf  # type: ignore[attr-defined]

    def _fill_momentum(self) -> None:
        """Zeros where the optimizer would make an empty buffer at its first step, which a skipped step leaves unset."""
        for group in self.optimizer.param_groups:
            for value in group["params"] if group.get("momentum") else ():
                if self.optimizer.state[value].get("momentum_buffer") is None:
                    self.optimizer.state[value]["momentum_buffer"] = torch.zeros_like(value)

    @torch.no_grad()
    def reset(self) -> None:
        """Back to construction: parameters, momentum and moments, buffers, and the loss's own state."""
        torch._foreach_copy_(self.values, self.start)
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._buffers_start)
        self.optimizer.load_state_dict(deepcopy(self._optimizer_start))  # it keeps the tensors it is given
        self.optimizer.zero_grad()
        reset = getattr(self.loss, "reset", None)
        if reset is not None:
            reset()

    def reset_where(self, condition: Tensor) -> None:
        """Resets parameters, gradients, optimizer and loss where a 0-dim bool on the device is True.

        The loss's ``reset_where(condition)`` is called if it has one; with ``reset()`` alone the host has to wait.
        """
        put_where(condition, self.values, self.start)
        put_where(condition, [t for state in self.optimizer.state.values() for t in state.values() if t is not None])
        put_where(condition, [value.grad for value in self.values if value.grad is not None])
        if hasattr(self.loss, "reset_where"):
            self.loss.reset_where(condition)
        elif hasattr(self.loss, "reset") and bool(condition):
            self.loss.reset()

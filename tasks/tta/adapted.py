"""A network that adapts to what it predicts, outside of any task: the methods of this task as one object.

``dembench.adapt`` makes it. It prepares network and inputs as ``CorruptionTTA`` does, so that the same network, method,
seed and batches give the same logits bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dembench.core.adapt import Learner
from dembench.tasks.base import ConfigError
from dembench.tasks.common.devices import in_order, laid_out
from dembench.tasks.tta.methods.base import TTAMethod

PARTS = ("method", "options", "model", "loss", "state", "extra")  # of a state dict
Plain = bool | int | float | str | None


class Adapted:
    """A network with a test-time method: call it with a batch, and it predicts and learns.

    Args:
        model: any network from one tensor to logits (N, C, ...); changed in place, and left in the mode that the method
            needs. It must be on its device already.
        make_method: ``make_method(model=...)`` gives the method.
        source: clean inputs (N, ...) for methods that need some first (EATA).
        seed: of what the method draws (augmented copies, shuffled patches); torch's own generator stays as it is.
    Raises: ConfigError where the method needs clean inputs and there are none; what the method raises.

    Attributes: ``method``, the method itself, which counts (``updated``, ``last_loss``, ``forward_passes``, ...).
    """

    def __init__(
        self,
        model: nn.Module,
        make_method: Callable[..., TTAMethod],
        *,
        source: Tensor | None = None,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        parameter = next(model.parameters(), None)
        model = laid_out(model.eval(), "cpu" if parameter is None else parameter.device)
        with torch.random.fork_rng(_cuda(parameter)):
            torch.manual_seed(seed)
            self.method = make_method(model=model)
        self._name = type(self.method).__name__
        self._options = {key: value for key, value in (options or {}).items() if isinstance(value, Plain)}
        if getattr(self.method, "source_images", 0):
            if source is None:
                raise ConfigError(f"{self._name} looks at clean inputs first: give some, source=TENSOR (N, ...)")
            self.method.see_source(source)  # type: ignore[attr-defined]  # of those that ask for some

    @property
    def model(self) -> nn.Module:
        """The network as it has adapted by now."""
        return self.method.model

    @property
    def loss(self) -> Any:
        """The loss that is lowered, None for none."""
        return self.method.loss

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (N, C, ...) of a batch, which is learned from; without a graph.

        Raises: ConfigError where the method changes images and ``x`` is none, or the network gives no tensor.
        """
        with self._looked_at(x) as x:
            return self.method(x)

    def peek(self, x: Tensor) -> Tensor:
        """Logits of a batch that is not learned from: nothing moves, torch's generators included."""
        buffers = list(self.model.buffers())
        before = [buffer.clone() for buffer in buffers]
        passes, lazy = self.method.forward_passes, self.method._generator is None
        with self._looked_at(x) as x, torch.random.fork_rng(_cuda(x)):
            logits = self.method.peek(x).detach()
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
        self.method.forward_passes = passes
        if lazy:  # made on the way, to begin where the next one begins
            self.method._generator = None
        return logits

    def reset(self) -> None:
        """Back to the state of construction, bit for bit."""
        self.method.reset()

    @contextmanager
    def _looked_at(self, x: Tensor) -> Iterator[Tensor]:
        """The batch as the method takes it; also where the caller has switched gradients off."""
        if x.dim() != 4 and self.method.needs_images:
            raise ConfigError(f"{self._name} changes images (N, C, H, W), and got inputs {tuple(x.shape)}")
        with torch.inference_mode(False):
            x = x.clone() if x.is_inference() else x
            yield in_order(x)

    def state_dict(self) -> dict[str, Any]:
        """All that calls have changed, as copies: plain containers of tensors, numbers and texts, which ``torch.save``
        writes and ``torch.load`` reads as weights only."""
        loss = self.loss.state_dict() if isinstance(self.loss, nn.Module) else {}
        own = (_state(self.method), self.method.extra_state())
        parts = (self._name, dict(self._options), _copied(self.model.state_dict()), _copied(loss), *own)
        return dict(zip(PARTS, parts, strict=True))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a ``state_dict`` of the same method, options and network; ``reset`` then goes back to where that
        one began. Raises: ValueError, before anything changes, where method, options or tensors differ.
        """
        if missing := [part for part in PARTS if part not in state]:
            raise ValueError(f"no state of an adapted network: it lacks {', '.join(missing)}")
        for part, what, own in (("method", "method", self._name), ("options", "setting", self._options)):
            if state[part] != own:
                raise ValueError(f"the state is of another {what}: {state[part]!r}, and this is {own!r}")
        shapes = {key: tensor.shape for key, tensor in state["model"].items()}
        if shapes != {key: tensor.shape for key, tensor in self.model.state_dict().items()}:
            raise ValueError(f"the state is of another network than {type(self.model).__name__}: other tensors")
        self.model.load_state_dict(state["model"])
        if isinstance(self.loss, nn.Module):
            self.loss.load_state_dict(state["loss"])
        _put_state(self.method, state["state"])
        self.method.put_extra_state(state["extra"])

    def __repr__(self) -> str:
        loss = type(self.loss).__name__ if self.method.uses_loss and self.loss is not None else "no loss"
        size = sum(parameter.numel() for parameter in self.method.adapted.values())
        return f"{self._name} with {loss} on {type(self.model).__name__}, {size:,} parameters adapt"


def _cuda(tensor: Tensor | None) -> list[torch.device]:
    """Whose generators are drawn from beside the CPU's."""
    return [tensor.device] if tensor is not None and tensor.is_cuda else []


def _state(thing: Any) -> dict[str, Any]:
    """What a method or its learner holds besides network and loss."""
    found: dict[str, Any] = {}
    for name, value in vars(thing).items():
        if isinstance(value, Learner):
            found[name] = _state(value)
        elif isinstance(value, torch.optim.Optimizer):
            found[name] = _copied(value.state_dict())
        elif isinstance(value, torch.Generator):
            found[name] = value.get_state()
        elif isinstance(value, Tensor):
            found[name] = value.detach().clone()
        elif isinstance(value, list) and all(isinstance(item, Tensor) for item in value):
            found[name] = [item.detach().clone() for item in value]
        elif isinstance(value, Plain):
            found[name] = value
    return found


@torch.no_grad()
def _put_state(thing: Any, state: Mapping[str, Any]) -> None:
    """The reverse of ``_state``. Lists of equal shapes are overwritten: they may be the network's own tensors."""
    for name, value in state.items():
        now = getattr(thing, name, None)
        if isinstance(now, Learner):
            _put_state(now, value)
        elif isinstance(now, torch.optim.Optimizer):
            now.load_state_dict(_copied(value))
        elif name == "_generator" and isinstance(value, Tensor):
            thing.generator.set_state(value)
        elif isinstance(now, list) and [item.shape for item in now] == [item.shape for item in value]:
            for own, new in zip(now, value, strict=True):
                own.copy_(new)
        else:
            setattr(thing, name, _copied(value))


def _copied(value: Any) -> Any:
    """Containers with copies of their tensors."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value

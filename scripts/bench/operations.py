"""Counts of what a call asks of the device: aten operations, and waits of the host for a result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_consecutive", "unique_dim")
_FREE = ("detach", "empty", "empty_like", "empty_strided", "new_empty", "_reshape_alias", "lift_fresh")


class Operations(TorchDispatchMode):
    """Counts by name while it is entered.

    ``calls`` are the aten operations that compute: views and empty tensors are left out, a ``_foreach`` operation is
    one. ``waits`` are those whose result the host needs before it goes on (a number, a shape that depends on values),
    among them indexing by a mask of booleans. A wait on the counter of an optimizer, which lies on the host
    whatever the device, is none: give such tensors as ``host``.
    """

    def __init__(self, host: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self._host = {tensor.data_ptr() for tensor in host}

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        space, name = func._schema.name.split("::")
        if space != "aten":  # such as the profiler's marks
            return func(*args, **(kwargs or {}))
        if not func.is_view and name not in _FREE:
            self.calls[name] += 1
        if name in _WAITS or (name.startswith(("index", "_index")) and _by_mask(args)):
            counter = len(args) == 1 and isinstance(args[0], Tensor) and args[0].data_ptr() in self._host
            if not counter:
                self.waits[name] += 1
        return func(*args, **(kwargs or {}))


def _by_mask(args: tuple[Any, ...]) -> bool:
    places = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()
    return any(isinstance(place, Tensor) and place.dtype in (torch.bool, torch.uint8) for place in places)


def count(call: Callable[[], object], host: Iterable[Tensor] = ()) -> Operations:
    """Makes the call once and returns its counts, those of an accelerator: core's looks at CPU tensors are left out."""
    with _as_on_a_device(), Operations(host) as operations:
        call()
    return operations


@contextmanager
def _as_on_a_device() -> Iterator[None]:
    with patch("dembench.core._kernels.eager_cpu", _never), patch("dembench.core._calibrator.eager_cpu", _never):
        yield


def _never(x: Tensor) -> bool:
    return False


def host_counters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The step counters that an optimizer keeps on the host."""
    return [state["step"] for state in optimizer.state.values() if isinstance(state.get("step"), Tensor)]

"""What training tasks share: when a run is judged and saved, its loop, exact resume, and processes that share batches.

Every random number of an iteration follows from the seed, the iteration and what it is for; so a run that was killed
continues from its checkpoint as if nothing had happened. A checkpoint is a plain state dict that torch loads under
``weights_only=True``.
"""

from __future__ import annotations

import copy
import math
import pickle
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from dembench.tasks.base import Event, Flag, Note, Scalars
from dembench.tasks.common.cache import load_state, save_state
from dembench.tasks.common.files import scratch

Values = dict[str, float]
COUNTERS = ("forward_passes", "backward_passes", "updated")


class Protocol:
    """Base of training schedules: what follows from ``iterations``, ``eval_every`` and ``checkpoint_every``."""

    iterations: int
    batch_size: int
    eval_every: int
    checkpoint_every: int
    devices: int

    @property
    def evaluations(self) -> int:
        return -(-self.iterations // self.eval_every)

    def evaluates(self, done: int) -> bool:
        """Whether there is an evaluation after ``done`` iterations."""
        return done % self.eval_every == 0 or done == self.iterations

    def saves(self, done: int) -> bool:
        """Whether there is a checkpoint after ``done`` iterations."""
        return self.evaluates(done) if self.checkpoint_every == 0 else done % self.checkpoint_every == 0

    def check_at_least(self, at_least: Mapping[int, Sequence[str]]) -> None:
        """Raises ValueError where a setting is below its least value."""
        for least, names in at_least.items():
            for name in names:
                if getattr(self, name) < least:
                    raise ValueError(f"protocol: expected {name} >= {least}, got {getattr(self, name)!r}")

    def check_division(self) -> None:
        """Raises ValueError where the batch does not divide over the devices."""
        if self.batch_size % self.devices:
            raise ValueError(f"protocol: batch_size {self.batch_size} does not divide over {self.devices} devices")


class Trainer(ABC):
    """One run of training, in this process alone or in step with others.

    Args:
        method: has the counters, and is moved to the device.
        protocol: the schedule.
        seed: of whatever is random.
        device: "cpu" or "cuda".
        checkpoint: file that a run is continued from and written to; None keeps none.
    Attributes: ``done`` iterations; ``history`` of what the evaluations measured; ``finite`` until a term is not;
        ``resumed_at`` the iterations that were done before this process began.
    """

    def __init__(
        self, method: nn.Module, protocol: Any, *, seed: int, device: str, checkpoint: Path | None = None
    ) -> None:
        self.device = torch.device(device)
        self.method = method.to(self.device).train()
        self.protocol, self.seed, self.checkpoint = protocol, seed, checkpoint
        self.history: list[Values] = []
        self.done = self.resumed_at = 0
        self.finite = True
        self._sums: dict[str, Tensor] = {}  # of the terms since the last evaluation

    @abstractmethod
    def step(self) -> dict[str, Tensor]:
        """Iteration ``done``; returns what is to be logged, scalars on the device."""

    @abstractmethod
    def measure(self) -> Values:
        """What an evaluation of the present state gives."""

    @abstractmethod
    def parts(self) -> dict[str, Any]:
        """All with a ``state_dict`` that the next iteration depends on, by name."""

    @abstractmethod
    def network(self) -> nn.Module:
        """What all processes hold alike but for BatchNorm's running statistics."""

    def run(self) -> Iterator[tuple[int, Values]]:
        """Yields (iterations done, what was measured) at each evaluation, those before a resumed start included.

        Ends early where a term is not finite, after which nothing is learned any more.
        """
        self.load()
        for values in self.history:
            yield int(values["iteration"]), values
        while self.done < self.protocol.iterations and self.finite:
            self.advance()
            new = self.evaluate_all() if self.protocol.evaluates(self.done) else None
            if self.protocol.saves(self.done):
                self.save()
            if new is not None:
                yield self.done, new

    def advance(self) -> None:
        """One iteration, whose terms are added up."""
        for name, value in self.step().items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self.done += 1

    def evaluate_all(self) -> Values:
        """Evaluates, and adds to the history what the iterations since the last evaluation showed in the mean."""
        self.average_statistics()
        steps = self.done - (int(self.history[-1]["iteration"]) if self.history else 0)
        means = {name: float(mean_over_ranks(value)) / steps for name, value in self._sums.items()}
        self._sums = {}
        self.finite = all(map(math.isfinite, means.values()))
        self.history.append({"iteration": self.done, **means, **self.measure()})
        return self.history[-1]

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """The mean over processes, since a step may have several backward passes."""
        average([p.grad for p in parameters if p.grad is not None])

    def average_statistics(self) -> None:
        """BatchNorm normalises by each process's own rows; the running statistics are the mean over processes."""
        average([buffer for buffer in self.network().buffers() if buffer.is_floating_point()])

    def state(self) -> dict[str, Any]:
        """All that the next iteration depends on, and what was measured; tensors, numbers, texts and lists of them."""
        return {
            "done": self.done,
            **{name: part.state_dict() for name, part in self.parts().items()},
            "counters": {name: getattr(self.method, name) for name in COUNTERS},
            "sums": self._sums,
            "history": self.history,
            "finite": self.finite,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes over what ``state`` returned."""
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        for name, value in state["counters"].items():
            setattr(self.method, name, value)
        self._sums = {name: value.to(self.device) for name, value in state["sums"].items()}
        self.history, self.done, self.finite = list(state["history"]), state["done"], state["finite"]
        self.method.to(self.device)  # what a loss keeps may have come from the file

    def save(self) -> None:
        """Writes the checkpoint, in one process of several."""
        if self.checkpoint is not None:
            self.average_statistics()
            if rank() == 0:
                save_state(self.checkpoint, self.state())

    def load(self) -> None:
        """Goes on from the checkpoint, if there is one.

        Raises: ValueError for a file that is damaged, or that is of another run.
        """
        if self.checkpoint is None or not self.checkpoint.is_file():
            return
        try:
            state = load_state(self.checkpoint)
            if state is None:
                raise ValueError("it is not as it was written")
            self.load_state(state)
        except (RuntimeError, LookupError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{self.checkpoint} does not fit ({reason}); remove it or say force=true") from error
        self.resumed_at = self.done

    def events(self) -> Iterator[Event]:
        """The run as events: a learning curve, a note where it was resumed, a flag where it ended early."""
        for done, values in self.run():
            yield Scalars(done, "training", {name: value for name, value in values.items() if name != "iteration"})
        if self.resumed_at:
            text = f"continued after {self.resumed_at} iterations: wall time is that of the rest"
            yield Note("resumed", text)
        if not self.finite:
            yield Flag("nan", "training", f"a term is not finite; training ended after {self.done} iterations")


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 under "bf16"; nothing under "fp32"."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def rank() -> int:
    """The number of this process among those that share batches."""
    return distributed.get_rank() if _several() else 0


def world_size() -> int:
    """How many processes share batches."""
    return distributed.get_world_size() if _several() else 1


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of equally weighted tensors of all processes, without gradient."""
    if not _several():
        return value.detach()
    total = value.detach().clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


def average(tensors: Sequence[Tensor]) -> None:
    """Makes tensors the mean over processes, in place and all at once."""
    if not tensors or world_size() == 1:
        return
    flat = mean_over_ranks(torch.cat([tensor.flatten() for tensor in tensors]))
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def check_devices(device: str, devices: int) -> None:
    """Raises: ValueError where there are fewer GPUs."""
    if device == "cuda" and torch.cuda.device_count() < devices:
        raise ValueError(f"protocol: devices={devices}, but PyTorch finds {torch.cuda.device_count()} GPUs")


def launch(train: Callable[[Any], Iterable[Event]], method: Any, device: str, devices: int) -> list[Event]:
    """Runs ``train(method)`` in so many processes; returns the events of the first, and the method's counters to it."""
    with scratch("train") as folder:
        arguments = (train, method, device, devices, folder)
        torch.multiprocessing.spawn(_worker, arguments, nprocs=devices)
        events, counters = pickle.loads((folder / "events").read_bytes())  # written by a process of our own
    for name, value in counters.items():
        setattr(method, name, value)
    return events


def _worker(
    rank: int, train: Callable[[Any], Iterable[Event]], method: Any, device: str, devices: int, folder: Path
) -> None:
    torch.set_num_threads(1)
    method = copy.deepcopy(method)  # what was sent is in memory that all processes write to
    if device == "cuda":
        torch.cuda.set_device(rank)
    backend = "nccl" if device == "cuda" else "gloo"
    distributed.init_process_group(backend, f"file://{folder}/store", world_size=devices, rank=rank)
    events = list(train(method))
    if rank == 0:
        counters = {name: getattr(method, name) for name in COUNTERS}
        Path(folder, "events").write_bytes(pickle.dumps((events, counters)))
    leave()


def leave() -> None:
    """Ends this process's part in the group.

    In torch 2.6 the end holds the interpreter while it waits for threads, which need it to drop their last tensors. The
    pause lets them; without it both may wait for ever.
    """
    time.sleep(0.3)
    distributed.destroy_process_group()

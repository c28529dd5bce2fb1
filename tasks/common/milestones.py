"""When a training run is judged and saved, and the checks of its settings that all training tasks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class Milestones:
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

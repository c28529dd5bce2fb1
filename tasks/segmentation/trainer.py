"""One run of training: pieces of mmengine's loop, evaluations between them, and checkpoints that resume exactly.

Every random number of an iteration follows from the seed, the iteration and what it is for, and so does its batch; what
else an iteration depends on is in the checkpoint, a plain state dict that torch loads under ``weights_only=True``.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from mmengine.dist import all_reduce_params
from mmengine.model import is_model_wrapper
from torch import nn
from torch.nn import functional as F

from dembench.tasks.common.files import write_atomic
from dembench.tasks.segmentation.engine import Draws, QuietRunner
from dembench.tasks.segmentation.methods.base import UDAMethod, bare
from dembench.tasks.segmentation.metrics import SegMetrics
from dembench.tasks.segmentation.schedule import Schedule

Values = dict[str, float]


class Pictures(Protocol):
    """Keeps some of the test images with their predictions."""

    def add(self, i: int, image: torch.Tensor, labels: torch.Tensor, logits: torch.Tensor) -> None:
        """Image (3, H', W') uint8, labels (H, W) and logits (C, H, W) of test image i."""


COUNTERS = ("forward_passes", "backward_passes", "updated")


class Trainer:
    """Trains a method on a pair of domains; one per process.

    Args:
        data: see ``tasks.segmentation.data``.
        method: holds the network; moved to the device.
        schedule: see there.
        seed: of batches and whatever else is random.
        device: "cpu" or "cuda".
        checkpoint: file that a run is continued from and written to; None keeps none.
        pictures: is given the test images that it wants, with the predictions of the last iterate.
    Raises: ValueError where a checkpoint does not fit.
    """

    def __init__(
        self,
        data: Any,
        method: UDAMethod,
        schedule: Schedule,
        *,
        seed: int,
        device: str,
        checkpoint: Path | None = None,
        pictures: Pictures | None = None,
    ) -> None:
        self.pictures = pictures
        self.data, self.method, self.schedule, self.checkpoint = data, method, schedule, checkpoint
        self.history: list[Values] = []
        self.finite = True
        self.metrics: SegMetrics | None = None  # of the latest evaluation
        state = read_checkpoint(checkpoint)
        self.resumed_at = self.done = state["iteration"] if state else 0
        if state:
            self._load(state)
        draws = Draws(data.source_train, data.target_train, seed)
        self.runner = QuietRunner(method, draws, schedule, seed=seed, device=device, state=state)

    def run(self) -> Iterator[tuple[int, Values]]:
        """Yields (iterations done, what was measured) at each evaluation, those before a resumed start included.

        Ends early where a term is not finite, after which nothing is learned any more.
        """
        for values in self.history:
            yield int(values["iteration"]), values
        go_on = self.runner.train  # builds optimisers and loop, and runs the first piece
        while self.done < self.schedule.iterations and self.finite:
            go_on()
            go_on = self.runner.train_loop.run
            self.done = self.runner.iter
            new = self._measure() if self.schedule.evaluates(self.done) else None
            if self.schedule.saves(self.done):
                self._save()
            if new is not None:
                yield self.done, new
        self.runner.close()

    def final(self) -> SegMetrics:
        """Of the last iterate on the target's test images."""
        if self.metrics is None:  # a run that was cut off after its last checkpoint
            self.metrics = self.evaluate(self.data.target_test, pictures=self.pictures)
        return self.metrics

    def _measure(self) -> Values:
        """Evaluates, and adds to the history what the iterations since the last evaluation showed in the mean."""
        loop = self.runner.train_loop
        values = {name: float(total) / loop.count for name, total in loop.sums.items()}
        loop.sums, loop.count = {}, 0
        self.finite = all(map(math.isfinite, values.values()))
        last = self.done == self.schedule.iterations or not self.finite
        self.metrics = self.evaluate(self.data.target_test, pictures=self.pictures if last else None)
        self.history.append({"iteration": self.done, **values, "iou": self.metrics.miou})
        return self.history[-1]

    def evaluate(self, dataset: Any, *, adapt: bool = False, pictures: Pictures | None = None) -> SegMetrics:
        """Metrics over a labelled dataset, at the size of its labels.

        Args:
            adapt: predict by the method, which may learn from each image; else by the network as it is.
            pictures: is given the images that it wants.
        """
        method, passes = self.method, self.method.forward_passes
        if self.schedule.devices > 1:
            all_reduce_params([b for b in method.network.buffers() if b.is_floating_point()], op="mean")
        method.eval()
        data = self.data
        metrics = SegMetrics(data.classes, data.tail, data.ignore_index, data.subsets)
        for i in range(len(dataset)):
            item = dataset[i]
            labels = item["data_samples"].gt_sem_seg.data.to(torch.int64)
            with torch.no_grad():
                logits = method.predict(item["inputs"]) if adapt else method.test_logits(item["inputs"])
            if logits.shape[2:] != labels.shape[1:]:
                corners = bare(method.network).align_corners
                logits = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=corners)
            metrics.update(logits, labels)
            if pictures is not None:
                pictures.add(i, item["inputs"], labels[0], logits[0])
        method.train()
        if not adapt:
            method.forward_passes = passes  # the cost counts training
        return metrics

    def state(self) -> dict[str, Any]:
        """All that the next iteration depends on, and what was measured; tensors, numbers, texts and lists of them."""
        runner = self.runner
        return {
            "iteration": self.done,
            "method": plain_state(self.method),
            "optimizers": runner.optim_wrapper.state_dict(),
            "schedulers": [scheduler.state_dict() for scheduler in runner.schedulers()],
            "counters": {name: getattr(self.method, name) for name in COUNTERS},
            "sums": runner.train_loop.sums,
            "count": runner.train_loop.count,
            "history": self.history,
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        try:
            self.method.load_state_dict(state["method"])
        except (RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{self.checkpoint} does not fit ({reason}); remove it or say force=true") from error
        for name, value in state["counters"].items():
            setattr(self.method, name, value)
        self.history = list(state["history"])

    def _save(self) -> None:
        if self.checkpoint is not None and self.runner.rank == 0:
            file = io.BytesIO()
            torch.save(self.state(), file)
            write_atomic(self.checkpoint, file.getvalue())


def read_checkpoint(path: Path | None) -> dict[str, Any] | None:
    """What ``Trainer.state`` gave; None where there is no file.

    Raises: ValueError for a file that torch does not load safely, or that is no checkpoint of this task.
    """
    if path is None or not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} cannot be read ({reason}); remove it or say force=true") from error
    if not isinstance(state, dict) or "optimizers" not in state:
        raise ValueError(f"{path} is no checkpoint of this task; remove it or say force=true")
    return state


def plain_state(method: nn.Module) -> dict[str, Any]:
    """The state dict under the names that it has in one process."""
    wrapped = tuple(f"{name}.module." for name, child in method.named_children() if is_model_wrapper(child))
    state = method.state_dict()
    return {name.replace(".module.", ".", 1) if name.startswith(wrapped) else name: v for name, v in state.items()}

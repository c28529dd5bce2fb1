"""One loop for all methods, on Lightning Fabric: batches, optimiser, averaged weights, evaluations, exact resume.

Every random number of an iteration follows from the seed, the iteration and what it is for; so a run that was killed
continues from its checkpoint as if nothing had happened, and the same seed gives every method the same batches.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dembench.tasks.common.confusion import Confusion
from dembench.tasks.common.devices import send
from dembench.tasks.common.draws import Order, derived_seed, generator
from dembench.tasks.common.files import write_atomic
from dembench.tasks.common.metrics import StreamMetrics
from dembench.tasks.semi import augment
from dembench.tasks.semi.methods.base import Batch, SemiMethod, mean_over_ranks
from dembench.tasks.semi.regime import Regime, trainable
from dembench.tasks.semi.sources import Pool

Values = dict[str, float]


class Trainer:
    """Trains ``model`` by ``method`` on ``data``; one per process.

    Args:
        fabric: a launched ``lightning.fabric.Fabric``: device, precision, and the processes that share each batch.
            Gradients are averaged here, since methods make several passes a step.
        data: see ``tasks.semi.data``.
        model, method: moved to the device.
        regime: the schedule.
        seed: of batches, views and whatever else is random.
        checkpoint: file that a run is continued from and written to; None keeps none.
    Raises: ValueError where there are no unlabelled samples for a method that needs them.
    """

    def __init__(
        self,
        fabric: Any,
        data: Any,
        model: nn.Module,
        method: SemiMethod,
        regime: Regime,
        *,
        seed: int,
        checkpoint: Path | None = None,
    ) -> None:
        self.fabric, self.regime, self.seed, self.checkpoint = fabric, regime, seed, checkpoint
        self.recipe = data.recipe
        self.device = fabric.device
        self.labelled = self._place(data.labelled)
        self.unlabelled = data.unlabelled.to(self.device)
        self.pools = {"test": self._place(data.test), "validation": self._place(data.validation)}
        if method.needed_views and not len(self.unlabelled):
            raise ValueError(f"{method.name} needs unlabelled samples, {data.name} has none")
        self.mean, self.std = (torch.tensor(v, dtype=torch.float32, device=self.device) for v in (data.mean, data.std))
        self.num_classes = data.num_classes
        self.model = model.to(self.device, memory_format=torch.channels_last).train()
        self.method = method.to(self.device).train()
        self.model.register_forward_hook(self._count)
        self.optimizer = regime.make_optimizer(model)
        self.parameters = [parameter for _, parameter in trainable(model)]
        self.average = [p.detach().clone() for p in self.parameters] if regime.ema else []
        self.orders = {
            "labelled": Order(len(self.labelled.labels), seed, "labelled"),
            "unlabelled": Order(max(len(self.unlabelled), 1), seed, "unlabelled"),
        }
        self.done = 0
        self.history: list[Values] = []
        self.resumed_at = 0
        self._sums: dict[str, Tensor] = {}
        self._final: tuple[Confusion, StreamMetrics] | None = None

    def _place(self, pool: Pool) -> Pool:
        return Pool(pool.images.to(self.device), pool.labels.to(self.device))

    def _count(self, *_: object) -> None:
        self.method.forward_passes += 1

    def run(self) -> Iterator[tuple[int, Values]]:
        """Yields (iterations done, what was measured) at each evaluation, those before a resumed start included."""
        self._load()
        for values in self.history:
            yield int(values["iteration"]), values
        while self.done < self.regime.iterations:
            self._step()
            self.done += 1
            new = self._evaluate_all() if self.regime.evaluates(self.done) else None
            if self.regime.saves(self.done):
                self._save()
            if new is not None:
                yield self.done, new

    def _step(self) -> None:
        step, method = self.done, self.method
        self.regime.set_rate(self.optimizer, step)
        batch = self.batch(step)
        torch.manual_seed(derived_seed(self.seed, step, "model", self.fabric.global_rank))
        with self.fabric.autocast():
            terms = method.terms(self.model, batch)
        total = torch.stack([term.float() for term in terms.values()]).sum()
        self.optimizer.zero_grad()
        self.fabric.backward(total)
        self._average_gradients()
        self.optimizer.step()
        if self.average:
            with torch.no_grad():
                torch._foreach_lerp_(self.average, self.parameters, 1 - self.regime.ema)
        method.backward_passes += 1
        method.updated += len(batch.images) + sum(map(len, batch.views.values()))
        for name, value in {**terms, **method.seen}.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def batch(self, step: int) -> Batch:
        """The batch of an iteration: this process's share of it. The host sends one parcel and waits for nothing."""
        b = self.regime.batch_size
        m = b * self.regime.unlabelled_ratio
        pools = {"labelled": self.labelled.images, **dict.fromkeys(self.method.needed_views, self.unlabelled)}
        rows = {"labelled": self.orders["labelled"].rows(step * b, b)}
        rows |= dict.fromkeys(self.method.needed_views, self.orders["unlabelled"].rows(step * m, m))
        plans = {name: self._plan(name, images, rows[name], step) for name, images in pools.items()}
        plans = send(plans, self.device)
        views = {name: self._view(images, *plans[name]) for name, images in pools.items()}
        labels = self.labelled.labels[plans["labelled"][0]]
        return Batch(views.pop("labelled"), labels, views, step / self.regime.iterations)

    def _plan(self, name: str, images: Tensor, rows: Tensor, step: int) -> tuple[Tensor, augment.Plan]:
        """The rows of this process's samples, and how their view is made."""
        draws = generator(self.seed, step, name)
        shard = slice(self.fabric.global_rank, None, self.fabric.world_size)
        recipe, height, width = self.recipe, *images.shape[2:]
        resizes = name == "strong" and recipe.strong_scale
        draw = augment.draw_resized if resizes else augment.draw_weak
        first = draw(recipe, len(rows), height, width, draws).take(shard)
        second = augment.draw_strong(recipe, len(rows), draws).take(shard) if name == "strong" else None
        return rows[shard], augment.plan(recipe, height, width, first, second)

    def _view(self, images: Tensor, rows: Tensor, plan: augment.Plan) -> Tensor:
        return augment.to_float(augment.view(images[rows], plan), self.mean, self.std)

    def _average_gradients(self) -> None:
        if self.fabric.world_size == 1:
            return
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        flat = self.fabric.all_reduce(torch.cat([g.flatten() for g in gradients]), reduce_op="mean")
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def _average_statistics(self) -> None:
        """BatchNorm normalises by each process's own rows; the running statistics are the mean over processes."""
        if self.fabric.world_size > 1:
            for buffer in self.model.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(self.fabric.all_reduce(buffer, reduce_op="mean"))

    def _evaluate_all(self) -> Values:
        self._average_statistics()
        steps = self.done - (int(self.history[-1]["iteration"]) if self.history else 0)
        values = {"iteration": float(self.done)}
        values |= {name: float(mean_over_ranks(value)) / steps for name, value in self._sums.items()}
        self._sums = {}
        self._final = confusion, _ = self.evaluate("test")
        values["accuracy"] = confusion.accuracy()
        values["macro_f1"] = confusion.macro()["f1"]
        values |= {f"bias_{name}": value for name, value in confusion.bias().items()}
        if len(self.pools["validation"].labels):
            values["validation_accuracy"] = self.evaluate("validation")[0].accuracy()
        self.history.append(values)
        return values

    @property
    def final(self) -> tuple[Confusion, StreamMetrics]:
        """Of the last iterate on the test images."""
        return self._final or self.evaluate("test")

    @torch.no_grad()
    def evaluate(self, pool: str) -> tuple[Confusion, StreamMetrics]:
        """The averaged weights (with the live statistics of BatchNorm) on the "test" or "validation" images."""
        images, labels = self.pools[pool].images, self.pools[pool].labels
        confusion, metrics = (kind(self.num_classes, self.device) for kind in (Confusion, StreamMetrics))
        passes = self.method.forward_passes
        self.model.eval()
        weights = dict(self.model.named_buffers())
        names = [name for name, _ in trainable(self.model)]
        weights |= dict(zip(names, self.average or self.parameters, strict=True))
        for start in range(0, len(images), self.regime.eval_batch_size):
            part = slice(start, start + self.regime.eval_batch_size)
            x = augment.to_float(center(images[part], self.recipe.size), self.mean, self.std)
            with self.fabric.autocast():
                logits = torch.func.functional_call(self.model, weights, x).float()
            confusion.update(logits.argmax(1), labels[part])
            metrics.update(logits, labels[part])
        self.model.train()
        self.method.forward_passes = passes  # the cost counts training
        return confusion, metrics

    def state(self) -> dict[str, Any]:
        """All that the next iteration depends on."""
        counters = ("forward_passes", "backward_passes", "updated")
        return {
            "done": self.done,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "method": self.method.state_dict(),
            "counters": {name: getattr(self.method, name) for name in counters},
            "sums": self._sums,
            "history": self.history,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes over what ``state`` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average = [tensor.to(self.device) for tensor in state["average"]]
        self.method.load_state_dict(state["method"])
        for name, value in state["counters"].items():
            setattr(self.method, name, value)
        self._sums = {name: value.to(self.device) for name, value in state["sums"].items()}
        self.history, self.done = list(state["history"]), state["done"]

    def _save(self) -> None:
        if self.checkpoint is not None:
            self._average_statistics()
            if self.fabric.is_global_zero:
                file = io.BytesIO()
                torch.save(self.state(), file)
                write_atomic(self.checkpoint, file.getvalue())

    def _load(self) -> None:
        if self.checkpoint is None or not self.checkpoint.is_file():
            return
        try:
            self.load_state(torch.load(self.checkpoint, map_location="cpu", weights_only=True))
        except (RuntimeError, LookupError, ValueError, EOFError, pickle.UnpicklingError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{self.checkpoint} does not fit ({reason}); remove it or say force=true") from error
        self.method.to(self.device)
        self.resumed_at = self.done


def center(images: Tensor, size: int | None) -> Tensor:
    """The middle square of ``size`` pixels; None is the whole image."""
    if size is None:
        return images
    top, left = ((side - size) // 2 for side in images.shape[2:])
    return images[:, :, top : top + size, left : left + size]

"""One loop for all methods: batches, optimiser, averaged weights and evaluations; the rest is ``common.training``.

The same seed gives every method the same batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dembench.tasks.common import training
from dembench.tasks.common.confusion import Confusion
from dembench.tasks.common.criteria import Criteria, shifted
from dembench.tasks.common.devices import send
from dembench.tasks.common.keep import copied
from dembench.tasks.common.metrics import StreamMetrics
from dembench.tasks.common.orders import Order, derived_seed, generator
from dembench.tasks.common.training import Values, autocast, rank, world_size
from dembench.tasks.semi import augment
from dembench.tasks.semi.methods.base import Batch, SemiMethod
from dembench.tasks.semi.protocol import Protocol, trainable
from dembench.tasks.semi.sources import Pool


class Trainer(training.Trainer):
    """Trains ``model`` by ``method`` on ``data``; one per process.

    Args:
        data: see ``tasks.semi.data``.
        model, method: moved to the device.
        protocol, seed, device, checkpoint: see ``training.Trainer``.
        precision: "bf16" runs a method's passes under autocast.
        keep_best: keep the tensors of the evaluation with the highest accuracy on the validation images, the first of
            equals, as ``best``.
    Raises: ValueError where there are no unlabelled samples for a method that needs them.
    """

    method: SemiMethod

    def __init__(
        self,
        data: Any,
        model: nn.Module,
        method: SemiMethod,
        protocol: Protocol,
        *,
        seed: int,
        device: str = "cpu",
        precision: str = "fp32",
        checkpoint: Path | None = None,
        keep_best: bool = False,
    ) -> None:
        super().__init__(method, protocol, seed=seed, device=device, checkpoint=checkpoint)
        self.recipe, self.precision = data.recipe, precision
        self.labelled = self._place(data.labelled)
        self.unlabelled = data.unlabelled.to(self.device)
        self.pools = {"test": self._place(data.test), "validation": self._place(data.validation)}
        if method.needed_views and not len(self.unlabelled):
            raise ValueError(f"{method.name} needs unlabelled samples, {data.name} has none")
        self.mean, self.std = (torch.tensor(v, dtype=torch.float32, device=self.device) for v in (data.mean, data.std))
        self.num_classes = data.num_classes
        self.model = model.to(self.device, memory_format=torch.channels_last).train()
        self.model.register_forward_hook(self._count)
        self.optimizer = protocol.make_optimizer(model)
        self.parameters = [parameter for _, parameter in trainable(model)]
        self.average = [p.detach().clone() for p in self.parameters] if protocol.ema else []
        self.orders = {
            "labelled": Order(len(self.labelled.labels), seed, "labelled"),
            "unlabelled": Order(max(len(self.unlabelled), 1), seed, "unlabelled"),
        }
        self.keep_best, self._best = keep_best, -1.0
        self.best: dict[str, dict[str, Tensor]] = {}
        self._final: tuple[Confusion, StreamMetrics] | None = None

    def _place(self, pool: Pool) -> Pool:
        return Pool(pool.images.to(self.device), pool.labels.to(self.device))

    def _count(self, *_: object) -> None:
        self.method.forward_passes += 1

    def network(self) -> nn.Module:
        return self.model

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "method": self.method}

    def state(self) -> dict[str, Any]:
        best = {"best": self.best, "best accuracy": self._best} if self.keep_best else {}
        return super().state() | {"average": self.average} | best

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.average = [tensor.to(self.device) for tensor in state["average"]]
        if self.keep_best:
            self.best, self._best = dict(state["best"]), state["best accuracy"]
        super().load_state(state)

    def step(self) -> dict[str, Tensor]:
        step, method = self.done, self.method
        self.protocol.set_rate(self.optimizer, step)
        batch = self.batch(step)
        torch.manual_seed(derived_seed(self.seed, step, "model", rank()))
        with autocast(self.precision, self.device):
            terms = method.terms(self.model, batch)
        total = torch.stack([term.float() for term in terms.values()]).sum()
        self.optimizer.zero_grad()
        total.backward()
        self.average_gradients(self.parameters)
        self.optimizer.step()
        if self.average:
            with torch.no_grad():
                torch._foreach_lerp_(self.average, self.parameters, 1 - self.protocol.ema)
        method.backward_passes += 1
        method.updated += len(batch.images) + sum(map(len, batch.views.values()))
        return {**terms, **method.seen}

    def batch(self, step: int) -> Batch:
        """The batch of an iteration: this process's share of it. The host sends one parcel and waits for nothing."""
        b = self.protocol.batch_size
        m = b * self.protocol.unlabelled_ratio
        pools = {"labelled": self.labelled.images, **dict.fromkeys(self.method.needed_views, self.unlabelled)}
        rows = {"labelled": self.orders["labelled"].rows(step * b, b)}
        rows |= dict.fromkeys(self.method.needed_views, self.orders["unlabelled"].rows(step * m, m))
        plans = {name: self._plan(name, images, rows[name], step) for name, images in pools.items()}
        plans = send(plans, self.device)
        views = {name: self._view(images, *plans[name]) for name, images in pools.items()}
        labels = self.labelled.labels[plans["labelled"][0]]
        shown = plans[self.method.needed_views[0]][0] if self.method.needed_views else None
        return Batch(views.pop("labelled"), labels, views, step / self.protocol.iterations, shown, step)

    def _plan(self, name: str, images: Tensor, rows: Tensor, step: int) -> tuple[Tensor, augment.Plan]:
        """The rows of this process's samples, and how their view is made."""
        draws = generator(self.seed, step, name)
        shard = slice(rank(), None, world_size())
        recipe, height, width = self.recipe, *images.shape[2:]
        strong = name.startswith("strong")
        draw = augment.draw_resized if strong and recipe.strong_scale else augment.draw_weak
        first = draw(recipe, len(rows), height, width, draws).take(shard)
        second = augment.draw_strong(recipe, len(rows), draws).take(shard) if strong else None
        return rows[shard], augment.plan(recipe, height, width, first, second)

    def _view(self, images: Tensor, rows: Tensor, plan: augment.Plan) -> Tensor:
        return augment.to_float(augment.view(images[rows], plan), self.mean, self.std)

    def measure(self) -> Values:
        self._final = confusion, _ = self.evaluate("test")
        values = {"accuracy": confusion.accuracy(), "macro_f1": confusion.macro()["f1"]}
        values |= {f"bias_{name}": value for name, value in confusion.bias().items()}
        if len(self.pools["validation"].labels):
            values["validation_accuracy"] = accuracy = self.evaluate("validation")[0].accuracy()
            if self.keep_best and accuracy > self._best:
                self.best, self._best = self.tensors(), accuracy
        return values

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Copies of the network's tensors by name: the "weights", and with averaged weights the "average", which is
        what evaluations take."""
        own = {name: copied(tensor) for name, tensor in self.model.state_dict().items()}
        if not self.average:
            return {"weights": own}
        names = (name for name, _ in trainable(self.model))
        return {"weights": own, "average": own | dict(zip(names, map(copied, self.average), strict=True))}

    @property
    def final(self) -> tuple[Confusion, StreamMetrics]:
        """Of the last iterate on the test images."""
        return self._final or self.evaluate("test")

    @torch.no_grad()
    def evaluate(self, pool: str, criteria: Criteria | None = None) -> tuple[Confusion, StreamMetrics]:
        """The averaged weights (with the live statistics of BatchNorm) on the "test" or "validation" images; their
        predictions are shown to ``criteria``, too."""
        images, labels = self.pools[pool].images, self.pools[pool].labels
        confusion, metrics = (kind(self.num_classes, self.device) for kind in (Confusion, StreamMetrics))
        passes = self.method.forward_passes
        self.model.eval()
        weights = dict(self.model.named_buffers())
        names = [name for name, _ in trainable(self.model)]
        weights |= dict(zip(names, self.average or self.parameters, strict=True))
        for start in range(0, len(images), self.protocol.eval_batch_size):
            part = slice(start, start + self.protocol.eval_batch_size)
            x = augment.to_float(center(images[part], self.recipe.size), self.mean, self.std)
            with autocast(self.precision, self.device):
                logits = torch.func.functional_call(self.model, weights, x).float()
                if criteria is not None:
                    criteria.update(logits, torch.func.functional_call(self.model, weights, shifted(x)))
            confusion.update(logits.argmax(1), labels[part])
            metrics.update(logits, labels[part])
        self.model.train()
        self.method.forward_passes = passes  # the cost counts training
        return confusion, metrics


def center(images: Tensor, size: int | None) -> Tensor:
    """The middle square of ``size`` pixels; None is the whole image."""
    if size is None:
        return images
    top, left = ((side - size) // 2 for side in images.shape[2:])
    return images[:, :, top : top + size, left : left + size]

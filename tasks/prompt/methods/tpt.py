"""TPT, test-time prompt tuning (Shu et al. 2022): for each image, tune the context so that confident views agree.

As in the authors' code (63ecbac): the views of least entropy are chosen once, with the initial context; the loss is of
their marginal; AdamW with torch's defaults; the plain view is predicted with the tuned context, which is then
forgotten. Theirs runs under fp16 autocast with a gradient scaler that outlives the image; here context, loss and
optimiser are float32 and nothing outlives it. ``loss`` replaces TPT's entropy, on ``aggregate``:

    marginal      one row an image, the log of the mean softmax of the chosen views; with EM this is TPT
    mean_logits   one row, the mean of their logits
    per_view      a row for each; losses with a state see them as one batch

AdamW acts on every number by itself, so one parameter (B, n, D) with a sum of losses is B optimisers of one image each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dembench.lookup import lookup
from dembench.tasks.base import Note
from dembench.tasks.prompt.episodes import Episodes, depends_on_offset, silent_alone
from dembench.tasks.prompt.methods.base import Context, PromptMethod, Shots, check_share, confident, pick
from dembench.tasks.prompt.methods.marginal import log_marginal
from dembench.tasks.prompt.text import Prompts

OPTIMIZERS = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
AGGREGATES = ("marginal", "mean_logits", "per_view")


class TPT(PromptMethod):
    """Tunes a context of its own for every image.

    Args:
        prompts: the classes. loss: logits (N, C) to a loss per row (N,).
        aggregate: what the loss is applied to, see above.
        lr, steps, optimizer, weight_decay: of the tuning, "adamw" or "sgd" (without momentum).
        selected: share of the views that count.
        online: the loss keeps its state from image to image, in their order; not TPT's protocol.
        shared_forward: the first text features are the same for all images and are computed once; exact.
        context, shots: as in ``PromptMethod``.
    Raises: ValueError for options that make no sense, or a template without words to tune.
    """

    remembers = ("episodes",)

    def __init__(
        self,
        prompts: Prompts,
        loss: Any,
        *,
        aggregate: Literal["marginal", "mean_logits", "per_view"] = "per_view",
        lr: float = 5e-3,
        steps: int = 1,
        optimizer: Literal["adamw", "sgd"] = "adamw",
        weight_decay: float = 0.01,
        selected: float = 0.1,
        online: bool = False,
        shared_forward: bool = True,
        context: Context | None = None,
        shots: Shots | None = None,
    ):
        if loss is None:
            raise ValueError("tpt: lowers a loss and was given none; loss=none is for methods that add one")
        check_share("tpt", selected)
        lookup(aggregate, AGGREGATES, "aggregate")
        if not lr > 0 or steps < 1 or weight_decay < 0:
            raise ValueError(f"tpt: expected lr > 0, steps >= 1, weight_decay >= 0, got {lr}, {steps}, {weight_decay}")
        lookup(optimizer, OPTIMIZERS, "optimizer")
        super().__init__(prompts, loss, context=context, shots=shots)
        if not len(self.context):
            raise ValueError(f"tpt: the template {prompts.template!r} has no words before {{}} to tune")
        self.aggregate, self.lr, self.steps, self.selected = aggregate, lr, steps, selected
        self.optimizer, self.weight_decay, self.shared_forward = optimizer, weight_decay, shared_forward
        self.episodes = Episodes(loss, online)
        self._first, self._pull_back = self._share()  # one forward pass, one pull-back an image
        self.notes += self._remarks()

    @staticmethod
    def check(views: int, loss: Any, aggregate: str = "per_view", selected: float = 0.1, **_: Any) -> None:
        """Raises ValueError where there is one row an image, of ``views`` views, for a loss that compares rows."""
        count = max(1, int(selected * views)) if aggregate == "per_view" else 1
        if count == 1 and silent_alone(loss):
            cause = f"selected={selected:g} of {views} views" if aggregate == "per_view" else f"aggregate={aggregate}"
            wanted = f"take aggregate=per_view and {math.ceil(2 / selected)} views or more"
            raise ValueError(f"tpt: this loss compares predictions, and {cause} leaves it one: {wanted}")

    def predict(self, views: Tensor) -> Tensor:
        if self.episodes.online:
            return torch.cat([self.tune(own) for own in views.split(1)])
        return self.tune(views)

    def tune(self, views: Tensor) -> Tensor:
        """Logits (B, C) of the plain views of B images, each with its own context."""
        chosen = pick(views, confident(self.logits(views, self._first), self.selected))
        context = self.context.expand(len(views), -1, -1).clone().requires_grad_()
        optimizer = self._make_optimizer(context)
        self.episodes.start(len(views))
        for step in range(self.steps):
            with torch.enable_grad():
                if step == 0 and self.shared_forward:
                    text = self._first.expand(len(views), -1, -1).clone().requires_grad_()
                    objective = self.objective(chosen, text)
                    (gradient,) = torch.autograd.grad(objective.sum(), text)
                    context.grad = self._pull_back(gradient)
                else:
                    objective = self.objective(chosen, self.encode(context))
                    (context.grad,) = torch.autograd.grad(objective.sum(), context)
            optimizer.step()
            self.backward_passes += len(views)
        self.updated += len(views)
        self.last_loss = objective.detach().mean()
        return self.logits(views[:, :1], self.encode(context.detach()))[:, 0]

    def objective(self, chosen: Tensor, text: Tensor) -> Tensor:
        """The loss of each image (B,) from features of its chosen views (B, K, E) and its classes (B, C, E)."""
        logits = self.logits(chosen, text)
        if self.aggregate == "marginal":
            logits = log_marginal(logits)[:, None]
        elif self.aggregate == "mean_logits":
            logits = logits.mean(1, keepdim=True)
        return self.episodes(logits)

    @torch.enable_grad()
    def _share(self) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Text features (C, E) of the initial context, and the map from gradients at them for B images (B, C, E) to
        gradients (B, n, D) at the context.

        On a GPU it is a vmap of attention written out: the fused kernels' backward passes have no batched form, and
        would be launched for every image (and they add in no fixed order). On a CPU that gains nothing, and autograd's
        own batching gives the bits of a forward pass for every image.
        """
        if self.context.device.type == "cpu":
            start = self.context.clone().requires_grad_()
            first = self.encode(start)
            pull = partial(torch.autograd.grad, first, start, retain_graph=True, is_grads_batched=True)
        else:
            with sdpa_kernel(SDPBackend.MATH):
                first, backward = torch.func.vjp(self.encode, self.context)
            pull = torch.func.vmap(backward)
        return first.detach(), lambda gradients: pull(gradients)[0]

    def _make_optimizer(self, context: Tensor) -> torch.optim.Optimizer:
        return OPTIMIZERS[self.optimizer]([context], lr=self.lr, weight_decay=self.weight_decay)

    def _remarks(self) -> list[Note]:
        notes = [Note("aggregate", f"the loss is applied to {self.aggregate.replace('_', ' ')}")]
        if self.aggregate == "marginal" and depends_on_offset(self.loss, self.prompts.num_classes):
            text = (
                "part of this loss acts on the logits' offset (DEM: alpha), which a marginal has not: it has no effect"
            )
            notes.append(Note("no effect", text))
        if self.episodes.online:
            notes.append(Note("online", "the loss keeps its state from image to image: results depend on their order"))
        return notes

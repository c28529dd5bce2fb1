"""CoOp (Zhou et al. 2022): a context learned from a few labelled images of each class, or read from a file.

As in its ImageNet settings: SGD 2e-3 with momentum 0.9 and weight decay 5e-4, 50 epochs, batches of 32, cross entropy,
starting at the template's words (its *_ctxv1 settings). The first epoch has the rate 1e-5; in Dassl, on which CoOp
runs, the cosine over all epochs begins after it (``cosine_from=1``), so that epoch 1 has the full rate. Theirs crops
anew in every epoch; here each image comes as one of its views, drawn anew, whose features are known.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from dembench.tasks.base import Artifact
from dembench.tasks.common.cache import short_hash
from dembench.tasks.common.tensors import load_checkpoint, read_tensors
from dembench.tasks.prompt.methods.base import Shots
from dembench.tasks.prompt.text import Prompts


class CoOp:
    """A context (n, D) for all classes alike.

    Args:
        file: a checkpoint of CoOp's code (``state_dict`` with ``ctx``) or of this class; None trains one.
        shots: labelled images of each class. epochs, lr, batch_size: of the training, whose order torch's global
            generator draws.
        cosine_from: epoch at which the cosine begins, 1 (Dassl's) or 0 (a step ahead, as records without this key).
    Raises: ValueError for a wrong number; a call also for a file that holds something else, and FileNotFoundError.
    """

    def __init__(
        self,
        file: str | Path | None = None,
        shots: int = 16,
        epochs: int = 50,
        lr: float = 2e-3,
        batch_size: int = 32,
        cosine_from: int = 0,
    ):
        for name, value, least in (("shots", shots, 1), ("epochs", epochs, 1), ("batch_size", batch_size, 1)):
            if value < least:
                raise ValueError(f"coop: expected {name} >= {least}, got {value}")
        if not lr > 0:
            raise ValueError(f"coop: expected lr > 0, got {lr}")
        if cosine_from not in (0, 1):
            raise ValueError(f"coop: expected cosine_from 0 or 1, got {cosine_from}")
        self.cosine_from = cosine_from
        self.file = None if file is None else Path(file).expanduser()
        if self.file is not None and not self.file.is_file():
            raise FileNotFoundError(f"coop: no file {self.file}; file=null trains a context")
        self.shots, self.epochs, self.lr, self.batch_size = shots, epochs, lr, batch_size
        self.artifacts: list[Artifact] = []
        self._learned: dict[str, Tensor] = {}

    def __call__(self, shots: Shots) -> Tensor:
        """The context; trained once for a model."""
        if self.file is not None:
            return read_context(self.file)
        prompts, features, labels = shots(self.shots)
        key = prompts.clip.features_id
        if key not in self._learned:
            self._learned[key] = context = self.train(prompts.words(), prompts, features, labels)
            self.artifacts = [Artifact("coop.pt", write_context(context, prompts.clip.name, prompts.names))]
        return self._learned[key]

    def check(self) -> None:
        """Reads the file, if there is one; raises as ``read_context``."""
        if self.file is not None:
            read_context(self.file)

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch."""
        if epoch == 0:
            return 1e-5
        return self.lr * (1 + math.cos(math.pi * (epoch - self.cosine_from) / self.epochs)) / 2

    @torch.enable_grad()
    def train(self, context: Tensor, prompts: Prompts, features: Tensor, labels: Tensor) -> Tensor:
        """SGD from ``context`` (n, D) on features (N, V, E) with labels (N,)."""
        context = context.clone().requires_grad_()
        optimizer = torch.optim.SGD([context], lr=self.lr, momentum=0.9, weight_decay=5e-4)
        labels = labels.to(features.device)
        for epoch in range(self.epochs):
            optimizer.param_groups[0]["lr"] = self.rate(epoch)
            for chosen in torch.randperm(len(labels)).split(self.batch_size):
                view = torch.randint(features.shape[1], (len(chosen),))
                logits = prompts.clip.scale * features[chosen, view] @ prompts(context).T
                optimizer.zero_grad()
                F.cross_entropy(logits, labels[chosen]).backward()
                optimizer.step()
        return context.detach()


def read_context(path: Path) -> Tensor:
    """``ctx`` (n, D), float32, from a checkpoint; everything else in it, such as CoOp's schedule, is left alone.

    Raises: ValueError for a file without one, or with one for each class.
    """
    try:
        state = load_checkpoint(path)
    except ValueError:
        try:
            state = read_tensors(path)
        except ValueError as error:
            raise ValueError(f"coop: {error}") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    context = state.get("ctx") if isinstance(state, dict) else None
    if not isinstance(context, Tensor) or context.dim() != 2:
        found = "none" if not isinstance(context, Tensor) else f"one of shape {tuple(context.shape)}"
        raise ValueError(f"coop: expected a tensor ctx (n, D), the same for all classes, in {path}, found {found}")
    return context.float()


def write_context(context: Tensor, model: str, names: tuple[str, ...]) -> bytes:
    """A file that ``read_context`` reads: ctx, its length, the model's name, a hash of the classes."""
    buffer = io.BytesIO()
    record = {"ctx": context.cpu(), "n_ctx": len(context), "model": model, "classes": short_hash(names)}
    torch.save(record, buffer)
    return buffer.getvalue()

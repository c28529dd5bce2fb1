"""What the methods of corruption TTA share: the model, the counts of what it cost, the step that lowers an entropy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn

from dembench.core.adapt import (
    ALL_NORMS,
    OPTIMIZERS,
    Kinds,
    Learner,
    Loss,
    norm_affine,
    require_grad_only,
    use_batch_statistics,
)
from dembench.core.functional import em
from dembench.lookup import lookup
from dembench.tasks.base import Note
from dembench.tasks.common.devices import placed
from dembench.tasks.common.heads import classifier
from dembench.tasks.tta.methods.clustering import Clustering
from dembench.tasks.tta.methods.freeze import FREEZE, Freeze, frozen_layers
from dembench.tasks.tta.methods.layers import Inputs, guard_group_norms

Preset = Literal["official", "mariodoebler", "random_start"]
Optimizer = Literal["adam", "momentum", "nesterov", "sgd"]


class TTAMethod:
    """A model that predicts each batch once. Subclasses say how in ``predict``, and what ``reset`` puts back.

    ``loss`` is taken by every method, so that a grid over methods and losses needs no exceptions; a method without an
    entropy term leaves it alone. It moves to the model's device.

    Attributes:
        preset: whose rules it follows, "official" (the authors' code) or "mariodoebler" (the collection of that name);
            TIPI has "random_start" besides "official".
        forward_passes, backward_passes: through the model, of whatever number of samples.
        updated: samples that took part in an update; an int, or where a selection decides a 0-dim tensor on the device.
        last_loss: what the latest batch's update lowered, on the device; None where nothing is optimised.
        adapted: what learns, by name. frozen: normalisation layers that a rule keeps as they are.
        in_model: whether all that adapts is in the model's parameters and buffers, so that ``save=last`` keeps it.
        uses_loss: whether the loss has any part in what is predicted.
        stops_gradient: whether what it lowers has parts that are constants to the gradient, such as weights of samples.
        needs_images: whether it changes its inputs in ways that only images (N, C, H, W) can be.
        source_images: how many clean images it must be shown by ``see_source`` before the first batch.
    """

    presets: tuple[str, ...] = ("official", "mariodoebler")
    source_images = 0
    in_model = True
    uses_loss = True
    stops_gradient = False
    needs_images = False

    def __init__(self, model: nn.Module, loss: Any = None, *, preset: Preset = "official"):
        lookup(preset, self.presets, f"{type(self).__name__.lower()} preset")
        parameter = next(model.parameters(), None)
        self.model, self.preset = model, preset
        self.loss = loss if parameter is None else placed(loss, parameter.device)
        self.forward_passes = self.backward_passes = 0
        self.updated: int | Tensor = 0
        self.last_loss: Tensor | None = None
        self.adapted: dict[str, nn.Parameter] = {}
        self.frozen: list[str] = []
        self._seed = torch.initial_seed()
        self._generator: torch.Generator | None = None

    @property
    def notes(self) -> tuple[Note, ...]:
        """What a reader of the numbers must know."""
        return ()

    @property
    def generator(self) -> torch.Generator:
        """Of the model's device, by the run's seed; a ``reset`` of what draws sets ``_generator`` to None."""
        if self._generator is None:
            self._generator = torch.Generator(next(self.model.parameters()).device).manual_seed(self._seed)
        return self._generator

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (N, C) of a batch (N, 3, H, W) in [0, 1]."""
        return self.predict(x).detach()

    def predict(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.forward(x)

    @torch.no_grad()
    def peek(self, x: Tensor) -> Tensor:
        """Logits of a batch that is not learned from: what the method keeps stays as it is."""
        return self.forward(x)

    def forward(self, x: Tensor) -> Tensor:
        """One counted pass through the model."""
        self.forward_passes += 1
        return self.model(x)

    def reset(self) -> None:
        """Nothing of this method changes."""

    def extra_state(self) -> dict[str, Any]:
        """What a method keeps between batches beside attributes that are tensors or numbers, in plain containers."""
        return {}

    def put_extra_state(self, state: Mapping[str, Any]) -> None:
        """Takes what ``extra_state`` gave."""


@dataclass(frozen=True)
class Seen:
    """A batch as the model saw it.

    logits (N, C), with their graph; entropy (N,), without; similarity (N,) is the constraint of ``Clustering``, if on;
    keep (N,) bool is its sample selection, if on.
    """

    logits: Tensor
    entropy: Tensor
    similarity: Tensor | None = None
    keep: Tensor | None = None


class Common(TypedDict, total=False):
    """Options of every method that optimises an entropy; see ``EntropyMethod``."""

    steps: int
    episodic: bool
    clustering: Clustering | Mapping[str, Any] | None
    preset: Preset


class EntropyMethod(TTAMethod):
    """A method that lowers the mean of a loss over samples of each batch; ``adapt`` is one step of it.

    The loss sees the logits of the whole batch, once for each pass; a selection masks its values afterwards. Where no
    sample is selected, parameters and optimizer stay as they are to the bit, decided on the device.

    Args:
        model: maps (N, 3, H, W) in [0, 1] to logits (N, C); changed in place.
        loss: logits (N, C) to a loss per sample (N,).
        optimizer: "adam", "momentum", "nesterov" or "sgd".
        lr: learning rate.
        steps: updates on each batch; the logits returned are those before the last one.
        episodic: start afresh before each batch.
        clustering: the parts of TTC to add, see ``Clustering``.
        freeze: which normalisation layers at the top do not adapt, see ``frozen_layers``.
        preset: "official" has the model in ``train()`` and adapts BatchNorm2d (a model without: LayerNorm, GroupNorm),
            "mariodoebler" has it in ``eval()``, so that no dropout or stochastic depth acts, and adapts the BatchNorms,
            LayerNorm and GroupNorm. BatchNorm uses batch statistics in both.
    Raises: ValueError for an unknown name, lr <= 0, steps < 1, or a model without normalisation layers.
    """

    norms: Kinds | None = None  # that "official" adapts; None: as Tent
    _due: int | None  # batches per update, known with the first batch
    _batches: int  # whose gradients are accumulated
    _empty: Tensor | None  # whether none of them selected a sample
    _selected: int | Tensor  # samples of the latest step

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        optimizer: Optimizer,
        lr: float,
        steps: int = 1,
        episodic: bool = False,
        clustering: Clustering | Mapping[str, Any] | None = None,
        freeze: Freeze = "none",
        preset: Preset = "official",
    ):
        super().__init__(model, loss, preset=preset)
        name = type(self).__name__.lower()
        if loss is None:
            raise ValueError(f"{name}: lowers a loss and was given none; loss=none is for methods that add one")
        lookup(optimizer, OPTIMIZERS, f"{name} optimizer")
        lookup(freeze, FREEZE, f"{name} freeze")
        if steps < 1:
            raise ValueError(f"{name}: expected steps >= 1, got {steps}")
        self.steps, self.episodic, self.freeze = steps, episodic, freeze
        self.parts = Clustering.of(clustering)
        self.needs_images = self.needs_images or self.parts.augments
        self.stops_gradient = self.stops_gradient or self.parts.similarity is not None
        self.features = Inputs(classifier(model)) if self.parts.similarity is not None else None
        self.prepare()
        self.frozen = frozen_layers(model, freeze)
        self.adapted = self.choose()
        require_grad_only(model, self.adapted.values())
        guard_group_norms(model)
        self.learner = Learner(self.adapted, loss, optimizer=optimizer, lr=lr, buffers=self.touched())
        self._restart()

    def prepare(self) -> None:
        """Modes and statistics of the model."""
        use_batch_statistics(self.model).train(self.preset == "official")

    def choose(self) -> dict[str, nn.Parameter]:
        """What adapts, by name: affine parameters of normalisation layers, but of those that are frozen."""
        found = norm_affine(self.model, ALL_NORMS if self.preset == "mariodoebler" else self.norms)
        return {key: p for key, p in found.items() if not any(key.startswith(f"{top}.") for top in self.frozen)}

    def touched(self) -> list[Tensor]:
        """Buffers of the model that adapting moves."""
        return []

    @property
    def notes(self) -> tuple[Note, ...]:
        layers = list(dict.fromkeys(name.rpartition(".")[0] for name in self.adapted))
        size, whole = (sum(p.numel() for p in part) for part in (self.adapted.values(), self.model.parameters()))
        text = f"{len(self.adapted)} tensors of {len(layers)} layers adapt, {size:,} of {whole:,} parameters"
        if self.freeze != "none":
            text += f"; frozen by {self.freeze}: {', '.join(self.frozen) or 'none'}; adapting: {', '.join(layers)}"
        return (Note("adapts", text),)

    @torch.enable_grad()
    def predict(self, x: Tensor) -> Tensor:
        if self.episodic:
            self.reset()
        if self._due is None:
            self._due = self.parts.batches_per_update(len(x))
        for _ in range(self.steps):
            logits = self.adapt(x)
        self.updated = self.updated + self._selected  # samples, each once however many steps; a new tensor each time
        return logits

    @torch.no_grad()
    def peek(self, x: Tensor) -> Tensor:
        drawn = self.generator.get_state()
        logits = self.see(x).logits
        self.generator.set_state(drawn)
        return logits

    def adapt(self, x: Tensor) -> Tensor:
        """One step on a batch; returns its logits, by rule those before the step."""
        raise TypeError(f"{type(self).__name__} does not say how it adapts")

    def see(self, x: Tensor) -> Seen:
        """The batch through the model, and with robust assignment or similarity its augmented copy, too."""
        logits, similarity = self.forward(x), None
        if self.parts.augments:
            own = None if self.features is None else self.features.last
            other = self.forward(self.parts.augmented(x, self.generator))
            if self.features is not None and own is not None:
                similarity = self.parts.constraint(logits, other, own, self.features.last)
            if self.parts.robust:
                logits = (logits + other) / 2
        entropy = em(logits.detach())
        return Seen(logits, entropy, similarity, entropy <= entropy.mean() if self.parts.select else None)

    def objective(self, seen: Seen, selected: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
        """Mean of weight * loss + similarity over the selected samples, all if None; 0 if there are none."""
        value = self.loss(seen.logits)
        if weight is not None:
            value = weight * value
        if seen.similarity is not None:
            value = value + seen.similarity
        if selected is None:
            return value.mean()
        return torch.where(selected, value, 0).sum() / selected.sum().clamp(min=1)

    def learn(self, seen: Seen, selected: Tensor | None = None, weight: Tensor | None = None) -> None:
        """One step that lowers ``objective``."""
        self.descend(self.objective(seen, selected, weight), len(seen.logits) if selected is None else selected.sum())

    def descend(self, objective: Tensor, selected: int | Tensor) -> None:
        """One step that lowers a scalar, formed over so many selected samples; none where that number is 0."""
        self.backward(objective)
        self.finish(selected)

    def backward(self, objective: Tensor) -> None:
        """One counted pass that adds the gradients of a scalar to those that are there."""
        self.learner.backward(objective)
        self.backward_passes += 1
        self.last_loss = objective.detach()

    def finish(self, selected: int | Tensor) -> None:
        """The step along the gradients, with Q batches accumulated only after the last of them."""
        empty = selected == 0 if isinstance(selected, Tensor) else None
        self.adjust_gradients(empty)
        self._selected = selected
        self._batches += 1
        if empty is not None and self._empty is not None:
            empty = empty & self._empty
        self._empty = empty
        if self._batches == self._due:
            self.learner.update(skip=empty)
            self._batches, self._empty = 0, None

    def adjust_gradients(self, empty: Tensor | None) -> None:
        """Adds what a method has besides its objective; ``empty`` is true where no sample is selected."""

    def _restart(self) -> None:
        self._generator = self._due = self._empty = None
        self._batches = self._selected = 0

    def reset(self) -> None:
        self.learner.reset()
        self._restart()

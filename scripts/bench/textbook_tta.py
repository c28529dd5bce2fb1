"""The methods of corruption TTA that take gradient steps, as their papers have them, in the plainest PyTorch.

Tests hold ``tasks.tta.methods`` against these loops, and ``dembench bench tta`` times the two side by side. They share
no code with the methods: selections are gathered by index, every parameter is visited in a Python loop, and a reset
reloads a copy of the whole model, as the published code does. Known slips of the published code are not repeated here:
a reset forgets all state, and where nothing is selected nothing is stepped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor], Tensor]
OPTIMIZERS = {
    "adam": lambda parameters, lr: torch.optim.Adam(parameters, lr=lr),
    "momentum": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr),
}


def entropy(z: Tensor) -> Tensor:
    return -(z.softmax(1) * z.log_softmax(1)).sum(1)


def norm_parameters(model: nn.Module, kinds: tuple[type[nn.Module], ...] | None = None) -> list[str]:
    """Names of the weights and biases of BatchNorm2d layers, or where there are none of LayerNorm and GroupNorm."""
    if kinds is None:
        batch = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        kinds = (nn.BatchNorm2d,) if batch else (nn.LayerNorm, nn.GroupNorm)
    names = []
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            names += [f"{name}.weight", f"{name}.bias"]
    return names


class Textbook:
    """A model in ``train()`` whose BatchNorm2d layers have no running statistics, and an optimizer of some parameters.

    Args:
        model: changed in place.
        loss: logits (N, C) to a loss for each sample, in the place of the entropy.
        learned: names of the parameters that learn.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss = entropy,
        *,
        optimizer: str = "adam",
        lr: float = 1e-3,
        learned: Sequence[str] | None = None,
    ):
        self.model, self.loss = model.train(), loss
        model.requires_grad_(False)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.track_running_stats = False
                module.running_mean = module.running_var = module.num_batches_tracked = None
        parameters = dict(model.named_parameters())
        self.learned = [parameters[name] for name in (norm_parameters(model) if learned is None else learned)]
        for parameter in self.learned:
            parameter.requires_grad_(True)
        self.optimizer = OPTIMIZERS[optimizer](self.learned, lr)
        self.start = deepcopy(model.state_dict()), deepcopy(self.optimizer.state_dict())

    def reset(self) -> None:
        model, optimizer = self.start
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(deepcopy(optimizer))
        if hasattr(self.loss, "reset"):
            self.loss.reset()

    def descend(self, objective: Tensor) -> None:
        self.optimizer.zero_grad()
        objective.backward()
        self.optimizer.step()


class Tent(Textbook):
    """Wang et al. 2021."""

    def __call__(self, x: Tensor) -> Tensor:
        z = self.model(x)
        self.descend(self.loss(z).mean())
        return z.detach()


class ETA(Textbook):
    """Niu et al. 2022: the samples that are reliable and not redundant, weighted by exp(margin - H)."""

    def __init__(self, model: nn.Module, loss: Loss = entropy, *, margin: float, d: float, **options: object):
        super().__init__(model, loss, **options)
        self.margin, self.d = margin, d
        self.mean: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        z = self.model(x)
        losses, h, p = self.loss(z), entropy(z.detach()), z.detach().softmax(1)
        chosen = torch.where(h < self.margin)[0]
        if self.mean is None:
            if len(chosen):
                self.mean = p[chosen].mean(0)
        else:
            likeness = nn.functional.cosine_similarity(self.mean[None], p[chosen], dim=1)
            chosen = chosen[torch.where(likeness.abs() < self.d)[0]]
            if len(chosen):
                self.mean = 0.9 * self.mean + 0.1 * p[chosen].mean(0)
        if len(chosen):
            weights = torch.exp(self.margin - h[chosen])
            self.descend((weights * losses[chosen]).mean() + self.anti_forgetting())
        self.chosen = len(chosen)
        return z.detach()

    def anti_forgetting(self) -> Tensor | float:
        return 0.0

    def reset(self) -> None:
        super().reset()
        self.mean = None


class EATA(ETA):
    """ETA and a pull back to where the parameters were, by their Fisher information.

    Args:
        images: batches on which the Fisher information is estimated.
        alpha: weight of the pull.
        per_sample: the mean of squared gradients of single samples; False squares the gradient of a batch's mean loss.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss = entropy,
        *,
        images: Iterable[Tensor],
        alpha: float,
        per_sample: bool = False,
        **options: object,
    ):
        super().__init__(model, loss, **options)
        self.alpha = alpha
        self.origin = [parameter.detach().clone() for parameter in self.learned]
        self.fisher = [torch.zeros_like(parameter) for parameter in self.learned]
        count = 0
        for x in images:
            z = self.model(x)
            nll = nn.functional.cross_entropy(z, z.argmax(1), reduction="none")
            for value in nll if per_sample else [nll.mean()]:
                gradients = torch.autograd.grad(value, self.learned, retain_graph=True)
                for total, gradient in zip(self.fisher, gradients, strict=True):
                    total += gradient**2
                count += 1
        self.fisher = [total / count for total in self.fisher]

    def anti_forgetting(self) -> Tensor:
        pull = 0.0
        for parameter, weight, start in zip(self.learned, self.fisher, self.origin, strict=True):
            pull = pull + (weight * (parameter - start) ** 2).sum()
        return self.alpha * pull


class SAR(Textbook):
    """Niu et al. 2023: sharpness-aware steps on the samples of low entropy, and recovery when it collapses."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss = entropy,
        *,
        margin: float,
        rho: float = 0.05,
        recover_below: float = 0.2,
        **options: object,
    ):
        super().__init__(model, loss, **options)
        self.margin, self.rho, self.recover_below = margin, rho, recover_below
        self.ema: float | None = None
        self.recoveries = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        z = self.model(x)
        losses, h = self.loss(z), entropy(z.detach())
        chosen = torch.where(h < self.margin)[0]
        before = [parameter.detach().clone() for parameter in self.learned]
        if len(chosen):
            losses[chosen].mean().backward()
            total = torch.stack([parameter.grad.norm() for parameter in self.learned]).norm()
            with torch.no_grad():
                for parameter in self.learned:
                    parameter += self.rho * parameter.grad / (total + 1e-12)
        self.optimizer.zero_grad()
        second = self.model(x)
        losses, h = self.loss(second), entropy(second.detach())
        chosen = chosen[torch.where(h[chosen] < self.margin)[0]]
        if len(chosen):
            losses[chosen].mean().backward()
        with torch.no_grad():
            for parameter, value in zip(self.learned, before, strict=True):
                parameter.copy_(value)
        if len(chosen):
            self.optimizer.step()
            value = h[chosen].mean().item()
            self.ema = value if self.ema is None else 0.9 * self.ema + 0.1 * value
            if self.ema < self.recover_below:
                self.recoveries += 1
                self.reset()
        return z.detach()

    def reset(self) -> None:
        super().reset()
        self.ema = None


class DeYO(Textbook):
    """Lee et al. 2024: samples of low entropy whose prediction falls when the object in the image is destroyed.

    Args:
        below: greatest entropy of a sample that counts.
        margin: Ent_0 of the weights.
        above: least fall of the predicted class's probability.
        destroy: images to destroyed images.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss = entropy,
        *,
        below: float,
        margin: float,
        above: float,
        destroy: Callable[[Tensor], Tensor] | None = None,
        **options: object,
    ):
        super().__init__(model, loss, **options)
        self.below, self.margin, self.above = below, margin, above
        self.destroy = destroy or shuffled_patches

    def __call__(self, x: Tensor) -> Tensor:
        z = self.model(x)
        losses, h, p = self.loss(z), entropy(z.detach()), z.detach().softmax(1)
        chosen = torch.where(h < self.below)[0]
        if not len(chosen):
            return z.detach()
        with torch.no_grad():
            destroyed = self.model(self.destroy(x[chosen])).softmax(1)
        label = p[chosen].argmax(1, keepdim=True)
        fall = (p[chosen].gather(1, label) - destroyed.gather(1, label)).flatten()
        passed = torch.where(fall > self.above)[0]
        if len(passed):
            chosen, fall = chosen[passed], fall[passed]
            weights = torch.exp(self.margin - h[chosen]) + torch.exp(fall)
            self.descend((weights * losses[chosen]).mean())
        return z.detach()


def shuffled_patches(x: Tensor, grid: int = 4) -> Tensor:
    """Each image cut into grid x grid patches that change places, in an order of its own."""
    shuffled = torch.empty_like(x)
    height, width = x.shape[2] // grid, x.shape[3] // grid
    for n, image in enumerate(x):
        for target, source in enumerate(torch.randperm(grid * grid).tolist()):
            (ty, tx), (sy, sx) = divmod(target, grid), divmod(source, grid)
            patch = image[:, sy * height : (sy + 1) * height, sx * width : (sx + 1) * width]
            shuffled[n, :, ty * height : (ty + 1) * height, tx * width : (tx + 1) * width] = patch
    return shuffled


class TIPI(Textbook):
    """Nguyen et al. 2023: predictions that a small adversarial shift of the image does not move.

    Args:
        eps: greatest shift of a channel of a pixel, in units of the input.
        weight: of the loss (the paper's entropy) beside the divergence.
        start: makes the first shift from the images, within eps.
        lr_per_sample: times the batch is the learning rate.
        predict_in_train: normalise the last pass by the batch instead of the running statistics.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss = entropy,
        *,
        eps: float,
        weight: float,
        start: Callable[[Tensor], Tensor],
        lr_per_sample: float,
        predict_in_train: bool = False,
        **options: object,
    ):
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        statistics = [(m.running_mean, m.running_var, m.num_batches_tracked) for m in norms]
        super().__init__(model, loss, lr=lr_per_sample, **options)
        for module, (mean, variance, count) in zip(norms, statistics, strict=True):
            module.track_running_stats = True
            module.running_mean, module.running_var, module.num_batches_tracked = mean, variance, count
        self.start = deepcopy(model.state_dict()), deepcopy(self.optimizer.state_dict())
        self.eps, self.weight, self.shift = eps, weight, start
        self.lr_per_sample, self.predict_in_train = lr_per_sample, predict_in_train

    def __call__(self, x: Tensor) -> Tensor:
        self.optimizer.param_groups[0]["lr"] = self.lr_per_sample * len(x)
        self.model.train()
        clean = self.model(x)
        log_p = clean.log_softmax(1)
        statistics = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        delta = self.shift(x).requires_grad_()
        (slope,) = torch.autograd.grad(divergence(self.model(x + delta).log_softmax(1), log_p.detach()), delta)
        delta = (delta.detach() + self.eps * slope.sign()).clamp(-self.eps, self.eps)
        shifted = self.model(x + delta).log_softmax(1)
        objective = divergence(shifted, log_p.detach())
        if self.weight:
            objective = objective + self.weight * self.loss(clean).mean()
        self.descend(objective)
        self.model.load_state_dict(statistics, strict=False)  # the shifted images have statistics of their own
        if not self.predict_in_train:
            self.model.eval()
        with torch.no_grad():
            return self.model(x)


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q), mean over the batch."""
    return (log_p.exp() * (log_p - log_q)).sum(1).mean()


class TTC(Textbook):
    """Lin et al. 2023, Algorithm 1, each of its parts switchable.

    Args:
        features: images to logits and features.
        augment: the second view; the paper's is a horizontal flip.
        sigma: width of the similarity.
        every: batches whose gradients are summed for one step.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss = entropy,
        *,
        features: Callable[[Tensor], tuple[Tensor, Tensor]],
        augment: Callable[[Tensor], Tensor] = lambda x: x.flip(3),
        label_assignment: bool = True,
        constraint: bool = True,
        selection: bool = True,
        every: int = 1,
        sigma: float = 1.0,
        **options: object,
    ):
        super().__init__(model, loss, **options)
        self.features, self.augment, self.every, self.sigma = features, augment, every, sigma
        self.label_assignment, self.constraint, self.selection = label_assignment, constraint, selection
        self.counter = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.counter += 1
        z, g = self.features(x)
        outputs, penalty = z, 0.0
        if self.label_assignment or self.constraint:
            other, other_g = self.features(self.augment(x))
            if self.constraint:
                likeness = torch.exp(-((g - other_g) ** 2).sum(1) / (2 * self.sigma**2)).detach()  # a graph's weight
                penalty = likeness * ((z - other) ** 2).sum(1)
            if self.label_assignment:
                outputs = (z + other) / 2
        h = entropy(outputs.detach())
        losses = self.loss(outputs) + penalty
        if self.selection:
            losses = losses[h <= h.mean()]
        losses.mean().backward()
        if self.counter % self.every == 0:
            self.optimizer.step()
            self.optimizer.zero_grad()
        return outputs.detach()

    def reset(self) -> None:
        super().reset()
        self.optimizer.zero_grad()
        self.counter = 0

"""DARP (Kim et al. 2020): FixMatch whose pseudo labels are refined so that their classes come in the expected numbers.

As the authors' code. The numbers are the labelled samples' class shares, so unlabelled samples of another profile are
bent towards a wrong one. In several processes each refines the predictions that it has seen.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.optimize import newton
from torch import Tensor

from dembench.tasks.common.devices import send
from dembench.tasks.semi.methods.base import Batch
from dembench.tasks.semi.methods.fixmatch import FixMatch


class DARP(FixMatch):
    """State: ``predicted`` (N, C), the last prediction on each unlabelled sample, uniform before; ``refined`` (N, C).

    Every ``every`` iterations, after ``start`` of the training, all predictions are refined together; a sample's
    pseudo label and confidence are then those of its refined prediction.

    Args:
        start: share of the training without refinement.
        every: iterations between refinements.
        surest: of each class the ``surest`` * n_c samples that are surest of it can be of it, n_c being its number.
        sweeps: over the classes in a refinement.
        tolerance: of the search for each class's multiplier.
    Raises: ValueError for fewer than two classes or a number out of range, and what ``FixMatch`` raises.
    """

    name = "darp"
    predicted: Tensor
    refined: Tensor

    def __init__(
        self,
        loss: Any = None,
        *,
        num_classes: int = 0,
        start: float = 0.4,
        every: int = 10,
        surest: float = 2.0,
        sweeps: int = 10,
        tolerance: float = 0.1,
        strong_views: int = 2,
        **settings: Any,
    ) -> None:
        super().__init__(loss, num_classes=num_classes, strong_views=strong_views, **settings)
        self.check_classes(num_classes)
        self.check_range(0, 1, start=start)
        self.check_range(1, np.inf, every=every, surest=surest, sweeps=sweeps)
        self.check_range(1e-12, np.inf, tolerance=tolerance)
        self.start, self.every, self.surest, self.sweeps, self.tolerance = start, every, surest, sweeps, tolerance
        self.prepare(0, torch.ones(num_classes))

    def prepare(self, num_unlabelled: int, counts: Tensor) -> None:
        uniform = torch.full((num_unlabelled, self.num_classes), 1 / self.num_classes)
        self.register_buffer("predicted", uniform)
        self.register_buffer("refined", uniform.clone())
        self.numbers = (num_unlabelled * counts.double() / counts.sum()).numpy()

    def targets(self, weak: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        if batch.rows is None:
            raise ValueError("darp: needs the numbers of the unlabelled samples (Batch.rows)")
        p = weak.softmax(1)
        self.predicted[batch.rows] = p
        since = batch.step % self.every
        if batch.progress * (1 - since / max(batch.step, 1)) > self.start:  # the last multiple of ``every``
            if since == 0:
                self.refined.copy_(send(self.refine(), weak.device))
            p = self.refined[batch.rows]
        confidence, target = p.max(1)
        return target, (confidence >= self.threshold).float()

    def refine(self) -> Tensor:
        """All predictions refined, (N, C) float32 on the CPU."""
        likely = without_noise(self.predicted.double().cpu().numpy(), self.numbers, self.surest)
        return torch.from_numpy(refine(likely, self.numbers, self.sweeps, self.tolerance)).float()


def without_noise(p: np.ndarray, numbers: np.ndarray, surest: float) -> np.ndarray:
    """Predictions (N, C) of which each class c keeps its ``surest`` * n_c surest samples, scaled to sum n_c.

    All have 1e-6 added, so that nothing is impossible; rows sum to 1.
    """
    kept = np.zeros_like(p)
    for c, number in enumerate(numbers):
        own = np.argsort(-p[:, c], kind="stable")[: int(surest * number)]
        kept[own, c] = p[own, c] * (number + 1e-6) / (p[own, c].sum() + 1e-6)
    return normalised(kept + 1e-6)


def refine(p: np.ndarray, numbers: np.ndarray, sweeps: int, tolerance: float) -> np.ndarray:
    """The (N, C) nearest to ``p`` with rows of sum 1 and columns of sums ``numbers`` (algorithm 1 of the paper).

    Nearest by the sum over samples of KL(x || p) / entropy(p), so that unsure samples move first. By coordinate ascent:
    x is p * exp(-column * entropy), its rows scaled, and each class's multiplier is found by the secant method.
    """
    entropy = -(p * np.log(p + 1e-6)).sum(1)
    column, x = np.zeros(len(numbers)), p * np.exp(-entropy)[:, None]
    for _ in range(sweeps):
        scaled = p / x.sum(1, keepdims=True)

        def excess(multiplier: float, c: int, scaled: np.ndarray = scaled) -> float:
            with np.errstate(over="ignore"):  # the search may go far astray before it comes back
                return scaled[:, c] @ np.exp(-multiplier * entropy) - numbers[c]

        search = partial(newton, excess, tol=tolerance, maxiter=30, disp=False)
        column = np.array([search(multiplier, args=(c,)) for c, multiplier in enumerate(column)])
        x = p * np.exp(-column * entropy[:, None])
    return normalised(x)


def normalised(x: np.ndarray) -> np.ndarray:
    return x / x.sum(1, keepdims=True)

"""The pairs (tau, alpha) that a search may try, and in which order it chooses their two numbers.

Both lie in [0, 2] as in the paper, tau from 0.1 on, and satisfy Proposition A.1: tau <= 2/alpha. On the grid both are
multiples of 0.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.trial import Trial

Pair = tuple[float, float]  # tau, alpha

KINDS = ("grid", "continuous")
ORDERS = ("joint", "sequential")
TAU_LEAST, MOST, STEP = 0.1, 2.0, 0.1
ONE_ONE: Pair = (1.0, 1.0)  # where DEM is EM


def largest_tau(alpha: float, kind: str) -> float:
    """The largest tau in reach beside ``alpha``: min(2, 2/alpha), rounded down to the grid where there is one."""
    bound = min(MOST, MOST / alpha) if alpha > 0 else MOST
    return round(int(bound / STEP + 1e-9) * STEP, 1) if kind == "grid" else bound


def suggest_alpha(trial: Trial, kind: str, tau: float | None = None) -> float:
    """Draws alpha; beside a ``tau`` that is fixed already, at most 2/tau."""
    most = largest_tau(tau, kind) if tau else MOST  # the bound is symmetric
    return _suggest(trial, "alpha", 0.0, most, kind)


def suggest_tau(trial: Trial, kind: str, alpha: float) -> float:
    """Draws tau beside ``alpha``."""
    return _suggest(trial, "tau", TAU_LEAST, largest_tau(alpha, kind), kind)


def _suggest(trial: Trial, name: str, low: float, high: float, kind: str) -> float:
    options: dict[str, Any] = {"step": STEP} if kind == "grid" else {}
    value = trial.suggest_float(name, low, high, **options)
    return round(value, 1) if kind == "grid" else value

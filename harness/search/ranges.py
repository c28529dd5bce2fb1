"""What a tuning tries: ranges of numeric keys, and the points in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from omegaconf import DictConfig, OmegaConf
from optuna.trial import Trial

from dembench.harness.compose import ConfigError, lookup_or_fail
from dembench.harness.search.trials import Done
from dembench.lookup import lookup
from dembench.tasks.common.cache import short_hash

SAMPLERS = ("spread", "tpe")
RATES = ("method.lr", "method.learning_rate", "protocol.lr")  # the first that a run has is tuned where nothing is said
DECADES = 2  # to both sides of the preset's rate, where no range is given

Point = tuple[float, ...]


@dataclass(frozen=True)
class Range:
    """Values of one key from ``low`` to ``high``, even in their logarithm if ``log``; whole numbers if ``whole``."""

    key: str
    low: float
    high: float
    log: bool = False
    whole: bool = False

    def at(self, share: float) -> float:
        """The value at a share of the way, with three digits; the ends are exact."""
        if share in (0, 1):
            return self.high if share else self.low
        if self.log:
            value = math.exp((1 - share) * math.log(self.low) + share * math.log(self.high))
        else:
            value = (1 - share) * self.low + share * self.high
        return self.tidy(value)

    def tidy(self, value: float) -> float:
        return round(value) if self.whole else float(f"{value:.3g}")


def read_range(text: str) -> Range:
    """A range as written: ``method.lr=1e-5:1e-1:log``, ``method.steps=1:8:int``.

    Raises: ConfigError.
    """
    key, _, rest = text.partition("=")
    low, _, rest = rest.partition(":")
    high, *kinds = rest.split(":")
    try:
        ends = float(low), float(high)
    except ValueError:
        raise ConfigError(f"--space {text!r}: expected KEY=LOW:HIGH, then :log and :int as needed") from None
    for kind in kinds:
        lookup_or_fail(kind, ("log", "int"), f"kind of range in --space {text!r}")
    if not (math.isfinite(ends[0]) and ends[0] < ends[1] < math.inf) or ("log" in kinds and ends[0] <= 0):
        raise ConfigError(f"--space {text!r}: expected finite LOW < HIGH{', LOW > 0' if 'log' in kinds else ''}")
    if "int" in kinds and not all(end.is_integer() for end in ends):
        raise ConfigError(f"--space {text!r}: expected whole numbers")
    return Range(key.strip(), *ends, "log" in kinds, "int" in kinds)


@dataclass(frozen=True)
class Budget:
    """How a tuning goes; the same for every method and loss that is compared.

    Args:
        trials: in all, the first of them at the preset's values.
        space: ranges as ``read_range`` takes them; those of keys that a run does not have are left out. Where none is
            left, the learning rate within ``DECADES`` of the preset's.
        sampler: "spread", points that depend on no result: evenly spaced values of one key, a Halton sequence over
            several; every kind of choice can be made among them. "tpe", Optuna's estimator, which labels guide.
        startup: trials of "tpe" that are spread before the estimator takes over.
        seed: of the sampler.
        run_seeds: each point is tried with these and chosen by the mean.
        metric: of the choice with labels; None is the task's own.
    Raises: ValueError for an unknown name or a number out of range; ConfigError for a range that cannot be read.
    """

    trials: int = 9
    space: tuple[str, ...] = ()
    sampler: str = "spread"
    startup: int = 5
    seed: int = 0
    run_seeds: tuple[int, ...] = (0,)
    metric: str | None = None

    def __post_init__(self) -> None:
        lookup(self.sampler, SAMPLERS, "sampler")
        for name, least in (("trials", 2), ("startup", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"tune: expected {name} >= {least}, got {getattr(self, name)}")
        if not self.run_seeds or min(self.run_seeds) < 0 or len(set(self.run_seeds)) < len(self.run_seeds):
            raise ValueError(f"tune: expected one or several different seeds >= 0, got {list(self.run_seeds)}")
        for text in self.space:
            read_range(text)

    def rules(self, cfg: DictConfig, *depends: Any) -> Rules:
        """For one run, as composed; ``depends`` is what else the trials depend on.

        Raises: ConfigError for a key that the run does not have and for one that is no number.
        """
        asked = [read_range(text) for text in self.space]
        ranges = [own for own in asked if has_number(cfg, own.key)]
        if not ranges and (unlike := [own.key for own in asked if own.key.split(".")[0] not in ("loss", "method")]):
            raise ConfigError(f"--space {unlike[0]}: this run has no such number")
        if not ranges:
            key = next((key for key in RATES if _number(cfg, key)), None)
            if key is None:
                raise ConfigError(f"this run has none of {', '.join(RATES)} to tune; say --space KEY=LOW:HIGH")
            rate = float(_number(cfg, key) or 0)
            low, high = (float(f"{rate * 10**d:.3g}") for d in (-DECADES, DECADES))
            ranges = [Range(key, low, high, log=True)]
        preset = tuple(float(_number(cfg, own.key) or 0) for own in ranges)
        return Rules(self, tuple(ranges), preset, short_hash(*depends, digits=12))


def has_number(cfg: DictConfig, key: str) -> bool:
    """Whether a run has a number under a key of a group, as ``method.lr``."""
    return bool(key.partition(".")[2]) and _number(cfg, key) is not None


def _number(cfg: DictConfig, key: str) -> float | None:
    value = OmegaConf.select(cfg, key)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


@dataclass(frozen=True)
class Rules:
    """A budget for one method and loss, as ``trials.Search`` takes it."""

    budget: Budget
    ranges: tuple[Range, ...]
    preset: Point
    depends: str = ""

    @property
    def trials(self) -> int:
        return self.budget.trials

    @property
    def seed(self) -> int:
        return self.budget.seed

    @property
    def startup(self) -> int:
        return self.budget.startup

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(own.key for own in self.ranges)

    @property
    def name(self) -> str:
        """Stands for what the trials depend on."""
        ranges = [asdict(own) for own in self.ranges]
        return short_hash({**asdict(self.budget), "space": ranges}, self.preset, self.depends, digits=12)

    @property
    def queue(self) -> list[dict[str, float]]:
        """The points that depend on no result: all, or those before the estimator takes over."""
        count = self.trials if self.budget.sampler == "spread" else min(self.trials, self.startup)
        return [
            dict(zip(self.keys, point, strict=True)) for point in spread(self.ranges, self.preset, count, self.seed)
        ]

    def waits(self, begun: int) -> bool:
        return False

    def point(self, trial: Trial, done: list[Done]) -> Point:
        """What a trial tries."""
        values = []
        for own, preset in zip(self.ranges, self.preset, strict=True):
            low, high = min(own.low, preset), max(own.high, preset)
            values.append(own.tidy(trial.suggest_float(own.key, low, high, log=own.log and low > 0)))
        return self.preset if trial.number == 0 else tuple(values)


def spread(ranges: Sequence[Range], preset: Point, count: int, seed: int) -> list[Point]:
    """``count`` points, the preset first: evenly spaced values of one range, ``count`` of them where the preset is one,
    else ``count - 1``; or a scrambled Halton sequence over several ranges."""
    if len(ranges) == 1:
        (own,) = ranges
        for n in (count, count - 1):
            values = [own.at(i / (n - 1)) for i in range(n)] if n > 1 else [own.at(0.5)]
            others = [value for value in values if not math.isclose(value, preset[0], rel_tol=5e-3)]
            if len(others) == count - 1:
                break
        return [preset, *((value,) for value in others[: count - 1])]
    from scipy.stats.qmc import Halton

    shares = Halton(len(ranges), scramble=True, rng=seed).random(count - 1)
    return [preset, *(tuple(own.at(x) for own, x in zip(ranges, row, strict=True)) for row in shares.tolist())]


def version() -> str:
    return optuna.__version__

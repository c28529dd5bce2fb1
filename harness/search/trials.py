"""A search by Optuna's tree-structured Parzen estimator, in a file that survives a kill and that processes share.

What a trial tries follows from the seed, the trial's number and the trials that are finished when it starts. So a
search by one process gives the same trials however often it was stopped; with several processes it depends on which
trials are finished when, and not on the seed alone. A trial whose process died is taken over by the next process that
looks.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import optuna
from filelock import FileLock
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from dembench.harness import runs
from dembench.harness.search.space import KINDS, ONE_ONE, ORDERS, Pair, suggest_alpha, suggest_tau
from dembench.lookup import lookup
from dembench.records import PLAIN, check, refuse_links
from dembench.tasks.base import ConfigError
from dembench.tasks.common.cache import short_hash
from dembench.tasks.common.files import plain_lock
from dembench.tasks.common.orders import derived_seed

WAIT_SECONDS = 0.5  # how often a process that waits for another one looks again
SAMPLER = "tpe"
OUTCOME = {  # of a trial, in Optuna's file
    "pair": [float],
    "score": float,
    "status": str,
    "details": {"value?": (float, None), "runs?": {str: {str: float}}, str: PLAIN},
}


@dataclass(frozen=True)
class Settings:
    """How a search goes.

    Args:
        trials: in all, the first of them at (1, 1), which is EM.
        space: "grid", the paper's, or "continuous".
        order: "joint", or "sequential": alpha beside tau = 1 in the first half of the trials, then tau beside the best
            alpha.
        startup: trials that are drawn at random before the estimator takes over.
        seed: of the sampler.
        run_seeds: each pair is tried with these and judged by the mean.
        metric: that is searched on; None is the task's own.
    Raises: ValueError for an unknown name or a number out of range.
    """

    trials: int = 40
    space: str = "grid"
    order: str = "joint"
    startup: int = 10
    seed: int = 0
    run_seeds: tuple[int, ...] = (0,)
    metric: str | None = None

    def __post_init__(self) -> None:
        lookup(self.space, KINDS, "space")
        lookup(self.order, ORDERS, "order")
        for name, least in (("trials", 2), ("startup", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"search: expected {name} >= {least}, got {getattr(self, name)}")
        if not self.run_seeds or min(self.run_seeds) < 0 or len(set(self.run_seeds)) < len(self.run_seeds):
            raise ValueError(f"search: expected one or several different seeds >= 0, got {list(self.run_seeds)}")

    @property
    def queue(self) -> list[dict[str, float]]:
        """What the first trials try: (1, 1); where tau is fixed in the first half, it is not drawn."""
        return [{"alpha": 1.0} if self.order == "sequential" else {"tau": 1.0, "alpha": 1.0}]

    def waits(self, begun: int) -> bool:
        """Whether the next of ``begun`` trials needs all that run to be finished."""
        return self.order == "sequential" and begun == self.first_half

    def point(self, trial: Trial, done: list[Done]) -> Pair:
        """What a trial tries; of a trial that was taken over, the same as before."""
        kind = self.space
        if self.order == "joint":
            alpha = suggest_alpha(trial, kind)
            return suggest_tau(trial, kind, alpha), alpha
        tau, alpha = ONE_ONE
        if trial.number < self.first_half:
            return tau, suggest_alpha(trial, kind, tau)
        chosen = best([one for one in done if one.number < self.first_half])
        alpha = alpha if chosen is None else chosen.pair[1]
        return suggest_tau(trial, kind, alpha), alpha

    @property
    def first_half(self) -> int:
        """Trials that search alpha, where the order is sequential."""
        return -(-self.trials // 2)

    @property
    def name(self) -> str:
        """Stands for what the trials depend on; a joint search can be made longer, a sequential one is another."""
        kept = asdict(self)
        if self.order == "joint":
            del kept["trials"]
        return short_hash(SAMPLER, sorted(kept.items()), digits=12)


@dataclass(frozen=True)
class Outcome:
    """What a trial found. ``score`` is better the higher it is; a trial whose ``status`` is not "ok" (a NaN, or one
    class taking all predictions) counts as the worst and cannot win. ``details`` are kept as they are (JSON)."""

    score: float
    status: str
    details: dict[str, Any]


Evaluate = Callable[[Any], Outcome]  # of a point


@dataclass(frozen=True)
class Done:
    """A finished trial; ``pair`` is the point that it tried, of DEM* (tau, alpha)."""

    number: int
    pair: tuple[float, ...]
    score: float
    status: str
    details: dict[str, Any]

    @property
    def ok(self) -> bool:
        return self.status == "ok"


class Rules(Protocol):
    """What a search needs to know of its settings; see ``Settings`` for the first of them."""

    @property
    def trials(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def startup(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def queue(self) -> list[dict[str, float]]: ...
    def waits(self, begun: int) -> bool: ...
    def point(self, trial: Trial, done: list[Done]) -> tuple[float, ...]: ...


class Search:
    """A search in a folder, shared by all processes that open it there with the same settings.

    Raises: ConfigError where Optuna's file there cannot be read, or is not of this search.
    """

    def __init__(self, folder: Path, settings: Rules) -> None:
        self.folder, self.settings = Path(folder), settings
        self.folder.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.journal = journal = self.folder / f"{settings.name}.journal"
        refuse_links(journal)  # Optuna opens it to add to it
        lock: Any = plain_lock(journal.with_suffix(".lock"))  # no dead process can hold it
        with self._alone(), self._readable():
            storage = JournalStorage(JournalFileBackend(str(journal), lock))
            self.study = optuna.create_study(
                storage=storage,
                sampler=ByTrial(settings),
                study_name=settings.name,
                direction="maximize",
                load_if_exists=True,
            )
            if not self.study.get_trials(deepcopy=False):
                for point in settings.queue:
                    self.study.enqueue_trial(point)

    def run(self, evaluate: Evaluate, tell: Callable[[Done], None] = lambda done: None) -> list[Done]:
        """Tries pairs until all trials are finished, by this process or by others; returns them by number.

        Args:
            evaluate: what it raises ends the search; the trial is tried again when the search goes on.
            tell: called after each trial of this process.
        """
        while True:
            with contextlib.ExitStack() as held:
                with self._readable():
                    if self._finished():
                        break
                    taken = self._take(held)
                if taken is None:
                    time.sleep(WAIT_SECONDS)
                    continue
                trial, pair = taken
                outcome = evaluate(pair)
                ok = outcome.status == "ok"
                with self._alone(), self._readable():
                    trial.set_user_attr("outcome", {"pair": pair, **asdict(outcome)})
                    score, state = (outcome.score, TrialState.COMPLETE) if ok else (None, TrialState.PRUNED)
                    self.study.tell(trial, score, state)
            tell(Done(trial.number, pair, **asdict(outcome)))
        return self.done()

    def done(self) -> list[Done]:
        """The finished trials by number."""
        with self._readable():
            trials = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
            outcomes = [(trial.number, dict(trial.user_attrs["outcome"])) for trial in trials]
            for _, outcome in outcomes:
                check(outcome, OUTCOME)
            return [Done(number, tuple(outcome.pop("pair")), **outcome) for number, outcome in outcomes]

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """Optuna raises whatever a damaged file makes of its code."""
        try:
            yield
        except (OSError, ConfigError):
            raise
        except Exception as error:
            told = " ".join(str(error).split())[:160]
            text = f"{self.journal} is no journal of this search that can be read ({type(error).__name__}: {told})"
            raise ConfigError(f"{text}; remove it and search again") from error

    def _finished(self) -> bool:
        trials = self._trials()
        return len(trials) >= self.settings.trials and all(trial.state.is_finished() for trial in trials)

    def _trials(self) -> list[FrozenTrial]:
        trials = self.study.get_trials(deepcopy=False)
        return [trial for trial in trials if trial.state is not TrialState.WAITING]

    def _take(self, held: contextlib.ExitStack) -> tuple[Trial, tuple[float, ...]] | None:
        """The next trial and its point, ``held`` while it runs; None where there is nothing to do but wait."""
        with self._alone():
            trials = self._trials()
            running = [trial for trial in trials if not trial.state.is_finished()]
            for frozen in running:
                if self._hold(frozen.number, held):  # its process is gone
                    trial = Trial(self.study, frozen._trial_id)
                    return trial, self.settings.point(trial, self.done())
            if len(trials) >= self.settings.trials:
                return None
            if running and self.settings.waits(len(trials)):
                return None
            trial = self.study.ask()
            self._hold(trial.number, held)
            return trial, self.settings.point(trial, self.done())

    def _hold(self, number: int, held: contextlib.ExitStack) -> bool:
        """Whether this process now holds a trial, until ``held`` closes; the lock goes with the process."""
        try:
            held.enter_context(runs.lock(self.folder / "locks" / f"{self.settings.name}-{number}"))
        except runs.RunBusy:
            return False
        return True

    def _alone(self) -> FileLock:
        return plain_lock(self.folder / ".lock")


def best(trials: list[Done]) -> Done | None:
    """The trial with the highest score, the first of equals; None where none is ok."""
    return max((trial for trial in trials if trial.ok), key=lambda trial: trial.score, default=None)


class ByTrial(BaseSampler):
    """Optuna's TPE, each number of each trial drawn with a seed of its own, so that a new process goes on as the old
    one would have. Numbers are modelled apart, because the range of one may depend on another."""

    def __init__(self, settings: Rules) -> None:
        self.settings = settings

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        seed = derived_seed(self.settings.seed, trial.number, param_name) % 2**32
        sampler = TPESampler(n_startup_trials=self.settings.startup, multivariate=False, constant_liar=True, seed=seed)
        return sampler.sample_independent(study, trial, param_name, param_distribution)

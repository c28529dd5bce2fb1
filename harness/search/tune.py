"""The tuning of one method with one loss: trials on the searched part, and the choice among them by every rule."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dembench import records
from dembench.harness import experiment, runs
from dembench.harness.compose import GROUPS, Choice, ConfigError, compose
from dembench.harness.search import dem_star, tuned
from dembench.harness.search.find import (
    choose_free,
    cost_of,
    judged,
    metrics_to_judge,
    outcome_of,
    result_of,
    subset_of,
)
from dembench.harness.search.ranges import Budget, Point, has_number, read_range, version
from dembench.harness.search.trials import Done, Outcome, Search, best
from dembench.tasks.common.cache import short_hash
from dembench.tasks.common.criteria import NAMES

SET_HERE = ("part", "seed", "tuned", "criteria")  # keys that a tuning chooses itself


def tune(
    words: Sequence[str] | Mapping[str, Any],
    budget: Budget,
    config_dir: Path | None = None,
    *,
    command: str = "",
    tell: Callable[[Done], None] = lambda done: None,
) -> dict[str, Any]:
    """Tunes, or goes on with a tuning that was stopped or is under way elsewhere, and writes its result.

    Args:
        words: what to tune for, as for a run: names of groups, and values inside them.
        budget: how.
        config_dir: own configurations.
        command: what the record gives as the way to repeat this.
        tell: called after each trial of this process.
    Returns: the record, which is in ``tune.json`` of its folder, with "path".
    Raises: ConfigError for whatever the user can put right, before the first trial; RuntimeError where no trial is ok.
    """
    choice = choose_free(words, SET_HERE, "a tuning")
    cfg = compose(_trial(choice, {}, budget.run_seeds[0]), config_dir)
    metrics = metrics_to_tune(cfg, budget)
    prepared = experiment.prepare(cfg)
    rules = budget.rules(cfg, sorted(prepared.fingerprints.items()))
    folder = tuned.folder(cfg)

    def evaluate(point: Point) -> Outcome:
        values = values_of(cfg, rules.keys, point)
        results = [result_of(_trial(choice, values, seed, folder / "trials"), config_dir) for seed in budget.run_seeds]
        found = outcome_of(results, metrics, budget.metric)
        measured = [_measured(result, metrics, budget.metric) for result in results]
        by_seed = dict(zip(map(str, budget.run_seeds), measured, strict=True))
        return replace(found, details={**found.details, "values": values, "seeds": by_seed})

    with experiment.user_errors():
        search = Search(folder, rules)
    done = search.run(evaluate, tell)
    if best(done) is None:
        statuses = ", ".join(sorted({trial.status for trial in done}))
        raise RuntimeError(f"none of the {len(done)} trials can win (status {statuses}); they are in {folder}")
    choices, absent = chosen(done, prepared.task, budget)
    first = done[0].details
    record = {
        "schema": records.VERSION,
        "id": short_hash(folder.name, rules.name, digits=12),
        **{group: prepared.config["choices"].get(group) for group in GROUPS},
        "data": getattr(getattr(prepared.task, "data", None), "name", prepared.config["choices"].get("data")),
        "keys": list(rules.keys),
        "space": [asdict(own) for own in rules.ranges],
        "preset": values_of(cfg, rules.keys, rules.preset),
        "metric": first["metric"],
        "better": "higher" if metrics[first["metric"]] > 0 else "lower",
        "settings": {**asdict(budget), "run_seeds": list(budget.run_seeds), "space": list(budget.space)},
        "subset": {
            "share": cfg.search_share,
            "seed": cfg.search_seed,
            "samples": first["samples"],
            "text": subset_of(cfg, prepared.task),
        },
        "cost": cost_of(done),
        "trials": [
            {"number": trial.number, "values": trial.details["values"], "status": trial.status}
            | {"seeds": trial.details["seeds"]}
            for trial in done
        ],
        "choices": choices,
        "absent": absent,
        "identity": dem_star.identity(cfg, cfg.choices.loss, ("loss",)),
        "fingerprints": prepared.fingerprints,
        "environment": {
            **runs.environment(prepared.config["device"], prepared.config["threads"]),
            "optuna": version(),
        },
        "finished": runs.now(),
        "command": command or tuned.command(cfg),
    }
    runs.write_json(folder / tuned.FILE, record)
    return {**record, "path": str(folder / tuned.FILE)}


def metrics_to_tune(cfg: DictConfig, budget: Budget) -> dict[str, int]:
    """As ``metrics_to_judge``; raises ConfigError for DEM*, too."""
    if cfg.choices.loss == "dem_star":
        raise ConfigError(
            "loss=dem_star has its own search (dembench search); tune loss=dem, with --space loss.tau=..."
        )
    return metrics_to_judge(cfg, budget.metric)


def check(many: Sequence[Mapping[str, Any]], budget: Budget, config_dir: Path | None = None) -> None:
    """Before the first of several tunings, given by their words: raises ConfigError where one cannot be judged or has
    nothing to tune, and for a key to tune that none of them has."""
    if not many:
        raise ConfigError("nothing to tune: no run asks for tuned=RULE")
    cfgs = [compose(_trial(choose_free(words, SET_HERE, "a tuning"), {}, 0), config_dir) for words in many]
    for key in (read_range(text).key for text in budget.space):
        if not any(has_number(cfg, key) for cfg in cfgs):
            raise ConfigError(f"--space {key}: no run of this tuning has such a number")
    for cfg in cfgs:
        metrics_to_tune(cfg, budget)
        budget.rules(cfg)


def _trial(choice: Choice, values: Mapping[str, float], seed: int, out: Path | None = None) -> Choice:
    """The run that judges settings on the searched part."""
    own = {**values, "part": "search", "criteria": True, "seed": seed}
    moved = {} if out is None else {"out": str(out), "force": False}
    return Choice(choice.groups, {**choice.values, **own, **moved}, choice.added)


def values_of(cfg: Any, keys: Sequence[str], point: Point) -> dict[str, float]:
    """{key: value}, whole where the configuration has a whole number."""
    found = zip(keys, point, strict=True)
    return {key: int(value) if isinstance(OmegaConf.select(cfg, key), int) else float(value) for key, value in found}


def _measured(result: Mapping[str, Any], metrics: Mapping[str, int], metric: str | None) -> dict[str, float | None]:
    """What a trial's run gives each rule of choice, by metric; None where it is not finite."""
    name, row = judged(result, metrics, metric)
    rows = {row["metric"]: row["value"] for row in result["rows"] if row["slice"] == "mean" and row["metric"] in NAMES}
    return {name: row["value"], **rows}


def chosen(done: Sequence[Done], task: Any, budget: Budget) -> tuple[dict[str, Any], dict[str, str]]:
    """{rule: the trial that it chooses, with its values}, and for each rule that chooses none the reason.

    A trial with a NaN is chosen by no rule; one in which a class takes nearly all predictions is not chosen with
    labels. (Without labels nobody knows that the class is not nearly all of the data.) Of equals, the first is chosen.
    """
    ordered = sorted(done, key=lambda trial: trial.number)
    found, absent = {"fixed": ordered[0], "oracle": best(ordered)}, {}
    for name in NAMES:
        scored = [(score, trial) for trial in ordered if (score := criterion(trial, name)) is not None]
        if budget.sampler != "spread":
            absent[name] = (
                f"labels guided the trials of sampler {budget.sampler}; without labels, choose among spread ones"
            )
        elif getattr(type(task), "without_labels", None):
            absent[name] = type(task).without_labels
        elif not scored:
            absent[name] = f"no trial has a finite {name}"
        else:
            found[name] = max(scored, key=lambda pair: pair[0])[1]
    kinds = {kind: trial for kind in tuned.KINDS if (trial := found.get(kind)) is not None}
    return {kind: {"trial": one.number, "values": one.details["values"]} for kind, one in kinds.items()}, absent


def criterion(trial: Done, name: str) -> float | None:
    """The mean of a criterion over the seeds of a trial; None where one of them lacks it or met a NaN."""
    values = [seed.get(name) for seed in trial.details["seeds"].values()]
    finite = trial.status != "nan" and all(value is not None and math.isfinite(value) for value in values)
    return statistics.fmean(values) if finite else None

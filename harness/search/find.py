"""The search for one task, method, model, data set and protocol: trials are runs of DEM on the searched part."""

from __future__ import annotations

import shlex
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dembench import records
from dembench.harness import experiment, runs
from dembench.harness.compose import Choice, ConfigError, choose, compose, lookup_or_fail, to_arguments
from dembench.harness.search import dem_star
from dembench.harness.search.space import ONE_ONE, Pair
from dembench.harness.search.trials import Done, Outcome, Search, Settings, best
from dembench.harness.targets import locate
from dembench.tasks.common import trust
from dembench.tasks.common.cache import short_hash

BUSY_SECONDS = 1.0  # how often a run that another process is writing is looked at
COSTS = ("cpu_seconds", "wall_seconds", "forward_passes", "backward_passes")
SET_HERE = ("loss", "part", "seed")  # keys that a search chooses itself


def search(
    words: Sequence[str] | Mapping[str, Any],
    settings: Settings,
    config_dir: Path | None = None,
    *,
    command: str = "",
    tell: Callable[[Done], None] = lambda done: None,
    begin: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Searches, or goes on with a search that was stopped or is under way elsewhere, and writes its result.

    Args:
        words: what to search for, as for a run: names of groups, and values inside them.
        settings: how.
        config_dir: own configurations.
        command: what the record gives as the way to repeat this.
        tell: called after each trial of this process. begin: called before the first, when all is checked.
    Returns: the record, which is in ``search.json`` of its folder, with "path".
    Raises: ConfigError for whatever the user can put right, before the first trial; RuntimeError where no trial is ok.
    """
    choice = choose_free(words, SET_HERE, "a search")
    cfg = compose(trial(choice, ONE_ONE, settings.run_seeds[0]), config_dir)
    metrics = metrics_to_judge(cfg, settings.metric)
    prepared = experiment.prepare(cfg)
    folder = dem_star.folder(cfg, prepared.fingerprints)

    def evaluate(pair: Pair) -> Outcome:
        words = (trial(choice, pair, seed, folder / "trials") for seed in settings.run_seeds)
        results = [result_of(each, config_dir) for each in words]
        return outcome_of(results, metrics, settings.metric)

    with experiment.user_errors():
        found = Search(folder, settings)
    begin()
    done = found.run(evaluate, tell)
    chosen = best(done)
    if chosen is None:
        statuses = ", ".join(sorted({trial.status for trial in done}))
        raise RuntimeError(f"none of the {len(done)} trials can win (status {statuses}); they are in {folder}")
    first = next((trial for trial in done if trial.pair == ONE_ONE), None)
    record = {
        "schema": records.VERSION,
        "id": short_hash(folder.name, settings.name, digits=12),
        **{group: prepared.config["choices"].get(group) for group in dem_star.NAMED},
        "data": getattr(getattr(prepared.task, "data", None), "name", prepared.config["choices"].get("data")),
        "pair": dict(zip(("tau", "alpha"), chosen.pair, strict=True)),
        "metric": chosen.details["metric"],
        "value": chosen.details["value"],
        "at_one_one": first.details["value"] if first else None,
        "settings": {**asdict(settings), "run_seeds": list(settings.run_seeds), "trials": len(done)},
        "subset": {
            "share": cfg.search_share,
            "seed": cfg.search_seed,
            "samples": chosen.details["samples"],
            "text": subset_of(cfg, prepared.task),
        },
        "cost": cost_of(done),
        "trials": [
            {"number": trial.number, "tau": trial.pair[0], "alpha": trial.pair[1], "status": trial.status}
            | {key: trial.details[key] for key in ("value", "runs")}
            for trial in done
        ],
        "identity": dem_star.identity(cfg),
        "fingerprints": prepared.fingerprints,
        "environment": {**runs.environment(prepared.config["device"], prepared.config["threads"]), **_optuna()},
        "finished": runs.now(),
        "command": command or dem_star.command(cfg),
    }
    runs.write_json(folder / "search.json", record)
    return {**record, "path": str(folder / "search.json")}


def choose_free(words: Sequence[str] | Mapping[str, Any], taken: Sequence[str], what: str) -> Choice:
    """``choose``, of words that leave free the keys that ``what`` sets itself. Raises: ConfigError."""
    choice = choose(words)
    for key in (*choice.groups, *choice.values):
        if key.split(".")[0] in taken:
            raise ConfigError(f"{key}: {what} sets {', '.join(taken)} itself")
    return choice


def metrics_to_judge(cfg: Any, metric: str | None) -> dict[str, int]:
    """``metrics_of`` a task that can be searched. Raises: ConfigError for a metric or a task that cannot judge."""
    metrics = metrics_of(cfg)
    if metric is not None:
        lookup_or_fail(metric, metrics, "metric")
    check_task(cfg)
    return metrics


def trial(choice: Choice, pair: Pair, seed: int, out: Path | None = None) -> Choice:
    """The run of DEM that judges a pair on the searched part."""
    tau, alpha = pair
    own = {"loss.tau": float(tau), "loss.alpha": float(alpha), "part": "search", "seed": seed}
    moved = {} if out is None else {"out": str(out), "force": False}
    return Choice({**choice.groups, "loss": "dem"}, {**choice.values, **own, **moved}, choice.added)


def result_of(choice: Choice, config_dir: Path | None = None) -> dict[str, Any]:
    """The result of one run, found where it has been run before, by this process or by another that is at it."""
    prepared = experiment.prepare(compose(choice, config_dir))
    words = {f"+{key}" if key in choice.added else key: value for key, value in choice.values.items()}
    command = shlex.join(["dembench", "run", *trust.arguments(config_dir), *to_arguments({**choice.groups, **words})])
    while True:
        try:
            return experiment.run(prepared, command=command).result
        except runs.RunBusy:
            time.sleep(BUSY_SECONDS)


def metrics_of(cfg: Any) -> dict[str, int]:
    """{metric: 1 where higher is better, else -1}, as the task declares it, the one it is judged by first."""
    declared = OmegaConf.select(cfg, "labels.task.metrics") or {}
    return {str(name): -1 if (own or {}).get("better") == "lower" else 1 for name, own in declared.items()}


def outcome_of(results: Sequence[Mapping[str, Any]], metrics: Mapping[str, int], metric: str | None = None) -> Outcome:
    """The mean over runs that differ in the seed; as bad as the worst of them where one is not ok."""
    statuses = [result["status"] for result in results]
    status = next((status for status in statuses if status != "ok"), "ok")
    rows = [judged(result, metrics, metric) for result in results]
    name, first = rows[0]
    values = [row["value"] for _, row in rows if row["value"] is not None]
    if len(values) < len(rows):
        status = "nan"
    value = statistics.fmean(values) if values else None
    details = {
        "metric": name,
        "value": value,
        "samples": first["n"],
        "runs": {result["id"]: {name: result["cost"].get(name, 0) for name in COSTS} for result in results},
    }
    return Outcome(0.0 if value is None else metrics[name] * value, status, details)


def judged(
    result: Mapping[str, Any], metrics: Mapping[str, int], metric: str | None = None
) -> tuple[str, Mapping[str, Any]]:
    """The row that a search goes by: of slice "mean", the metric asked for or the first that the task is judged by.

    Raises: ConfigError where the run has no such row.
    """
    means = {row["metric"]: row for row in result["rows"] if row["slice"] == "mean"}
    for name in metrics if metric is None else (metric,):
        if name in means:
            return name, means[name]
    known = sorted(means.keys() & metrics.keys())
    raise ConfigError(
        f"{result['task']} has no mean {metric or 'of a known metric'}; valid: {', '.join(known) or 'none'}"
    )


def subset_of(cfg: Any, task: Any) -> str:
    """Which samples the search judges on, in words."""
    if task.splits:
        return f"{cfg.search_share:.0%} of each set by search_seed={cfg.search_seed}"
    return getattr(task, "searched", "samples of the task's own that are never judged")


def cost_of(done: Sequence[Done]) -> dict[str, float]:
    """What trials cost together; a run that serves two of them counts once."""
    costs = list({id: cost for trial in done for id, cost in trial.details["runs"].items()}.values())
    return {name: round(sum(cost.get(name, 0) for cost in costs), 3) for name in COSTS} | {"runs": len(costs)}


def check_task(cfg: Any) -> None:
    """Raises ConfigError where the task has no part for a search."""
    task = locate(cfg.task["_target_"], "task")
    if getattr(task, "splits", None) is None:
        raise ConfigError(f"the task {cfg.choices.task} does not support part=search")
    if not getattr(locate(cfg.method["_target_"], "method"), "uses_loss", True):
        raise ConfigError(f"method={cfg.choices.method} lowers no loss: no loss is searched or tuned for it")


def _optuna() -> dict[str, str]:
    import optuna

    return {"optuna": optuna.__version__}

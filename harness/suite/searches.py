"""The searches that runs with loss=dem_star rest on, and the tunings that runs with tuned=... rest on: which there are,
which are done, and doing the others."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dembench.harness.compose import ConfigError, Words, compose, to_arguments
from dembench.harness.engines import warm
from dembench.harness.say import LOG, say

STAR = "dem_star"


@dataclass(frozen=True)
class Needed:
    """A search or a tuning, and the runs that wait for it."""

    words: Words  # as dembench search or tune takes them
    runs: tuple[Words, ...]
    done: bool
    verb: str = "search"  # or "tune"

    @property
    def title(self) -> str:
        """The names in it."""
        keys = ("task", "method", "data", "model", "protocol", *(["loss"] if self.verb == "tune" else []))
        names = [str(self.words[key]) for key in keys if key in self.words]
        return " ".join(names)


def needed(many: Iterable[Words], trials: int | None = None, config_dir: Path | None = None) -> list[Needed]:
    """One search for all runs that differ in seed and in how DEM* is judged only.

    Args:
        many: runs; those of other losses are passed over.
        trials: a finished search with fewer trials is not done.
    """
    from dembench.harness.search.dem_star import identity
    from dembench.harness.search.find import SET_HERE

    found: dict[str, list[Words]] = {}
    for words in many:
        if words.get("loss") == STAR:
            found.setdefault(_without(words, SET_HERE), []).append(words)
    searches = []
    for key, runs in found.items():
        words = json.loads(key)
        cfg = compose(words, config_dir)
        records = _records(Path(cfg.out), cfg.choices.task, cfg.choices.method)
        known = identity(cfg)
        done = any(
            record.get("identity") == known and record["settings"]["trials"] >= (trials or 0) for record in records
        )
        searches.append(Needed(words, tuple(runs), done))
    return searches


def tunings(many: Iterable[Words], config_dir: Path | None = None) -> list[Needed]:
    """One tuning for all runs with tuned=... that differ in seed and in the rule only."""
    from dembench.harness.search import tuned
    from dembench.harness.search.tune import SET_HERE

    found: dict[str, list[Words]] = {}
    for words in many:
        if words.get("tuned") is not None:
            found.setdefault(_without(words, SET_HERE), []).append(words)
    plain = {key: json.loads(key) for key in found}
    return [
        Needed(words, tuple(found[key]), tuned.read(compose(words, config_dir)) is not None, "tune")
        for key, words in plain.items()
    ]


def offered(many: Iterable[Words], config_dir: Path | None = None) -> tuple[list[Words], list[str]]:
    """The runs without those whose rule of choice does not exist for their task, and the reasons, each once."""
    from dembench.harness.search import tuned

    kept: list[Words] = []
    reasons: dict[str, None] = {}
    for words in many:
        cfg = None if words.get("tuned") is None else compose(words, config_dir)
        record = None if cfg is None else tuned.read(cfg)
        if cfg is not None and record is not None and cfg.tuned in record["absent"]:
            reasons.setdefault(f"{cfg.choices.task}, tuned={cfg.tuned}: {record['absent'][cfg.tuned]}")
        else:
            kept.append(words)
    return kept, list(reasons)


def _without(words: Words, set_here: Iterable[str]) -> str:
    """The words of a search, as JSON."""
    left_out = (*set_here, "logger", "save", "force", "progress")
    kept = {key: value for key, value in words.items() if key.lstrip("+").split(".")[0] not in left_out}
    return json.dumps(kept, sort_keys=True)


def _records(out: Path, task: str, method: str) -> Iterator[Mapping[str, Any]]:
    from dembench.harness.search.dem_star import FOLDER, read

    for path in sorted((out / FOLDER).glob(f"{task}-{method}-*/search.json")):
        record = read(path)
        if record is not None:
            yield record


def run(
    searches: Iterable[Needed],
    options: Mapping[str, Mapping[str, Any]],
    workers: int,
    config_dir: Path | None = None,
    tell: Callable[[Needed, str], None] = lambda search, text: None,
) -> list[Needed]:
    """Does searches, each in one process so that its trials follow from its seed.

    Args:
        options: of ``harness.search.trials.Settings`` under "search", of ``harness.search.ranges.Budget`` under "tune".
        workers: processes; 0 searches in this process.
        tell: called with each search that ends and a line on it.
    Returns: those that failed. On KeyboardInterrupt the processes are ended; what is tried is kept.
    """
    failed = []
    todo = list(searches)
    if not workers or not todo:
        outcomes: Iterable[tuple[Needed, str | None, str]] = (
            (search, *_attempt(search, options[search.verb], config_dir)) for search in todo
        )
    else:
        outcomes = _in_processes(todo, options, min(workers, len(todo)), config_dir)
    for search, line, reason in outcomes:
        if line is None:
            failed.append(search)
        tell(search, reason if line is None else line)
    return failed


def _in_processes(
    todo: list[Needed], options: Mapping[str, Mapping[str, Any]], workers: int, config_dir: Path | None
) -> Iterator[tuple[Needed, str | None, str]]:
    own = {warm.THREADS: "1"}
    variables = {**os.environ, **own}
    context = warm.context(own)
    with (
        warm.environment(own),
        ProcessPoolExecutor(workers, mp_context=context, initializer=_take, initargs=(variables, LOG.level)) as pool,
    ):
        waiting = {pool.submit(_attempt, search, options[search.verb], config_dir): search for search in todo}
        try:
            for future in as_completed(waiting):
                yield waiting[future], *future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _take(variables: Mapping[str, str], level: int) -> None:
    """The environment of the process that asked, and what is told; Ctrl-C reaches both and ends both."""
    warm.take(variables)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    LOG.setLevel(level)


def _trial(needed: Needed) -> Callable[[Any], None]:
    """A line for each trial that ends."""

    def tell(done: Any) -> None:
        value = done.details.get("value")
        number = "" if value is None else f": {done.details['metric']} {value:.4f}"
        say(f"{needed.verb} {needed.title}: trial {done.number + 1}{number}")

    return tell


def _attempt(needed: Needed, options: Mapping[str, Any], config_dir: Path | None) -> tuple[str | None, str]:
    """A line on what was found, or None and the reason why there is nothing."""
    try:
        return (_tune if needed.verb == "tune" else _search)(needed, options, config_dir), ""
    except (ConfigError, RuntimeError) as error:
        return None, f"failed: {error} (dembench {needed.verb} {' '.join(to_arguments(needed.words))})"


def _tune(needed: Needed, options: Mapping[str, Any], config_dir: Path | None) -> str:
    from dembench.harness.search.ranges import Budget
    from dembench.harness.search.tune import tune

    texts = {key: tuple(value) for key, value in options.items() if isinstance(value, list)}
    record = tune(needed.words, Budget(**{**options, **texts}), config_dir, tell=_trial(needed))
    found = [
        f"{kind} {', '.join(f'{value:g}' for value in choice['values'].values())}"
        for kind, choice in record["choices"].items()
    ]
    return f"{', '.join(record['keys'])}: {'; '.join(found)}, {record['cost']['wall_seconds']:.0f} s"


def _search(needed: Needed, options: Mapping[str, Any], config_dir: Path | None) -> str:
    from dembench.harness.search.find import search
    from dembench.harness.search.trials import Settings

    record = search(needed.words, Settings(**options), config_dir, tell=_trial(needed))
    pair, cost = record["pair"], record["cost"]
    value = f"{record['metric']} {record['value']:.4f}"
    one = record["at_one_one"]
    beside = "" if one is None else f", {one:.4f} at (1, 1)"
    return f"tau {pair['tau']:g}, alpha {pair['alpha']:g}: {value}{beside}, {cost['wall_seconds']:.0f} s"

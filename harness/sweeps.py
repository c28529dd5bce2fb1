"""Many runs: a grid written as a short file, expanded and checked as a whole.

A sweep file has ``base`` (what all runs share) and ``grids``, a list; each grid is a mapping from keys, as on the
command line, to a value or a list of values, and gives every combination. The grids are put one after the other, so
that a grid can tie values together (a loss's options to a protocol). A study also has ``paper``, a list of such
mappings that replace keys for the source's own data and model (``harness.suite.papers``); ``tune`` holds options of
``dembench tune`` for runs with ``tuned``. What is done is read from the disk: a run with a result is done, everything
else is missing. ``harness.engines`` runs what is missing.
"""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dembench.harness import groups, runs
from dembench.harness.compose import (
    GROUPS,
    ConfigError,
    Words,
    as_text,
    check_signatures,
    composed,
    lookup_or_fail,
    options,
    parse,
    read_data,
    read_file,
    read_option,
    to_arguments,
)
from dembench.harness.errors import RunFirst
from dembench.harness.targets import build
from dembench.harness.times import Times, past_results
from dembench.tasks.base import PART_KEYS
from dembench.tasks.common import trust

STUDIES = "sweep/study"  # the folder of the sources' tables and figures

_Composed = tuple[Words, dict[str, Any], dict[str, Any]]  # a run in words, composed, and resolved


@dataclass(frozen=True)
class Planned:
    """One run of a sweep that is known to compose and to find its data."""

    id: str
    words: Words
    config: dict[str, Any]
    directory: Path
    result: dict[str, Any] | None  # of an earlier run
    config_dir: Path | None = None
    odd: str = ""  # why the record that is there cannot be read: it is set aside before the run runs

    @property
    def done(self) -> bool:
        return self.result is not None and not self.config["force"]

    @property
    def command(self) -> str:
        """What runs this one alone."""
        return shlex.join(["dembench", "run", *trust.arguments(self.config_dir), *to_arguments(self.words)])


def read_sweep(file_or_name: str, config_dir: Path | None = None) -> dict[str, Any]:
    """The plain content of a sweep file, given as a path (with a suffix or a slash), as a name of configs/sweep/, or as
    ``study=NAME`` for one of configs/sweep/study/.

    Raises: ConfigError where there is no such file or it is no sweep.
    """
    path = Path(file_or_name)
    if file_or_name.startswith("study="):
        name = lookup_or_fail(file_or_name.removeprefix("study="), options(STUDIES, config_dir=config_dir), "study")
        text = read_option(STUDIES, name, config_dir=config_dir)
    elif path.suffix in (".yaml", ".yml") or "/" in file_or_name:
        if not path.is_file():
            raise ConfigError(f"no sweep file {file_or_name}")
        text = read_file(path)
    else:
        lookup_or_fail(file_or_name, options("sweep", config_dir=config_dir), "sweep")
        text = read_option("sweep", file_or_name, config_dir=config_dir)
    plain = read_data(text, f"sweep {file_or_name}", "the keys base and grids")
    for key in plain:
        lookup_or_fail(str(key), ("base", "grids", "paper", "tune"), f"key of sweep {file_or_name}")
    base, grids, paper = plain.get("base") or {}, plain.get("grids"), plain.get("paper") or []
    if not isinstance(tune := plain.get("tune") or {}, dict):
        raise ConfigError(f"sweep {file_or_name}: tune must be a mapping")
    if not isinstance(base, dict) or not _mappings(grids):
        raise ConfigError(f"sweep {file_or_name}: base must be a mapping and grids a list of mappings")
    if not _mappings(paper):
        raise ConfigError(f"sweep {file_or_name}: paper must be a list of mappings")
    if any(not isinstance(key, str) for node in [base, *(grids or []), *paper] for key in node):
        raise ConfigError(f"sweep {file_or_name}: keys must be texts")
    return {"name": file_or_name, "base": base, "grids": grids, "paper": paper, "tune": tune}


def _mappings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def read_overrides(words: Sequence[str]) -> dict[str, list[Any]]:
    """Command line words to values per key; ``seed=0,1`` gives two values, ``seed=[0,1]`` one that is a list."""
    from hydra.core.override_parser.types import Override

    found: dict[str, list[Any]] = {}
    for override in parse(words):
        key = f"+{override.key_or_group}" if override.is_add() else override.key_or_group
        if override.is_sweep_override():
            found[key] = [Override._convert_value(value) for value in override.sweep_iterator()]
        else:
            found[key] = [override.value()]
    return found


def axes(grid: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Values per key of a grid, where a value that is no list stands for itself."""
    return {key: value if isinstance(value, list) else [value] for key, value in grid.items()}


def expand(sweep: Mapping[str, Any], overrides: Mapping[str, list[Any]] | None = None) -> list[Words]:
    """Every run of a sweep, in the order of the file, each once; an override replaces a key in all grids."""
    expanded: dict[str, Words] = {}
    for grid in sweep["grids"]:
        varied = axes({**sweep["base"], **grid}) | dict(overrides or {})
        for values in itertools.product(*varied.values()):
            words = dict(zip(varied, values, strict=True))
            expanded.setdefault(json.dumps(words, sort_keys=True), words)
    if not expanded:
        empty = sorted({key for grid in sweep["grids"] for key, values in axes(grid).items() if not values})
        name = f"sweep {sweep['name']}: " if "name" in sweep else ""
        raise ConfigError(f"{name}a sweep of no runs: {', '.join(empty) or 'grids'} is empty")
    return list(expanded.values())


def fit(
    many: Sequence[Words], overrides: Iterable[str], config_dir: Path | None = None
) -> tuple[list[Words], dict[str, list[str]]]:
    """Leaves an override of an option such as ``method.lr`` or ``loss.tau`` out of the runs whose method or loss has no
    such option, unless none has it; new options (``+loss.alpha``) stay in all.

    Returns: the runs, and for each override that was left out somewhere the names of those methods or losses.
    Raises: ConfigError for an unknown name.
    """
    fitted, left = [dict(words) for words in many], {}
    for key in overrides:
        group = key.partition(".")[0]
        if group not in ("method", "loss") or group == key:
            continue
        without = [words for words in fitted if not _has(words, key, config_dir)]
        if without and len(without) < len(fitted):
            for words in without:
                del words[key]
            left[key] = list(dict.fromkeys(_named(words, config_dir)["choices"][group] for words in without))
    return list({json.dumps(words, sort_keys=True): words for words in fitted}.values()), left


def _has(words: Words, key: str, config_dir: Path | None) -> bool:
    """Whether the configurations that a run names have a dotted key."""
    node: Any = _named(words, config_dir)
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def _named(words: Words, config_dir: Path | None) -> dict[str, Any]:
    """The configurations that a run names, as they are in their files."""
    return composed({group: words[group] for group in GROUPS if group in words}, config_dir, complete=False)


def check_words(many: Iterable[Words], config_dir: Path | None = None) -> None:
    """Raises ConfigError for a name, a key, a kind of value or a range that is wrong in any run; imports no PyTorch."""
    for words in many:
        with _named_errors(words):
            composed(words, config_dir, complete=False)


def plan(many: Iterable[Words], config_dir: Path | None = None, *, elsewhere: bool = False) -> list[Planned]:
    """Composes and checks every run before the first starts: names, arguments, data, weights, and whether task and
    method take what they are given; two words for one run are one run.

    Args:
        many: runs in words. config_dir: own configurations.
        elsewhere: the runs will not run on this machine, which need not have a GPU for device=cuda.
    Raises: ConfigError that names the run.
    """
    composed_runs = []
    for words in many:
        with _named_errors(words):
            composed_runs.append((words, composed(words, config_dir)))
    from dembench.harness import compiler, experiment  # from here on PyTorch is needed
    from dembench.harness.search import tuned

    compiler.on_demand()
    alike: dict[str, list[_Composed]] = {}  # runs that differ in seed, method and loss
    order: list[tuple[Words, dict[str, Any], dict[str, Any] | None]] = []
    tunings: dict[str, None] = {}
    for words, cfg in composed_runs:
        try:
            with _named_errors(words):
                cfg, tune = tuned.settle_plain(cfg)
                config = _resolve(cfg, elsewhere) | ({} if tune is None else {"tune": tune["id"]})
        except RunFirst as error:
            tunings.setdefault(error.command)
            continue
        alike.setdefault(_kind(cfg, config), []).append((words, cfg, config))
        order.append((words, config, tune))
    if tunings:
        raise ConfigError(f"tuned runs need {len(tunings)} tunings first: {'; '.join(tunings)}")
    searches: dict[str, None] = {}
    found: dict[str, dict[str, str]] = {}
    for group in alike.values():
        _check(group, found, searches)
    if searches:
        raise ConfigError(f"loss=dem_star needs {len(searches)} searches first: {'; '.join(searches)}")
    planned: dict[str, Planned] = {}
    for words, config, tune in order:
        fingerprints = found[_sources(config)] | experiment.files(config)
        if tune is not None:
            with _named_errors(words):
                tuned.check(tune, config["seed"], fingerprints)
        id = runs.run_id(config, fingerprints)
        directory = Path(config["out"]) / id
        try:
            result, odd = runs.read_result(directory), ""
        except ValueError as error:
            result, odd = None, str(error)
        if result is not None and not config["force"]:
            with _named_errors(words), experiment.user_errors():
                runs.clear_leftovers(directory)
        planned.setdefault(id, Planned(id, words, config, directory, result, config_dir, odd))
    return list(planned.values())


@contextmanager
def _named_errors(words: Words) -> Iterator[None]:
    try:
        yield
    except RunFirst:
        raise
    except ConfigError as error:
        hint = "; in a grid each value of a list is a run: write [[a, b]] for a value that is a list"
        asked = hint if "expected a list" in str(error) else ""
        raise ConfigError(f"{error}{asked} (in {' '.join(to_arguments(words))})") from error


def _resolve(cfg: dict[str, Any], elsewhere: bool) -> dict[str, Any]:
    from dembench.harness import experiment
    from dembench.tasks.common import parts

    if elsewhere and cfg["device"] == "cuda":
        return parts.without_default(groups.resolve(cfg))
    return experiment.resolve(cfg)


def _kind(cfg: dict[str, Any], config: Mapping[str, Any]) -> str:
    """What all runs share whose task is right where one of them is: they differ in seed, method and loss."""
    at_zero = groups.resolve({**cfg, "seed": 0}, ("task",))["task"]  # so that what follows the seed is the same
    part = {key: config.get(key) for key in PART_KEYS}
    return json.dumps({**at_zero, "device": config["device"], **part}, sort_keys=True)


def _sources(config: Mapping[str, Any]) -> str:
    """What the fingerprints of data and weights depend on."""
    part = {key: config.get(key) for key in PART_KEYS}
    task = {key: value for key, value in config["task"].items() if key not in ("seed", "protocol")}
    return json.dumps([task, part], sort_keys=True)


def _check(
    alike: Sequence[_Composed],
    found: dict[str, dict[str, str]],
    searches: dict[str, None],
) -> None:
    """Builds the task of runs that differ in seed, method and loss only, for each of their data and weights, and each
    method once; puts the pair that was searched for DEM* into the configurations.

    Args:
        found: is given what stands for the task's paths in the ids, by ``_sources``.
        searches: is given the command of each search that is missing.
    """
    from dembench.harness import experiment
    from dembench.harness.search import dem_star

    task: Any = None
    seen = set()
    for words, cfg, config in alike:
        if (key := _sources(config)) not in found or task is None:
            with _named_errors(words), experiment.user_errors():
                if task is None:
                    check_signatures({group: config.get(group) for group in (*GROUPS[1:], "task")})
                experiment.seed_all(config["seed"])
                built = experiment.build_task(config)
                found[key] = experiment.fingerprints(getattr(built, "data", None), getattr(built, "model", None))
                task = built if task is None else task
        if dem_star.asked(config):
            try:
                with _named_errors(words):
                    config.update(dem_star.settle(cfg, config, found[key] | experiment.files(config))[0])
            except RunFirst as error:
                searches.setdefault(error.command)
                continue
        key = json.dumps([config["method"], config["loss"]], sort_keys=True)
        if key in seen:
            continue
        seen.add(key)
        with _named_errors(words):
            check_signatures({group: config.get(group) for group in ("method", "loss")})
            with experiment.user_errors():
                make_method = build(config["method"], "method", loss=experiment.build_loss(config))
            experiment.check_method(task, make_method)


def failure_note(directory: Path) -> Path:
    """Where the reason is kept for which the run of a directory failed, if it did."""
    return directory.parent / "failed" / f"{directory.name}.txt"


def labels(planned: Sequence[Planned]) -> dict[str, str]:
    """By id, each run in as many words as tell it from the others: "tta tent adadem lr=0.01 seed=1"."""
    asked = [{**run.config["choices"], **run.words, "seed": run.config["seed"]} for run in planned]
    keys = [key for key in dict.fromkeys((*GROUPS, *itertools.chain(*asked))) if key not in ("seed", *runs.NOT_IN_ID)]
    texts: dict[str, list[str]] = {run.id: [] for run in planned}
    for key in (*keys, "seed"):
        values = [as_text(words.get(key)) for words in asked]
        told = dict(zip(map(tuple, texts.values()), values, strict=True))  # what the words so far would make of it
        if all(told[tuple(text)] == value for text, value in zip(texts.values(), values, strict=True)):
            continue
        for text, value in zip(texts.values(), values, strict=True):
            text.append(value if key in GROUPS else f"{key.rpartition('.')[2]}={value}")
    return {id: " ".join(word for word in text if not word.endswith("null")) or "run" for id, text in texts.items()}


def past_times(planned: Sequence[Planned]) -> Times:
    """How long the finished runs of a plan took, and others that lie in the same folders."""
    times = Times()
    for run in planned:
        if run.result is not None:
            times.add_result(run.result)
    for result in past_results({run.directory.parent for run in planned}, {run.id for run in planned}):
        times.add_result(result)
    return times


def estimate(planned: Sequence[Planned], slots: int, times: Times | None = None) -> float | None:
    """Seconds that the missing runs will take, ``slots`` at a time, by past runs; those of a task that has none are not
    counted, and None is returned where no missing run has any."""
    times = past_times(planned) if times is None else times
    expected = [times.expected(run.config) for run in planned if not run.done]
    known = [seconds for seconds in expected if seconds is not None]
    return sum(known) / max(1, slots) if known else None

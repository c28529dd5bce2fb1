"""Many runs: a grid written as a short file, expanded, checked as a whole, and run by processes of this machine.

A sweep file has ``base`` (what all runs share) and ``grids``, a list; each grid is a mapping from keys, as on the
command line, to a value or a list of values, and gives every combination. The grids are put one after the other, so
that a grid can tie values together (a loss's options to a protocol). What runs is read from the disk: a run with a
result is done, everything else is absent.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from tasks import experiment, runs
from tasks.compose import GROUPS, ConfigError, check_signatures, compose, lookup_or_fail, options, parse, read_option

STUDIES = "sweep/study"  # the folder of the sources' tables and figures
Words = dict[str, Any]  # key -> plain value, as ``tasks.compose.choose`` takes them


@dataclass(frozen=True)
class Planned:
    """One run of a sweep that is known to compose and to find its data."""

    id: str
    words: Words
    config: dict[str, Any]
    directory: Path
    result: dict[str, Any] | None  # of an earlier run
    config_dir: Path | None = None

    @property
    def done(self) -> bool:
        return self.result is not None and not self.config["force"]

    @property
    def command(self) -> str:
        """What runs this one alone."""
        own = [] if self.config_dir is None else ["--config-dir", str(self.config_dir)]
        return shlex.join(["dembench", "run", *own, *to_arguments(self.words)])


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
        text = path.read_text(encoding="utf-8")
    else:
        lookup_or_fail(file_or_name, options("sweep", config_dir=config_dir), "sweep")
        text = read_option("sweep", file_or_name, config_dir=config_dir)
    try:
        content = OmegaConf.create(text)
        plain = OmegaConf.to_container(content)
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"sweep {file_or_name}: {' '.join(str(error).split())}") from None
    if not isinstance(content, DictConfig) or not isinstance(plain, dict):
        raise ConfigError(f"sweep {file_or_name}: expected the keys base and grids")
    for key in plain:
        lookup_or_fail(str(key), ("base", "grids"), f"key of sweep {file_or_name}")
    base, grids = plain.get("base") or {}, plain.get("grids")
    if not isinstance(base, dict) or not isinstance(grids, list) or not all(isinstance(g, dict) for g in grids):
        raise ConfigError(f"sweep {file_or_name}: base must be a mapping and grids a list of mappings")
    return {"base": base, "grids": grids or [{}]}


def read_overrides(words: Sequence[str]) -> dict[str, list[Any]]:
    """Command line words to values per key; ``seed=0,1`` gives two values, ``seed=[0,1]`` one that is a list."""
    found = {}
    for override in parse(words):
        key = f"+{override.key_or_group}" if override.is_add() else override.key_or_group
        if override.is_sweep_override():
            found[key] = [Override._convert_value(value) for value in override.sweep_iterator()]
        else:
            found[key] = [override.value()]
    return found


def expand(sweep: Mapping[str, Any], overrides: Mapping[str, list[Any]] | None = None) -> list[Words]:
    """Every run of a sweep, in the order of the file, each once; an override replaces a key in all grids."""
    expanded: dict[str, Words] = {}
    for grid in sweep["grids"]:
        axes = {k: v if isinstance(v, list) else [v] for k, v in {**sweep["base"], **grid}.items()}
        axes.update(overrides or {})
        for values in itertools.product(*axes.values()):
            words = dict(zip(axes, values, strict=True))
            expanded.setdefault(json.dumps(words, sort_keys=True), words)
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
            left[key] = list(dict.fromkeys(_named(words, config_dir).choices[group] for words in without))
    return list({json.dumps(words, sort_keys=True): words for words in fitted}.values()), left


def _has(words: Words, key: str, config_dir: Path | None) -> bool:
    """Whether the configurations that a run names have a dotted key."""
    node: Any = _named(words, config_dir)
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in node:
            return False
        node = node._get_node(part)
    return True


def _named(words: Words, config_dir: Path | None) -> DictConfig:
    """The configurations that a run names, as they stand in their files."""
    return compose({group: words[group] for group in GROUPS if group in words}, config_dir, complete=False)


def plan(many: Iterable[Words], config_dir: Path | None = None) -> list[Planned]:
    """Composes and checks every run before the first starts: names, arguments, data, weights; two words for one run
    are one run.

    Raises: ConfigError that names the run.
    """
    memo: dict[str, Any] = {}
    planned: dict[str, Planned] = {}
    for words in many:
        try:
            run = _plan_one(words, config_dir, memo)
        except ConfigError as error:
            raise ConfigError(f"{error} (in {' '.join(to_arguments(words))})") from error
        planned.setdefault(run.id, run)
    return list(planned.values())


def _plan_one(words: Words, config_dir: Path | None, memo: dict[str, Any]) -> Planned:
    config = experiment.resolve(compose(words, config_dir))
    parts = {}
    for group in ("method", "loss", "model", "data", "protocol"):
        node = config.get(group)
        key = f"{group} {json.dumps(node, sort_keys=True)}"
        if node is not None and key not in memo:
            check_signatures({group: node})
            experiment.seed_all(config["seed"])
            with experiment.user_errors():
                built = instantiate(node)
                if group == "data":
                    experiment.check_data(built)
            # methods are partial; of data and models only what stands for them in the id is kept
            memo[key] = experiment.fingerprints(**{group: built}) if group in ("data", "model") else {}
        parts.update(memo.get(key, {}))
    if "task" not in memo:
        check_signatures({"task": config["task"]})
        memo["task"] = True
    id = runs.run_id(config, parts)
    directory = Path(config["out"]) / id
    with experiment.user_errors():
        result = runs.read_result(directory)
    return Planned(id, words, config, directory, result, config_dir)


def estimate(planned: Sequence[Planned], workers: int) -> float | None:
    """Seconds that the missing runs will take, by the finished ones of the same method, else by all; None without."""
    times: dict[str, list[float]] = {}
    for run in planned:
        if run.result is not None:
            times.setdefault(run.config["choices"]["method"], []).append(run.result["cost"]["wall_seconds"])
    if not times:
        return None
    every = [seconds for group in times.values() for seconds in group]
    missing = [run.config["choices"]["method"] for run in planned if not run.done]
    return sum(statistics.mean(times.get(method, every)) for method in missing) / max(1, workers)


def to_arguments(words: Words) -> list[str]:
    """Words as the command line takes them: ``{"seed": 1, "data.frost": None}`` -> ``seed=1 data.frost=null``."""
    return [f"{key}={_as_text(value)}" for key, value in words.items()]


def _as_text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple, ListConfig)):
        return f"[{','.join(map(_as_text, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{_as_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, str) and not _plain(value):
        # Hydra's grammar: backslashes are doubled where a quote follows them, and nowhere else
        doubled = re.sub(r"(\\+)(?='|$)", r"\1\1", value)
        return "'" + doubled.replace("'", "\\'") + "'"
    return str(value)


def _plain(text: str) -> bool:
    """Whether Hydra's grammar reads a text as this text, without quotes."""
    if not re.fullmatch(r"[\w/.:+@-]+", text, flags=re.ASCII):
        return False
    return parse([f"x={text}"])[0].value() == text

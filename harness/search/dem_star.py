"""``loss=dem_star``: DEM at the pair that a search found, and where the result of the search for a run lies.

A search belongs to a task, method, model, data and protocol with all their options, to what the paths among them hold,
and to the searched part of the data; not to a seed, nor to the machine. Its result is
``<out>/searches/<task>-<method>-<key>/search.json``.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from dembench import records
from dembench.core import DEM
from dembench.harness import runs
from dembench.harness.compose import GROUPS, ConfigError, compose, to_arguments
from dembench.harness.errors import RunFirst
from dembench.harness.targets import locate
from dembench.tasks.base import Note
from dembench.tasks.common import parts

TARGET = "dembench.harness.search.dem_star.DEMStar"
FOLDER = "searches"
NAMED = tuple(group for group in GROUPS if group != "loss")
NOT_SEARCHED = (
    *("choices", "labels", "task", "loss", "seed", "part", "criteria", "tuned", "force", "progress", "logger", "save"),
)  # in no identity


class NotSearched(RunFirst):
    """There is no result of a search for a run; ``command`` makes one."""

    def __init__(self, command: str) -> None:
        super().__init__(f"loss=dem_star: no search result for this configuration; run: {command}", command)


class DEMStar(DEM):
    """DEM at a searched pair.

    Args:
        evaluation: "held_out": a run is judged on samples that the search has not seen; "paper": on all of them.
        tau, alpha, search: the pair, and the id of the search that found it; ``settle`` fills them in.
    Raises: ValueError without a pair.
    """

    def __init__(
        self,
        evaluation: Literal["held_out", "paper"] = "held_out",
        *,
        tau: float | None = None,
        alpha: float | None = None,
        search: str | None = None,
    ) -> None:
        if tau is None or alpha is None:
            raise ValueError("dem_star: no pair (tau, alpha); dembench search finds one")
        super().__init__(tau, alpha)


def asked(config: Mapping[str, Any]) -> bool:
    """Whether a resolved configuration's loss takes its pair from a search."""
    loss = config.get("loss")
    return isinstance(loss, dict) and loss.get("_target_") == TARGET


def settle(
    cfg: DictConfig | Mapping[str, Any], config: dict[str, Any], fingerprints: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Puts the searched pair into a run's configuration.

    Args:
        cfg: as composed. config: the same, resolved. fingerprints: of its data and weights.
    Returns: the configuration, with a pair where its loss is DEM*, and then what the record tells about the search.
    Raises: NotSearched where there is no result; ConfigError where the run would be judged on samples of the search
        without having been asked to.
    """
    if not asked(config):
        return config, None
    loss = config["loss"]
    if given := sorted({"tau", "alpha", "search"} & loss.keys()):
        raise ConfigError(f"loss=dem_star takes its pair from a search, not loss.{given[0]}; loss=dem takes a pair")
    _check_part(config)
    cfg = cfg if isinstance(cfg, DictConfig) else OmegaConf.create(dict(cfg))
    path = folder(cfg, fingerprints) / "search.json"
    record = read(path)
    if record is None:
        raise NotSearched(command(cfg))
    pair = {name: float(record["pair"][name]) for name in ("tau", "alpha")}
    found = {**loss, **pair, "search": record["id"]}
    kept = ("id", "pair", "metric", "value", "at_one_one", "settings", "subset", "cost", "command")
    return {**config, "loss": found}, {**{key: record[key] for key in kept}, "path": str(path)}


def note(config: Mapping[str, Any], search: Mapping[str, Any]) -> Note:
    """What a reader of a DEM* number has to know."""
    pair, cost, subset = search["pair"], search["cost"], search["subset"]
    apart = "none of them is judged here"
    if config["loss"]["evaluation"] == "paper":
        apart = "they are judged here too, as in the paper, so the number is optimistic"
    return Note(
        "dem_star",
        f"DEM*: tau {pair['tau']:g}, alpha {pair['alpha']:g}, the best of {search['settings']['trials']} trials "
        f"(search {search['id']}) on {subset['samples']} labelled samples ({subset['text']}); {apart}. The search cost "
        f"{cost['backward_passes']} backward passes and {cost['wall_seconds']:.0f} s, which are in no column of cost",
    )


def _check_part(config: Mapping[str, Any]) -> None:
    evaluation, part = config["loss"].get("evaluation"), config.get("part", parts.ALL)
    name = config["choices"]["task"]
    splits = getattr(locate(config["task"]["_target_"], "task"), "splits", None)
    if splits is None:
        raise ConfigError(f"loss=dem_star: the task {name} does not support part=search")
    if not splits:
        if evaluation != "held_out" or part == "search":
            raise ConfigError(
                f"loss=dem_star: the task {name} searches on samples of its own, which are never judged: "
                "loss.evaluation=held_out and part=all or part=rest are all there is"
            )
        return
    if evaluation == "held_out" and part != "rest":
        raise ConfigError(
            f"loss=dem_star: part={part} is judged on samples that the search has seen; say part=rest (for the losses "
            "that it is compared with, too), or loss.evaluation=paper for the paper's protocol on all samples"
        )
    if evaluation == "paper" and part != parts.ALL:
        raise ConfigError(f"loss=dem_star: loss.evaluation=paper is on all samples; say part=all, not part={part}")


def identity(cfg: DictConfig, loss: str = "dem", more: Sequence[str] = ()) -> dict[str, Any]:
    """What a search depends on beside the fingerprints: every choice but loss, seed, part and machine, resolved; with
    the keys ``more``. ``loss`` is what the trials run."""
    cfg = cfg.copy()
    cfg.seed = 0  # what follows the seed is no choice
    cfg.choices.loss = loss
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    task = {key: value for key, value in plain["task"].items() if key not in plain}
    kept = (*NAMED[1:], *more, "precision", "search_share", "search_seed")
    return {"task": task, **{key: plain.get(key) for key in kept}}


def folder(cfg: DictConfig, fingerprints: Mapping[str, str]) -> Path:
    """Where a search for a run keeps its trials and its result."""
    key = runs.run_id(identity(cfg), fingerprints)
    return Path(cfg.out) / FOLDER / f"{cfg.choices.task}-{cfg.choices.method}-{key}"


def read(path: Path) -> dict[str, Any] | None:
    """The result of a finished search, or None.

    Raises: ConfigError where the file is no such result, or that of another search.
    """
    record = read_record(path, records.SEARCH)
    if record is not None and path.parent.name.rpartition("-")[2] != runs.run_id(
        record["identity"], record["fingerprints"]
    ):
        raise ConfigError(f"{path} is the result of another search; remove it and search again")
    return record


def read_record(path: Path, schema: Any) -> dict[str, Any] | None:
    """A file that a search or a tuning wrote, or None. Raises: ConfigError where it does not fit the schema."""
    try:
        record: dict[str, Any] = records.read_json(path, schema)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{error}; remove it and search again") from None
    if not records.RUN_ID.fullmatch(record["id"]):
        raise ConfigError(f"{path}: id: expected 12 hexadecimal digits; remove it and search again")
    return record


def command(cfg: DictConfig, verb: str = "search", groups: Sequence[str] = NAMED) -> str:
    """The command that searches for a run: its names, and every value that differs from theirs."""

    names = {group: cfg.choices[group] for group in groups if cfg.choices.get(group)}
    try:
        usual = _flat(compose(names, complete=False), groups)
    except ConfigError:  # names of the user's own folder
        return shlex.join(["dembench", verb, "--config-dir", "DIR", *to_arguments(names), "..."])
    own = _flat(cfg, groups)
    values = {key if key in usual else f"+{key}": own[key] for key in own if key not in usual or own[key] != usual[key]}
    return shlex.join(["dembench", verb, *to_arguments({**names, **values})])


def _flat(cfg: DictConfig, groups: Sequence[str]) -> dict[str, Any]:
    """Dotted keys to values as they stand, without what a search does not take."""
    flat: dict[str, Any] = {}

    def visit(node: Any, prefix: str) -> None:
        if isinstance(node, dict) and node:
            for key, value in node.items():
                visit(value, f"{prefix}.{key}")
        else:
            flat[prefix[1:]] = node

    plain: Any = OmegaConf.to_container(cfg, resolve=False)
    visit({key: value for key, value in plain.items() if key not in NOT_SEARCHED or key in groups[1:]}, "")
    return flat

"""``tuned=oracle``: a run at the settings that ``dembench tune`` chose, and where the result of that lies.

A tuning belongs to a task, method, loss, model, data and protocol with all their options; not to a seed, nor to the
machine. Its result is ``<out>/tunes/<task>-<method>-<loss>-<key>/tune.json``. The settings that it chose by one rule
are used by runs with ``tuned=`` that rule, on the part of the data that it has not seen.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from omegaconf import DictConfig, OmegaConf

from dembench import records
from dembench.harness import ranges, runs
from dembench.harness.compose import GROUPS, ConfigError, lookup_or_fail
from dembench.harness.errors import RunFirst
from dembench.harness.search import dem_star
from dembench.tasks.base import Note
from dembench.tasks.common.criteria import NAMES
from dembench.tasks.common.files import write_atomic

if TYPE_CHECKING:
    from dembench.harness.experiment import Prepared

FOLDER, FILE = "tunes", "tune.json"
KINDS = ("fixed", "oracle", *NAMES)
BY = {
    "fixed": "the preset's own values, not chosen",
    "oracle": "chosen with the labels of the search part",
    "information": "chosen without labels, by information maximisation (Shi and Sha 2012)",
    "consistency": "chosen without labels, by consistency under augmentation (Deng et al. 2022)",
}
KEPT = ("id", "keys", "space", "preset", "metric", "subset", "settings", "cost", "trials", "choices", "command")


class NotTuned(RunFirst):
    """There is no result of a tuning for a run; ``command`` makes one."""

    def __init__(self, command: str) -> None:
        super().__init__(f"tuned: no tuning of this configuration; run: {command}", command)


def settle_plain(cfg: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """``settle`` of plain containers."""
    if cfg["tuned"] is None:
        return dict(cfg), None
    settled, tune = settle(OmegaConf.create(dict(cfg)))
    plain: Any = OmegaConf.to_container(settled)
    return plain, tune


def settle(cfg: DictConfig) -> tuple[DictConfig, dict[str, Any] | None]:
    """Puts the chosen settings into a run's configuration, as composed.

    Returns: the configuration, and where it asks for a choice what the record tells about it; None elsewhere.
    Raises: NotTuned where there is no result; ConfigError where there is no choice of this kind, and where the run
        would be judged on what the choice has seen.
    """
    if cfg.tuned is None:
        return cfg, None
    kind = lookup_or_fail(str(cfg.tuned), KINDS, "tuned")
    if cfg.choices.loss == "dem_star":
        raise ConfigError(
            "tuned: loss=dem_star has its own search; use loss=dem with --space loss.tau=... of dembench tune"
        )
    if cfg.part != "rest":
        raise ConfigError(f"tuned={kind}: part={cfg.part} is judged on what the tuning has seen; say part=rest")
    record = read(cfg)
    if record is None:
        raise NotTuned(command(cfg))
    if kind not in record["choices"]:
        raise ConfigError(f"tuned={kind}: {record['absent'].get(kind, 'the tuning chose none')}")
    chosen = record["choices"][kind]
    cfg = cfg.copy()
    path = folder(cfg) / FILE
    for key, value in chosen["values"].items():
        old = OmegaConf.select(cfg, key)
        if key.partition(".")[0] not in GROUPS or isinstance(old, bool) or not isinstance(old, int | float):
            raise ConfigError(f"tuned: {path} sets {key!r}, which is no number of this run; tune again")
        OmegaConf.update(cfg, key, value, merge=False)
    try:
        ranges.check({group: OmegaConf.to_container(cfg[group]) for group in GROUPS if cfg.get(group)}, GROUPS)
    except ConfigError as error:
        raise ConfigError(f"tuned: {path}: {error}; tune again") from None
    return cfg, {"by": kind, "values": chosen["values"], **{key: record[key] for key in KEPT}} | {
        "fingerprints": record["fingerprints"]
    }


def check(tune: Mapping[str, Any], seed: int, fingerprints: Mapping[str, str]) -> None:
    """Raises ConfigError where the data or weights of a run are not those of its tuning. They may follow the seed, so
    runs with the tuning's first seed are checked, and of the others nothing is known."""
    if seed == tune["settings"]["run_seeds"][0] and dict(tune["fingerprints"]) != dict(fingerprints):
        raise ConfigError(f"tuned: data or weights have changed since the tuning; run again: {tune['command']}")


def note(tune: Mapping[str, Any]) -> Note:
    """What a reader of the number has to know."""
    values = ", ".join(f"{key} {value:g}" for key, value in tune["values"].items())
    text = f"{values}: {BY[tune['by']]}"
    if tune["by"] != "fixed":
        text += (
            f"; the best of {tune['settings']['trials']} trials (tuning {tune['id']}) on {tune['subset']['samples']} "
            f"samples ({tune['subset']['text']}), none of which is judged here. The tuning cost "
            f"{tune['cost']['wall_seconds']:.0f} s, which are in no column of cost"
        )
    return Note("tuned", text)


def folder(cfg: DictConfig) -> Path:
    """Where a tuning for a run keeps its trials and its result."""
    names = cfg.choices
    key = runs.run_id(dem_star.identity(cfg, names.loss, ("loss",)), {})
    return Path(cfg.out) / FOLDER / f"{names.task}-{names.method}-{names.loss}-{key}"


def read(cfg: DictConfig) -> dict[str, Any] | None:
    """The result of the tuning for a run, or None. Raises: ConfigError where the file is no such result, or that of
    another tuning."""
    path = folder(cfg) / FILE
    record = dem_star.read_record(path, records.TUNE)
    if record is not None and path.parent.name.rpartition("-")[2] != runs.run_id(record["identity"], {}):
        raise ConfigError(f"{path} is the result of another tuning; remove it and tune again")
    if record is not None and not record["settings"]["run_seeds"]:
        raise ConfigError(f"{path}: settings.run_seeds is empty; remove it and tune again")
    return record


def command(cfg: DictConfig) -> str:
    """The command that tunes for a run."""
    return dem_star.command(cfg, "tune", GROUPS)


def plain(prepared: Prepared) -> Prepared:
    """The same run without a word on how its settings were chosen, which all kinds of choice share."""
    config = {key: value for key, value in prepared.config.items() if key not in ("tuned", "tune")}
    id = runs.run_id(config, prepared.fingerprints)
    config["out"] = str(Path(config["out"]) / FOLDER / "judged")
    return replace(prepared, id=id, config=config, tune=None, notes=())


def copy_files(source: Path, target: Path) -> None:
    """What lies beside a result: configuration apart, and links, which could lead anywhere."""
    for name in ("environment.json", "curve.csv", "series.csv"):
        if (source / name).is_file() and not (source / name).is_symlink():
            write_atomic(target / name, partial(_copy, source / name))
    files = source / "files"
    found = [] if files.is_symlink() else [path for path in files.rglob("*") if path.is_file()]
    plain = {str(path.relative_to(files)): partial(_copy, path) for path in sorted(found) if not path.is_symlink()}
    runs.write_files(target, plain)


def _copy(path: Path, file: BinaryIO) -> None:
    with open(path, "rb") as source:
        shutil.copyfileobj(source, file)

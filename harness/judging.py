"""Judging the weights that a run has kept once more: on its own data, or on other data with the same classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dembench.harness import experiment, runs
from dembench.harness.compose import GROUPS, ConfigError, check_signatures, choose, compose
from dembench.harness.targets import build
from dembench.tasks.common import keep
from dembench.tasks.common.cache import file_hash
from dembench.tasks.common.tensors import load_checkpoint

MAY_CHANGE = ("data", "protocol")  # groups
MAY_SET = ("device", "threads", "precision")
FIRST = ("average", "weights")  # of the files in this order: what the run itself judged


def judge(
    directory: Path, words: Sequence[str] = (), weights: str | None = None, config_dir: Path | None = None
) -> tuple[Path, dict[str, Any]]:
    """Judges kept weights; nothing is learned.

    Args:
        directory: of a finished run that kept weights.
        words: other data or another protocol, as on the command line: "data=NAME", "data.root=DIR".
        weights: name of the file in files/, without suffix; None is what the run itself judged.
        config_dir: own configurations, which the run named.
    Returns: the file evaluations/<weights>-<id>.json in the directory, and what it holds.
    Raises: ConfigError for whatever the user can put right.
    """
    with experiment.user_errors():
        record = runs.read_result(directory)
    if record is None:
        raise ConfigError(f"{directory} holds no finished run: it has no result.json")
    path = find(directory, weights)
    config = revised(record["config"], words, config_dir)
    check_signatures({group: config.get(group) for group in ("method", "loss", "model", "data", "protocol", "task")})
    experiment.make_repeatable(config["threads"])
    experiment.seed_all(config["seed"])
    task: Any = experiment.build_task(config)
    if not hasattr(task, "judge"):
        raise ConfigError(f"task={config['choices']['task']} cannot judge weights again")
    recorder = runs.Recorder()
    with experiment.user_errors():
        method = build(config["method"], "method", loss=build(config["loss"], "loss"))
        found = experiment.fingerprints(getattr(task, "data", None), getattr(task, "model", None), config)
        for event in task.judge(method, load_checkpoint(path)):
            recorder.add(event)
    id = runs.run_id(config, found)
    result = {
        "run": record["id"],
        "id": id,
        "weights": {"file": path.name, "hash": file_hash(path)},
        "data": getattr(getattr(task, "data", None), "name", config["choices"].get("data")),
        **recorder.body(),
        "config": config,
        "fingerprints": found,
        "environment": runs.environment(config["device"], config["threads"]),
        "finished": runs.now(),
    }
    written = directory / "evaluations" / f"{path.stem}-{id}.json"
    runs.write_json(written, result)
    return written, result


def find(directory: Path, weights: str | None = None) -> Path:
    """The file of weights in a run's directory; ConfigError where there is none."""
    there = {path.stem: path for path in sorted((directory / "files").glob(f"*{keep.SUFFIX}"))}
    names = FIRST if weights is None else (weights,)
    for name in names:
        if name in there:
            return there[name]
    if weights is None and there:
        return next(iter(there.values()))
    said = f"it has {', '.join(there)}" if there else "run it with save=last force=true"
    raise ConfigError(f"{directory} kept no {weights or 'weights'}; {said}")


def revised(config: Mapping[str, Any], words: Sequence[str], config_dir: Path | None = None) -> dict[str, Any]:
    """The recorded configuration with other data or another protocol.

    Raises: ConfigError for a group or a key that stays as it was, for unknown names, and for a record that would build
        something else than the configurations that it names.
    """
    choice = choose(words)
    new = dict(config) | {"choices": dict(config["choices"])}
    keys = [key for key in (*choice.groups, *choice.values) if key.split(".")[0] not in (*MAY_CHANGE, *MAY_SET)]
    if keys:
        raise ConfigError(f"evaluate: {keys[0]} is that of the run; {', '.join((*MAY_CHANGE, *MAY_SET))} may differ")
    for group in MAY_CHANGE:
        own = {key: value for key, value in choice.values.items() if key.startswith(f"{group}.")}
        if group in choice.groups:
            named = {"task": config["choices"]["task"], group: choice.groups[group], "seed": config["seed"], **own}
            try:
                node = compose(named, config_dir, complete=False)[group]
                new[group] = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
            except OmegaConfBaseException as error:
                raise ConfigError(f"{group}={choice.groups[group]}: {str(error).splitlines()[0]}") from None
            new["choices"][group] = choice.groups[group]
        else:
            node = OmegaConf.create(new[group])
            for key, value in own.items():
                OmegaConf.update(node, key.partition(".")[2], value)
            new[group] = OmegaConf.to_container(node)
    new |= {key: value for key, value in choice.values.items() if key in MAY_SET}
    new["device"] = experiment.resolve_device(new["device"] if "device" in choice.values else "auto")
    new["task"] = {key: new[key] if key in (*GROUPS[1:], *MAY_SET) else value for key, value in config["task"].items()}
    check_targets(new, config_dir)
    return new


def check_targets(config: Mapping[str, Any], config_dir: Path | None) -> None:
    """A record is data: raises ConfigError where it names other classes than the configurations that it names do."""
    names = {group: name for group, name in config["choices"].items() if group in GROUPS and name is not None}
    own = compose(names, config_dir, complete=False)
    for group in GROUPS:
        node = OmegaConf.to_container(own[group]) if own.get(group) else None
        kept = {key: value for key, value in (config.get(group) or {}).items() if group != "task" or key not in GROUPS}
        if dict(targets(kept)) != dict(targets(node)):
            raise ConfigError(f"the record's {group} is not that of {group}={names.get(group)}; run it again")


def targets(node: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Place and value of each ``_target_``."""
    for key, value in node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ():
        if key == "_target_":
            yield place, value
        yield from targets(value, f"{place}.{key}")

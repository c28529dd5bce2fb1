"""Judging the weights that a run has kept once more: on its own data, or on other data with the same classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dembench.harness import experiment, runs
from dembench.harness.compose import ConfigError, check_signatures, choose, compose
from dembench.harness.targets import build
from dembench.tasks.common import keep
from dembench.tasks.common.cache import file_hash

MAY_CHANGE = ("data", "protocol")  # groups
MAY_SET = ("device", "threads", "precision")
FIRST = ("average", "weights")  # of the files in this order: what the run itself judged


def judge(directory: Path, words: Sequence[str] = (), weights: str | None = None) -> tuple[Path, dict[str, Any]]:
    """Judges kept weights; nothing is learned.

    Args:
        directory: of a finished run that kept weights.
        words: other data or another protocol, as on the command line: "data=NAME", "data.root=DIR".
        weights: name of the file in files/, without suffix; None is what the run itself judged.
    Returns: the file evaluations/<weights>-<id>.json in the directory, and what it holds.
    Raises: ConfigError for whatever the user can put right.
    """
    with experiment.user_errors():
        record = runs.read_result(directory)
    if record is None:
        raise ConfigError(f"{directory} holds no finished run: it has no result.json")
    path = find(directory, weights)
    config = revised(record["config"], words)
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
        for event in task.judge(method, keep.read(path)):
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


def revised(config: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """The recorded configuration with other data or another protocol.

    Raises: ConfigError for a group or a key that stays as it was, and for unknown names.
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
                node = compose(named, complete=False)[group]
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
    task = dict(config["task"])
    new["task"] = task | {key: new[key] for key in (*MAY_CHANGE, *MAY_SET) if key in task}
    return new

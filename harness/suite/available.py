"""Whether what a run needs is on this machine: its data, its weights, the packages of its task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dembench.harness import groups
from dembench.harness.compose import ConfigError, composed, header, missing_keys, options, read_option
from dembench.harness.runs import NAMED_PATHS, PATH_KEYS

LIBRARIES = ("timm", "torchvision", "open_clip")  # that download weights on first use
PACKAGES = {  # that a task's data and models are made with: module, and how to get it
    "minigrid": ("minigrid", "stable_baselines3"),
    "segmentation": ("mmseg", "mmengine"),
}
OPTIONAL = ("cache", "frost")  # paths that are made, or that something else stands in for


def at_a_glance(group: str, cfg: Mapping[str, Any]) -> tuple[str, str]:
    """Of the data or the model of a composed configuration: "here", "library" (its weights are downloaded on first use)
    or "missing", and why. Looks for packages and paths and opens nothing, so that it takes no time; ``data_state``
    looks into the files, too.

    Args:
        group: "data" or "model". cfg: in plain containers, unresolved; only a model may lack values.
    """
    node, task = cfg[group], cfg["choices"]["task"]
    for package in PACKAGES.get(task, ()):
        if find_spec(package) is None:
            return "missing", f"needs the package {package}: pip install 'dembench[{task}]'"
    if group == "model":
        return model_state(groups.resolve(cfg, (group,))[group] if not list(missing_keys(node, group)) else node)
    for path in _paths(groups.resolve(cfg, (group,))[group]):
        if not Path(path).expanduser().exists():
            return "missing", f"no folder or file {path}"
    return "here", ""


def _paths(node: Any) -> Iterator[str]:
    for key, value in node.items() if isinstance(node, dict) else ():
        if isinstance(value, dict):
            yield from _paths(value)
        elif isinstance(value, str) and key in PATH_KEYS | NAMED_PATHS and key not in OPTIONAL:
            yield value


def model_state(node: Mapping[str, Any]) -> tuple[str, str]:
    """Of a model's configuration: "here", "library" (its weights are downloaded on first use) or "missing", and why."""
    library = str(node["_target_"]).rpartition(".")[2].removesuffix("_model")
    if library in LIBRARIES:
        return ("library", "") if find_spec(library) else ("missing", f"{library} is not installed")
    weights = node.get("weights")
    if isinstance(weights, str) and "/" in weights and not Path(weights).is_file():
        return "missing", f"no file {weights}"
    return "here", ""


def data_state(node: Mapping[str, Any]) -> tuple[str, str]:
    """Of a dataset's resolved configuration: "here" or "missing", and why."""
    from dembench.harness.experiment import check_data, user_errors
    from dembench.harness.targets import build

    try:
        with user_errors():
            check_data(build(node, "data"))
    except ConfigError as error:
        return "missing", str(error)
    return "here", ""


def what_is_missing(words: Mapping[str, Any], config_dir: Path | None = None) -> list[str]:
    """What a run lacks on this machine, a sentence each with how to get it; empty where it can start.

    Args:
        words: keys to plain values, as ``harness.compose.choose`` takes them.
        config_dir: own configurations.
    Raises: ConfigError for names and keys that do not exist anywhere.
    """
    cfg = composed(words, config_dir, complete=False)
    names = cfg["choices"]
    lacks = []
    for group, state_of in (("data", data_state), ("model", model_state)):
        if cfg.get(group) is None:
            continue
        unset = sorted(missing_keys(cfg[group], group))
        if unset:
            state, reason = "missing", f"{unset[0]} is not given"
        else:
            state, reason = state_of(groups.resolve(cfg, (group,))[group])
        if state == "missing":
            lacks.append(how_to_get(group, names[group], names["task"], reason, config_dir))
    return lacks


def how_to_get(group: str, name: str, task: str, reason: str, config_dir: Path | None = None) -> str:
    """A line such as "data=cifar10c: dembench data fetch cifar10c ... (no folder ...)"."""
    get = header(read_option(group, name, task, config_dir), "Get") if name in options(group, task, config_dir) else ""
    return f"{group}={name}: {reason}" if not get or get in reason else f"{group}={name}: {get} ({reason})"

"""Whether what a run needs is on this machine: its data, its weights, the packages of its task."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dembench.harness.compose import ConfigError, compose, header, options, read_option
from dembench.harness.experiment import check_data, user_errors
from dembench.harness.targets import build

LIBRARIES = ("timm", "torchvision", "open_clip")  # that download weights on first use


def model_state(node: DictConfig) -> tuple[str, str]:
    """Of a model's configuration: "here", "library" (its weights are downloaded on first use) or "missing", and why."""
    library = str(node["_target_"]).rpartition(".")[2].removesuffix("_model")
    if library in LIBRARIES:
        return ("library", "") if find_spec(library) else ("missing", f"{library} is not installed")
    weights = None if OmegaConf.is_missing(node, "weights") else node.get("weights")
    if isinstance(weights, str) and "/" in weights and not Path(weights).is_file():
        return "missing", f"no file {weights}"
    return "here", ""


def data_state(node: DictConfig) -> tuple[str, str]:
    """Of a dataset's configuration: "here" or "missing", and why."""
    try:
        with user_errors():
            check_data(build(OmegaConf.to_container(node, resolve=True), "data"))
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
    cfg = compose(words, config_dir, complete=False)
    lacks = []
    for group, state_of in (("data", data_state), ("model", model_state)):
        node = cfg.get(group)
        if node is None:
            continue
        unset = sorted(OmegaConf.missing_keys(node))
        state, reason = ("missing", f"{unset[0]} is not given") if unset else state_of(node)
        if state == "missing":
            lacks.append(how_to_get(group, cfg.choices[group], cfg.choices.task, reason, config_dir))
    return lacks


def how_to_get(group: str, name: str, task: str, reason: str, config_dir: Path | None = None) -> str:
    """A line such as "data=cifar10c: dembench data fetch cifar10c ... (no folder ...)"."""
    get = header(read_option(group, name, task, config_dir), "Get") if name in options(group, task, config_dir) else ""
    return f"{group}={name}: {reason}" if not get or get in reason else f"{group}={name}: {get} ({reason})"

"""What a user names without a file of configs/: ``model=my.module.Net``, ``loss=my.Loss``, ``data=my_folder``.

A dotted name is a target like any other: whether it may be named is ``harness.targets``' to say.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from dembench.tasks.base import ConfigError
from dembench.tasks.common.trust import NAME

FOLDERS = {  # task -> the data that reads image folders, and its key for the folder
    "tta": ("image_folder", "data.root"),
    "prompt": ("image_folder", "data.root"),
    "semi": ("folders", "data.images.root"),
    "longtail": ("folders", "data.images.root"),
}
PACKED = ("semi", "longtail")  # which read archives, too
NETWORKS = ("tta", "semi", "longtail")  # whose networks are named by model=my.module.Net
PYTHON = "python:"  # begins the name of a network that was given as an object: python:my.module.Net own:0123


def settle(
    groups: Mapping[str, str], values: Mapping[str, Any], offered: Callable[[str, str], Collection[str]]
) -> tuple[dict[str, str], dict[str, Any], dict[str, str]]:
    """Names of files and values, for names that are none of a file.

    Args:
        groups: name per group, as the user wrote it. values: per dotted key. offered: (group, task) to names of files.
    Returns: names, values, and the dotted names of groups that ``put`` has to set.
    Raises: ConfigError where a task cannot use what is given.
    """
    task = groups.get("task", "tta")
    groups, values = dict(groups), dict(values)
    dotted: dict[str, str] = {}
    for group in [group for group in ("data", "model", "method", "loss") if group in groups]:
        name = groups[group]
        if name.removeprefix(f"{task}/") in offered(group, task):
            continue
        if group == "data":
            if "/" in name or Path(name).expanduser().exists():
                groups["data"], key = _folder(name, task)
                values.setdefault(key, name)
        elif name.startswith(PYTHON) or ("." in name and NAME.fullmatch(name)):
            if group == "model" and task not in NETWORKS:
                raise ConfigError(
                    f"model={name.removeprefix(PYTHON)}: task={task} needs more than a network; name yours in "
                    f"model/{task}/NAME.yaml of a folder, --config-dir DIR (docs/own_network.md)"
                )
            dotted[group] = name
            if group == "model":
                groups["model"] = "own"
            else:
                del groups[group]
    return groups, values, dotted


def _folder(name: str, task: str) -> tuple[str, str]:
    path = Path(name).expanduser()
    if not path.exists():
        raise ConfigError(f"data={name}: no such folder, archive or name of data (dembench list data)")
    if task not in FOLDERS:
        raise ConfigError(f"data={name}: task={task} reads no class folders; {', '.join(FOLDERS)} do")
    if not path.is_dir() and task not in PACKED:
        raise ConfigError(f"data={name}: task={task} reads folders and no archives; unpack it and name the folder")
    return FOLDERS[task]


def put(cfg: dict[str, Any], dotted: Mapping[str, str]) -> None:
    """Sets the groups of dotted names in a composed configuration, and what results call them."""
    for group, name in dotted.items():
        if name.startswith(PYTHON):
            called, _, weights = name.removeprefix(PYTHON).partition(" ")
            cfg["model"] |= {"network": called, "weights": weights}
            name = called
        elif group == "model":
            cfg["model"]["network"]["_target_"] = name
        else:
            cfg[group] = {"_target_": name} | ({"_partial_": True} if group == "method" else {})
        cfg["choices"][group] = name
        cfg["labels"].pop(group, None)

"""From names of groups to the configuration that Hydra composes of them, in plain containers, at little of its cost.

Hydra takes a tenth of a second for each set of names. What the files here use of it is little: ``run.yaml`` and the
task's file name a file for each group, and a file may start from another of its group. That much is done here; names
whose files use more (a ``# @package`` line, another list of defaults) are given to Hydra, so nothing is lost. A file
that was parsed once is remembered by the sha256 of its text, beside the other caches.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from dembench.tasks.base import ConfigError

GROUPS = ("task", "method", "loss", "model", "data", "protocol")
ORDER = ("loss", "method", "model", "data", "protocol", "task")  # of the groups in run.yaml
LABEL = "_label_"  # key of a group's file: how results call it and judge it; it is no argument and in no id
MISSING = "???"  # OmegaConf's mark of a value that the user has to give
VERSION = 1  # of what is remembered
MOST = 3000  # files that are remembered
_PLAIN_KEY = re.compile(r"[A-Za-z_]\w*")
_REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\}")
_VARIABLE = re.compile(r"\$\{oc\.env:([A-Za-z_]\w*),([A-Za-z_][\w/-]*)\}")
_SELECT = re.compile(r"\$\{oc\.select:((?:[\w.]|\$\{[\w.]+\})+),([A-Za-z_][\w/-]*|\$\{oc\.env:[^{}]*\}[\w/.-]*)\}")
_WORDS = ("null", "true", "false", "yes", "no", "on", "off", "nan", "inf", "none")  # that grammars read as no text


class Beyond(Exception):
    """What only Hydra and OmegaConf can do."""


def compose_groups(names: Mapping[str, str], config_dir: Path | None) -> dict[str, Any]:
    """The configuration of names per group ("method": "tta/tent"), unresolved, with nodes ``choices`` and ``labels``.

    It is the caller's own. Raises: ConfigError where a file is not valid, or cannot be composed.
    """
    compose = _composed if config_dir is None else _composed.__wrapped__  # what is shipped does not change
    return copied(compose(tuple(sorted(names.items())), config_dir))


@lru_cache(maxsize=1024)
def _composed(names: tuple[tuple[str, str], ...], config_dir: Path | None) -> dict[str, Any]:
    try:
        return _directly(dict(names), config_dir)
    except Beyond:
        return by_hydra(names, config_dir)


def _directly(names: Mapping[str, str], config_dir: Path | None) -> dict[str, Any]:
    """Raises: Beyond for files that use more than is done here."""
    root = _file("run", config_dir)
    chosen: dict[str, str | None] = dict.fromkeys(ORDER)
    for entry in root.pop("defaults", []):
        if entry == "_self_":
            continue
        if not isinstance(entry, dict) or len(entry) != 1 or not entry.keys() <= set(ORDER):
            raise Beyond
        chosen |= entry
    chosen["task"] = names.get("task", chosen["task"])
    task = _file(f"task/{chosen['task']}", config_dir)
    for entry in task.pop("defaults", []):
        ((key, name),) = entry.items() if isinstance(entry, dict) and len(entry) == 1 else ((None, None),)
        found = re.fullmatch(r"override /(\w+)@_global_\.(\w+)", key) if isinstance(key, str) else None
        if found is None or found[1] != found[2] or found[1] not in ORDER[:-1]:
            raise Beyond
        chosen[found[1]] = name
    chosen |= names
    cfg = root
    for group in ORDER:
        if (name := chosen[group]) is not None:
            content = task if group == "task" else _whole(group, name, config_dir)
            if group in cfg:
                raise Beyond
            if content or group == "task":
                cfg[group] = content
    cfg["choices"] = {group: name.split("/")[-1] if (name := chosen[group]) else None for group in GROUPS}
    cfg["labels"] = {group: cfg[group].pop(LABEL) for group in GROUPS if LABEL in (cfg.get(group) or {})}
    return cfg


def _whole(group: str, name: Any, config_dir: Path | None) -> dict[str, Any]:
    """A group's file, over the file that it starts from, if it names one."""
    if not isinstance(name, str):
        raise Beyond
    own = _file(f"{group}/{name}", config_dir)
    defaults = own.pop("defaults", None)
    if defaults is None:
        return own
    if not isinstance(defaults, list) or len(defaults) != 2 or defaults[1] != "_self_":
        raise Beyond
    found = re.fullmatch(rf"/{group}/([\w/]+)@_here_", str(defaults[0]))
    if found is None:
        raise Beyond
    return _merged(_whole(group, found[1], config_dir), own)


def _merged(under: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """As OmegaConf merges: nodes key by key, anything else by the upper value."""
    for key, value in over.items():
        if key in under and (value == MISSING or isinstance(under[key], dict) != isinstance(value, dict)):
            raise Beyond  # OmegaConf has rules of its own
        under[key] = _merged(under[key], value) if isinstance(value, dict) and key in under else value
    return under


def _file(name: str, config_dir: Path | None) -> dict[str, Any]:
    """The content of a file among the configurations; the caller's own. Raises: Beyond for what is not plain."""
    text = _text(name, config_dir)
    if "@package" in text:
        raise Beyond
    return copied(_parsed(text))


def _text(name: str, config_dir: Path | None) -> str:
    """That of one file; one of the user's own is read anew each time."""
    text = _shipped_text(name)
    if text is None and config_dir is not None and (file := config_dir.joinpath(f"{name}.yaml")).is_file():
        text = file.read_text(encoding="utf-8-sig")
    if text is None:
        raise Beyond
    return text


@lru_cache(maxsize=1024)
def _shipped_text(name: str) -> str | None:
    file = resources.files("dembench.configs").joinpath(*f"{name}.yaml".split("/"))
    return file.read_text(encoding="utf-8-sig") if file.is_file() else None


def _parsed(text: str) -> dict[str, Any]:
    key = hashlib.sha256(text.encode()).hexdigest()
    if key not in (known := _Known.load()):
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
        from yaml import YAMLError

        try:
            plain: Any = OmegaConf.to_container(OmegaConf.create(text)) if text.strip() else {}
        except (OmegaConfBaseException, YAMLError, ValueError, TypeError, AttributeError, RecursionError):
            raise Beyond from None  # which says what is wrong
        _check(plain if plain is not None else {})
        known[key] = plain if plain is not None else {}
        _Known.changed = True
    return known[key]


def _check(node: Any, top: bool = True) -> None:
    """Raises Beyond for what JSON would not give back as it is, and for what is no mapping."""
    if isinstance(node, dict):
        for key, value in node.items():
            if not isinstance(key, str):
                raise Beyond
            _check(value, False)
    elif top or not isinstance(node, list | str | int | float | None):
        raise Beyond
    elif isinstance(node, list):
        for value in node:
            _check(value, False)


class _Known:
    """Files that were parsed, by the sha256 of their texts: in this process, and from one to the next."""

    content: dict[str, Any] | None = None
    changed = False

    @classmethod
    def load(cls) -> dict[str, Any]:
        if cls.content is None:
            from dembench.tasks.common.cache import load_json

            try:
                found = load_json(cls._path())
            except ValueError:
                found = None
            cls.content = found if isinstance(found, dict) else {}
            atexit.register(cls.save)
        return cls.content

    @classmethod
    def save(cls) -> None:
        """What is new joins what other processes saved meanwhile; a cache that cannot be written costs time only."""
        if not cls.changed or cls.content is None:
            return
        from dembench.tasks.common.cache import load_json, save_json

        with suppress(OSError, ValueError):
            saved = load_json(cls._path())
            both = (saved if isinstance(saved, dict) else {}) | cls.content
            save_json(cls._path(), both if len(both) <= MOST else cls.content)
        cls.changed = False

    @staticmethod
    def _path() -> Path:
        from importlib.metadata import version

        from dembench.tasks.common.cache import cache_folder

        return cache_folder() / "configs" / f"parsed-{VERSION}-{version('omegaconf')}.json"


def copied(node: Any) -> Any:
    """Plain containers, with containers of their own."""
    if isinstance(node, dict):
        return {key: copied(value) for key, value in node.items()}
    return [copied(value) for value in node] if isinstance(node, list) else node


def resolve(cfg: Mapping[str, Any], only: Iterable[str] | None = None) -> dict[str, Any]:
    """A copy with every ``${...}`` replaced by what it stands for, as OmegaConf does.

    Args:
        cfg: in plain containers. only: some of its nodes; None takes all.
    Raises: ConfigError where that does not exist, and for a value that the user has to give and has not given.
    """
    keys = list(cfg) if only is None else list(only)
    try:
        return {key: _resolved(cfg[key], cfg, 0) for key in keys}
    except Beyond:
        return by_omegaconf(cfg, keys)


def _resolved(node: Any, root: Mapping[str, Any], depth: int) -> Any:
    if depth > 30:  # a circle, perhaps
        raise Beyond
    if isinstance(node, dict):
        return {key: _resolved(value, root, depth + 1) for key, value in node.items()}
    if isinstance(node, list):
        return [_resolved(value, root, depth + 1) for value in node]
    if not isinstance(node, str):
        return node
    if node == MISSING:
        raise Beyond
    if "${" not in node:
        return node
    if (found := _REFERENCE.fullmatch(node)) is not None:
        there, value = _lookup(root, found[1])
        if not there:
            raise Beyond
        return _resolved(value, root, depth + 1)
    if (found := _SELECT.fullmatch(node)) is not None:  # a key that may be missing, and what stands for it then
        key = found[1]
        while (inside := _REFERENCE.search(key)) is not None:
            there, value = _lookup(root, inside[1])
            if not there or not isinstance(value, str) or not _PLAIN_KEY.fullmatch(value):
                raise Beyond
            key = f"{key[: inside.start()]}{value}{key[inside.end() :]}"
        there, value = _lookup(root, key) if re.fullmatch(r"\w+(\.\w+)*", key) else (True, MISSING)
        return _resolved(value if there else found[2], root, depth + 1)
    text = _VARIABLE.sub(_environment, node)
    if "${" in text:
        raise Beyond
    return text


def _lookup(root: Mapping[str, Any], key: str) -> tuple[bool, Any]:
    """Whether there is a dotted key, and its value. Raises: Beyond where a reference lies on the way."""
    node: Any = root
    for part in key.split("."):
        if isinstance(node, str) and "${" in node:
            raise Beyond
        if not isinstance(node, dict) or part not in node:
            return False, None
        node = node[part]
    return True, node


def _environment(found: re.Match[str]) -> str:
    default = found[2]
    if default.lower() in _WORDS:
        raise Beyond
    value = os.environ.get(found[1], default)
    if "${" in value or "\\" in value:
        raise Beyond
    return value


def by_omegaconf(cfg: Mapping[str, Any], only: Iterable[str] | None = None) -> dict[str, Any]:
    """``resolve`` in OmegaConf's words."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        whole: Any = OmegaConf.create(dict(cfg))
        if only is None:
            return OmegaConf.to_container(whole, resolve=True, throw_on_missing=True)  # type: ignore[return-value]
        nodes = {key: whole[key] for key in only}
        return {
            key: OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
            if OmegaConf.is_config(node)
            else node
            for key, node in nodes.items()
        }
    except OmegaConfBaseException as error:
        raise ConfigError(first_line(error)) from None


def by_hydra(names: tuple[tuple[str, str], ...], config_dir: Path | None) -> dict[str, Any]:
    """``compose_groups`` in Hydra's words."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import ConfigCompositionException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    overrides = [f"{group}={name}" for group, name in names]
    if config_dir is not None:
        place = str(Path(config_dir).resolve()).replace("'", "\\'")  # no URI: Hydra decodes no %20
        overrides.append(f"hydra.searchpath=['file://{place}']")
    GlobalHydra.instance().clear()
    try:
        with _without_plugins(), initialize_config_module("dembench.configs", version_base="1.3"):
            cfg = hydra_compose("run", overrides=overrides, return_hydra_config=True)
    except (ConfigCompositionException, OmegaConfBaseException) as error:
        raise ConfigError(first_line(error)) from error
    except RecursionError:
        raise ConfigError("a configuration is nested too deeply") from None
    except (YAMLError, AssertionError) as error:
        raise ConfigError(f"a configuration is not valid YAML: {' '.join(str(error).split())}") from error
    chosen = {g: cfg.hydra.runtime.choices.get(g) for g in GROUPS}
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    plain: Any = OmegaConf.to_container(cfg)
    plain["choices"] = {g: name.split("/")[-1] if name else None for g, name in chosen.items()}
    plain["labels"] = {g: plain[g].pop(LABEL) for g in GROUPS if LABEL in (plain.get(g) or {})}
    return plain


@contextmanager
def _without_plugins() -> Iterator[None]:
    """Hydra imports whatever is called ``hydra_plugins``, also from the current folder; here it finds none."""
    before = sys.modules.get("hydra_plugins", ...)
    sys.modules["hydra_plugins"] = None  # type: ignore[assignment]  # an import of it fails
    try:
        yield
    finally:
        if before is ...:
            del sys.modules["hydra_plugins"]
        else:
            sys.modules["hydra_plugins"] = before


def first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)

"""From what a user writes to one configuration that is known to be valid; every mistake is one line that helps.

Hydra composes the groups. The remaining overrides are set here, because Hydra adds what it does not know (in files) or
refuses it without naming what is valid (on the command line).
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dembench import records
from dembench.harness import groups, own, ranges
from dembench.harness.groups import GROUPS
from dembench.harness.targets import check_plain, check_targets, locate
from dembench.lookup import lookup
from dembench.tasks.base import PARTS, PRECISIONS, SAVE, ConfigError
from dembench.tasks.common import trust

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

SHARED = ("task", "loss")  # groups whose files serve every task; the others lie in a folder per task
NOT_SET = ("choices", "labels", "task")  # nodes whose values no one sets
VALUES = {"device": ("auto", "cpu", "cuda"), "precision": PRECISIONS, "part": PARTS, "save": SAVE}
MOST_BYTES = 4_000_000  # of a file of configuration
MOST_VALUES = 200_000  # in a file of data
Words = dict[str, Any]  # a run: key as on the command line -> plain value


@dataclass(frozen=True)
class Choice:
    """What one run is to be: names per group, values per dotted key, and keys that may be new."""

    groups: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    added: frozenset[str] = frozenset()


def config_files(config_dir: Path | None = None) -> Iterator[Any]:
    """The folders that hold configurations: the package's, then the user's own, if given; no name is in both.

    Raises: ConfigError where the user's folder does not exist.
    """
    yield resources.files("dembench.configs")
    if config_dir is not None:
        if not Path(config_dir).is_dir():
            raise ConfigError(f"--config-dir: no folder {config_dir}")
        trust.trust_folder(config_dir)
        yield Path(config_dir)


def check_config_dir(config_dir: Path) -> None:
    """Raises ConfigError where a file of the user's folder has the name of one of the package's, which Hydra takes."""
    package = resources.files("dembench.configs")
    groups = [entry.name for entry in package.iterdir() if entry.is_dir()]  # other folders, such as runs, hold none
    for file in sorted(file for group in ("", *groups) for file in _yaml_files(Path(config_dir), group)):
        name = file.relative_to(config_dir)
        if package.joinpath(*name.parts).is_file():
            raise ConfigError(f"--config-dir: {name} is the name of a file of dembench too; give yours another name")
        text = read_file(file)  # so that Hydra does not wait for a pipe
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except (YAMLError, RecursionError) as error:
            raise ConfigError(f"{file} is not valid YAML: {' '.join(str(error).split())[:300]}") from None
        if root is not None and not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{file}: expected key: value pairs, as in the files of dembench")


def _yaml_files(root: Path, group: str) -> Iterator[Path]:
    yield from (root / group).rglob("*.yaml") if group else root.glob("*.yaml")


def options(group: str, task: str | None = None, config_dir: Path | None = None) -> list[str]:
    """Names that a group offers to a task, sorted; ``sweep`` counts as a group."""
    parts = (group,) if task is None or group in (*SHARED, "sweep") else (group, task)
    _, *more = config_files(config_dir)
    found = set(_shipped(parts))
    for root in more:
        if (folder := root.joinpath(*parts)).is_dir():
            found |= {entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".yaml")}
    return sorted(found)


@lru_cache(maxsize=256)
def _shipped(parts: tuple[str, ...]) -> tuple[str, ...]:
    folder = resources.files("dembench.configs").joinpath(*parts)
    return tuple(e.name[:-5] for e in folder.iterdir() if e.name.endswith(".yaml")) if folder.is_dir() else ()


def read_option(group: str, name: str, task: str | None = None, config_dir: Path | None = None) -> str:
    """The text of one configuration file."""
    parts = (group, f"{name}.yaml") if task is None or group in (*SHARED, "sweep") else (group, task, f"{name}.yaml")
    for root in config_files(config_dir):
        if (file := root.joinpath(*parts)).is_file():
            return read_file(file) if isinstance(file, Path) else file.read_text(encoding="utf-8")
    raise ConfigError(f"no file {'/'.join(parts)} among the configurations")


def read_file(path: Path) -> str:
    """The text of a file that somebody wrote by hand. Raises: ConfigError where it is none."""
    try:
        return records.read_text(path, MOST_BYTES)
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from None


def header(text: str, name: str) -> str:
    """The sentence after ``# name:`` in a file's header, or an empty string."""
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if line.startswith(f"# {name}: "):
            return line[len(name) + 4 :].strip()
    return ""


def read_data(text: str, what: str, expected: str) -> dict[Any, Any]:
    """YAML of plain values, as Hydra reads it: a sweep or a suite, which is data and never code.

    Raises: ConfigError, one line that begins with ``what``.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)  # the faster CSafeLoader crashes on deep nests
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{what}: expected {expected}")
        if _expanded(root, {}) > MOST_VALUES:
            raise ConfigError(f"{what}: more than {MOST_VALUES} values")
        plain: Any = OmegaConf.to_container(OmegaConf.create(text))
        check_plain(plain, what)
    except (YAMLError, OmegaConfBaseException, ValueError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{what}: {' '.join(str(error).split())[:300]}") from None
    return plain


def _expanded(node: Any, known: dict[int, int]) -> int:
    """How many values a YAML node has once its aliases are written out; ValueError for one that holds itself."""
    if id(node) in known:
        if not known[id(node)]:
            raise ValueError("an alias inside the value that it stands for")
        return known[id(node)]
    known[id(node)] = 0
    children: list[Any] = []
    if isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    known[id(node)] = size = 1 + sum(_expanded(child, known) for child in children)
    return size


def lookup_or_fail(name: str, valid: Iterable[str], what: str) -> str:
    """``lookup.lookup`` that raises ConfigError."""
    try:
        return lookup(name, valid, what)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def parse(words: Sequence[str]) -> list[Override]:
    """Command line words such as ``method.lr=1e-3``, in Hydra's grammar.

    Raises: ConfigError for words that are no ``key=value``.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    for word in words:
        if "=" not in word:
            raise ConfigError(f"expected key=value, got {word!r}")
    parsed: list[Override] = []
    for word in words:
        try:
            parsed += OverridesParser.create().parse_overrides([word])
        except OverrideParseException as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"cannot read {word!r}: {reason} (quote special characters: key='\"a value\"')") from None
    for override, word in zip(parsed, words, strict=True):
        if override.is_delete() or override.package is not None or override.is_force_add():
            raise ConfigError(f"cannot use {word!r}: write key=value, or +key=value for an argument that is not listed")
    return parsed


def to_arguments(words: Words) -> list[str]:
    """Words as the command line takes them: ``{"seed": 1, "data.frost": None}`` -> ``seed=1 data.frost=null``."""
    return [f"{key}={as_text(value)}" for key, value in words.items()]


def as_text(value: Any) -> str:
    """A value as ``parse`` reads it back."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple, ListConfig)):
        return f"[{','.join(map(as_text, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{as_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, str) and not _plain(value):
        # Hydra's grammar: backslashes are doubled where a quote follows them, and nowhere else
        doubled = re.sub(r"(\\+)(?='|$)", r"\1\1", value)
        return "'" + doubled.replace("'", "\\'") + "'"
    return str(value)


@lru_cache(maxsize=4096)
def _plain(text: str) -> bool:
    """Whether Hydra's grammar reads a text as this text, without quotes."""
    if not re.fullmatch(r"[\w/.:+@-]+", text, flags=re.ASCII):
        return False
    return parse([f"x={text}"])[0].value() == text


def choose(words: Sequence[str] | Mapping[str, Any]) -> Choice:
    """Sorts overrides into names per group and values per key.

    Args:
        words: command line words, or a mapping from keys to plain values as a sweep gives them.
    Raises: ConfigError.
    """
    if isinstance(words, Mapping):
        items = [(key.removeprefix("+"), value, key.startswith("+")) for key, value in words.items()]
    else:
        items = []
        for override in parse(words):
            if override.is_sweep_override():
                raise ConfigError(
                    f"{override.input_line!r} gives several values; one run takes one (dembench sweep takes more)"
                )
            items.append((override.key_or_group, override.value(), override.is_add()))
    names = {}
    values = {}
    added = set()
    for key, value, new in items:
        if key in GROUPS:
            if not isinstance(value, str):
                raise ConfigError(f"{key}: expected a name, got {value!r}")
            names[key] = value
        else:
            values[key] = value
            if new:
                added.add(key)
    return Choice(names, values, frozenset(added))


@lru_cache(maxsize=64)
def _check_folder(out: str) -> None:
    """Raises ConfigError where a file is in the place of the folder, or of one above it."""
    place = Path(out)
    there = next((folder for folder in (place, *place.parents) if os.path.lexists(folder)), None)
    if there is not None and not there.is_dir():
        raise ConfigError(f"out: {there} is not a folder")


def compose(
    words: Sequence[str] | Mapping[str, Any] | Choice = (), config_dir: Path | None = None, *, complete: bool = True
) -> DictConfig:
    """``composed`` as OmegaConf's node, which resolves what is asked of it."""
    return OmegaConf.create(composed(words, config_dir, complete=complete))


def composed(
    words: Sequence[str] | Mapping[str, Any] | Choice = (), config_dir: Path | None = None, *, complete: bool = True
) -> dict[str, Any]:
    """Composes one run and checks every name, key and kind of value in it.

    Args:
        words: overrides as a user writes them, or a mapping from keys to plain values.
        config_dir: own configurations, beside the package's.
        complete: refuse values that the user has to give and has not given.
    Returns: the configuration in plain containers, unresolved, with nodes ``choices``, the names chosen per group,
        and ``labels``, how results call them.
    Raises: ConfigError, one line, with the valid names and the nearest ones.
    """
    choice = words if isinstance(words, Choice) else choose(words)
    offered = partial(options, config_dir=config_dir)
    chosen, values, dotted = own.settle(choice.groups, choice.values, offered)
    names = _full_names(chosen, config_dir)
    if config_dir is not None:
        config_dir = Path(config_dir).resolve()
        _check_config_dir_once(config_dir)
    cfg = groups.compose_groups(names, config_dir)
    own.put(cfg, dotted)
    for key, value in values.items():
        _set(cfg, key, value, new=key in choice.added)
    for key, valid in VALUES.items():
        if cfg[key] not in valid:
            lookup_or_fail(str(cfg[key]), valid, key)
    if not isinstance(cfg["out"], str) or not cfg["out"].strip():
        raise ConfigError(f"out: expected a folder, such as out=runs, got {cfg['out']!r}")
    _check_folder(cfg["out"])
    for key in ("force", "progress"):
        if not isinstance(cfg[key], bool):
            raise ConfigError(f"{key}: expected true or false, got {cfg[key]!r}")
    ranges.check(cfg, GROUPS)
    if not complete:
        return cfg
    _check_missing(cfg, config_dir)
    check_targets(groups.resolve(cfg))
    return cfg


@lru_cache(maxsize=64)
def _check_config_dir_once(config_dir: Path) -> None:
    check_config_dir(config_dir)


def check_signatures(node: Any, path: str = "") -> None:
    """Compares every ``_target_`` below ``node`` (plain containers) with what it takes; imports the targets.

    Raises: ConfigError for a group without a target, an unknown target or argument, and a value that a Literal
        annotation rules out.
    """
    for group in GROUPS if isinstance(node, dict) and not path else ():
        if isinstance(node.get(group), dict) and "_target_" not in node[group]:
            raise ConfigError(f"{group}: the configuration lacks _target_, the class or function that it is for")
    if isinstance(node, list):
        for i, item in enumerate(node):
            check_signatures(item, f"{path}[{i}]")
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        check_signatures(value, f"{path}.{key}" if path else str(key))
    if "_target_" not in node:
        return
    target = locate(node["_target_"], path)
    names, hints = arguments(target)
    for key, value in node.items():
        if key.startswith("_") and key.endswith("_"):
            continue
        if names is not None and key not in names:
            lookup_or_fail(key, names, f"argument of {path}")
        literals = _literals(hints.get(key))
        if literals and value not in literals:
            lookup_or_fail(str(value), [str(literal) for literal in literals], f"{path}.{key}")
        if not _fits(hints.get(key, Any), value):
            raise ConfigError(f"{path}.{key}: expected {_readable(hints[key])}, got {as_text(value)}")
        for kind in typing.get_args(hints.get(key)):
            if dataclasses.is_dataclass(kind) and isinstance(value, Mapping) and "_target_" not in value:
                _check_fields(kind, value, f"{path}.{key}")


def _check_fields(kind: Any, node: Mapping[str, Any], path: str) -> None:
    """A node of plain values against the dataclass that is made of it."""
    names, hints = arguments(kind)
    for key, value in node.items():
        if key not in (names or ()):
            lookup_or_fail(key, names or (), f"key of {path}")
        if not _fits(hints.get(key, Any), value):
            raise ConfigError(f"{path}.{key}: expected {_readable(hints[key])}, got {as_text(value)}")


def arguments(target: Any) -> tuple[list[str] | None, dict[str, Any]]:
    """Names that a class or function takes, None where it takes any, and annotations by name.

    What a class passes on by ``**more`` is what ``Unpack`` says, or else what the classes that it derives from take.
    """
    names: list[str] = []
    hints: dict[str, Any] = {}
    kinds = [kind for kind in target.__mro__ if "__init__" in vars(kind)] if inspect.isclass(target) else [target]
    for kind in kinds:
        try:
            parameters = inspect.signature(kind).parameters
        except (TypeError, ValueError):  # of a class in C
            return None, hints
        own = _hints(kind)
        more = next((name for name, p in parameters.items() if p.kind is p.VAR_KEYWORD), None)
        names += [name for name in parameters if name not in ("self", more, *names)]
        hints = own | hints
        if more is None:
            return names, hints
        packed = typing.get_args(own.get(more))
        if typing.get_origin(own.get(more)) is typing.Unpack and packed:
            fields = typing.get_type_hints(packed[0])
            return [*names, *(name for name in fields if name not in names)], fields | hints
    return None, hints


def _unknown_key(cfg: Mapping[str, Any], key: str) -> None:
    """Names the keys at the same level: all of the same group, or all that stand alone."""
    valid = flat_keys(cfg)
    group = key.split(".")[0]
    near = [k for k in valid if k.startswith(f"{group}.")]
    if group in GROUPS and "." in key and not near:
        raise ConfigError(f"unknown key {key!r}; {group}={cfg['choices'].get(group)} takes no values")
    near = near or [k for k in valid if ("." in k) == ("." in key)]
    lookup_or_fail(key, near, "key")


def flat_keys(cfg: Mapping[str, Any]) -> list[str]:
    """Every dotted key that a user may set: groups, then top-level values, then the arguments inside the groups."""
    inside = []
    for name, node in cfg.items():
        if name not in NOT_SET and isinstance(node, dict):
            inside += [f"{name}.{key}" for key in _leaves(node)]
    top = [key for key in cfg if key not in (*GROUPS, *NOT_SET)]
    return [*GROUPS, *top, *inside]


def _full_names(chosen: Mapping[str, str], config_dir: Path | None) -> dict[str, str]:
    """Group names as Hydra wants them: ``tent`` -> ``tta/tent``; checks that each exists."""
    task = chosen.get("task", "tta")
    lookup_or_fail(task, options("task", config_dir=config_dir), "task")
    full = {"task": task}
    for group, name in chosen.items():
        name = name.removeprefix(f"{task}/")
        lookup_or_fail(name, options(group, task, config_dir), group)
        full[group] = name if group in SHARED else f"{task}/{name}"
    return full


def _set(cfg: dict[str, Any], key: str, value: Any, new: bool) -> None:
    """Sets a known key to a value of its kind, or a new argument of a known node (``+key=value``)."""
    *parents, leaf = key.split(".")
    node: Any = cfg
    for part in parents:
        node = node.get(part) if isinstance(node, dict) else None
    if key.split(".")[0] in NOT_SET or not isinstance(node, dict):
        _unknown_key(cfg, key)
    if leaf not in node:
        if not new or not parents:
            _unknown_key(cfg, key)
    elif (old := node[leaf]) != groups.MISSING and not (isinstance(old, str) and "${" in old):
        value = _same_kind(key, old, value)
    node[leaf] = _plain_containers(value)


def _plain_containers(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain_containers(item) for key, item in value.items()}
    return [_plain_containers(item) for item in value] if isinstance(value, (list, tuple, ListConfig)) else value


def _same_kind(key: str, default: Any, value: Any) -> Any:
    """Returns ``value`` as the kind that the file's own value has: 1 for 1.0 would be another run id."""
    if default is None or value is None:
        return value
    number = int | float
    for kind, name in ((bool, "true or false"), (number, "a number"), (str, "a text"), (dict, "key: value pairs")):
        if isinstance(default, kind):
            if not isinstance(value, kind) or (kind is number and isinstance(value, bool)):
                raise ConfigError(f"{key}: expected {name}, got {value!r}")
            break
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}: expected a finite number, got {value!r}")
    if isinstance(default, float) and isinstance(value, int):
        return float(value)
    if isinstance(default, int) and isinstance(value, float):
        raise ConfigError(f"{key}: expected an integer, got {value!r}")
    return value


def _check_missing(cfg: Mapping[str, Any], config_dir: Path | None) -> None:
    missing = sorted(key for name, node in cfg.items() if name != "task" for key in missing_keys(node, str(name)))
    if missing:
        group = missing[0].split(".")[0]
        name = cfg["choices"].get(group)
        get = ""
        if name:
            get = header(read_option(group, name, cfg["choices"]["task"], config_dir), "Get")
        hint = f"; {get}" if get else ""
        raise ConfigError(f"{group}={name} needs a value: {' '.join(f'{key}=...' for key in missing)}{hint}")


def missing_keys(node: Any, place: str) -> Iterator[str]:
    """Dotted keys below a node, in plain containers, whose values the user has to give."""
    if node == groups.MISSING:
        yield place
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from missing_keys(value, f"{place}.{key}")
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from missing_keys(value, f"{place}[{i}]")


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, child in node.items():
        if isinstance(child, dict):
            yield from _leaves(child, f"{prefix}{key}.")
        elif not key.startswith("_"):
            yield f"{prefix}{key}"


def _hints(target: Any) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError):  # annotations that exist for type checkers only
        return {}


def _fits(hint: Any, value: Any) -> bool:
    """Whether a plain value can be what an annotation says; True where that cannot be told, as for objects."""
    if hint is Any or value == "???" or (isinstance(value, Mapping) and "_target_" in value):
        return True
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(part, value) for part in inside)
    if hint in (None, type(None)):
        return value is None
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    if hint in (bool, str):
        return isinstance(value, hint)
    if hint is Path:
        return isinstance(value, str)
    if origin is typing.Literal:
        return value in inside
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return isinstance(value, Mapping)
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        parts = inside[:1] if origin is not tuple or inside[1:] == (...,) else ()
        return isinstance(value, list) and all(_fits(part, item) for part in parts for item in value)
    return value is not None or not inspect.isclass(hint)


def _readable(hint: Any) -> str:
    """An annotation in words: "a number or null"."""
    inside = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_readable(part) for part in inside))
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a text", Path: "a path"}
    if hint in words or hint in (None, type(None)):
        return words.get(hint, "null")
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(str, inside))
    origin = typing.get_origin(hint)
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return "key: value pairs"
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        return f"a list, each {_readable(inside[0])}" if inside else "a list"
    return getattr(hint, "__name__", str(hint))


def _literals(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) is typing.Literal:
        return typing.get_args(hint)
    parts = typing.get_args(hint)
    if any(typing.get_origin(part) is typing.Literal for part in parts):
        found: list[Any] = []
        for part in parts:
            if part is type(None):
                found.append(None)
            elif typing.get_origin(part) is typing.Literal:
                found += typing.get_args(part)
            else:
                return ()  # something else is allowed too
        return tuple(found)
    return ()

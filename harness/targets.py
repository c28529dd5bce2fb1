"""From ``_target_`` in a configuration to the object that it builds; the only place that calls Hydra's ``instantiate``.

A configuration is data until a target is built, which runs code. A target may be a class of dembench's core and tasks,
whatever a configuration of dembench names, what a module in a folder of ``--config-dir`` defines, and what
``--allow-target`` names. Nothing else is imported, not even to look at it.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import types
from functools import lru_cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from dembench.tasks.base import ConfigError
from dembench.tasks.common import trust

ROOMS = ("dembench.core.", "dembench.tasks.")  # whose classes may be named
OWN = "of dembench, only classes of its core and tasks can be named, and what its own configurations name"
DEEPEST = 40  # containers inside each other


def check_plain(node: Any, place: str, depth: int = 0) -> None:
    """Raises ConfigError for a value that is no plain one: a path, bytes, a date, keys that are no text."""
    if depth > DEEPEST:
        raise ConfigError(f"{place[:80]}...: nested too deeply")
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if not isinstance(key, str | int | float | bool):
            raise ConfigError(f"{place}: expected a text as key, got {key!r}")
        check_plain(value, f"{place}.{key}", depth + 1)
    if not isinstance(node, dict | list | str | int | float | None):
        raise ConfigError(f"{place}: expected a plain value, got {type(node).__name__} {node!r}")


def check_targets(node: Any, place: str = "", *, find: bool = False) -> None:
    """Looks at every value of a resolved configuration in plain containers, targets inside lists and arguments too.

    Args:
        node: what to look at. place: its key. find: import the targets, too, and look at what they are.
    Raises: ConfigError for a target that may not be named, and for a value that is no plain one.
    """
    if not place:
        check_plain(node, "configuration")
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        inside = f"{place}.{key}" if place else str(key)
        if key == "_target_":
            (locate if find else permit)(value, place or "configuration")
        elif isinstance(value, str) and "${" in value:  # Hydra would resolve it again: it could become a target
            raise ConfigError(f"{inside}: a value cannot hold ${{, got {value!r}")
        else:
            check_targets(value, inside, find=find)


def permit(target: Any, place: str) -> str | None:
    """Raises ConfigError, which begins with ``place``, where a target may not be named; imports nothing.

    Returns: the package that it must stay in; None where the user has allowed it by name.
    """
    if not isinstance(target, str) or not trust.NAME.fullmatch(target) or "." not in target:
        raise ConfigError(f"{place}: _target_: expected the dotted name of a class or function, got {target!r}")
    top = target.partition(".")[0]
    if trust.is_allowed(target):
        return None
    if top == "dembench":
        if not target.startswith(ROOMS) and target not in shipped():
            raise _not_allowed(target, place, OWN)
    elif file := next(trust.modules(top), None):
        try:
            spec = importlib.util.find_spec(top)
        except ValueError:  # of a module that was not imported from a file
            spec = None
        if spec is None or not trust.is_trusted_file(spec.origin or ""):
            raise ConfigError(f"{place}: _target_ {target}: another module is called {top}, too; rename {file}")
    else:
        raise _not_allowed(target, place, "it is not in dembench, nor in a folder given by --config-dir")
    return top


def locate(target: Any, place: str) -> Any:
    """The class or function that a dotted name means; ConfigError, which begins with ``place``, where there is none,
    or where it may not be named."""
    package = permit(target, place)
    found = _resolve(target, place, package)
    is_class = isinstance(found, type) and found.__module__.startswith(ROOMS)
    if package == "dembench" and not is_class and target not in shipped():
        raise _not_allowed(target, place, OWN)
    return found


def _not_allowed(target: str, place: str, reason: str) -> ConfigError:
    trusted = f"if you trust it, say --allow-target {target.rpartition('.')[0]}"
    return ConfigError(f"{place}: _target_ {target} is not allowed: {reason}; {trusted}")


@lru_cache(maxsize=1)
def shipped() -> frozenset[str]:
    """The targets of dembench's own configurations."""

    def visit(folder: Traversable) -> set[str]:
        found: set[str] = set()
        for entry in folder.iterdir():
            if entry.is_dir():
                found |= visit(entry)
            elif entry.name.endswith(".yaml"):
                found |= set(re.findall(r"_target_: *(dembench[\w.]+)", entry.read_text(encoding="utf-8")))
        return found

    return frozenset(visit(resources.files("dembench.configs")))


def _resolve(target: str, place: str, package: str | None) -> Any:
    """Looks a name up as Hydra does: attributes first, then modules; never in a module of another package, which one of
    ``package`` may have imported."""
    first, *names = target.split(".")
    try:
        found: Any = importlib.import_module(first)
        for count, name in enumerate(names, 1):
            if isinstance(found, types.ModuleType) and not hasattr(found, name):
                importlib.import_module(".".join([first, *names[:count]]))
            found = getattr(found, name)
            if package and isinstance(found, types.ModuleType) and found.__name__.partition(".")[0] != package:
                raise ConfigError(f"{place}: _target_ {target} leads into another package, {found.__name__}")
    except ConfigError:
        raise
    except Exception as error:  # whatever a module raises while it is imported
        told = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(f"{place}: cannot import {target}: {told}") from error
    if not callable(found):
        raise ConfigError(f"{place}: _target_ {target} is no class or function")
    return found


def build(node: Any, place: str = "", **arguments: Any) -> Any:
    """What a configuration in plain containers means, with more arguments for its target.

    Raises: ConfigError for targets that may not be named, and what the constructors raise (Hydra's
        InstantiationException).
    """
    from hydra.utils import instantiate

    check_targets(node, place, find=True)
    return instantiate(node, **arguments)

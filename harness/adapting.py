"""A network that adapts to what it predicts, by the names of a method and a loss: ``dembench.adapt``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from dembench.harness import experiment
from dembench.harness.compose import arguments, check_signatures, compose, lookup_or_fail
from dembench.harness.targets import build, locate
from dembench.tasks.base import ConfigError
from dembench.tasks.common.losses import checked

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dembench.core.adapt import Loss
    from dembench.tasks.tta.adapted import Adapted
    from dembench.tasks.tta.methods.base import TTAMethod

GIVEN = ("model", "loss")  # what a method is given besides its options


def adapt(
    model: nn.Module,
    method: str | type[TTAMethod] = "tent",
    loss: str | Loss | None = "adadem",
    *,
    source: Tensor | None = None,
    seed: int = 0,
    copy: bool = True,
    config_dir: Path | None = None,
    **options: Any,
) -> Adapted:
    """A network that adapts to each batch that it predicts.

    ``adapted(x)`` predicts a batch and learns from it, ``adapted.peek(x)`` predicts and moves nothing,
    ``adapted.reset()`` goes back to the start, ``state_dict`` and ``load_state_dict`` keep and restore where it is.

    Args:
        model: any network from one tensor to logits (N, C, ...), on its device: images, vectors, sequences.
        method: a name (``dembench list method``) or a subclass of ``TTAMethod``.
        loss: a name (``dembench list loss``), or anything that maps logits (N, C) to a loss per sample (N,), such as
            ``dembench.DEM(tau=1.2, alpha=0.8)``; None is no loss, for methods that use none.
        source: clean inputs (N, ...) as the network takes them, for a method that looks at some first (eata).
        seed: of what the method draws; as ``seed`` of a run.
        copy: adapt a copy of ``model`` and of ``loss``, and leave yours as they are. False saves the memory: the method
            then changes yours, also their modes and which parameters require gradients.
        config_dir: own configurations, whose methods and losses can be named.
        options: of the method, such as ``lr=1e-3``; ``dembench list method -v`` shows them.
    Returns: see ``dembench.tasks.tta.adapted.Adapted``.
    Raises: ConfigError, one line, for an unknown name or option (with the nearest ones), a value that does not fit, and
        a network that the method cannot adapt. A loss that is not one value a sample is refused at the first batch.
    """
    from dembench.tasks.tta.adapted import Adapted

    with experiment.user_errors():
        known = _loss(loss, copy, config_dir)
        make, used = _method(method, options, config_dir)
        own = deepcopy(model) if copy else model
        return Adapted(own, partial(make, loss=known), source=source, seed=seed, options=used)


def _loss(loss: str | Loss | None, copy: bool, config_dir: Path | None) -> Any:
    if isinstance(loss, str):
        return experiment.build_loss({"loss": _node("loss", loss, config_dir)})
    if loss is not None and not callable(loss):
        raise ConfigError(f"loss: expected a name or a function of logits, got {loss!r}")
    return checked(deepcopy(loss) if copy else loss)


def _method(
    method: str | type[TTAMethod], options: Mapping[str, Any], config_dir: Path | None
) -> tuple[Callable[..., TTAMethod], dict[str, Any]]:
    """What makes the method of a model and a loss, and all its options."""
    if isinstance(method, str):
        node = _node("method", method, config_dir)
        known, _ = arguments(locate(node["_target_"], "method"))
        for key, value in options.items():
            _check_option(key, known, method)
            both = isinstance(value, Mapping) and isinstance(node.get(key), Mapping)
            node[key] = {**node[key], **value} if both else value
        check_signatures(node, method)
        return build(node, "method"), {key: value for key, value in node.items() if not key.startswith("_")}
    if not inspect.isclass(method):
        raise ConfigError(f"method: expected a name or a class, got {method!r}")
    for key in options:
        _check_option(key, arguments(method)[0], method.__name__)
    return partial(method, **options), dict(options)


def _check_option(key: str, known: list[str] | None, name: str) -> None:
    if known is not None:
        lookup_or_fail(key, [other for other in known if other not in GIVEN], f"option of {name}")


def _node(group: str, name: str, config_dir: Path | None) -> dict[str, Any]:
    """The configuration of a method or loss of the task, in plain containers."""
    cfg = compose({"task": "tta", group: name}, config_dir, complete=False)
    node: Any = OmegaConf.to_container(cfg[group], resolve=True)
    return node

"""TensorBoard, W&B and MLflow beside the run directory, through the logger interface of Lightning Fabric.

Off unless the key ``logger`` names some; the key is not part of a run's id, and result.json and the CSV files are
written whatever it says. TensorBoard's files are in ``<out>/<id>/tensorboard``, W&B's in ``<out>/wandb``, MLflow's in
``<out>/mlruns``; WANDB_MODE, WANDB_PROJECT, MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME hold as with these tools.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dembench.harness.compose import ConfigError, lookup_or_fail
from dembench.tasks.base import Event, Point, Row, Scalars
from dembench.tasks.common.files import plain_lock

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}  # logger -> what it is installed as
PROJECT = "dembench"
NOT_LOGGED = ("out", "force", "progress", "logger", "save")  # keys that are no hyperparameters


def chosen(value: Any) -> tuple[str, ...]:
    """The loggers that the key ``logger`` asks for, given as a name, a list of names or None.

    Raises: ConfigError for an unknown name, and for one whose package is not installed.
    """
    names = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"logger: expected {', '.join(PACKAGES)} or a list of these, got {value!r}")
    for name in names:
        lookup_or_fail(name, PACKAGES, "logger")
        missing = [package for package in ("lightning", PACKAGES[name]) if find_spec(package) is None]
        if missing:
            raise ConfigError(f"logger={name} needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    return tuple(dict.fromkeys(names))


@contextmanager
def opened(config: Mapping[str, Any], id: str, directory: Path) -> Iterator[Callable[[Event], None]]:
    """Opens the loggers of a run, gives them its configuration, and closes them as "success" or "failed".

    Args:
        config: resolved, with ``logger``.
        directory: the run's own; W&B and MLflow write beside it.
    Yields: what takes each event. A logger that fails then is left out from there on, with a warning; the run goes on.
    Raises: ConfigError where one cannot be opened.
    """
    names = chosen(config.get("logger"))
    with ExitStack() as stack:
        open_ones = [stack.enter_context(_Open(name, config, id, directory)) for name in names]

        def log(event: Event) -> None:
            for one in open_ones:
                one.add(event)

        yield log


class _Open:
    """One logger of one run, and how far it has come."""

    def __init__(self, name: str, config: Mapping[str, Any], id: str, directory: Path) -> None:
        self.name = name
        self.batches = self.last = 0
        self.works = True
        parameters = {"id": id, **{key: value for key, value in config.items() if key not in NOT_LOGGED}}
        try:
            self.logger = MAKERS[name](config, id, directory)
            # TensorBoard shows hyperparameters only beside a number
            self.logger.log_hyperparams(parameters, *([{"finished": 0}] if name == "tensorboard" else []))
        except Exception as error:  # whatever the tool raises: nothing has run yet, and its user can put it right
            raise ConfigError(f"logger={name}: {' '.join(str(error).split())}") from error

    def __enter__(self) -> _Open:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.name == "tensorboard" and kind is None:
            self._log({"finished": 1}, self.last)
        self._try(lambda: _close(self.name, self.logger, failed=kind is not None))

    def add(self, event: Event) -> None:
        """Logs a Row, a Scalars or a Point; the other events are texts and counts for the record."""
        match event:
            case Point():
                self.batches += 1
                self.last = max(self.last, self.batches)
                numbers = {"batch/error": 1 - event.correct / event.n} if event.n else {}
                numbers["batch/entropy"] = event.entropy
                if event.loss is not None:
                    numbers["batch/loss"] = event.loss
                self._log(numbers, self.batches)
            case Scalars():
                self.last = max(self.last, event.step)
                place = f"curve/{event.slice}" if event.slice else "curve"
                self._log({f"{place}/{metric}": value for metric, value in event.values.items()}, event.step)
            case Row():
                self._log({f"result/{event.metric}/{event.slice}": event.value}, self.last)

    def _log(self, numbers: Mapping[str, float], step: int) -> None:
        plain = {re.sub(r"[^\w/. -]", "_", name, flags=re.ASCII): float(value) for name, value in numbers.items()}
        self._try(lambda: self.logger.log_metrics(plain, step))

    def _try(self, work: Callable[[], None]) -> None:
        if not self.works:
            return
        try:
            work()
        except Exception as error:  # whatever the tool raises: hours of computing do not end for it
            self.works = False
            warnings.warn(f"logger {self.name} stopped, the run goes on without it: {error}", stacklevel=2)


def _tensorboard(config: Mapping[str, Any], id: str, directory: Path) -> Any:
    from lightning.fabric.loggers import TensorBoardLogger

    folder = directory / "tensorboard"
    if folder.is_symlink():
        raise OSError(f"{folder} is a link, and is not written to")
    shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was cut off; a run's events are all given again
    return TensorBoardLogger(directory, name="", version=folder.name, default_hp_metric=False)


def _wandb(config: Mapping[str, Any], id: str, directory: Path) -> Any:
    from lightning.pytorch.loggers import WandbLogger

    project = os.environ.get("WANDB_PROJECT", PROJECT)
    return WandbLogger(
        project=project, name=_title(config, id), save_dir=directory.parent, group=config["choices"]["task"]
    )


def _mlflow(config: Mapping[str, Any], id: str, directory: Path) -> Any:
    from lightning.pytorch.loggers import MLFlowLogger

    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        uri = f"file:{(directory.parent / 'mlruns').resolve()}"
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 prefers a database, and asks for this
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    logger = MLFlowLogger(experiment, run_name=_title(config, id), tracking_uri=uri)
    with plain_lock(directory.parent / ".mlflow.lock"):  # two processes would each make the experiment
        _ = logger.run_id
    return logger


def _title(config: Mapping[str, Any], id: str) -> str:
    names = config["choices"]
    words = [names[group] for group in ("method", "loss", "model", "protocol") if names.get(group)]
    return " ".join([*words, "seed", str(config["seed"]), id])


def _close(name: str, logger: Any, failed: bool) -> None:
    logger.finalize("failed" if failed else "success")
    if name == "wandb":
        logger.experiment.finish(exit_code=int(failed))
    elif name == "tensorboard":
        logger.experiment.close()


MAKERS = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}

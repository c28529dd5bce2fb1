"""What the commands do, in Python: ``dembench.run``, ``sweep``, ``load``, ``compare``.

Names and values are those of the command line, records the same files, and an error is an exception with the line that
the command would print.
"""

from __future__ import annotations

import io
import os
import random
import shlex
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dembench.tasks.base import ConfigError

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from dembench.report.judge.compare import Compared
    from dembench.report.read.load import Run

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
SWEEP_KEYS = ("base", "grids", "paper", "tune")


@dataclass(frozen=True)
class Result:
    """A finished run. Where a path is taken, it stands for its folder.

    Attributes: ``path``, the folder; ``record``, what its result.json holds; ``ran``, whether it was computed now.
    """

    path: Path
    record: dict[str, Any] = field(repr=False)
    ran: bool = True

    @property
    def id(self) -> str:
        return str(self.record["id"])

    @property
    def status(self) -> str:
        """ "ok", "collapse", "nan" or "unlearned"."""
        return str(self.record["status"])

    @property
    def metrics(self) -> dict[str, float | None]:
        """The mean of each metric as recorded, fractions and not per cent; None for one that is not finite."""
        return {row["metric"]: row["value"] for row in self.record["rows"] if row["slice"] == "mean"}

    @property
    def numbers(self) -> pd.DataFrame:
        """A row a number: slice, metric, value, unit, n."""
        import pandas

        return pandas.DataFrame(self.record["rows"])

    @property
    def curve(self) -> pd.DataFrame:
        """A row a batch, or of a learning curve a row a number; empty where the run has neither."""
        import pandas

        for name in ("curve.csv", "series.csv"):
            if (self.path / name).is_file():
                return pandas.read_csv(self.path / name)
        return pandas.DataFrame()

    @property
    def notes(self) -> dict[str, str]:
        """What must be known beside the numbers, by topic."""
        return {note["key"]: note["text"] for note in self.record["notes"]}

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        from dembench.scripts.run import summary

        names = (self.record.get(key) for key in ("task", "method", "loss", "model", "data", "protocol"))
        return f"{' '.join(filter(None, names))} seed {self.record['seed']}: {summary(self.record)}"

    def _repr_html_(self) -> str:
        from html import escape

        notes = "".join(f"<li>{escape(key)}: {escape(text)}</li>" for key, text in self.notes.items())
        return f"<p><b>{escape(str(self))}</b><br><code>{escape(str(self.path))}</code></p><ul>{notes}</ul>"


@dataclass(frozen=True)
class Swept(Sequence[Result]):
    """The finished runs of a sweep, in the order of its grid; ``failed`` maps the id of any other to the last line of
    its traceback."""

    runs: tuple[Result, ...]
    failed: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, place: Any) -> Any:
        return self.runs[place]

    def __len__(self) -> int:
        return len(self.runs)

    def __iter__(self) -> Iterator[Result]:
        return iter(self.runs)

    @property
    def frame(self) -> pd.DataFrame:
        """A row a run: its names, seed, status, means and seconds."""
        import pandas

        names = ("id", "task", "method", "loss", "model", "data", "protocol", "seed", "status")
        rows = [
            {name: run.record.get(name) for name in names}
            | run.metrics
            | {"seconds": run.record["cost"]["wall_seconds"]}
            for run in self.runs
        ]
        return pandas.DataFrame(rows)

    def __str__(self) -> str:
        failed = "".join(f"\nfailed: {id}: {reason}" for id, reason in self.failed.items())
        return f"{len(self.runs)} runs\n{self.frame.to_string(index=False)}{failed}"

    def _repr_html_(self) -> str:
        from html import escape

        failed = "".join(f"<li>failed: {escape(id)}: {escape(why)}</li>" for id, why in self.failed.items())
        return f"{self.frame.to_html(index=False)}<ul>{failed}</ul>"


class Loaded(NamedTuple):
    """Runs as tables. ``numbers`` has a row a number: run, its names, seed, status, slice, metric, value, unit, n (of
    samples). ``runs`` has a row a run: id, its names, seed, status, ``cost.*``, and its configuration, ``method.lr``.
    """

    numbers: pd.DataFrame
    runs: pd.DataFrame


class Comparison:
    """Two sets of runs, pair by pair; printed, it is the table of ``dembench compare``.

    Attributes: ``found``, see ``dembench.report.judge.compare.Compared``.
    """

    def __init__(self, found: Compared, a: str, b: str) -> None:
        self.found, self._a, self._b = found, a, b

    @property
    def frame(self) -> pd.DataFrame:
        """A row for each set of pairs: means, gain of B over A with its 95% interval, pairs, in the metric's unit."""
        import pandas

        from dembench.scripts.compare import lines_of

        return pandas.DataFrame(lines_of(self.found))

    def __str__(self) -> str:
        from rich.console import Console

        from dembench.scripts.compare import write_tables

        text = io.StringIO()
        write_tables(self.found, self._a, self._b, Console(file=text, highlight=False, width=120))
        return text.getvalue().rstrip()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        columns = ["task", "what", "metric", "unit", "pairs", "a_mean", "b_mean", "gain", "gain_low", "gain_high"]
        return str(self.frame[columns].to_html(index=False, float_format="{:.4g}".format, na_rep=""))


def run(
    settings: Mapping[str, Any] | None = None,
    /,
    *,
    model: str | nn.Module | None = None,
    data: str | os.PathLike[str] | None = None,
    config_dir: str | os.PathLike[str] | None = None,
    allow_target: str | Iterable[str] = (),
    progress: bool = True,
    **names: Any,
) -> Result:
    """Runs once, as ``dembench run``; a finished run is read back.

    Args:
        settings: keys with dots, ``{"method.lr": 1e-3, "protocol.severity": 3}``.
        model: a name, the dotted name of a class, or a network; an object counts by its class and its tensors.
        data: a name, or a folder of class folders.
        config_dir: own configurations. allow_target: modules or classes of yours that may be named.
        progress: show how far it is, in a notebook as a bar.
        names: keys without dots: ``task="tta"``, ``method="tent"``, ``loss="adadem"``, ``seed=1``, ``out="runs"``.
    Raises: ConfigError, one line, for whatever is wrong with names, values, data or weights; RunBusy (a RuntimeError)
        while another process writes the same run; anything that the run itself raises.
    Torch's settings and random numbers are as before afterwards.
    """
    from dembench.harness import experiment
    from dembench.harness import progress as shows
    from dembench.harness.compose import compose
    from dembench.scripts.run import title

    folder = _trust(config_dir, allow_target)
    words = _words({**(settings or {}), **names, "model": model, "data": data}, omit=("model", "data"))
    with _as_before(), _one_line():
        prepared = experiment.prepare(compose(words, folder))
        experiment.check_method(prepared.task, prepared.make_method)
        with shows.shown(progress, title(prepared.config)) as watch:
            outcome = experiment.run(prepared, command=_command(words, folder), watch=watch)
    return Result(outcome.path.parent, outcome.result, outcome.ran)


def sweep(
    grid: str | os.PathLike[str] | Mapping[str, Any] | Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any] | None = None,
    /,
    *,
    workers: int = 0,
    config_dir: str | os.PathLike[str] | None = None,
    allow_target: str | Iterable[str] = (),
    progress: bool = True,
    retry_errors: bool = False,
    **names: Any,
) -> Swept:
    """Runs a grid, as ``dembench sweep``; what is done is skipped, so an interrupted sweep resumes.

    Args:
        grid: ``{"method": ["tent", "sar"], "loss": ["em", "adadem"], "seed": range(3)}``, which gives every
            combination; a list of such mappings; or a name or file of a sweep.
        settings, names: what all runs share, as for ``run``; it replaces a key of the grid. A list of names or seeds
            gives several, a list under a key with a dot is one value.
        workers: processes; 0 is this one. A script needs ``if __name__ == "__main__":`` around more than 0.
        retry_errors: run again, too, what raised an exception.
    Returns: all runs with a result. A failed run does not stop the others; it is in ``failed``, and a warning says so.
    Raises: ConfigError before the first run starts, for whatever is wrong with any of them.
    """
    from dembench.harness import sweeps
    from dembench.harness.engines.choose import Settings, choose
    from dembench.harness.engines.execute import execute
    from dembench.harness.engines.view import State, shown
    from dembench.harness.own import PYTHON
    from dembench.harness.runs import read_result

    folder = _trust(config_dir, allow_target)
    given = {key: _values(key, value) for key, value in _words({**(settings or {}), **names}).items()}
    if isinstance(grid, str | os.PathLike):
        content = sweeps.read_sweep(os.fspath(grid), folder)
    else:
        grids = [grid] if isinstance(grid, Mapping) else list(grid)
        content = {"name": "grid", "base": {}, "grids": [_words(own) for own in grids]}
    if workers and any(str(value).startswith(PYTHON) for value in given.get("model", ())):
        raise ConfigError("a network that is given as an object is in this process only: workers=0")
    with _as_before(), _one_line():
        words, left = sweeps.fit(sweeps.expand(content, given), given, folder)
        for key, without in left.items():
            warnings.warn(
                f"{key} is left out of the runs of {', '.join(without)}, which have no such option", stacklevel=2
            )
        planned = sweeps.plan(words, folder)
        missing = [one for one in planned if not one.done]
        failed: dict[str, str] = {}
        if missing:
            times, labels = sweeps.past_times(planned), sweeps.labels(planned)
            engine = choose(Settings(workers=workers), planned, times)
            with shown(State(missing, engine, labels, times), progress) as tell:
                summary = execute(planned, engine, retry_errors=retry_errors, tell=tell)
            from dembench.scripts.sweep import reason

            failed = {id: reason(path) for id, path in summary.failed.items()}
        fresh = {one.id for one in missing}
        found = ((one, read_result(one.directory)) for one in planned if one.id not in failed)
        done = tuple(Result(one.directory, result, one.id in fresh) for one, result in found if result is not None)
    if failed:
        first = next(iter(failed))
        warnings.warn(f"{len(failed)} of {len(planned)} runs failed; {first}: {failed[first]}", stacklevel=2)
    return Swept(done, failed)


def load(runs: Paths = "runs") -> Loaded:
    """The numbers and the settings of many runs as two tables of pandas.

    Args:
        runs: folders that hold runs at any depth, files of ``dembench export``, results of ``run`` or ``sweep``.
    Raises: ValueError where there is no finished run.
    """
    import pandas

    from dembench.report.judge.group import flatten

    names = ("task", "method", "loss", "model", "data", "protocol", "seed", "status")
    numbers, rows = [], []
    for one in _runs(runs):
        called = {name: getattr(one, name) for name in names}
        for (part, metric), value in one.scores.items():
            measured = {
                "slice": part,
                "metric": metric,
                "value": value,
                "unit": one.units[metric],
                "n": one.sizes[part],
            }
            numbers.append({"run": one.id, **called, **measured})
        known = {key: value for key, value in one.config.items() if key not in ("choices", "task", "seed")}
        costs = {f"cost.{key}": value for key, value in one.cost.items()}
        rows.append({"run": one.id, **called, **costs, **flatten(known)})
    return Loaded(pandas.DataFrame(numbers), pandas.DataFrame(rows))


def compare(a: Paths, b: Paths, *, metric: str | None = None, runs: str | os.PathLike[str] = "runs") -> Comparison:
    """Two sets of runs side by side, with paired differences, as ``dembench compare``.

    Args:
        a, b: filters on ``runs`` such as ``"loss=em"``, folders or files of runs, both in one text
            (``"runs loss=em task=tta"``), or results of ``run`` or ``sweep``; a positive gain says that B is better.
        metric: another number than the task's own: "nll", "ece", "wall_seconds".
    Raises: ValueError where a side has no runs, or nothing pairs.
    """
    from dembench.report.judge.compare import compare as compared

    sides = [_side(given, Path(runs)) for given in (a, b)]
    with _one_line():
        found = compared(sides[0][0], sides[1][0], metric)
    return Comparison(found, sides[0][1], sides[1][1])


def _side(given: Paths, default: Path) -> tuple[tuple[Run, ...], str]:
    """The runs of a side, and what a table calls it."""
    from dembench.report.judge.selection import read, side

    if isinstance(given, str):
        with _one_line():
            return read(side(given, default)), given
    paths = _paths(given)
    name = str(paths[0]) if len(paths) == 1 else f"{len(paths)} runs"
    return _runs(given), name


def _runs(given: Paths) -> tuple[Run, ...]:
    from dembench.report.read.load import load

    with _one_line():
        return load(_paths(given)).runs


def _paths(given: Paths) -> list[Path]:
    return [Path(given)] if isinstance(given, str | os.PathLike) else [Path(path) for path in given]


def _words(given: Mapping[str, Any], omit: Sequence[str] = ()) -> dict[str, Any]:
    """Values as the command line would give them; those of ``omit`` count only where they are not None."""
    return {str(key): _plain(str(key), value) for key, value in given.items() if value is not None or key not in omit}


def _plain(key: str, value: Any) -> Any:
    """A plain value: paths as text, arrays and ranges as lists, a network as the name under which it is kept."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(inner): _plain(key, item) for inner, item in value.items()}
    if hasattr(value, "tolist"):  # of numpy and torch
        return _plain(key, value.tolist())
    if isinstance(value, Iterable) and not hasattr(value, "parameters"):
        return [_plain(key, item) for item in value]
    if key == "model" and hasattr(value, "state_dict"):
        from dembench.harness.own import PYTHON
        from dembench.tasks.common.own import give

        return PYTHON + " ".join(give(value))
    raise ConfigError(
        f"{key}: expected a name, a number or a list, got {type(value).__name__}; put your own into a module and name "
        f'it, {key}="my_module.{type(value).__name__}" with allow_target="my_module"'
    )


def _values(key: str, value: Any) -> list[Any]:
    """What a setting of all runs of a grid gives: a list is several names or seeds, but one value of a dotted key."""
    return value if isinstance(value, list) and "." not in key and key != "logger" else [value]


def _trust(config_dir: str | os.PathLike[str] | None, allow_target: str | Iterable[str]) -> Path | None:
    """Allows what the caller names; the folder as a path."""
    from dembench.tasks.common.trust import allow

    for name in [allow_target] if isinstance(allow_target, str) else allow_target:
        try:
            allow(name)
        except ValueError as error:
            raise ConfigError(f"allow_target: {error}") from None
    return None if config_dir is None else Path(config_dir)


def _command(words: Mapping[str, Any], config_dir: Path | None) -> str:
    """The command that repeats a run; of a network that was given as an object, the call in Python."""
    from dembench.harness.compose import to_arguments
    from dembench.harness.own import PYTHON
    from dembench.tasks.common import trust

    if str(words.get("model", "")).startswith(PYTHON):
        return f"dembench.run({dict(words)!r})  # in Python, with that network as model"
    return shlex.join(["dembench", "run", *trust.arguments(config_dir), *to_arguments(dict(words))])


@contextmanager
def _one_line() -> Iterator[None]:
    """Messages without the name of the command."""
    try:
        yield
    except ValueError as error:
        if str(error).startswith("report: "):
            raise ConfigError(str(error).removeprefix("report: ")) from None
        raise


@contextmanager
def _as_before() -> Iterator[None]:
    """Torch's threads, its choice of algorithms and all random numbers are afterwards what they were; networks that
    were given as objects are forgotten."""
    import numpy as np
    import torch

    from dembench.tasks.common.own import forget

    threads, drawn, numpy_drawn = torch.get_num_threads(), random.getstate(), np.random.get_state()
    strict, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    cudnn = torch.backends.cudnn
    benchmark, tf32, efficient = cudnn.benchmark, cudnn.allow_tf32, torch.backends.cuda.mem_efficient_sdp_enabled()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        forget()
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict, warn_only=warn)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        cudnn.benchmark, cudnn.allow_tf32 = benchmark, tf32
        torch.backends.cuda.enable_mem_efficient_sdp(efficient)
        random.setstate(drawn)
        np.random.set_state(numpy_drawn)

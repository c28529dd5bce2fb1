"""Run directories: what a run is called, what is written into it and in which order, and reading it back.

``runs/<id>/`` holds config.yaml (resolved) and environment.json from the start; curve.csv (a line per batch) and
series.csv (learning curves), if present, which grow while the run goes on; when the run ends, files/ (pictures,
weights), if present, and result.json last: a run with that file is finished. Files appear whole or not at all.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

from filelock import Timeout

from dembench import records
from dembench.tasks.base import Artifact, ConfigError, Event, Flag, Histogram, Note, Point, Row, Scalars
from dembench.tasks.common.files import plain_lock, write_atomic

PATH_KEYS = frozenset(  # of data and model nodes
    {"root", "source", "frost", "cache", "weights", "subset", "classes", "config_file"}
)
NAMED_PATHS = frozenset(  # likewise where they hold text; their null is in the ids of older records
    {"file", "train", "class_names", "folders"}
)
FIRST_NAMES = {  # of classes that moved: an id holds the name under which a class first appeared
    "harness.search.dem_star.DEMStar": "tasks.search.dem_star.DEMStar",
    "tasks.common.noloss.no_loss": "tasks.noloss.no_loss",
    "tasks.segmentation.protocol.Protocol": "tasks.segmentation.schedule.Schedule",
    "tasks.semi.protocol.Protocol": "tasks.semi.regime.Regime",
    **{
        f"tasks.common.generated.{name}": f"tasks.tta.data.{name}"
        for name in ("GeneratedCIFAR10C", "GeneratedCIFAR100C")
    },
    **{
        f"tasks.semi.published.{name}": f"tasks.semi.sources.{name}"
        for name in ("CIFAR", "EuroSAT", "MedMNIST", "STL10", "SemiAves")
    },
}
NOT_IN_ID = frozenset({"out", "force", "progress", "logger", "save", "choices", "labels", "sequential"})
CURVE_FIELDS = ("step", "slice", "n", "correct", "entropy", "loss", "updated")
SERIES_FIELDS = ("step", "slice", "metric", "value")

VERSIONS = (
    *("torch", "torchvision", "timm", "open_clip_torch"),
    *("stable_baselines3", "sb3_contrib", "gymnasium", "minigrid"),
    *("mmsegmentation", "mmengine", "mmcv-lite", "mmcv"),
    *("numpy", "scipy", "scikit-learn", "pillow", "hydra-core"),
)  # of packages, as far as they are installed; all of them can move a number


class RunBusy(RuntimeError):
    """Another process is writing this run."""


def run_id(config: Mapping[str, Any], fingerprints: Mapping[str, str]) -> str:
    """First 12 hex digits of the SHA-256 of the canonical JSON of what a run's numbers depend on.

    Args:
        config: the resolved configuration in plain containers; where results go, paths and chosen names are left out.
        fingerprints: what stands for the paths: "data" and "weights", by what they hold.

    A class counts by the name under which it first appeared, so that moving it leaves the ids as they are.
    """
    identity = {
        "config": _without_paths({k: v for k, v in config.items() if k not in NOT_IN_ID}),
        "fingerprints": dict(fingerprints),
    }
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _without_paths(node: Any) -> Any:
    if isinstance(node, Mapping):
        kept = {k: _without_paths(v) for k, v in node.items() if k not in PATH_KEYS and not is_path(k, v)}
        if isinstance(target := kept.get("_target_"), str):
            target = target.removeprefix("dembench.")
            kept["_target_"] = FIRST_NAMES.get(target, target)
        return kept
    if isinstance(node, (list, tuple)):
        return [_without_paths(item) for item in node]
    return node


def write_json(path: Path, value: Any) -> None:
    """Valid JSON only: a NaN or an infinity raises ValueError."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def is_path(key: str, value: Any) -> bool:
    """Whether an option counts by what it names: a text, or texts by name, under one of ``NAMED_PATHS``."""
    texts = list(value.values()) if isinstance(value, Mapping) else [value]
    return key in NAMED_PATHS and bool(texts) and all(isinstance(text, str) for text in texts)


def named_paths(node: Any, place: str = "") -> dict[str, str]:
    """Dotted key -> text of all options for which ``is_path`` holds."""
    found: dict[str, str] = {}
    if isinstance(node, Mapping):
        for key, value in node.items():
            if is_path(str(key), value):
                texts = value if isinstance(value, Mapping) else {"": value}
                found |= {f"{place}{key}.{name}".rstrip("."): text for name, text in texts.items()}
            else:
                found |= named_paths(value, f"{place}{key}.")
    return found


def read_result(directory: Path) -> dict[str, Any] | None:
    """The result of a finished run, or None where there is none (never started, running, or cut off).

    Raises: ValueError where result.json is no result of this program, or that of another run.
    """
    path = Path(directory) / "result.json"
    try:
        result: dict[str, Any] = records.read_json(path, records.RESULT)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, OSError) as error:
        raise ValueError(f"{error}; remove it to run again") from None
    if result["id"] != Path(directory).name:
        raise ValueError(f"{path} is a copy of run {result['id']}; remove it to run again")
    return result


def set_aside(directory: Path) -> Path:
    """Renames a result.json that cannot be read, so that the run can run again; returns its new name."""
    place = directory / "result.json.odd"
    number = 1
    while os.path.lexists(place):
        number += 1
        place = directory / f"result.json.odd{number}"
    os.replace(directory / "result.json", place)
    return place


@contextlib.contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Holds a run directory for one process; the lock goes with the process, however it ends.

    Raises: RunBusy where another process holds it; ConfigError where the lock cannot be made, or is a link.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        held = plain_lock(directory / ".lock").acquire(timeout=0)
    except Timeout:
        raise RunBusy(f"another process is writing {directory}") from None
    except OSError as error:
        raise ConfigError(str(error)) from None
    with held:
        yield


def clear_leftovers(directory: Path) -> None:
    """Removes what a killed process left in the directory of a finished run: its checkpoint, temporary files. One that
    another process is writing is left alone."""
    if not (directory / "checkpoint.pt").exists() and next(temporary(directory), None) is None:
        return
    with contextlib.suppress(RunBusy, OSError), lock(directory):
        for path in (directory / "checkpoint.pt", *temporary(directory)):
            path.unlink(missing_ok=True)


def temporary(directory: Path) -> Iterator[Path]:
    """Temporary files of a run; while it is locked, a process that died has left them."""
    yield from directory.glob(".*.tmp")
    if not (directory / "files").is_symlink():
        yield from directory.glob("files/.*.tmp")


def write_files(directory: Path, contents: Mapping[str, bytes | Callable[[BinaryIO], object]]) -> None:
    """Files, by name, in ``files/`` of a run. Raises: OSError where that is a link, or one of them is."""
    if (directory / "files").is_symlink():
        raise OSError(f"{directory / 'files'} is a link, and is not written to")
    for name, content in contents.items():
        write_atomic(directory / "files" / name, content)


class Recorder:
    """Collects the events of one run and turns them into curve.csv and result.json.

    Numbers that are not finite are recorded as null, with a flag, because NaN is not JSON.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.points: list[Point] = []
        self.scalars: list[Scalars] = []
        self.artifacts: dict[str, bytes] = {}
        self.histograms: dict[str, dict[str, list[int]]] = {}
        self.flags: list[dict[str, str]] = []
        self.notes: list[dict[str, str]] = []

    def add(self, event: Event) -> None:
        """Takes one event; raises TypeError for anything else."""
        match event:
            case Row():
                row = asdict(event)
                row["value"] = float(event.value)
                if not math.isfinite(row["value"]):
                    row["value"] = None
                    self._flag_nan(event.slice, f"{event.metric} is {float(event.value)}")
                self.rows.append(row)
            case Point():
                self.points.append(event)
                numbers = (event.entropy, 0.0 if event.loss is None else event.loss)
                if not all(map(math.isfinite, numbers)):
                    self._flag_nan(event.slice, f"entropy or loss not finite at step {event.step}")
            case Scalars():
                self.scalars.append(event)
            case Artifact():
                if not event.name or event.name != Path(event.name).name or event.name.startswith("."):
                    raise ValueError(f"expected a plain file name, got {event.name!r}")
                self.artifacts[event.name] = event.content
            case Histogram():
                self.histograms[event.slice] = {
                    "predicted": [int(n) for n in event.predicted],
                    "label": [int(n) for n in event.label],
                }
            case Flag():
                self.flags.append(asdict(event))
            case Note():
                if asdict(event) not in self.notes:
                    self.notes.append(asdict(event))
            case _:
                raise TypeError(f"expected an event of tasks.base, got {type(event).__name__}")

    def _flag_nan(self, slice: str, message: str) -> None:
        if not any(flag["kind"] == "nan" and flag["slice"] == slice for flag in self.flags):
            self.flags.append(asdict(Flag("nan", slice, message)))

    @property
    def status(self) -> str:
        """ "nan" before "collapse" before "unlearned" before "ok"."""
        kinds = {flag["kind"] for flag in self.flags}
        return next((kind for kind in ("nan", "collapse", "unlearned") if kind in kinds), "ok")

    def curve(self) -> str:
        """The points as CSV; an absent loss is an empty cell."""

        def cells(p: Point) -> tuple[object, ...]:
            loss = "" if p.loss is None else f"{p.loss:.7g}"
            return p.step, p.slice, p.n, p.correct, f"{p.entropy:.7g}", loss, p.updated

        return _csv(CURVE_FIELDS, map(cells, self.points))

    def series(self) -> str:
        """The scalars as CSV, a line per number; one that is not finite is an empty cell."""
        return _csv(
            SERIES_FIELDS,
            (
                (s.step, s.slice, metric, f"{value:.7g}" if math.isfinite(value) else "")
                for s in self.scalars
                for metric, value in s.values.items()
            ),
        )

    def write_curves(self, directory: Path) -> None:
        """curve.csv and series.csv as they are by now, each only where there is something to hold."""
        if self.points:
            write_atomic(directory / "curve.csv", self.curve())
        if self.scalars:
            write_atomic(directory / "series.csv", self.series())

    def write(self, directory: Path) -> None:
        """The curves, and files/ where there is something to hold."""
        self.write_curves(directory)
        write_files(directory, self.artifacts)

    def body(self) -> dict[str, Any]:
        """The measured part of result.json."""
        return {
            "status": self.status,
            "flags": self.flags,
            "notes": self.notes,
            "rows": self.rows,
            "histograms": self.histograms,
        }


def _csv(fields: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(fields)
    writer.writerows(rows)
    return text.getvalue()


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def environment(device: str, threads: int) -> dict[str, Any]:
    """What the numbers and times were made with: code, versions, hardware; strings and integers only."""
    import torch

    found: dict[str, Any] = {
        **_code_version_once(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "threads": threads,
        "device": device,
        "device_name": torch.cuda.get_device_name() if device == "cuda" else cpu_model(),
    }
    if device == "cuda":
        found["cuda"] = torch.version.cuda
        found["cudnn"] = torch.backends.cudnn.version()
    return found | _versions()


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def package_version() -> str:
    """The installed version, or "unknown" when run from files that are not installed."""
    try:
        return metadata.version("dembench")
    except metadata.PackageNotFoundError:
        return "unknown"


def code_version() -> dict[str, Any]:
    """``version``, and ``commit`` with ``modified`` where this code lies in its own git checkout (else commit null)."""
    root = Path(__file__).resolve().parent.parent
    version: dict[str, Any] = {"version": package_version(), "commit": None}
    if (root / ".git").exists() and (root / "pyproject.toml").exists():
        commit = _git(root, "rev-parse", "HEAD")
        if commit:
            version["commit"] = commit
            version["modified"] = bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    return version


@lru_cache(maxsize=1)
def _code_version_once() -> dict[str, Any]:
    """That of the code that this process has loaded."""
    return code_version()


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

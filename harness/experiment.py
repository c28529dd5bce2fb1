"""One run, from a composed configuration to its result file."""

from __future__ import annotations

import itertools
import os
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from dembench import records
from dembench.harness import allocator, compiler, errors, groups, loggers, runs
from dembench.harness.compose import GROUPS, ConfigError, check_signatures
from dembench.harness.search import dem_star, tuned
from dembench.harness.targets import build, locate
from dembench.tasks.base import Event, Flag, Method, Note, Task
from dembench.tasks.common import parts
from dembench.tasks.common.cache import short_hash
from dembench.tasks.common.files import write_atomic
from dembench.tasks.common.hashes import path_hash
from dembench.tasks.common.losses import checked
from dembench.tasks.common.weights import note_of

CURVES_EVERY = 10.0  # seconds, at the least, between two writings of the curves of a run that goes on
Watcher = Callable[[Event, int], None]  # each event as it happens, and how many Points and Scalars the whole run has


@dataclass
class Prepared:
    """A run that can start: everything is loaded and checked, nothing is computed."""

    id: str
    config: dict[str, Any]  # resolved, plain containers
    fingerprints: dict[str, str]  # of what paths in it lead to
    task: Task
    make_method: Callable[..., Method]
    search: dict[str, Any] | None = None  # that found the loss's options
    notes: tuple[Note, ...] = ()  # on the options, beside those of the task
    tune: dict[str, Any] | None = None  # that chose values of the configuration


@dataclass(frozen=True)
class Outcome:
    """Where the result is, and whether it was computed now or found."""

    path: Path
    ran: bool
    result: dict[str, Any]


def resolve(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """The configuration in plain containers, interpolations resolved, ``device`` as the kind that is used.

    Raises: ConfigError where the device or a logger asked for is not there.
    """
    plain: Any = OmegaConf.to_container(cfg) if isinstance(cfg, DictConfig) else cfg
    device = resolve_device(plain["device"], str(plain["task"].get("_target_") or ""))
    if plain["precision"] == "bf16" and device == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError(f"precision=bf16: {torch.cuda.get_device_name()} cannot; use precision=fp32")
    config = groups.resolve({**plain, "device": device})
    loggers.chosen(config["logger"])
    return parts.without_default(config)


def resolve_device(device: str, task: str = "") -> str:
    """ "auto" to "cuda" where there is one and the task, given by its class, does not prefer the CPU; else "cpu".

    Raises: ConfigError for "cuda" where there is none.
    """
    there = torch.cuda.is_available()
    if device == "auto" and there and task and getattr(locate(task, "task"), "auto_device", None) == "cpu":
        return "cpu"
    if device == "cuda" and not there:
        raise ConfigError("device=cuda: PyTorch finds no CUDA device here; use device=cpu or device=auto")
    return ("cuda" if there else "cpu") if device == "auto" else device


def seed_all(seed: int) -> None:
    """Python, NumPy's global generator, and torch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def make_repeatable(threads: int) -> None:
    """Sets torch's threads, and deterministic algorithms if present."""
    allocator.keep_freed_memory()
    torch.set_num_threads(threads)
    compiler.on_demand()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if "torch._inductor" in sys.modules:  # which it tells, too
        torch.use_deterministic_algorithms(True, warn_only=True)
    else:
        torch.set_deterministic_debug_mode("warn")  # the same, and imports no compiler
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing here reads what it has not written
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32; matrix products are so by torch's default
    torch.backends.cuda.enable_mem_efficient_sdp(False)  # its backward pass adds in no fixed order


@contextmanager
def without_fixed_order() -> Iterator[list[str]]:
    """Collects the operations of which torch warns inside that they have no deterministic form on their device."""
    found: list[str] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=".* does not have a deterministic implementation")
        show = warnings.showwarning

        def keep(message: Warning | str, *place: Any, **more: Any) -> None:
            name, told, _ = str(message).partition(" does not have a deterministic implementation")
            if not told:
                show(message, *place, **more)
            elif name not in found:
                found.append(name)

        warnings.showwarning = keep
        yield found


@contextmanager
def user_errors() -> Iterator[None]:
    """Turns what constructors and checks raise about their arguments into ConfigError.

    Not where DEMBENCH_TRACEBACK is set, so that the place of a mistake in a user's own class can be seen.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if os.environ.get("DEMBENCH_TRACEBACK") or cause is None:
            raise
        if isinstance(cause, ConfigError):
            raise cause from error
        if (full := errors.no_room(cause)) is not None:
            raise full from error
        if not errors.is_input(cause) and (cause is error or not isinstance(cause, TypeError)):
            raise
        raise ConfigError(errors.one_line(cause)) from error


def fingerprints(data: Any = None, model: Any = None, config: Mapping[str, Any] | None = None) -> dict[str, str]:
    """What the id has in place of paths; parts that have none are left out."""
    found = {"data": getattr(data, "fingerprint", None), "weights": getattr(model, "weights_id", None)}
    return {name: str(value) for name, value in found.items() if value is not None} | files(config or {})


def files(config: Mapping[str, Any]) -> dict[str, str]:
    """ "files": a hash of the bytes of all that ``runs.NAMED_PATHS`` name, of the text where that names nothing; empty
    where none of them is given."""
    texts = runs.named_paths({group: config.get(group) for group in GROUPS if group != "task"})
    with user_errors():
        content = {text: path_hash(text) if Path(text).expanduser().exists() else text for text in set(texts.values())}
    return {"files": short_hash(sorted((key, content[text]) for key, text in texts.items()))} if texts else {}


def prepare(cfg: DictConfig | Mapping[str, Any]) -> Prepared:
    """Builds task, loss and method from a composed configuration and checks that the data is there.

    Raises: ConfigError for whatever the user can put right.
    """
    composed: Any = OmegaConf.to_container(cfg) if isinstance(cfg, DictConfig) else cfg
    plain, tune = tuned.settle_plain(composed)
    config = resolve(plain) | ({} if tune is None else {"tune": tune["id"]})
    check_signatures({group: config.get(group) for group in (*GROUPS[1:], "task")})
    make_repeatable(config["threads"])
    seed_all(config["seed"])
    task = build_task(config)
    with user_errors():
        found = fingerprints(getattr(task, "data", None), getattr(task, "model", None), config)
    ask_to_save(task, config["save"], config["choices"]["task"])
    if tune is not None:
        tuned.check(tune, config["seed"], found)
    config, search = dem_star.settle(plain, config, found)
    with user_errors():
        method = build(config["method"], "method", loss=build_loss(config))
    check_method(task, method)
    id = runs.run_id(config, found)
    notes = [] if search is None else [dem_star.note(config, search)]
    if text := note_of(getattr(task, "model", None)):
        notes.append(Note("weights", text))
    return Prepared(id, config, found, task, method, search, tuple(notes), tune)


def build_task(config: dict[str, Any]) -> Task:
    """The task of a resolved configuration, on the part of the data that it names, once it is known that the data is
    there; raises ConfigError."""
    with user_errors():
        task = build(config["task"], "task", **parts.arguments(config, locate(config["task"]["_target_"], "task")))
        check_data(getattr(task, "data", None))
    return task


def build_loss(config: Mapping[str, Any]) -> Any:
    """The loss of a resolved configuration, None for none. Raises: as ``checked``."""
    return checked(build(config["loss"], "loss"), config["loss"].get("num_classes") or 5)


def ask_to_save(task: Any, save: str, name: str) -> None:
    """Tells the task which weights to keep; raises ConfigError where it does not keep these."""
    saves = getattr(task, "saves", ())
    if save != "none" and save not in saves:
        raise ConfigError(f"save={save}: task={name} keeps {' or '.join(saves) or 'no weights'}")
    if save != "none":
        task.save = save


def check_data(data: Any) -> None:
    """Calls ``data.check()`` where there is one."""
    if hasattr(data, "check"):
        data.check()


def check_method(task: Any, make_method: Any) -> None:
    """Raises ConfigError where the method refuses its settings, as far as the task can tell before it runs."""
    if hasattr(task, "check_method"):
        with user_errors():
            task.check_method(make_method)


def run(prepared: Prepared, *, command: str = "", watch: Watcher | None = None) -> Outcome:
    """Runs once and writes the run directory; a finished run is read back unless ``force`` is set.

    Args:
        prepared: from ``prepare``; ``out`` and ``force`` are in its config.
        command: what the record gives as the way to repeat this.
        watch: called with each event and the number of Points and Scalars to come in all.
    Raises: ConfigError where the method refuses its settings on the way; RunBusy where another process is
        writing the same run; anything else that the task raises, in which case there is no result.json.
    """
    config = prepared.config
    directory = Path(config["out"]) / prepared.id
    if (found := _finished(directory, config["force"])) is not None:
        runs.clear_leftovers(directory)
        return Outcome(directory / "result.json", False, found)
    if prepared.tune is not None:
        return _run_tuned(prepared, prepared.tune, directory, command, watch)
    with user_errors():
        directory.mkdir(parents=True, exist_ok=True)
    with runs.lock(directory):
        if (found := _finished(directory, config["force"])) is not None:  # another process was faster
            return Outcome(directory / "result.json", False, found)
        for left in runs.temporary(directory):
            left.unlink()
        environment = runs.environment(config["device"], config["threads"])
        kept = _recorded(config)
        write_atomic(directory / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(kept)))
        runs.write_json(directory / "environment.json", environment)
        started = runs.now()
        checkpoint = directory / "checkpoint.pt"  # of tasks that can continue where they were cut off
        if config["force"]:
            checkpoint.unlink(missing_ok=True)
        if hasattr(prepared.task, "checkpoint"):
            prepared.task.checkpoint = checkpoint
        with loggers.opened(config, prepared.id, directory) as log:
            recorder, cost = _measure(prepared, log, watch, directory)
        names = config["choices"]
        result = {
            "schema": records.VERSION,
            "id": prepared.id,
            **{group: names.get(group) for group in GROUPS},
            "data": getattr(getattr(prepared.task, "data", None), "name", names.get("data")),
            "seed": config["seed"],
            **recorder.body(),
            "cost": cost,
            "labels": config["labels"],
            "config": kept,
            "fingerprints": prepared.fingerprints,
            **({} if prepared.search is None else {"search": prepared.search}),
            "environment": environment,
            "started": started,
            "finished": runs.now(),
            "command": command,
        }
        recorder.write(directory)
        runs.write_json(directory / "result.json", result)
        checkpoint.unlink(missing_ok=True)
    return Outcome(directory / "result.json", True, result)


def _recorded(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a record keeps of a configuration: labels stand beside it, and what is saved changes no number."""
    return {key: value for key, value in config.items() if key not in ("labels", "save")}


def _finished(directory: Path, force: bool) -> dict[str, Any] | None:
    if force:
        return None
    with user_errors():
        return runs.read_result(directory)


def _run_tuned(
    prepared: Prepared, tune: dict[str, Any], directory: Path, command: str, watch: Watcher | None
) -> Outcome:
    """A run at chosen settings: measured once for all rules that chose them, and recorded for each."""
    measured = run(tuned.plain(prepared), command=command, watch=watch)
    kept = _recorded(prepared.config)
    notes = [asdict(tuned.note(tune)), *measured.result["notes"]]
    own = {"id": prepared.id, "notes": notes, "config": kept, "tuned": tune, "command": command}
    with runs.lock(directory):
        tuned.copy_files(measured.path.parent, directory)
        write_atomic(directory / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(kept)))
        runs.write_json(directory / "result.json", measured.result | own)
    return Outcome(directory / "result.json", True, measured.result | own)


def _measure(
    prepared: Prepared, log: Callable[[Event], None], watch: Watcher | None, directory: Path
) -> tuple[runs.Recorder, dict[str, Any]]:
    made: list[Any] = []

    def make_method(*args: Any, **kwargs: Any) -> Method:
        with user_errors():  # settings that only the method can judge
            made.append(prepared.make_method(*args, **kwargs))
        return made[-1]

    make_repeatable(prepared.config["threads"])
    seed_all(prepared.config["seed"])  # again: preparing draws more numbers when it trains than when it loads
    recorder = runs.Recorder()
    total = len(prepared.task)
    on_gpu = prepared.config["device"] == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    start, start_cpu = time.perf_counter(), time.process_time()
    written = start
    with without_fixed_order() as loose:
        for event in itertools.chain(prepared.notes, prepared.task.run(make_method)):
            recorder.add(event)
            log(event)
            if watch is not None:
                watch(event, total)
            if time.perf_counter() - written > CURVES_EVERY:
                recorder.write_curves(directory)
                written = time.perf_counter()
    if loose:
        text = f"not bit-identical from run to run on {prepared.config['device']}: {', '.join(sorted(loose))}"
        recorder.add(Note("repeatable", text))
    if on_gpu:
        torch.cuda.synchronize()
    cost: dict[str, Any] = {
        "wall_seconds": round(time.perf_counter() - start, 3),
        "cpu_seconds": round(time.process_time() - start_cpu, 3),
    }
    if on_gpu:
        cost["peak_gpu_bytes"] = int(torch.cuda.max_memory_allocated())
    for name in ("forward_passes", "backward_passes", "updated"):
        cost[name] = sum(int(getattr(method, name, 0)) for method in made)
    if cost["backward_passes"] and not cost["updated"]:
        text = (
            f"nothing was learned: a loss was lowered in {cost['backward_passes']} passes, and no sample ever counted"
        )
        recorder.add(Flag("unlearned", "mean", text))
    if any(hasattr(method, "resets") for method in made):  # of methods that start again by themselves
        cost["resets"] = sum(int(method.resets) for method in made)
    return recorder, cost

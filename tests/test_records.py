"""What is read from a folder of results is data of known types, or is refused in one line and never run."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from report_runs import make_run

from dembench import records
from dembench.harness import runs, sweeps
from dembench.harness.compose import ConfigError, compose
from dembench.harness.search import dem_star
from dembench.harness.search.find import search
from dembench.harness.search.trials import Settings

SUPPORT = Path(__file__).parent / "support"
CONFIGS = SUPPORT / "search_configs"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """Words of a run, and the result of a search for it, with its path."""
    words = {"task": "plane", "progress": False, "out": str(tmp_path_factory.mktemp("search") / "runs")}
    return words, search(words, Settings(trials=3), CONFIGS)


def forged(found: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """Words of a run whose search has another result, in a folder of its own."""
    words, record = found
    place = tmp_path / Path(record["path"]).relative_to(words["out"])
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps({key: value for key, value in record.items() if key != "path"} | changes))
    return {**words, "out": str(tmp_path), "loss": "dem_star", "part": "rest"}


@pytest.mark.parametrize(
    "pair",
    [
        {"_target_": "os.system", "command": "touch marker", "tau": 1.0, "alpha": 1.0},
        {"tau": {"_target_": "os.system", "_args_": ["touch marker"]}, "alpha": 1.0},
        {"tau": 1.0, "alpha": [{"_target_": "os.system", "command": "touch marker"}]},
        {"tau": "${oc.create:{_target_: os.system, command: touch marker}}", "alpha": 1.0},
    ],
)
def test_a_forged_search_result_runs_nothing(found, tmp_path, monkeypatch, pair) -> None:
    words = forged(found, tmp_path / "runs", pair=pair)
    monkeypatch.chdir(tmp_path)
    for attempt in (lambda: sweeps.plan([words], CONFIGS), lambda: dem_star.read(next(tmp_path.rglob("search.json")))):
        with pytest.raises(ConfigError, match="pair.*remove it and search again"):
            attempt()
    assert not (tmp_path / "marker").exists()


def test_the_result_of_another_search_is_refused_by_name(found, tmp_path) -> None:
    words = forged(found, tmp_path, identity={**found[1]["identity"], "search_seed": 7})
    with pytest.raises(ConfigError, match="search.json is the result of another search"):
        sweeps.plan([words], CONFIGS)


def places(value: Any, way: tuple = ()):
    """Every place in nested containers."""
    yield way
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*way, key))


def changed(value: Any, way: tuple, new: Any) -> Any:
    if not way:
        return new
    value = copy.copy(value)
    value[way[0]] = changed(value[way[0]], way[1:], new)
    return value


def test_every_part_of_a_record_has_the_type_that_it_should(found, tmp_path) -> None:
    """A value of another type is refused at every place but those that are open by their schema, an unknown key too."""
    result = json.loads((make_run(tmp_path) / "result.json").read_text())
    searched = {key: value for key, value in found[1].items() if key != "path"}
    for value, schema in ((result, records.RESULT), (searched, records.SEARCH)):
        records.check(value, schema)
        for way in places(value):
            with pytest.raises(ValueError, match="expected|lacks|known") as caught:
                records.check(changed(value, way, 1e999), schema)
            assert "\n" not in str(caught.value)
            if way[:1] in (("identity",), ("environment",), ("labels",)) or len(way) > 1 and way[0] == "config":
                continue  # shown or compared, whatever is in it
            with pytest.raises(ValueError, match="expected|lacks|known"):
                records.check(changed(value, way, {"_target_": ["os.system"]}), schema)
        with pytest.raises(ValueError, match="'_target_' is no known key"):
            records.check({**value, "_target_": "os.system"}, schema)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("[]", "schema 1"),
        ('{"schema": 1, "id": NaN}', "NaN is not a finite number"),
        ('{"schema": 1, "seed": 1e999}', "lacks"),
        ("[" * 100_000, "nested too deeply"),
        ('{"schema": 1, "config": ' + '{"a":' * 200 + "1" + "}" * 200 + "}", "lacks"),
        ('{"schema": ' + "9" * 5000 + "}", "digits"),
    ],
)
def test_what_is_no_record_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        records.parse(text, records.RESULT)
    assert "\n" not in str(caught.value)


def test_numbers_that_no_float_can_hold_and_deep_nests_are_refused(tmp_path: Path) -> None:
    result = json.loads((make_run(tmp_path) / "result.json").read_text())
    for way in (("seed",), ("cost", "wall_seconds"), ("config", "seed"), ("rows", 0, "value")):
        with pytest.raises(ValueError, match="expected a"):
            records.check(changed(result, way, 10**400), records.RESULT)
    deep: Any = 1
    for _ in range(records.DEEPEST):
        deep = [deep]
    with pytest.raises(ValueError, match="nested too deeply"):
        records.check({**result, "environment": {"a": deep}}, records.RESULT)


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "large", "proc"])
def test_nothing_but_a_plain_file_is_read_and_nothing_is_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "0123456789ab" / "result.json"
    path.parent.mkdir()
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case "large":
            with path.open("wb") as file:
                file.truncate(10**12)
        case "proc":
            path.symlink_to("/proc/kcore" if os.access("/proc/kcore", os.R_OK) else "/dev/null")
    start = time.perf_counter()
    with pytest.raises(ValueError, match="not a regular file|is larger than") as caught:
        runs.read_result(path.parent)
    assert time.perf_counter() - start < 2
    assert "remove it" in str(caught.value)
    if kind != "large":
        with pytest.raises((ValueError, OSError)):
            records.read_plain(path)


def test_the_report_sets_a_copy_aside_by_name(tmp_path: Path) -> None:
    from dembench.report.read.load import load

    run = make_run(tmp_path)
    shutil.copytree(run, tmp_path / "0123456789ab")
    shutil.copytree(run, tmp_path / "my_best_run")  # a name of the user's own
    read = load([tmp_path])
    assert [(aside.name, f"copy of run {run.name}" in aside.reason) for aside in read.unreadable] == [
        ("0123456789ab", True)
    ]
    assert len(read.duplicates) == 1


def test_the_module_needs_the_standard_library_only() -> None:
    code = "import sys; import dembench.records; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "yaml", "omegaconf"} & set(done.stdout.split())


def test_a_run_of_the_stub_fits(tmp_path: Path, stub_configs: Path) -> None:
    """What the runner writes is what it reads."""
    from dembench.harness import experiment

    (tmp_path / "data").write_text("1")
    words = {"task": "stub", "out": str(tmp_path / "runs"), "data.root": str(tmp_path / "data"), "progress": False}
    outcome = experiment.run(experiment.prepare(compose(words, stub_configs)))
    assert runs.read_result(outcome.path.parent) == json.loads(outcome.path.read_text())

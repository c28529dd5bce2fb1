"""Tuning: equal budgets, each rule's choice against known optima, what a record tells, what the report makes of it."""

from __future__ import annotations

import csv
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dembench_rates import error
from scipy import stats

from dembench.harness import experiment, sweeps
from dembench.harness.compose import ConfigError, compose
from dembench.harness.search import tuned as settling
from dembench.harness.search.ranges import Budget, Range, read_range, spread
from dembench.harness.search.trials import Done
from dembench.harness.search.tune import chosen, tune
from dembench.report import write_report
from dembench.scripts import cli
from dembench.scripts import tune as command

CONFIGS = Path(__file__).parent.parent / "support" / "rates_configs"
REST = {"part": "rest", "tuned": "oracle"}


@pytest.fixture
def words(tmp_path):
    return {"task": "rates", "progress": False, "out": str(tmp_path / "runs")}


@pytest.fixture
def log(tmp_path, monkeypatch):
    monkeypatch.setenv("DEMBENCH_RATES_LOG", str(tmp_path / "log"))
    (tmp_path / "log").touch()
    return tmp_path / "log"


def tuned(words, loss="em", trials=9, **budget):
    return tune({**words, "loss": loss}, Budget(trials=trials, **budget), CONFIGS)


def prepared(words, **more):
    return experiment.prepare(compose({**words, **more}, CONFIGS))


def test_every_loss_gets_the_same_trials_and_each_rule_finds_its_optimum(words, log):
    records = {loss: tuned(words, loss, run_seeds=(0, 1)) for loss in ("em", "adadem")}
    lines = [line.split() for line in log.read_text().splitlines()]
    assert Counter(loss for loss, *_ in lines) == {"EM": 18, "AdaDEM": 18}  # 9 trials of 2 seeds
    assert {part for *_, part in lines} == {"search"}
    tried = {name: [lr for loss, lr, *_ in lines if loss == name] for name in ("EM", "AdaDEM")}
    assert tried["EM"] == tried["AdaDEM"]
    assert sorted({float(lr) for lr in tried["EM"]}) == pytest.approx(np.logspace(-5, -1, 9).tolist(), rel=0.01)
    for record in records.values():
        assert record["cost"]["runs"] == 18
        assert record["trials"][0]["values"] == record["preset"] == {"method.lr": 1e-3}
    found = {loss: {k: c["values"]["method.lr"] for k, c in r["choices"].items()} for loss, r in records.items()}
    assert found["em"] == {"fixed": 1e-3, "oracle": 1e-3, "information": 1e-4, "consistency": 1e-1}
    assert found["adadem"] == {**found["em"], "oracle": 1e-2}


def test_labels_rule_out_a_collapse_and_every_rule_a_nan(words):
    record = tuned(words, trials=5, space=("method.lr=1e-3:10:log",))
    rates = [trial["values"]["method.lr"] for trial in record["trials"]]
    assert rates == [1e-3, 1e-2, 0.1, 1.0, 10.0]
    assert [trial["status"] for trial in record["trials"]] == ["ok", "ok", "collapse", "nan", "nan"]
    assert record["choices"]["oracle"]["values"] == {"method.lr": 1e-3}  # though the collapse has error 0
    assert record["choices"]["consistency"]["values"] == {"method.lr": 0.1}


def test_a_run_takes_the_choice_and_tells_of_it(words):
    record = tuned(words, "adadem")
    ready = prepared(words, loss="adadem", seed=2, **REST)
    assert ready.config["method"]["lr"] == 1e-2
    result = experiment.run(ready).result
    assert result["rows"][0]["value"] == pytest.approx(error("AdaDEM", 1e-2, 2))
    assert result["rows"][0]["n"] == 80
    assert result["tuned"]["by"] == "oracle"
    assert result["tuned"]["values"] == {"method.lr": 0.01}
    assert (result["tuned"]["id"], result["tuned"]["cost"]) == (record["id"], record["cost"])
    (note,) = (note["text"] for note in result["notes"] if note["key"] == "tuned")
    assert "the best of 9 trials" in note
    assert json.loads((Path(words["out"]) / ready.id / "result.json").read_text()) == result
    assert result["config"]["tuned"] == "oracle"
    assert result["config"]["tune"] == record["id"]


def test_ids_of_other_runs_do_not_know_of_tunings_and_equal_choices_are_run_once(words, log):
    plain = prepared(words, part="rest", loss="em")
    assert not {"tuned", "criteria", "sequential", "tune"} & plain.config.keys()
    tuned(words)
    before = len(log.read_text().splitlines())
    ids = {kind: prepared(words, loss="em", part="rest", tuned=kind) for kind in ("fixed", "oracle", "information")}
    assert len({plain.id, *(one.id for one in ids.values())}) == 4
    results = {kind: experiment.run(one).result for kind, one in ids.items()}
    assert len(log.read_text().splitlines()) == before + 2  # the preset's rate is the best one
    assert results["fixed"]["rows"] == results["oracle"]["rows"] != results["information"]["rows"]
    planned = sweeps.plan([{**words, "loss": "em", "part": "rest", "tuned": kind} for kind in ids], CONFIGS)
    assert [run.id for run in planned] == [one.id for one in ids.values()]
    assert all(run.done for run in planned)


def test_a_tuning_that_was_stopped_goes_on(words, log, monkeypatch):
    monkeypatch.setenv("DEMBENCH_RATES_STOP", "0.01")
    with pytest.raises(KeyboardInterrupt):
        tuned(words)
    begun = log.read_text().splitlines()
    assert 1 < len(begun) < 9
    assert not list(Path(words["out"]).rglob("tune.json"))
    monkeypatch.delenv("DEMBENCH_RATES_STOP")
    record = tuned(words)
    rates = [float(line.split()[1]) for line in log.read_text().splitlines()]
    assert Counter(rates) == {rate: 2 if rate == 0.01 else 1 for rate in set(rates)}  # only the stopped one again
    assert len(set(rates)) == len(record["trials"]) == 9


def test_what_cannot_be_is_said(words, tmp_path):
    with pytest.raises(ConfigError, match="no tuning of this configuration; run: dembench tune"):
        prepared(words, loss="em", **REST)
    with pytest.raises(ConfigError, match="tuned runs need 2 tunings first"):
        sweeps.plan([{**words, **REST, "loss": loss, "seed": s} for loss in ("em", "adadem") for s in (0, 1)], CONFIGS)
    with pytest.raises(ConfigError, match="unknown tuned 'orakle'; nearest: oracle"):
        prepared(words, part="rest", tuned="orakle")
    tuned(words, sampler="tpe", trials=4, startup=2)
    with pytest.raises(ConfigError, match="labels guided the trials"):
        prepared(words, loss="em", part="rest", tuned="information")
    with pytest.raises(ConfigError, match="judged on what the tuning has seen; say part=rest"):
        prepared(words, loss="em", tuned="oracle")
    with pytest.raises(ConfigError, match="no tuning of this configuration"):
        prepared(words, loss="em", **{"method.steps": 3}, **REST)
    with pytest.raises(ConfigError, match="criteria=true is for part=search"):
        prepared(words, part="rest", criteria=True)
    path = next(Path(words["out"]).rglob("tune.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "fingerprints": {"data": "others"}}))
    with pytest.raises(ConfigError, match="data or weights have changed since the tuning"):
        prepared(words, loss="em", **REST)
    for more, message in (({"seed": 1}, "seed: a tuning sets"), ({"loss": "dem_star"}, "has its own search")):
        with pytest.raises(ConfigError, match=message):
            tune({**words, **more}, Budget(), CONFIGS)


def test_where_there_is_no_choice_without_labels_the_record_says_so(words):
    assert set(tuned(words, trials=3)["choices"]) == {"fixed", "oracle", "information", "consistency"}
    trial = Done(0, (1e-3,), 1.0, "ok", {"values": {"method.lr": 1e-3}, "seeds": {"0": {"error": 0.1}}})
    reward = type("Reward", (), {"without_labels": "the return is what is given"})()
    choices, absent = chosen([trial], reward, Budget())
    assert set(choices) == {"fixed", "oracle"}
    assert absent == dict.fromkeys(("information", "consistency"), "the return is what is given")


@pytest.mark.parametrize(
    ("text", "message"),
    [("method.lr", "expected KEY=LOW:HIGH"), ("a=1:b", "expected KEY"), ("a=2:1", "LOW < HIGH"),
     ("a=0:1:log", "LOW > 0"), ("a=1:2:lin", "unknown kind"), ("a=1:2.5:int", "whole"), ("a=1:inf", "finite")],
)  # fmt: skip
def test_a_range_that_makes_no_sense(text, message):
    with pytest.raises(ConfigError, match=message):
        read_range(text)


def test_points_are_spread_and_the_preset_is_first():
    rate = Range("method.lr", 1e-5, 1e-1, log=True)
    assert spread([rate], (1e-3,), 5, 0) == [(1e-3,), (1e-5,), (1e-4,), (1e-2,), (1e-1,)]
    beside = spread([rate], (5e-3,), 5, 0)  # not on the grid of 5: beside a grid of 4
    assert beside[0] == (5e-3,)
    assert [x for (x,) in beside[1:]] == pytest.approx(np.logspace(-5, -1, 4), rel=5e-3)
    many = spread([rate, Range("method.steps", 1, 8, whole=True)], (1e-3, 1), 40, 0)
    assert many[0] == (1e-3, 1)
    assert all(1e-5 <= lr <= 1e-1 and 1 <= steps <= 8 and steps == int(steps) for lr, steps in many)
    assert len({steps for _, steps in many}) == 8  # a Halton sequence leaves no eighth empty
    below = sum(lr < 1e-3 for lr, _ in many[1:])
    assert abs(below - 19.5) <= 2


def test_two_keys_and_a_key_of_one_loss_only(words):
    space = ("method.lr=1e-4:1e-2:log", "method.steps=1:4:int", "loss.tau=0.5:2")
    record = tuned(words, trials=6, space=space)
    assert record["keys"] == ["method.lr", "method.steps"]  # EM has no tau
    assert all(isinstance(trial["values"]["method.steps"], int) for trial in record["trials"])


def test_the_command_judges_every_rule_and_the_report_compares_them_paired(words, tmp_path, capsys, monkeypatch):
    out = tmp_path / "runs"
    argv = ["task=rates", "loss=em,adadem", f"out={out}", "--config-dir", str(CONFIGS), "--workers", "0"]
    assert command.main([*argv, "--trials", "9", "--seeds", "0,1,2"]) == 0
    assert "24 run, 0 done before, 0 failed" in capsys.readouterr().err
    assert command.main([*argv, "--trials", "9", "--seeds", "0,1,2"]) == 0
    assert "24 runs: 24 done, 0 to run" in capsys.readouterr().err
    write_report([out], tmp_path / "report", with_figures=False)
    rows = {row["rate chosen by"]: row for row in csv.DictReader((tmp_path / "report/tables/choice.csv").open())}
    rates = {"equal rate": (1e-3, 1e-3), "best with labels": (1e-3, 1e-2), "no labels: information": (1e-4, 1e-4)}
    assert list(rows) == [*rates, "no labels: consistency"]
    for title, (em, own) in rates.items():
        row = rows[title]
        gains = np.array([100 * (error("EM", em, seed) - error("AdaDEM", own, seed)) for seed in range(3)])
        half = stats.t.ppf(0.975, 2) * gains.std(ddof=1) / np.sqrt(3)
        assert float(row["gain over EM: gain"]) == pytest.approx(gains.mean(), abs=0.006)
        assert float(row["gain over EM: low"]) == pytest.approx(gains.mean() - half, abs=0.006)
        assert (row["EM at; loss at: EM at"], row["EM at; loss at: loss at"]) != ("", "")
    assert rows["best with labels"]["EM at; loss at: loss at"] == "1e-2"
    assert row["trials of each: trials"] == "9"
    ps = [stats.ttest_1samp([100 * (error("EM", em, s) - error("AdaDEM", own, s)) for s in range(3)], 0).pvalue
          for em, own in rates.values()]  # fmt: skip
    shown = [float(rows[title]["Holm p: Holm p"]) for title in rates]
    assert all(a >= b * 0.99 for a, b in zip(shown, ps, strict=True))  # corrected upwards
    (first,) = csv.DictReader((tmp_path / "report" / "tables" / "across-tasks.csv").open())
    assert (first["cells: cells"], first["AdaDEM: gain"]) == ("1", "-0.05")  # by the rule with labels, not four times
    widths = list(csv.DictReader((tmp_path / "report" / "tables" / "tolerance.csv").open()))
    # 2 points a decade: half a decade to each side of the best is within a point
    for row in widths:
        assert float(row["decades within a point of the best: decades"]) == pytest.approx(1.0, abs=0.01)
    assert [row["best rate: rate"] for row in widths] == ["0.001", "0.01"]


def test_the_command_speaks_of_its_own_mistakes(capsys, tmp_path):
    base = ["task=rates", f"out={tmp_path}", "--config-dir", str(CONFIGS)]
    for words, message in (
        (["--trials", "1"], "expected trials >= 2"),
        (["--space", "method.lr=1"], "expected KEY=LOW:HIGH"),
        (["--sampler", "grid"], "unknown sampler 'grid'"),
        (["--seeds", "a"], "--seeds: expected whole numbers and commas"),
    ):
        assert command.main([*base, *words]) == 2
        assert message in capsys.readouterr().err
    assert not list(itertools.islice(tmp_path.rglob("*.json"), 1))


FORGED: list[tuple[str, Any, str]] = [  # place in the record, what stands there, what is said
    ("choices.oracle.values", {"method._target_": "os.system"}, "expected a finite number, got 'os.system'"),
    ("choices.oracle.values", {"method._target_": 1.0}, "sets 'method._target_', which is no number of this run"),
    ("choices.oracle.values", {"task._target_": 1.0}, "sets 'task._target_', which is no number of this run"),
    ("choices.oracle.values", {"seed": 3}, "sets 'seed', which is no number of this run"),
    ("choices.oracle.values", {"threads": 3}, "sets 'threads', which is no number of this run"),
    ("choices.oracle.values", {"method.nothing": 1.0}, "sets 'method.nothing', which is no number of this run"),
    ("choices.oracle.values", {"method.lr": "fast"}, "values.method.lr: expected a finite number, got 'fast'"),
    ("choices.oracle.values", {"method.lr": True}, "values.method.lr: expected a finite number, got True"),
    ("choices.oracle.values", {"method.lr": float("nan")}, "NaN is not a finite number"),
    ("choices.oracle.values", {"method.lr": float("inf")}, "Infinity is not a finite number"),
    ("choices.oracle.values", {"method.lr": {"_target_": "os.system"}}, "expected a finite number"),
    ("choices.oracle.values", {"data.images": 2.5}, "sets 'data.images', which is no number of this run"),
    (
        "choices.oracle",
        {"_target_": "os.system", "trial": 0, "values": {}},
        "'choices.oracle._target_' is no known key",
    ),
    ("choices", {}, "tuned=oracle: the tuning chose none"),
    ("choices", [], "choices: expected keys with values"),
    ("settings.run_seeds", [], "settings.run_seeds is empty"),
    ("settings.run_seeds", ["0"], "settings.run_seeds[0]: expected a whole number"),
    ("settings", {"trials": 1, "run_seeds": [0], "_target_": {"a": [None]}}, None),  # read, shown, never built
    ("identity", {"_target_": "os.system"}, "is the result of another tuning"),
    ("id", "../../../x", "id: expected 12 hexadecimal digits"),
    ("_target_", "os.system", "'_target_' is no known key"),
    ("schema", 2, "expected a record of schema 1"),
    ("fingerprints", {"data": "another"}, "data or weights have changed since the tuning"),
]


def test_a_forged_choice_is_data_or_one_line(words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = tuned(words, trials=2)
    path = Path(record.pop("path"))
    argv = [f"{key}={value}" for key, value in words.items()] + ["--config-dir", str(CONFIGS)]
    argv += ["loss=em", *(f"{key}={value}" for key, value in REST.items())]
    (tmp_path / "grid.yaml").write_text("grids: [{}]\n")
    for place, value, said in FORGED:
        forged = json.loads(json.dumps(record))
        *above, last = place.split(".")
        node = forged
        for key in above:
            node = node[key]
        node[last] = value
        path.write_text(json.dumps(forged))
        for verb in (["run"], ["sweep", "grid.yaml", "--dry-run"]):
            status = cli.main([*verb, *argv])
            told = capsys.readouterr()
            if said is None:
                assert status == 0, (place, told.err)
                continue
            lines = [line for line in told.err.splitlines() if line]
            assert (status, len(lines), told.out) == (2, 1, ""), (place, value, verb, told.err)
            assert said in lines[0], (place, value, verb, lines)
            assert "unexpected" not in lines[0]


def test_a_forged_choice_keeps_to_the_ranges(monkeypatch):
    cfg = compose(["method=tent", "loss=dem", "tuned=oracle", "part=rest"])
    for key, value in (("method.lr", -1.0), ("method.steps", 2.5), ("loss.tau", 0.0)):
        forged = {"choices": {"oracle": {"trial": 0, "values": {key: value}}}}
        monkeypatch.setattr(settling, "read", lambda cfg, forged=forged: forged)
        with pytest.raises(ConfigError, match=rf"tune\.json: {key}: expected .*, got {value}; tune again"):
            settling.settle(cfg)


def test_what_lies_beside_a_result_is_copied_but_for_links(tmp_path):
    source, target, secret = tmp_path / "a", tmp_path / "b", tmp_path / "secret"
    (source / "files" / "deep").mkdir(parents=True)
    secret.write_text("secret")
    (source / "curve.csv").write_text("step")
    (source / "series.csv").symlink_to(secret)
    (source / "files" / "deep" / "x.bin").write_bytes(b"\0\1")
    (source / "files" / "y.bin").symlink_to(secret)
    (source / "files" / "far").symlink_to(tmp_path)
    settling.copy_files(source, target)
    assert {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()} == {
        "curve.csv", "files/deep/x.bin",
    }  # fmt: skip
    (target / "curve.csv").unlink()
    (target / "curve.csv").symlink_to(secret)
    with pytest.raises(OSError, match="is a link"):
        settling.copy_files(source, target)
    assert secret.read_text() == "secret"
    (source / "curve.csv").unlink()
    (target / "files").rename(tmp_path / "elsewhere")
    (target / "files").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="files is a link"):
        settling.copy_files(source, target)

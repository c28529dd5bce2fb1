"""Sweeps: what a file expands to, what is refused before the first run, and what survives failures and interrupts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dembench.harness import runs
from dembench.harness.compose import ConfigError, Words, choose, compose, to_arguments
from dembench.harness.engines.execute import execute
from dembench.harness.engines.inline import Inline
from dembench.harness.sweeps import Planned, estimate, expand, fit, labels, plan, read_overrides, read_sweep
from dembench.harness.times import Times
from dembench.scripts.sweep import main


@pytest.fixture
def base(tmp_path: Path) -> Words:
    (tmp_path / "data.txt").write_text("images")
    return {"task": "stub", "data.root": str(tmp_path / "data.txt"), "out": str(tmp_path / "runs")}


def sweep_file(tmp_path: Path, text: str) -> str:
    (tmp_path / "grid.yaml").write_text(text)
    return str(tmp_path / "grid.yaml")


def test_grids_multiply_inside_and_add_up(tmp_path: Path) -> None:
    text = """
    base: {task: tta, method.lr: [1e-3, 1e-2]}
    grids:
      - {loss: [em, adadem], seed: [0, 1]}
      - {loss: dem, loss.tau: 1.1, protocol.corruptions: [[fog, snow]]}
      - {loss: em, seed: 0}
    """
    words = expand(read_sweep(sweep_file(tmp_path, text)))
    assert len(words) == 2 * 2 * 2 + 2  # the last grid repeats runs of the first
    assert words[0] == {"task": "tta", "method.lr": 1e-3, "loss": "em", "seed": 0}
    assert words[-1]["protocol.corruptions"] == ["fog", "snow"]
    assert all(isinstance(w["method.lr"], float) for w in words)


def test_a_value_that_is_a_list_wants_double_brackets() -> None:
    sweep = {"base": {"task": "tta"}, "grids": [{"protocol.corruptions": ["fog", "snow"]}]}
    with pytest.raises(ConfigError, match=r"expected a list.*got fog; .*write \[\[a, b\]\] .*corruptions=fog"):
        plan(expand(sweep))


def test_overrides_replace_a_key_in_all_grids() -> None:
    sweep = {"base": {"seed": [0, 1, 2]}, "grids": [{"loss": ["em", "dem"]}, {"loss": "adadem", "seed": 7}]}
    words = expand(sweep, read_overrides(["seed=4,5", "protocol.corruptions=[fog,snow]", "data.frost=null"]))
    assert [(w["seed"], w["loss"]) for w in words] == [
        (4, "em"),
        (4, "dem"),
        (5, "em"),
        (5, "dem"),
        (4, "adadem"),
        (5, "adadem"),
    ]
    assert words[0]["protocol.corruptions"] == ["fog", "snow"]
    assert words[0]["data.frost"] is None


def test_an_option_that_a_method_has_not_is_left_out_of_its_runs_and_named() -> None:
    overrides = read_overrides(["method.lr=1e-2,1e-3", "method.optimizer=momentum", "seed=3"])
    grids = [{"method": ["source", "norm"], "loss": "em"}, {"method": "tent", "loss": "em"}]
    words, left = fit(expand({"base": {}, "grids": grids}, overrides), overrides)
    assert left == {"method.lr": ["source", "norm"], "method.optimizer": ["source", "norm"]}
    assert [(w["method"], w.get("method.lr"), w.get("method.optimizer"), w["seed"]) for w in words] == [
        ("source", None, None, 3),
        ("norm", None, None, 3),
        ("tent", 1e-2, "momentum", 3),
        ("tent", 1e-3, "momentum", 3),
    ]


def test_an_option_that_no_method_has_stays_and_is_refused() -> None:
    overrides = read_overrides(["method.lrr=1"])
    words, left = fit(expand({"base": {}, "grids": [{"method": ["source", "tent"]}]}, overrides), overrides)
    assert not left
    with pytest.raises(ConfigError, match=r"method\.lrr"):
        plan(words)


def test_an_option_of_a_loss_goes_to_the_runs_of_that_loss() -> None:
    overrides = read_overrides(["loss.tau=1.2", "method.clustering.robust=true"])
    words, left = fit(expand({"base": {"method": "tent"}, "grids": [{"loss": ["em", "dem"]}]}, overrides), overrides)
    assert left == {"loss.tau": ["em"]}
    assert [w.get("loss.tau") for w in words] == [None, 1.2]
    assert all(w["method.clustering.robust"] for w in words)


def test_overrides_of_several_values_keep_their_kinds() -> None:
    assert read_overrides(["a=1,2.5,x,null,true,[1,2]"]) == {"a": [1, 2.5, "x", None, True, [1, 2]]}


@pytest.mark.parametrize(
    "value",
    [1, 1e-4, 0.0, -2, True, None, "adam", "a b", "it's", "back\\slash'quote", "1", "null", "a,b", "x=y", "[z]", "${q}"]
    + ["/tmp/a (1)/é.tar.gz", "C:\\x\\", "", ["fog", "a b"], [1, [2, "3"]], {"k": "v w"}],
)
def test_arguments_read_back_as_the_same_value(value: object) -> None:
    key = "data.root"
    assert choose(to_arguments({key: value})).values == {key: value}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid: []", "unknown key of sweep .*; nearest: grids; valid: base, grids"),
        ("grids: {a: 1}", "grids a list of mappings"),
        ("[1, 2]", "expected the keys base and grids"),
        ("base: [", "sweep .*grid.yaml: "),
    ],
)
def test_files_that_are_no_sweeps(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_sweep(sweep_file(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_names_and_paths_that_are_not_there() -> None:
    with pytest.raises(ConfigError, match="unknown sweep 'dmo'; nearest: demo"):
        read_sweep("dmo")
    with pytest.raises(ConfigError, match="no sweep file nowhere/grid.yaml"):
        read_sweep("nowhere/grid.yaml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"loss.scale": -1}, r"Loss: expected scale > 0, got -1.0 \(in task=stub .*loss.scale=-1\)"),
        ({"loss": "plane"}, r"unknown loss 'plane'; nearest: plain.* \(in "),
        ({"method.speed": "medium"}, "unknown method.speed 'medium'"),
        ({"method.lr": 2.0}, r"Method: expected lr <= 1, got 2.0 \(in task=stub .*method.lr=2.0\)"),
        ({"data.root": "/no/such"}, "no data at /no/such"),
        ({"model.weights": "/no/weights"}, "No such file"),
    ],
)
def test_one_run_that_cannot_work_stops_the_plan(words: Words, message: str, base: Words, stub_configs: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        plan([base, {**base, **words}], stub_configs)


def test_plan_and_single_run_agree_on_the_id_and_two_words_for_one_run_are_one(base: Words, stub_configs: Path) -> None:
    from dembench.harness.experiment import prepare

    many = [{**base, "seed": 1}, {**base, "seed": 1, "method.lr": 0.1}, {**base, "seed": 2, "loss.scale": 2}]
    planned = plan(many, stub_configs)
    assert len(planned) == 2
    assert [run.id for run in planned] == [prepare(compose(many[i], stub_configs)).id for i in (0, 2)]


def finish(planned: list[Planned], seconds: float) -> None:
    """Runs them, and writes down that each took so long."""
    execute(planned, Inline())
    for run in planned:
        result = json.loads((run.directory / "result.json").read_text())
        result["cost"]["wall_seconds"] = seconds
        runs.write_json(run.directory / "result.json", result)


def test_the_estimate_is_that_of_past_runs_like_the_missing_ones(base: Words, stub_configs: Path) -> None:
    quick = [{**base, "seed": seed} for seed in range(4)]
    slow = [{**base, "loss": "none", "seed": seed} for seed in range(3)]
    assert estimate(plan(quick, stub_configs), 2) is None
    finish(plan(quick[:1], stub_configs), 10.0)
    finish(plan(slow[:1], stub_configs), 70.0)
    planned = plan([*quick, *slow], stub_configs)
    assert estimate(planned, 2) == pytest.approx((3 * 10.0 + 2 * 70.0) / 2)
    assert estimate(planned, 2, Times()) is None


def test_runs_of_other_sweeps_in_the_same_folder_count_as_past_runs(base: Words, stub_configs: Path) -> None:
    finish(plan([{**base, "seed": 8}, {**base, "seed": 9}], stub_configs), 5.0)
    (Path(base["out"]) / "broken").mkdir()
    (Path(base["out"]) / "broken" / "result.json").write_text("{")
    assert estimate(plan([{**base, "seed": 0}, {**base, "seed": 1}], stub_configs), 1) == pytest.approx(2 * 5.0)


def test_far_runs_count_only_where_there_is_no_closer_one() -> None:
    def config(**names: str) -> dict[str, object]:
        return {"choices": {"task": "tta", "method": "tent", "loss": "em", "data": "digits", **names}}

    times = Times()
    assert times.expected(config()) is None
    times.add(config(method="sar"), 100.0)
    assert times.expected(config()) == 100.0
    times.add(config(loss="dem"), 20.0)
    times.add(config(loss="adadem"), 30.0)
    assert times.expected(config()) == 25.0
    times.add(config(), 1.0)
    assert times.expected(config()) == 1.0
    assert times.expected(config(task="semi")) is None


def test_labels_are_the_words_that_tell_runs_apart(base: Words, stub_configs: Path) -> None:
    many: list[Words] = [{**base, "seed": seed, "loss": loss} for loss in ("none", "plain") for seed in (0, 1)]
    many += [{**base, "loss": "plain", "method.lr": lr, "seed": 1} for lr in (0.2, 0.3)]
    planned = plan(many, stub_configs)
    named = labels(planned)
    assert [named[run.id] for run in planned] == [
        *("none seed=0", "none seed=1", "plain seed=0", "plain seed=1"),
        *("plain lr=0.2 seed=1", "plain lr=0.3 seed=1"),
    ]
    assert len(set(named.values())) == len(planned)
    assert list(labels(planned[:1]).values()) == ["run"]


def test_the_plan_says_what_is_done_what_failed_and_how_long_the_rest_takes(
    base: Words, stub_configs: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    lines = "\n".join(f"  {key}: {json.dumps(value)}" for key, value in base.items())
    file = sweep_file(tmp_path, f"base:\n{lines}\n  protocol.mode: crash-on-2\ngrids: [{{seed: [1, 2, 3, 4]}}]")
    command = [file, "--config-dir", str(stub_configs), "--workers", "0"]
    assert main([*command, "seed=1,2"]) == 1
    done = next(Path(base["out"]).glob("*/result.json"))
    result = json.loads(done.read_text())
    result["cost"]["wall_seconds"] = 200.0
    runs.write_json(done, result)
    capsys.readouterr()
    assert main([*command, "--dry-run"]) == 0
    said = capsys.readouterr()
    assert said.err == "4 runs: 1 done, 3 to run (1 failed before) in this process, about 10 min by past runs\n"
    assert [line.split(maxsplit=1)[1] for line in said.out.splitlines()] == [
        "done       3 min  seed=1",
        "failed     3 min  seed=2",
        "missing    3 min  seed=3",
        "missing    3 min  seed=4",
    ]


def test_a_cluster_may_have_the_gpu_that_this_machine_has_not(base: Words, stub_configs: Path) -> None:
    words = [{**base, "device": "cuda"}]
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA device here"):
            plan(words, stub_configs)
    assert plan(words, stub_configs, elsewhere=True)[0].config["task"]["device"] == "cuda"

"""From the command to the run: what a search writes, what loss=dem_star makes of it, and what it refuses."""

from __future__ import annotations

import json
import math
import re
import shlex
from pathlib import Path

import pytest
from dembench_plane import bowl

from dembench.harness import experiment, sweeps
from dembench.harness.compose import ConfigError, compose
from dembench.harness.search.find import search
from dembench.harness.search.trials import Settings
from dembench.scripts import search as command

CONFIGS = Path(__file__).parent.parent / "support" / "search_configs"
PLANE = {"task": "plane", "progress": False}
TTA = {"protocol.corruptions": ["fog"], "data.num_images": 50, "protocol.batch_size": 10, "device": "cpu"}


@pytest.fixture
def words(tmp_path):
    return {**PLANE, "out": str(tmp_path / "runs")}


def prepared(words, **more):
    return experiment.prepare(compose({**words, **more}, CONFIGS))


def searched(words, trials=16, **settings):
    return search(words, Settings(trials=trials, **settings), CONFIGS)


def test_the_record_tells_how_the_pair_was_found(words, tmp_path, monkeypatch):
    log = tmp_path / "log"
    monkeypatch.setenv("DEMBENCH_PLANE_LOG", str(log))
    record = searched(words, trials=18, run_seeds=(0, 2))
    pair = (record["pair"]["tau"], record["pair"]["alpha"])
    good = [trial for trial in record["trials"] if trial["status"] == "ok"]
    assert record["value"] == pytest.approx(0.2 + bowl(pair) / 10 + 0.001)  # the mean over seeds 0 and 2
    assert record["value"] == min(trial["value"] for trial in good)
    assert record["at_one_one"] == pytest.approx(0.2 + bowl((1, 1)) / 10 + 0.001)
    statuses = {trial["status"] for trial in record["trials"]}
    assert {"collapse", "ok"} <= statuses <= {"collapse", "ok", "nan"}
    assert all((trial["alpha"] > 1.8) == (trial["status"] == "collapse") for trial in record["trials"])
    assert all((trial["alpha"] < 0.1) == (trial["status"] == "nan") for trial in record["trials"])
    assert record["subset"] == {
        "share": 0.2, "seed": 0, "samples": 20, "text": "20% of each set by search_seed=0",
    }  # fmt: skip
    different = {(trial["tau"], trial["alpha"]) for trial in record["trials"]}
    runs = log.read_text().split()
    assert record["cost"]["runs"] == len(runs) == 2 * len(different)  # a pair that comes again is not run again
    assert record["cost"]["backward_passes"] == 2 * len(runs)
    assert set(runs) == {"0", "2"}
    assert record["environment"]["optuna"]
    assert record["settings"]["trials"] == 18
    assert json.loads(Path(record["path"]).read_text()) == {k: v for k, v in record.items() if k != "path"}
    one = next((Path(record["path"]).parent / "trials").glob("*/result.json"))
    assert "loss=dem" in json.loads(one.read_text())["command"]
    assert "part=search" in json.loads(one.read_text())["command"]


def test_a_run_takes_the_pair_and_tells_where_it_is_from(words):
    record = searched(words)
    ready = prepared(words, loss="dem_star", part="rest", seed=3)
    assert ready.config["loss"] == {
        "_target_": "dembench.harness.search.dem_star.DEMStar", "evaluation": "held_out", **record["pair"],
        "search": record["id"],
    }  # fmt: skip
    result = experiment.run(ready).result
    pair = (record["pair"]["tau"], record["pair"]["alpha"])
    row = result["rows"][0]
    assert row["value"] == pytest.approx(0.2 + bowl(pair) / 10 + 0.003)
    assert row["n"] == 80
    assert result["search"]["pair"] == record["pair"]
    assert result["search"]["cost"] == record["cost"]
    assert result["loss"] == "dem_star"
    (note,) = (note["text"] for note in result["notes"] if note["key"] == "dem_star")
    assert f"search {record['id']}" in note
    assert "none of them is judged here" in note
    assert {key: result["config"][key] for key in ("part", "search_share", "search_seed")} == {
        "part": "rest", "search_share": 0.2, "search_seed": 0,
    }  # fmt: skip
    assert prepared(words, loss="em", part="rest").config["part"] == "rest"
    experiment.run(prepared(words, loss="em", part="rest"))  # on the same samples


def test_the_id_follows_the_pair_and_the_search(words):
    record = searched(words)
    path = Path(record.pop("path"))
    ids = [prepared(words, loss="dem_star", part="rest").id]
    em = prepared(words, loss="em", part="rest").id
    for change in ({"pair": {"tau": 0.3, "alpha": 0.7}}, {"id": "0123456789ab"}, {}):
        path.write_text(json.dumps({**record, **change}))
        ids.append(prepared(words, loss="dem_star", part="rest").id)
    assert len(set(ids[:3])) == 3
    assert ids[3] == ids[0]
    assert prepared(words, loss="em", part="rest").id == em


def test_a_part_moves_the_id_and_all_of_the_data_leaves_it_as_it_was(words):
    plain = prepared(words, loss="em")
    assert not {"part", "search_share", "search_seed"} & plain.config.keys()
    assert prepared(words, loss="em", part="all", search_seed=4).id == plain.id
    others = [{"part": "rest"}, {"part": "search"}, {"part": "rest", "search_seed": 1},
              {"part": "rest", "search_share": 0.3}]  # fmt: skip
    assert len({plain.id, *(prepared(words, loss="em", **other).id for other in others)}) == 5


def test_seed_out_and_machine_share_a_search_and_nothing_else_does(words, tmp_path):
    record = searched(words, trials=3)
    star = {"loss": "dem_star", "part": "rest"}
    for more in ({"seed": 5}, {"device": "cpu"}, {"force": True}):
        assert prepared(words, **star, **more).search["id"] == record["id"]
    for more in ({"method.lr": 0.2}, {"search_share": 0.3}, {"search_seed": 1}, {"out": str(tmp_path)}):
        with pytest.raises(ConfigError, match="no search result"):
            prepared(words, **star, **more)


def test_without_a_search_the_error_gives_the_command_that_makes_one(tmp_path, capsys):
    words = {**TTA, "method": "tent", "method.lr": 0.01, "out": str(tmp_path / "runs"), "seed": 1, "progress": False}
    star = {**words, "loss": "dem_star", "part": "rest"}
    with pytest.raises(ConfigError, match="no search result.*run: dembench search") as caught:
        experiment.prepare(compose(star))
    with pytest.raises(ConfigError, match="needs 2 searches first: dembench search.*; dembench search.*lr=0.02"):
        sweeps.plan([star, {**star, "seed": 2}, {**star, "method.lr": 0.02}])
    (line,) = re.findall(r"dembench (search .*)", str(caught.value))
    argv = shlex.split(line)[1:]
    assert command.main([*argv, "--trials", "3"]) == 0
    out, err = capsys.readouterr()
    assert Path(out.strip()).is_file()
    assert err.splitlines()[1].startswith("[1/3] tau 1, alpha 1: error 0.")
    ready = experiment.prepare(compose(star))
    (planned,) = sweeps.plan([star])
    assert planned.id == ready.id
    assert len(ready.task.data.domain("fog", 5)[1]) == 40
    assert command.main([*argv, "--trials", "3"]) == 0  # nothing is left to do
    assert "[" not in capsys.readouterr().err
    assert "first at (1, 1)" in command.parser().format_help()


def test_the_papers_protocol_has_to_be_asked_for(words):
    searched(words, trials=3)
    with pytest.raises(ConfigError, match="part=all is judged on samples that the search has seen; say part=rest"):
        prepared(words, loss="dem_star")
    with pytest.raises(ConfigError, match="say part=all, not part=rest"):
        prepared(words, **{"loss": "dem_star", "part": "rest", "loss.evaluation": "paper"})
    ready = prepared(words, **{"loss": "dem_star", "loss.evaluation": "paper"})
    result = experiment.run(ready).result
    assert result["rows"][0]["n"] == 100
    assert any("judged here too, as in the paper" in note["text"] for note in result["notes"])


def test_where_the_searched_samples_are_never_judged_there_is_no_papers_protocol():
    words = {"task": "semi", "loss": "dem_star", "loss.evaluation": "paper"}
    with pytest.raises(ConfigError, match="searches on samples of its own"):
        experiment.prepare(compose(words))
    with pytest.raises(ConfigError, match="no search result"):  # part=all is all right
        experiment.prepare(compose({**words, "loss.evaluation": "held_out", "out": "nowhere"}))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"loss": "dem"}, "loss: a search sets loss, part, seed itself"),
        ({"part": "rest"}, "part: a search sets"),
        ({"seed": 1}, "seed: a search sets"),
        ({"search_share": 1.5}, "search_share: expected a number > 0 and < 1"),
        ({"metod.lr": 1.0}, "unknown key 'metod.lr'"),
    ],
)
def test_a_search_refuses_before_the_first_trial(words, more, message):
    with pytest.raises(ConfigError, match=message):
        search({**words, **more}, Settings(trials=3), CONFIGS)
    assert not Path(words["out"]).exists()


def test_a_metric_by_name_and_an_unknown_one(words):
    with pytest.raises(ConfigError, match="unknown metric 'eror'; nearest: error"):
        searched(words, metric="eror")
    with pytest.raises(ConfigError, match="plane has no mean return; valid: error"):
        searched(words, metric="return")


def test_where_no_trial_is_ok_there_is_no_result(words, monkeypatch):
    monkeypatch.setattr("dembench_plane.bowl", lambda pair: math.nan)
    with pytest.raises(RuntimeError, match="none of the 3 trials can win"):
        searched(words, trials=3)
    assert not list(Path(words["out"]).rglob("search.json"))


def test_a_pair_by_hand_is_refused_and_broken_results_say_so(words):
    with pytest.raises(ConfigError, match="takes its pair from a search, not loss.tau"):
        prepared(words, **{"loss": "dem_star", "part": "rest", "+loss.tau": 1.0})
    path = Path(searched(words, trials=3)["path"])
    for text in ("{", "[]", '{"schema": 0}'):
        path.write_text(text)
        with pytest.raises(ConfigError, match="remove it and search again"):
            prepared(words, loss="dem_star", part="rest")


def test_the_command_line_speaks_of_its_own_mistakes(capsys, tmp_path):
    for words, message in (
        (["--space", "gird"], "unknown space 'gird'; nearest: grid"),
        (["--seeds", "a"], "expected whole numbers and commas, got 'a'"),
        (["--trials", "1"], "expected trials >= 2, got 1"),
        (["methd=tent"], "unknown key 'methd'"),
    ):
        assert command.main([*words, f"out={tmp_path}"]) == 2
        assert message in capsys.readouterr().err

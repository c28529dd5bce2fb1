"""Two sets of runs side by side: what pairs, what is compared, and what the command prints."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from report_runs import ADADEM, EM, interval, make_run, percent

from dembench.report.judge.compare import compare
from dembench.report.judge.selection import Side, read, side
from dembench.scripts import cli


def sides(a: str, b: str, default: Path):
    return compare(*(read(side(text, default)) for text in (a, b)))


@pytest.fixture
def root(tmp_path):
    for seed in range(3):
        make_run(tmp_path / "runs", EM[seed], seed=seed)
        make_run(tmp_path / "runs", ADADEM[seed], loss="adadem", seed=seed)
    make_run(tmp_path / "runs", EM[0], seed=0, lr=1e-2)
    make_run(tmp_path / "runs", (0.5, 0.4, 0.3), method="source", seed=0)
    for tau in (0.8, 1.1):
        make_run(tmp_path / "runs", EM[1], loss="dem", seed=1, params={"tau": tau, "alpha": 0.0})
    return tmp_path / "runs"


def test_losses_are_paired_by_all_else(root):
    found = sides("loss=em", "loss=adadem", root)
    (row,) = found.pairs
    low, high = interval(percent(EM) - percent(ADADEM))
    assert row.gain.mean == pytest.approx((percent(EM) - percent(ADADEM)).mean())  # a lower error is a gain of B
    assert (row.gain.low, row.gain.high, row.gain.n) == pytest.approx((low, high, 3))
    assert found.differs["tta"] == {"loss": (("em",), ("adadem",))}
    assert found.only_a == (
        "Corruption test-time adaptation: digits-c · convnet · continual · Source · EM, seed 0",
        "Corruption test-time adaptation: digits-c · convnet · continual · Tent lr 1e-2 · EM, seed 0",
    )
    assert found.only_b == ()
    turned = sides("loss=adadem", "loss=em", root).pairs[0]
    assert turned.gain.mean == pytest.approx(-row.gain.mean)


def test_each_loss_of_a_side_has_its_row_though_only_one_has_parameters(root):
    found = sides("loss=em method.lr=0.001", "loss=dem,adadem", root)
    assert [row.own_b.get("loss.tau") for row in found.pairs] == [0.8, 1.1, None]
    assert [row.gain.n for row in found.pairs] == [1, 1, 3]
    assert found.pairs[0].gain.low is None
    assert {name: gain.cells for name, gain in found.totals["tta"].items()} == {"B: DEM": 2, "B: AdaDEM": 1}


def test_a_key_that_a_run_lacks_is_null(tmp_path):
    for params in (None, {"mec": False}):
        make_run(tmp_path, loss="adadem", params=params)
    words = (f"{tmp_path} loss.mec={value}" for value in ("null", "false", "null,false"))
    plain, ablation, both = (read(side(word, tmp_path)) for word in words)
    assert (len(plain), len(ablation), len(both)) == (1, 1, 2)
    assert "mec" not in plain[0].config["loss"]
    with pytest.raises(ValueError, match="loss.mcc"):
        read(side(f"{tmp_path} loss.mcc=null", Path("runs")))


def test_settings_methods_and_folders_are_compared_likewise(root, tmp_path):
    rates = sides("loss=em method.lr=1e-3", "loss=em method.lr=1e-2", root)
    assert rates.differs["tta"] == {"method.lr": (("1e-3",), ("1e-2",))}
    methods = sides("method=source", "loss=em method=tent", root)
    assert "method" in methods.differs["tta"]
    assert [row.gain.n for row in methods.pairs] == [1, 1]  # seed 0 at two rates, against the one run of Source
    for seed in range(3):
        make_run(tmp_path / "new", EM[seed], seed=seed, environment={"commit": "89abcdef"})
    again = sides(f"{root} loss=em", str(tmp_path / "new"), root)
    assert again.differs["tta"] == {"commit": (("0123abcd",), ("89abcdef",))}
    assert again.pairs[0].gain.mean == 0
    assert again.pairs[0].gain.low is None


def test_totals_are_stratified_and_another_metric_has_its_own_direction(root):
    for seed in range(3):
        make_run(root, EM[seed], seed=seed, data="other", config={"data.id": "x"})
        make_run(root, ADADEM[seed], loss="adadem", seed=seed, data="other", config={"data.id": "x"})
    found = sides("loss=em", "loss=adadem", root)
    assert [row.labels for row in found.pairs] == [{"data": "digits-c"}, {"data": "other"}]
    (total,) = found.totals["tta"].values()
    assert (total.cells, total.over) == (2, "seeds")
    assert total.mean == pytest.approx((percent(EM) - percent(ADADEM)).mean())
    a, b = (read(side(text, root)) for text in ("loss=em", "loss=adadem"))
    nll = compare(a, b, "nll").pairs[0]
    assert nll.gain.mean == pytest.approx(2 * (percent(EM) - percent(ADADEM)).mean() / 100)
    assert compare(a, b, "wall_seconds").pairs[0].gain.mean == 0


def test_a_nan_is_in_no_pair(root):
    make_run(root, (0.2, None, 0.1), seed=1, lr=1e-2, status="nan")
    make_run(root, ADADEM[0], loss="adadem", seed=1, lr=1e-2)
    found = sides("loss=em", "loss=adadem", root)
    assert any(text.endswith("Tent lr 1e-2 · EM, seeds 0, 1") for text in found.only_a)
    assert any(text.endswith("Tent lr 1e-2 · AdaDEM, seed 1") for text in found.only_b)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ("loss=emm", "loss=adadem", "unknown value of loss 'emm'; nearest: em"),
        ("los=em", "loss=adadem", "unknown key 'los'; nearest: loss"),
        ("loss=em", "loss=em", "A and B are the same runs"),
        ("loss=em seed=0", "loss=adadem seed=1", "A and B have no seed in common (A has 0; B has 1)"),
        ("loss=em method=source seed=1", "loss=em", "none of 10 runs has all of these values"),
        ("nowhere", "loss=em", "'nowhere': expected a folder or file of runs, or KEY=VALUE"),
        ("loss=", "loss=em", "'loss=': a filter is KEY=VALUE"),
        ("", "loss=em", "an empty side"),
    ],
)
def test_errors_say_what_is_wrong(root, capsys, a, b, message):
    assert cli.main(["compare", a, b, "--runs", str(root)]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""
    assert len(err.splitlines()) == 1


def test_more_errors(root, tmp_path, capsys):
    assert cli.main(["compare", "runs", "loss=em", "loss=dem"]) == 2
    assert "quote each side" in capsys.readouterr().err
    assert cli.main(["compare", "loss=em", "loss=dem", "--runs", str(tmp_path / "none")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert cli.main(["compare", "loss=em", "loss=adadem", "--runs", str(root), "--metric", "nl"]) == 2
    assert "unknown metric 'nl'; nearest: nll" in capsys.readouterr().err


def test_json_csv_and_terminal_hold_the_same_numbers(root, capsys):
    words = ["compare", "loss=em", "loss=adadem", "--runs", str(root)]
    gain = (percent(EM) - percent(ADADEM)).mean()
    assert cli.main([*words, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["rows"][0]["gain"] == pytest.approx(gain)
    assert record["rows"][0]["seeds"]["2"] == pytest.approx([percent(EM)[2], percent(ADADEM)[2]])
    assert len(record["without_pair"]["a"]) == 2
    assert record["tasks"]["tta"]["differ"] == {"loss": {"a": ["em"], "b": ["adadem"]}}
    assert cli.main([*words, "--csv"]) == 0
    (line,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert float(line["gain"]) == pytest.approx(gain)
    assert float(line["a_sd"]) == pytest.approx(np.std(percent(EM), ddof=1))
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert f"+{gain:.2f}" in out
    assert "A | B differ in loss: em | adadem" in out
    assert "In A without a pair (2):" in out


def test_a_hostile_name_is_printed_as_it_is(tmp_path, capsys):
    for loss in ("em", "adadem"):
        make_run(tmp_path, loss=loss, data="[red]x[/red][bold")
        make_run(tmp_path, loss=loss, data="y", config={"data.id": "y"})
    assert cli.main(["compare", "loss=em", "loss=adadem", "--runs", str(tmp_path)]) == 0
    assert "[red]x[/red][bold" in capsys.readouterr().out


def test_a_side_may_be_a_folder_whose_name_has_spaces(tmp_path):
    folder = tmp_path / "two words"
    folder.mkdir()
    assert side(str(folder), tmp_path) == Side(str(folder), (folder,), ())

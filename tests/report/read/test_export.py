"""Runs in one file, and runs from the table with a row for each: read like the folder they came from."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from report_runs import EM, golden_runs, make_run

from dembench.report import write_report
from dembench.report.read.export import export, without_paths
from dembench.report.read.load import load
from dembench.scripts.cli import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Golden runs; one has every text that could be a path of this machine."""
    root = golden_runs(tmp_path_factory.mktemp("golden") / "runs")
    make_run(root, EM[0], seed=5, command=f"dembench run data.root={root}/data 'a b' out={root}/x", finished=True)
    make_run(root, seed=9, finished=False)
    return root


def tables(out: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((out / "tables").glob("*.csv"))}


def test_the_report_of_the_file_is_the_report_of_the_folder(runs: Path, tmp_path: Path):
    content, found = export([runs], curves=True)
    assert len(found.runs) == 16
    assert len(found.unfinished) == 1
    (tmp_path / "all.jsonl.gz").write_bytes(content)
    of_folder = write_report([runs], tmp_path / "a", paper=True)
    of_file = write_report([tmp_path / "all.jsonl.gz"], tmp_path / "b", paper=True)
    names = [
        sorted(path.relative_to(page.parent).as_posix() for path in page.parent.rglob("*.*"))
        for page in (of_folder, of_file)
    ]
    assert names[0] == names[1]  # the figures over time, too
    assert any("stream" in name for name in names[0])
    mine, others = tables(tmp_path / "a"), tables(tmp_path / "b")
    assert mine.pop("runs.csv") != others.pop("runs.csv")  # commands have lost the folders of this machine
    assert mine == others
    for before, after in zip(load([runs]).runs, load([tmp_path / "all.jsonl.gz"]).runs, strict=True):
        assert before.scores == after.scores or before.status == "nan"
        assert before.histograms() == after.histograms()


def test_the_same_runs_give_the_same_bytes_without_the_folders_of_this_machine(runs: Path, tmp_path: Path):
    content, _ = export([runs])
    assert content == export([runs])[0]
    (tmp_path / "one.jsonl.gz").write_bytes(content)
    assert export([tmp_path / "one.jsonl.gz"])[0] == content  # of its own file, too
    text = gzip.decompress(content).decode()
    assert str(runs.parent) not in text
    head, *lines = map(json.loads, text.splitlines())
    assert head == {"format": "dembench records", "schema": 1, "runs": 16, "curves": False, "pictures": False}
    assert [line["id"] for line in lines] == sorted(line["id"] for line in lines)
    assert not any("files" in line for line in lines)
    assert any(line["command"] == "dembench run data.root=data 'a b' out=x" for line in lines)
    assert {line["config"]["model"]["weights"] for line in lines} == {"w.th"}


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/a/b/c.th", "c.th"),
        ("~/data/x", "x"),
        ("C:\\data\\x.pt", "x.pt"),
        ("run root=/a/b 'out=/c/d' [/e/f,/g/h]", "run root=b 'out=d' [f,h]"),
        ("https://zenodo.org/records/1", "https://zenodo.org/records/1"),
        ("entropy / log(C), 1/2 and runs/a/b", "entropy / log(C), 1/2 and runs/a/b"),
    ],
)
def test_paths_are_cut_to_their_last_name_and_nothing_else_is(text: str, left: str):
    assert without_paths({"a": [text, 1, None]}) == {"a": [left, 1, None]}


def test_refuses_a_run_with_two_results(runs: Path, tmp_path: Path):
    first = load([runs]).runs[0]
    make_run(tmp_path, (0.9, 0.9, 0.9), id=first.id)
    with pytest.raises(ValueError, match=f"different numbers: {first.id}"):
        export([runs, tmp_path])


@pytest.mark.parametrize("damage", ["cut", "lines", "other", "text"])
def test_says_that_a_file_is_damaged(runs: Path, tmp_path: Path, damage: str):
    content, _ = export([runs])
    lines = gzip.decompress(content).splitlines(keepends=True)
    path = tmp_path / "bad.jsonl.gz"
    damaged = {
        "cut": content[:-200],
        "lines": gzip.compress(b"".join(lines[:-1])),
        "other": gzip.compress(b'{"a": 1}\n'),
        "text": b"not compressed",
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(ValueError, match=r"bad\.jsonl\.gz (is no (whole )?file of|holds 15 of 16 runs)") as caught:
        load([path])
    assert "\n" not in str(caught.value)


def test_a_broken_line_is_set_aside(runs: Path, tmp_path: Path):
    lines = gzip.decompress(export([runs])[0]).splitlines(keepends=True)
    lines[3] = b'{"schema": 1}\n'
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"".join(lines)))
    found = load([tmp_path / "a.jsonl.gz"])
    assert len(found.runs) == 15
    assert [aside.name for aside in found.unreadable] == ["a.jsonl.gz, line 4"]


def test_runs_csv_gives_the_tables_of_its_runs_again(runs: Path, tmp_path: Path):
    """Means, intervals, gains and marks, costs and settings; what is per slice is not in it."""
    write_report([runs], tmp_path / "a", with_figures=False)
    page = write_report([tmp_path / "a" / "tables" / "runs.csv"], tmp_path / "b", with_figures=False)
    mine, others = tables(tmp_path / "a"), tables(tmp_path / "b")
    for name in mine:
        if not name.startswith(("detail", "runs")):  # runs.csv lacks the columns of keys that nothing set
            assert mine[name] == others[name], name
    assert "table with a row for each run" in page.read_text()


def test_a_table_that_is_no_runs_csv_is_refused(tmp_path: Path):
    (tmp_path / "x.csv").write_text("run,task\n1,2\n")
    with pytest.raises(ValueError, match=r"x\.csv is no runs\.csv of a report: it lacks data, model"):
        load([tmp_path / "x.csv"])


def test_commands_take_files_like_folders(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "deep" / "runs.jsonl.gz"
    assert main(["export", str(runs), "--out", str(path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("16 runs, ")
    assert "1 unfinished" in said
    for place in (runs, path):
        assert main(["list", str(place)]) == 0
    of_folder, of_file = capsys.readouterr().out.split("in " + str(runs))
    assert "adadem" in of_file
    assert of_folder.splitlines()[:-1] == of_file.splitlines()[1:-1]
    sides = ([f"{place} loss=em", f"{place} loss=adadem"] for place in (runs, path))
    printed = []
    for a, b in sides:
        assert main(["compare", a, b, "--csv"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert main(["report", str(path), "--out", str(tmp_path / "out"), "--figures", "0"]) == 0
    assert main(["export", str(tmp_path / "none"), "--out", str(path)]) == 2
    assert "no such directory or file" in capsys.readouterr().err

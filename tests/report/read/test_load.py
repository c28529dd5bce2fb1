"""What is found on the disk, and what cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_runs import EM, make_run, only_block

from dembench.report import write_report
from dembench.report.figures.stream_accuracy import stream_figure
from dembench.report.read.load import load
from dembench.report.tables.results import main_table


def test_counts_unfinished_unreadable_and_repeated_runs(tmp_path: Path):
    first = make_run(tmp_path / "a", EM[0])
    make_run(tmp_path / "a", EM[1], seed=1, finished=False)
    (tmp_path / "a" / "0123456789ab").mkdir()  # started, nothing written yet
    broken = make_run(tmp_path / "b", EM[2], seed=2)
    (broken / "result.json").write_text('{"schema": 1, "id"')
    newer = make_run(tmp_path / "b", EM[2], seed=3, schema=2)
    copy = make_run(tmp_path / "b", EM[0], id=first.name)
    found = load([tmp_path, tmp_path / "a", first])
    assert [run.id for run in found.runs] == [first.name]
    assert len(found.unfinished) == 2
    assert {aside.name for aside in found.unreadable} == {broken.name, newer.name}
    assert [aside.name for aside in found.duplicates] == [first.name]
    assert copy.is_dir()
    assert "same numbers" in found.duplicates[0].reason
    page = write_report([tmp_path], tmp_path / "out", with_figures=False).read_text()
    assert "2 unfinished, 2 unreadable" in page
    for aside in (*found.unfinished, *found.unreadable):
        assert aside.name in page


def test_a_run_directory_itself_is_accepted(tmp_path: Path):
    folder = make_run(tmp_path, EM[0])
    make_run(tmp_path, EM[1], seed=1)
    assert [run.store.path for run in load([folder]).runs] == [folder]


@pytest.mark.parametrize("kind", ["missing", "empty", "unfinished", "none"])
def test_says_in_one_line_when_there_is_nothing_to_report(tmp_path: Path, kind: str):
    roots = {"missing": [tmp_path / "no"], "none": []}.get(kind, [tmp_path])
    if kind == "unfinished":
        make_run(tmp_path, finished=False)
    with pytest.raises(
        ValueError, match="no such directory or file" if kind == "missing" else "no finished run"
    ) as caught:
        write_report(roots, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["missing", "empty", "header", "short"])
def test_a_damaged_curve_costs_the_stream_figure_only(tmp_path: Path, damage: str):
    folder = make_run(tmp_path, EM[0])
    text = {
        "empty": "",
        "header": "step,slice,n,correct,entropy,loss,updated\n",
        "short": "step,slice,n,correct\n1,a\n",
    }
    (folder / "curve.csv").unlink() if damage == "missing" else (folder / "curve.csv").write_text(text[damage])
    block = only_block(tmp_path)
    assert stream_figure(block, "tent") is None
    assert main_table(block).rows[0][1].text == "20.00 (1)"

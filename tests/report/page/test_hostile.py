"""Texts that attack: in the page's source, in spreadsheets, in LaTeX and Markdown; and folders that are no runs."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from pathlib import Path

import pytest
from report_hostile import ATTACKS
from report_runs import EM, Page, listed, make_run

from dembench.report import write_report
from dembench.report.read.load import load
from dembench.report.tables.table import Column, Entry, Table


def tables(hostile: tuple[Path, Path], suffix: str) -> list[str]:
    found = [path.read_text() for path in sorted((hostile[1] / "tables").glob(f"*.{suffix}"))]
    assert len(found) > 4
    return found


def test_every_attack_is_shown_as_text(hostile: tuple[Path, Path]):
    text = (hostile[1] / "index.html").read_text()
    page = Page(text)
    assert page.tags.count("script") == 1
    assert {value for key, value in page.attributes if key.startswith("on")} == set()
    assert all(value.startswith("data:image/") for key, value in page.attributes if key == "src")
    linked = [value for key, value in page.attributes if key in ("href", "xlink:href") and value[:1] != "#"]
    linked = [value for value in linked if value not in ("data:,", "paper.tex")]
    assert all(re.fullmatch(r"(tables|figures)/[a-z0-9-]+\.[a-z]+", value) for value in linked)
    assert all((hostile[1] / value).is_file() for value in linked)
    seen = re.sub(r"\s+", " ", page.text)
    for attack in ATTACKS:
        cleaned = re.sub("[\u0000\u202e\ud800]", "\N{REPLACEMENT CHARACTER}", attack)
        assert re.sub(r"\s+", " ", cleaned).strip() in seen, attack
    assert "{{7*7}}.gif" in seen
    assert page.tags.count("img") == 8
    written = {path.parent for path in hostile[1].parent.rglob("*") if path.suffix in (".md", ".tex", ".pdf")}
    assert written == {hostile[1], hostile[1] / "tables", hostile[1] / "figures"}
    ids = {run["id"] for run in listed(text)["runs"]}
    assert ids == {path.parent.name for path in hostile[0].glob("*/config.yaml")}


def test_no_cell_is_a_formula(hostile: tuple[Path, Path]):
    for text in tables(hostile, "csv"):
        rows = list(csv.reader(io.StringIO(text)))
        assert {len(row) for row in rows} == {len(rows[0])}
        for cell in (cell for row in rows for cell in row):
            number = re.fullmatch(r"-?\d+(\.\d+)?(e[+-]?\d+)?", cell)
            assert number or not re.match(r"\s*[=+@-]|[\t\r]", cell), cell


def test_latex_stays_inside_its_cells(hostile: tuple[Path, Path]):
    for text in tables(hostile, "tex"):
        signs = "textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar|dots|allowbreak"
        plain = re.sub(rf"\\({signs})\{{\}}", "", text)
        assert "\\input" not in plain
        plain = re.sub(r"\\[{}$&%#_]", "", re.sub(r"\\\\(?!$)", " ", plain, flags=re.M))
        assert plain.count("{") == plain.count("}")
        for one in plain.split("\\begin{table")[1:]:
            columns = len(re.search(r"\\begin\{tabular\}\{@\{\}([lr]+)@\{\}\}", one)[1])
            body = one.split("\\toprule")[1].split("\\bottomrule")[0]
            assert body.count("\\begin{tabular}") == body.count("\\end{tabular}")
            for line in (line for line in body.splitlines() if line.endswith(r" \\")):
                spans = sum(int(n) - 1 for n in re.findall(r"multicolumn\{(\d+)\}", line))
                assert line.count("&") + spans == columns - 1
                assert not re.match(r"\s*[\[*]", line)  # the line end before it would take it for its own
        assert not re.search(r"[%#~^]|(?<!\\)_", plain.replace("% needs", ""))


def test_markdown_has_no_tags_links_or_broken_rows(hostile: tuple[Path, Path]):
    for text in tables(hostile, "md"):
        plain = re.sub(r"\\.", "", text.replace("<u>", "").replace("</u>", ""))
        assert not re.search(r"[<>`]|\]\(", plain)
        rows = [line for line in plain.splitlines() if line.startswith("|")]
        assert {line.count("|") for line in rows} == {rows[0].count("|")}


@pytest.mark.parametrize(
    ("text", "cell"),
    [("=1+1", "'=1+1"), ("+A1", "'+A1"), ("-A1", "'-A1"), (" =1", "' =1"), ("@x", "'@x"), ("-1.5", "-1.5"),
     ("1e-3", "1e-3"), ("+2", "+2"), ("\tx", "'\tx"), ("-", "'-"), ("τ 1", "τ 1")],
)  # fmt: skip
def test_formulas_are_quoted_and_numbers_are_not(text: str, cell: str):
    table = Table("t", "t", "", [Column("a", ("v",)), Column("b")], [[Entry("x", numbers=(text,)), Entry(text)]])
    assert list(csv.reader(io.StringIO(table.csv())))[1] == [cell, cell]


def test_a_row_that_begins_with_a_bracket_is_no_option():
    table = Table("t", "t", "c", [Column("a")], [[Entry("x")], [Entry("[2pt]")]])
    assert "  {}[2pt] \\\\" in table.latex()


def test_folders_that_hold_no_run_are_listed_and_the_rest_is_reported(tmp_path: Path):
    whole = make_run(tmp_path, EM[0])
    record = json.loads((whole / "result.json").read_text())
    broken = {
        "empty": "", "half": '{"schema": 1, "id', "list": "[1]", "number": "3", "deep": "[" * 50_000,
        "binary": "\x00\x01", "other": '{"schema": 2}', "keys": json.dumps({**record, "rows": [{}]}),
        "rows": json.dumps({**record, "rows": 3}), "seed": json.dumps({**record, "seed": "x"}),
        "size": json.dumps({**record, "rows": [{**record["rows"][0], "n": float("inf")}]}),
        "value": json.dumps({**record, "rows": [{**record["rows"][0], "value": "much"}]}),
        "config": json.dumps({**record, "config": "text"}), "flags": json.dumps({**record, "flags": [1]}),
    }  # fmt: skip
    for name, text in broken.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(text)
    (tmp_path / "latin").mkdir()
    (tmp_path / "latin" / "result.json").write_bytes(b'{"id": "\xff"}')
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "result.json")  # which would be waited for without end
    os.mkdir(os.fsencode(tmp_path) + b"/no\xffutf8")
    (tmp_path / os.fsdecode(b"no\xffutf8") / "result.json").write_text("{}")
    found = load([tmp_path])
    assert [run.id for run in found.runs] == [whole.name]
    named = {aside.name for aside in found.unreadable}
    assert named == {*broken, "latin", "pipe", "no\N{REPLACEMENT CHARACTER}utf8"}
    page = Page(write_report([tmp_path], tmp_path / "out", with_figures=False).read_text()).text
    assert all(name in page for name in named)


@pytest.mark.parametrize("name", ["curve.csv", "series.csv"])
@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"step,slice,n,correct,metric,value\n1,a,x,y,m,z\n", b'"', b"a,b\n1\n"]
)
def test_a_damaged_series_costs_its_figure_only(tmp_path: Path, name: str, content: bytes):
    folder = make_run(tmp_path, EM[0])
    (folder / name).write_bytes(content)
    (run,) = load([tmp_path]).runs
    assert (run.curve() is None) if name == "curve.csv" else (run.series() == {})

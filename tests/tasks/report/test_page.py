"""The page as a reader gets it."""

from __future__ import annotations

import csv
import io
import re
import time
from pathlib import Path

import numpy as np
from report_runs import EM, Page, make_run

from tasks.report import write_report
from tasks.report.tables import Column, Entry, Table


def test_the_page_is_self_contained(golden: tuple[Path, Path]):
    text = (golden[1] / "index.html").read_text()
    assert not re.findall(r"https?:|@import|//[a-z]+\.", text)
    assert set(re.findall(r"url\(([^)]{1})", text)) <= {"#"}
    page = Page(text)
    assert not {"link", "img", "iframe", "object", "embed"} & set(page.tags) - {"link"}
    assert [value for key, value in page.attributes if key == "src"] == []
    assert all(value[:1] == "#" or value == "data:," for key, value in page.attributes if key in ("href", "xlink:href"))
    ids = [value for key, value in page.attributes if key == "id"]
    assert len(ids) == len(set(ids))


def test_the_page_shows_figures_provenance_and_what_was_left_out(golden: tuple[Path, Path]):
    text = (golden[1] / "index.html").read_text()
    page = Page(text)
    assert page.tags.count("svg") == 5  # gains, learning rate, stream, shares, rewards
    for words in (
        "0123abcd",
        "2.15.0",
        "dembench run method=tent loss=em seed=0",
        "1 unfinished",
        "1 collapsed, 1 with NaN",
    ):
        assert words in page.text
    made = {path.suffix for path in (golden[1] / "figures").iterdir()}
    assert made == {".pdf", ".png"}
    assert len(list((golden[1] / "figures").iterdir())) == 8


def test_the_same_runs_give_the_same_bytes(golden: tuple[Path, Path], tmp_path: Path):
    write_report(sorted(golden[0].iterdir(), reverse=True), tmp_path)
    files = sorted(path.relative_to(golden[1]) for path in golden[1].rglob("*.*"))
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.*"))
    for file in files:
        assert (tmp_path / file).read_bytes() == (golden[1] / file).read_bytes(), file


def test_a_substitute_is_named_beside_the_numbers(tmp_path: Path):
    make_run(tmp_path, EM[0], notes=(("frost", "made of synthetic ice"),))
    make_run(tmp_path, EM[1], seed=1)
    page = write_report([tmp_path], tmp_path / "out", with_figures=False).read_text()
    assert "made of synthetic ice" in page.split('<section class="block"')[1].split("<table")[0]
    assert "1 of 2 runs" in page


HOSTILE = '<script>alert("x")</script>|`*_$\\frac{1}$&amp;{{7*7}}\n../../up ]]> -->'


def test_hostile_text_is_text(tmp_path: Path):
    for loss in ("em", HOSTILE):
        make_run(
            tmp_path / "runs", EM[0], method=HOSTILE, loss=loss, data=HOSTILE, model="=cmd()", protocol=HOSTILE,
            notes=((HOSTILE, HOSTILE),), status="collapse", command=HOSTILE, slices=(f"{HOSTILE}/5", "</svg>/5", "c/5"),
            flags=[{"kind": "collapse", "slice": HOSTILE, "message": HOSTILE}], environment={HOSTILE: HOSTILE},
            params={HOSTILE: HOSTILE} if loss == "em" else None, config={"protocol.extra": HOSTILE},
        )  # fmt: skip
    (tmp_path / "runs" / "<b>broken").mkdir()
    (tmp_path / "runs" / "<b>broken" / "result.json").write_text('"<img src=x>"')
    text = write_report([tmp_path / "runs"], tmp_path / "out").read_text()
    page = Page(text)
    assert page.tags.count("script") == 1
    assert "<script>alert" not in text
    assert "img" not in page.tags
    assert "49" not in re.sub(r"[\d.]{3,}", "", page.text.split("Provenance")[1])  # no template ran
    assert 'alert("x")' in page.text
    inside = {path.resolve().parent for path in tmp_path.rglob("*") if path.suffix in (".md", ".csv", ".tex", ".pdf")}
    assert inside <= {tmp_path / "out" / "tables", tmp_path / "out" / "figures"} | set((tmp_path / "runs").iterdir())
    table = next((tmp_path / "out" / "tables").glob("main-*.tex")).read_text()
    assert "\\frac" not in table
    assert table.count("\\begin{tabular}") == 1
    rows = list(csv.reader(io.StringIO((tmp_path / "out" / "tables" / "runs.csv").read_text())))
    assert {len(row) for row in rows} == {len(rows[0])}
    assert rows[1][3] == "'=cmd()"


def test_formats_escape_what_they_must():
    table = Table(
        "t",
        "a|b",
        "c_d",
        [Column("x&y", numeric=False), Column("n", ("v",))],
        [[Entry("50% [a](b)"), Entry("−1", numbers=("-1",))]],
    )
    assert table.csv() == "x&y,n: v\n50% [a](b),-1\n"
    assert "| 50% [a\\](b) | −1 |" in table.markdown()
    assert "a\\|b" in table.markdown()
    assert "  50\\% [a](b) & $-$1 \\\\" in table.latex()
    assert "x\\&y & n \\\\" in table.latex()


def test_a_thousand_runs_take_seconds(tmp_path: Path):
    draws = np.random.default_rng(0)
    for protocol in ("single_domain", "continual"):
        for loss in ("em", "adadem"):
            for lr in (1e-4, 3e-4, 1e-3, 3e-3, 1e-2):
                for seed in range(50):
                    errors = tuple(float(x) for x in draws.uniform(0.1, 0.5, 3))
                    make_run(tmp_path / "runs", errors, loss=loss, lr=lr, seed=seed, protocol=protocol)
    start = time.process_time()
    page = write_report([tmp_path / "runs"], tmp_path / "out", with_figures=False)
    assert "1000 finished" in page.read_text()
    assert time.process_time() - start < 5  # processor time, because tests share the machine
    assert (tmp_path / "out" / "tables" / "runs.csv").read_text().count("\n") == 1001

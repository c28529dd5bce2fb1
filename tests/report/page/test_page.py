"""The page as a reader gets it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from report_runs import EM, Page, listed, make_run, opened

from dembench.report import write_report
from dembench.report.tables.table import Column, Entry, Table


def test_the_page_is_self_contained(golden: tuple[Path, Path]):
    text = (golden[1] / "index.html").read_text()
    assert not re.findall(r"https?:|@import|//[a-z]+\.", text)
    assert set(re.findall(r"url\(([^)]{1})", text)) <= {"#"}
    page = Page(text)
    assert not {"link", "img", "iframe", "object", "embed"} & set(page.tags) - {"link"}
    assert [value for key, value in page.attributes if key == "src"] == []
    links = [value for key, value in page.attributes if key in ("href", "xlink:href")]
    files = [value for value in links if value[:1] != "#" and value != "data:,"]
    assert files
    assert all((golden[1] / file).is_file() for file in files)  # to save, beside the page; nothing is loaded from them
    ids = [value for key, value in page.attributes if key == "id"]
    assert len(ids) == len(set(ids))


def test_the_page_shows_figures_provenance_and_what_was_left_out(golden: tuple[Path, Path]):
    text = (golden[1] / "index.html").read_text()
    page = Page(text)
    drawn = [value for key, value in page.attributes if key == "id" and value.startswith("f-")]
    assert page.tags.count("svg") == len(drawn) == 6  # gains (twice), learning rate, stream, shares, rewards
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
    assert len(list((golden[1] / "figures").iterdir())) == 2 * len(drawn)


def test_the_same_runs_give_the_same_bytes(golden: tuple[Path, Path], tmp_path: Path):
    write_report(sorted(golden[0].iterdir(), reverse=True), tmp_path, paper=True)
    files = sorted(path.relative_to(golden[1]) for path in golden[1].rglob("*.*"))
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.*"))
    for file in files:
        assert (tmp_path / file).read_bytes() == (golden[1] / file).read_bytes(), file


def test_a_substitute_is_named_beside_the_numbers(tmp_path: Path):
    make_run(tmp_path, EM[0], notes=(("frost", "made of synthetic ice"),))
    make_run(tmp_path, EM[1], seed=1)
    page = opened(write_report([tmp_path], tmp_path / "out", with_figures=False).read_text())
    assert "made of synthetic ice" in page.split('<details class="fill block"')[1].split("<table")[0]
    assert "1 of 2 runs" in page


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


def test_what_mirrors_digits_is_said(tmp_path: Path):
    make_run(tmp_path / "runs", EM[0], method="ttc", config={"method.augment": "hflip"})
    make_run(tmp_path / "runs", EM[0], method="ttc", config={"method.augment": "hflip"}, data="cifar10c")
    page = opened(write_report([tmp_path / "runs"], tmp_path / "out", with_figures=False).read_text())
    assert page.count("a mirrored digit is another one or none") == 2  # on the first screen, and beside the numbers
    assert "(TTC)</span>" in page


def test_every_run_is_listed_with_its_numbers_curve_and_command(golden: tuple[Path, Path]):
    found = listed((golden[1] / "index.html").read_text())
    records = {path.parent.name: json.loads(path.read_text()) for path in golden[0].glob("*/result.json")}
    assert found["left"] == 0
    assert {run["id"] for run in found["runs"]} == set(records)
    for run in found["runs"]:
        record = records[run["id"]]
        assert (run["seed"], run["status"], run["command"]) == (record["seed"], record["status"], record["command"])
        errors = {row["slice"].partition("/")[0]: row["value"] for row in record["rows"] if row["metric"] == "error"}
        assert run["value"] == ("–" if record["status"] == "nan" else f"{100 * errors['mean']:.2f}")
        assert len(run["curve"]["y"]) == 12
        config = dict(found["pairs"][at] for at in run["config"])
        assert config["protocol.severity"] == "5"
        assert config.get("method.lr") == {1e-3: "1e-3", 1e-2: "1e-2"}.get(record["config"]["method"].get("lr"))
        assert not any("/somewhere/" in value for value in config.values())  # paths are cut to their last name
        assert ["commit", "0123abcd"] in found["environments"][run["environment"]]

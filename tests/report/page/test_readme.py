"""The pages under docs/results: every marked table is what their runs give, every link and picture is there, and the
command that a page names makes the full report."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from report_runs import golden_runs, opened

from dembench.report import write_report
from dembench.report.page.readme import BLOCK, gains, rewrite
from dembench.report.read.load import load
from dembench.scripts.cli import main

ROOT = Path(__file__).parents[3]
PAGES = sorted((ROOT / "docs" / "results").glob("*/README.md"))
COMMAND = re.compile(r"^dembench report (docs/results/.*?)(?:\s+#.*)?$", re.MULTILINE)
ROW = re.compile(r"^\|.*\d.*\|$", re.MULTILINE)
OF_LOST_RUNS = {"semi_digits": 10, "dem_star": 3}  # lines of tables whose runs or searches were not kept


def records(page: Path) -> Path:
    (found,) = [*page.parent.glob("*.jsonl.gz"), *page.parent.glob("runs.csv")]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_every_table_is_what_the_runs_give(page: Path, tmp_path: Path):
    write_report([records(page)], tmp_path, with_figures=False)
    text = page.read_text()
    assert rewrite(text, load([records(page)]).runs, tmp_path / "tables") == text
    left = ROW.findall(BLOCK.sub("", text))
    assert len(left) == OF_LOST_RUNS.get(page.parent.name, 0), left


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_a_page_holds_its_runs_and_the_pictures_that_it_shows(page: Path):
    links = [link for link in re.findall(r"\]\(([^)#]+)", page.read_text()) if "://" not in link]
    assert all((page.parent / link).is_file() for link in links)
    shown = {link for link in links if link.endswith(".png")}
    kept = {path.name for path in page.parent.iterdir()}
    assert kept == {"README.md", records(page).name, *shown}
    assert 1 <= len(shown) <= 2
    assert records(page).name in links


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_the_command_of_a_page_names_its_runs(page: Path):
    (command,) = COMMAND.findall(page.read_text())
    assert command.split()[0] == records(page).relative_to(ROOT).as_posix()


def test_the_command_of_a_page_makes_the_full_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (command,) = COMMAND.findall((ROOT / "docs/results/semi_cifar10_jpeg/README.md").read_text())
    words = shlex.split(command)
    at = words.index("--out") + 1
    words[at] = str(tmp_path / words[at])
    monkeypatch.chdir(ROOT)
    assert main(["report", *words]) == 0
    page = Path(words[at]) / "index.html"
    made = opened(page.read_text())
    assert "FreeMatch" in made
    assert made.count("<svg") >= 2


def test_a_changed_number_is_found_and_put_right(tmp_path: Path):
    runs = load([golden_runs(tmp_path / "runs")]).runs
    write_report([tmp_path / "runs"], tmp_path / "out", with_figures=False)
    name = "main-tta-digits-c-convnet-continual"
    sides = "AdaDEM (B), EM (A): loss=em method=tent method.lr=1e-3 | loss=adadem method.lr=1e-3"
    marked = f"Before.\n\n<!-- table: {name} -->\n<!-- end -->\n\n<!-- compare\n{sides}\n-->\n<!-- end -->\nAfter.\n"
    text = rewrite(marked, runs, tmp_path / "out" / "tables")
    assert rewrite(text, runs, tmp_path / "out" / "tables") == text
    assert "| AdaDEM (B), EM (A) | 21.00 ± 1.00 | 19.33 ± 0.58 | +1.67 [" in text
    assert text.startswith("Before.\n")
    assert text.endswith("After.\n")
    false = text.replace("21.00", "21.01").replace("| better |", "| not told apart |")
    assert rewrite(false, runs, tmp_path / "out" / "tables") == text


def test_verdicts_follow_from_the_interval(tmp_path: Path):
    runs = load([golden_runs(tmp_path / "runs")]).runs

    def verdict(a: str, b: str, metric: str = "") -> str:
        return gains(f"{metric}\nx: {a} | {b}", runs).rpartition(" | ")[2].rstrip(" |")

    assert verdict("method=source", "method=tent loss=em method.lr=1e-3") == "better"
    assert verdict("method=tent loss=em method.lr=1e-3", "method=source") == "worse"
    assert verdict("method=source", "method=norm") == "one seed: no claim"
    with pytest.raises(ValueError, match="expected LABEL: A"):
        gains("\nmethod=source", runs)
    write_report([tmp_path / "runs"], tmp_path / "out", with_figures=False)
    with pytest.raises(ValueError, match="has no table nothing; it has .*main-"):
        rewrite("<!-- table: nothing -->\n<!-- end -->\n", runs, tmp_path / "out" / "tables")

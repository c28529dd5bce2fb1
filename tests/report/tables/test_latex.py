"""LaTeX tables fit a two-column page: set by a real LaTeX where there is one, and by their own measure."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dembench.report.page.build import sheet
from dembench.report.read.reference import references
from dembench.report.tables.latex import BOTH, LINES, MOST, ONE, pieces, tex, words, wrap
from dembench.report.tables.published import reference_table
from dembench.report.tables.table import Column, Entry, Table


def big(columns: int, rows: int, text: str = "12.34 ± 0.56") -> Table:
    """A table of many numbers, with a caption of three sentences."""
    heads = [Column("Method", numeric=False), *(Column(f"corruption number {i}") for i in range(columns))]
    entries = [[Entry(f"m{i}"), *(Entry(text, f"+{i}.{j:02} [-1, +2]") for j in range(columns))] for i in range(rows)]
    return Table(f"big-{columns}-{rows}", "A title", "One sentence. Another one. A third.", heads, entries, ["A note."])


def set_all(folder: Path, tables: list[Path]) -> str:
    """The log of pdflatex over a document with all ``tables``."""
    (folder / "paper.tex").write_text(sheet(tables))
    program = shutil.which("pdflatex")
    if program is None:
        pytest.skip("needs pdflatex: apt-get install texlive-latex-recommended")
    subprocess.run([program, "-version"], check=True, capture_output=True)
    command = [program, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "paper.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    return (folder / "paper.log").read_text(errors="replace")


def test_no_table_is_wider_than_the_page(golden: tuple[Path, Path], hostile: tuple[Path, Path], tmp_path: Path):
    (tmp_path / "tables").mkdir()
    names = []
    for report in (golden, hostile):
        for path in sorted((report[1] / "tables").glob("*.tex")):
            names.append(tmp_path / "tables" / f"{report[1].parent.name}-{path.name}")
            shutil.copy(path, names[-1])
    for table in (*map(reference_table, references()), big(3, 4), big(7, 60), big(30, 20)):
        table.write(tmp_path / "tables")
        names.append(tmp_path / "tables" / f"{table.name}.tex")
    log = set_all(tmp_path, names)
    assert len(names) > 40
    assert re.findall(r"Overfull \\hbox.*", log) == []
    assert "Float too large" not in log
    assert int(re.search(r"Output written on .*\((\d+) pages?", log.replace("\n", " "))[1]) >= len(names)


def test_the_document_of_a_report_names_its_tables(golden: tuple[Path, Path]):
    named = set(re.findall(r"\\input\{tables/(.*?)\}", (golden[1] / "paper.tex").read_text()))
    assert named == {path.name for path in (golden[1] / "tables").glob("*.tex")}


@pytest.mark.parametrize(("columns", "rows", "parts", "measure"), [(2, 3, 1, ONE), (5, 3, 1, BOTH), (24, 30, 6, BOTH)])
def test_a_table_takes_one_column_or_both_or_has_parts(columns: int, rows: int, parts: int, measure: float):
    table = big(columns, rows)
    found = pieces(table)
    assert all(part.width <= measure for part in found)
    assert len(found) == 1 if parts == 1 else len(found) >= parts
    assert all(sum(max(len(a) + len(b) for a, b in row) for row in part.cells) <= LINES for part in found)
    text = table.latex()
    assert text.count(r"\begin{table*}") == (len(found) if measure == BOTH else 0)
    for i in range(rows):
        for j in range(columns):
            assert f"+{i}.{j:02} [-1, +2]" in text
    assert text.count("A note.") == 1
    assert len(set(re.findall(r"\\label\{(.*?)\}", text))) == len(found)


def test_a_caption_has_two_sentences_and_the_rest_are_notes():
    assert words(big(1, 1)) == ("A title.", "One sentence.", "Another one. A third. A note.")
    assert "The first 500 of 502 rows" in words(big(1, MOST + 2))[2]
    caption = re.search(r"\\caption\{(.*)\}\n", big(1, 1).latex())[1]
    assert caption == r"\textbf{A title.} One sentence."


def test_lines_are_no_wider_than_asked_and_lose_nothing():
    text = f"some words and {'W' * 50} and the end"
    lines = wrap(text, 8, 60)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert len(lines) > 5


def test_signs_that_a_font_lacks_are_question_marks():
    made = {"50 % é": r"50 \% é", "日本": "??", "−1 ± 2": r"$-$1 $\pm$ 2", "đ": "?"}
    assert {text: tex(text) for text in made} == made

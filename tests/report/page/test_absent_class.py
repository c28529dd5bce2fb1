"""A class that no test sample shows, as fence in CamVid's validation images: it has no value, and a note says so."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from report_runs import EM, Page, make_run

from dembench.report import write_report

NOTE = "no test sample shows fence: what is undefined there is left out (2 of 3 are shown)"
CLASSES = ("sky", "road", "fence")


def test_a_class_without_a_value_leaves_no_nan_and_the_note_is_shown(tmp_path: Path) -> None:
    for seed in (0, 1):
        folder = make_run(tmp_path / "runs", EM[seed], seed=seed, slices=CLASSES, notes=(("undefined", NOTE),))
        record = json.loads((folder / "result.json").read_text())
        rows = [row for row in record["rows"] if row["slice"] != "fence"]
        for row in rows:
            if (row["slice"], row["metric"]) == ("mean", "error"):
                row["value"] = sum(EM[seed][:2]) / 2  # over the classes that are shown
        (folder / "result.json").write_text(json.dumps(record | {"rows": rows}))
    text = write_report([tmp_path / "runs"], tmp_path / "out", with_figures=False).read_text()
    page = Page(text)
    assert NOTE in page.text
    assert "NaN" not in page.text.replace("Number.isNaN", "")
    assert "2 of 2 runs" not in page.text.split(NOTE)[1][:40]  # all runs have it, so none is set apart
    (table,) = (tmp_path / "out" / "tables").glob("detail-*.csv")
    (row,) = csv.DictReader(table.open())
    assert "fence: mean" not in row
    assert float(row["mean: mean"]) == round(100 * sum(sum(EM[seed][:2]) / 2 for seed in (0, 1)) / 2, 1)
    assert row["mean: n"] == "2"
    for path in (tmp_path / "out" / "tables").glob("*.csv"):
        assert "nan" not in {cell.casefold() for line in csv.reader(path.open()) for cell in line}, path.name


def test_beside_runs_that_have_the_class_its_cell_is_of_these_alone(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", EM[0], slices=CLASSES)
    folder = make_run(tmp_path / "runs", EM[1], seed=1, slices=CLASSES, notes=(("undefined", NOTE),))
    record = json.loads((folder / "result.json").read_text())
    kept = [row for row in record["rows"] if row["slice"] != "fence"]
    (folder / "result.json").write_text(json.dumps(record | {"rows": kept}))
    text = Page(write_report([tmp_path / "runs"], tmp_path / "out", with_figures=False).read_text()).text
    assert NOTE in text
    assert "1 of 2 runs" in text
    (table,) = (tmp_path / "out" / "tables").glob("detail-*.csv")
    (row,) = csv.DictReader(table.open())
    assert (row["fence: mean"], row["fence: n"]) == (f"{100 * EM[0][2]:.1f}", "1")
    assert row["sky: n"] == "2"

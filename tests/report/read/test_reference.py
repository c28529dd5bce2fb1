"""Published numbers: what the files hold, and where they may stand beside measured ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from report_runs import Page, make_run, only_block, opened

from dembench.report import write_report
from dembench.report.read.reference import canonical, read, references
from dembench.report.tables.published import beside_table, reference_table, weights_of
from dembench.tasks.common.corruptions import CORRUPTIONS

KNOWN = {reference.name: reference for reference in references()}
SLICES = tuple(f"{name}/5" for name in CORRUPTIONS)


def column(name: str, row: str) -> list[float]:
    numbers = next(numbers for label, numbers in KNOWN[name].rows if label == row)
    return [number.value for number in numbers if number is not None]


@pytest.mark.parametrize("name", ["ttc_table2", "ttc_table3", "ttc_table4", "ttc_table5", "ttc_table6"])
def test_printed_averages_are_the_means_of_their_rows(name: str):
    """A misread digit of 0.8 or more would show: the averages are printed with one decimal."""
    for row, numbers in KNOWN[name].rows:
        values = [number.value for number in numbers]
        assert [number.slice for number in numbers] == [*CORRUPTIONS, "mean"]
        assert np.mean(values[:15]) == pytest.approx(values[15], abs=0.0701), row


def test_tables_agree_where_they_print_the_same_number():
    assert column("ttc_table7", "TENT") == [column(f"ttc_table{n}", "TENT")[-1] for n in (2, 3, 4)]
    assert column("ttc_table1", "SOURCE") == [column(f"ttc_table{n}", "SOURCE")[-1] for n in (2, 3, 4)]
    assert column("ttc_table5", "HorFlip")[-1] == column("ttc_table2", "TTC (ours)")[-1]
    for row, ablation in (
        ("NoAdapt", "NoAdapt, ViT-B/16"),
        ("Tent†", "EM"),
        ("Tent† + DEM*", "DEM*"),
        ("Tent† + AdaDEM", "AdaDEM"),
    ):
        assert column("dem_table2_left", row) == column("dem_table1", ablation)[-2:]
    best = {row: numbers for row, numbers in KNOWN["dem_table14"].rows}
    assert (best["2.5e-2"][0].value, best["1e-1"][1].value) == tuple(
        column("dem_table1", r)[2] for r in ("EM", "AdaDEM")
    )


def test_every_number_says_what_it_is_of():
    for reference in KNOWN.values():
        numbers = [number for _, number in reference.numbers()]
        assert numbers, reference.name
        assert reference.about, reference.name
        assert all(number.data and number.protocol and number.slice for number in numbers)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("values: [1.0, 2.0]", "values: [1.0]"), "1 values for 2 columns"),
        (("values: [1.0, 2.0]", "values: [1.0, 200.0]"), "no percentage"),
        (("values: [1.0, 2.0]", "values: [1.0, about]"), "expected a number"),
        (("values: [1.0, 2.0]", "values: [1.0, [null, 0.1]]"), "without a mean"),
        (("data: d", "dataset: d"), "unknown keys dataset"),
        (("data: d, ", ""), "lacks data"),
        (("item: Table 9\n", ""), "lacks item"),
        (("rows:", "rows: ["), "reference x"),
    ],
)
def test_refuses_files_that_break_the_rules(change: tuple[str, str], words: str):
    text = (
        "# About: a\npaper: P\ncitation: C\nitem: Table 9\ntask: tta\nmetric: error\nunit: '%'\n"
        "shared: {data: d, protocol: p, slice: mean}\ncolumns: [{name: a}, {name: b}]\n"
        "rows:\n  - {name: r, method: tent, values: [1.0, 2.0]}\n"
    )
    assert [number.value for _, number in read("x", text).numbers()] == [1.0, 2.0]
    with pytest.raises(ValueError, match=words):
        read("x", text.replace(*change))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("WRN-28-10", "wrn_28_10"),
        ("CIFAR-10-C", "cifar10-c"),
        ("vit_base_patch16_224.augreg_in21k_ft_in1k", "ViT-B/16"),
    ],
)
def test_spellings_of_one_name(one: str, other: str):
    assert canonical(one) == canonical(other)
    assert canonical("wrn_40_2") != canonical("wrn_28_10")


def runs_of_table_2(root: Path, n: int = 10000, batch_size: int = 200, **names: str) -> None:
    names = {"data": "cifar10-c", "model": "wrn_28_10", "protocol": "single_domain"} | names
    for method, loss, error in (("source", "em", 0.5), ("tent", "em", 0.2), ("tent", "adadem", 0.19)):
        folder = make_run(root, (error,) * 15, method=method, loss=loss, slices=SLICES, size=n,
                          config={"protocol.batch_size": batch_size}, **names)  # fmt: skip
        assert folder.is_dir()


def test_published_numbers_stand_beside_the_same_data_and_model(tmp_path: Path):
    runs_of_table_2(tmp_path)
    table, used = beside_table(only_block(tmp_path))
    assert used == {
        "ttc_table1",
        "ttc_table2",
        "ttc_table7",
        "tent_readme",
    }
    assert [row[1].text for row in table.rows if row[0].text == "TTC Table 1"] == [
        "SOURCE"
    ]  # not at batch sizes 1 and 20
    rows = {(row[0].text, row[1].text): row for row in table.rows}
    tent = rows["TTC Table 2", "TENT"]
    assert tent[2].text == "Tent + EM"
    assert (tent[3].text, tent[3].sub) == ("20.0", "publ. 24.3")  # 100 - 75.7
    assert (tent[-3].text, tent[-3].sub) == ("20.0", "publ. 18.5")
    assert tent[-1].text == "batch size 100 there, 200 here"
    assert tent[-2].text.startswith("not known to be the same (")
    assert rows["Tent README", "tent"][3].text == "–"  # the mean alone is published
    assert rows["Tent README", "tent"][-3].sub == "publ. 18.6"
    assert rows["Tent README", "tent"][-1].text == "none stated"
    assert not any("AdaDEM" in row[2].text for row in table.rows)  # published for no such run
    page = write_report([tmp_path], tmp_path / "out", with_figures=False).read_text()
    assert "reference-ttc_table2" not in Page(page).tables
    assert "reference-ttc_table4" in Page(page).tables


@pytest.mark.parametrize(
    "other", [{"data": "cifar10-jpeg"}, {"model": "resnet20"}, {"protocol": "mixed_up"}, {"n": 2000}]
)
def test_published_numbers_of_other_data_or_models_stand_apart(tmp_path: Path, other: dict):
    runs_of_table_2(tmp_path, **other)
    table, used = beside_table(only_block(tmp_path))
    assert table is None
    assert not used
    text = opened(write_report([tmp_path], tmp_path / "out", with_figures=False).read_text())
    section = text.split('<details class="fill" id="published">')[1].split("<footer")[0]
    assert "Published numbers, of other models or data" in section
    assert section.count("<details") > 10
    assert "<details open" not in section


def test_a_reference_table_is_as_printed():
    table = reference_table(KNOWN["dem_table2_left"])
    assert [entry.text for entry in table.rows[3]] == ["Tent† + AdaDEM", "61.5 ± 0.2", "63.2 ± 0.16"]
    assert [column.title for column in table.columns] == ["", "single-domain", "continual"]
    assert "NeurIPS 2025" in table.caption


def test_weights_are_the_same_only_where_a_fingerprint_says_so(tmp_path: Path):
    make_run(tmp_path, fingerprints={"weights": "12fca82f0bebc413"})
    block = only_block(tmp_path)
    (cell,) = block.cells.values()
    (printed,) = [number for reference in references() if reference.name == "ttc_table2"
                  for name, number in reference.numbers() if name == "TENT" and number.slice == "mean"][:1]  # fmt: skip
    assert weights_of(cell, printed) == "not known to be the same (12fca82f here)"
    for stated, text in (("12fca82f0bebc413", "the same (12fca82f)"), ("00ff", "other (00ff there, 12fca82f here)")):
        known = dataclasses.replace(printed, made_with={**printed.made_with, "weights": stated})
        assert weights_of(cell, known) == text

"""The numbers of the DEM paper: against its text where that is at hand, by checksum everywhere."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from dembench.report.read.reference import Published, references

KNOWN = {reference.name: reference for reference in references() if reference.paper in ("DEM", "TTC")}
CHECKSUMS = {
    "dem_table1": "ff8df6b5ebca",
    "dem_table11": "ca8ec1503de5",
    "dem_table11_prompt": "b0e5f9f384aa",
    "dem_table12": "1b92923a9874",
    "dem_table13": "1d3e7f0ff26a",
    "dem_table14": "96791efbdcbe",
    "dem_table15": "3f8d04bb9d92",
    "dem_table2_left": "46689225962a",
    "dem_table2_right": "e5b6c97848fc",
    "dem_table3": "4bc80d9a08cb",
    "dem_table4": "d870b22ebe32",
    "dem_table5": "e19799b1231a",
    "dem_table6": "ed65af46e715",
    "dem_table7": "8ab535caebd3",
    "dem_table8": "e475d3533481",
    "dem_table9": "c5597b16c91c",
    "ttc_figure2": "6e2ee5549c9a",
    "ttc_table1": "141a005e6384",
    "ttc_table2": "f899e25de977",
    "ttc_table3": "3fe407fb7bc4",
    "ttc_table4": "7721fe6ba8a6",
    "ttc_table5": "5d881a101f70",
    "ttc_table6": "0dd19a9e0ba8",
    "ttc_table7": "82a5b4fe3bcf",
}
MEAN_SD = re.compile(r"(\d+\.\d)(?:\+-(\d+\.\d+))?")


def cells(name: str) -> list[list[Published | None]]:
    return [list(numbers) for _, numbers in KNOWN[name].rows]


def values(name: str, *, means: bool = True) -> list[float]:
    """All values in reading order; without ``means`` those of single corruptions."""
    return [cell.value for row in cells(name) for cell in row if cell is not None and (means or cell.slice != "mean")]


def pairs(name: str) -> list[tuple[float, float]]:
    """Mean and deviation, 0 where none is printed."""
    return [(cell.value, cell.sd or 0.0) for row in cells(name) for cell in row if cell is not None]


def test_the_numbers_are_those_that_were_compared():
    found = {}
    for name, reference in KNOWN.items():
        text = repr([[None if c is None else (c.value, c.sd) for c in numbers] for _, numbers in reference.rows])
        found[name] = hashlib.sha256(text.encode()).hexdigest()[:12]
    assert found == CHECKSUMS


@pytest.fixture(scope="module")
def paper(data_folder: Path) -> dict[str, str]:
    """Sections of the page by their headings."""
    text = (data_folder / "facts" / "dem_paper.md").read_text(encoding="utf-8")
    return {part.partition("\n")[0]: part.partition("\n")[2] for part in re.split(r"^## ", text, flags=re.M)}


@pytest.fixture(scope="module")
def slides(data_folder: Path) -> str:
    texts = [path.read_text(encoding="utf-8") for path in sorted((data_folder / "seeds").glob("*.txt"))]
    return next(text for text in texts if "Table 3: Experiments on semi-supervised" in text)


def of(paper: dict[str, str], start: str) -> str:
    (found,) = [text for heading, text in paper.items() if heading.startswith(start)]
    return found


def decimals(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"(?<![\w.])\d+\.\d+", text)]


def read_pairs(text: str) -> list[tuple[float, float]]:
    return [(float(mean), float(sd or 0)) for mean, sd in MEAN_SD.findall(text)]


@pytest.mark.data
def test_table_1(paper):
    assert [pair for pair in pairs("dem_table1")] == read_pairs(of(paper, "Table 1 left"))


@pytest.mark.data
def test_tables_12_and_13(paper):
    single = of(paper, "Table 12")
    assert values("dem_table12", means=False) == decimals(single)
    no_adaptation = next(line for line in single.partition("ViT-B/16")[2].splitlines() if line.startswith("NoAdapt"))
    assert values("dem_table13", means=False) == decimals(
        of(paper, "Table 13").replace("NoAdapt as above", no_adaptation)
    )
    means = {row: numbers for row, numbers in KNOWN["dem_table1"].rows}
    for number, column in ((12, 0), (13, 1)):
        for name, numbers in KNOWN[f"dem_table{number}"].rows:
            network, _, row = name.partition(", ")
            place = column + (2 if network == "ViT-B/16" else 0)
            printed = means[f"NoAdapt, {network}" if row == "NoAdapt" else row][place]
            assert (numbers[-1].value, numbers[-1].sd) == (printed.value, printed.sd)


@pytest.mark.data
@pytest.mark.parametrize(("name", "ablation", "column"), [("dem_table5", 12, 0), ("dem_table6", 13, 1)])
def test_tables_5_and_6(paper, name, ablation, column):
    text = of(paper, name.replace("dem_table", "Table ") + " (")
    own = dict(KNOWN[name].rows)
    printed = [cell.value for row in list(own)[4:] for cell in own[row] if cell.slice != "mean"]
    assert printed == decimals(text)
    assert len(printed) == 5 * 3 * 15
    detail = dict(KNOWN[f"dem_table{ablation}"].rows)
    for row, other in (("NoAdapt", "NoAdapt"), ("Tent†", "EM"), ("Tent† + DEM*", "DEM*"), ("Tent† + AdaDEM", "AdaDEM")):
        assert [c.value for c in own[row]] == [c.value for c in detail[f"ViT-B/16, {other}"]]
    means = dict(KNOWN["dem_table2_left"].rows)
    for row, numbers in own.items():
        assert (numbers[-1].value, numbers[-1].sd) == (means[row][column].value, means[row][column].sd)


@pytest.mark.data
def test_table_7(paper):
    assert pairs("dem_table7") == read_pairs(of(paper, "Table 7"))


@pytest.mark.data
def test_tables_8_and_9(paper, slides):
    found = {}
    for line in of(paper, "Tables 8, 9").splitlines():
        name, _, rest = line.partition(": ")
        if rest.startswith("Ent. Min."):
            found[name] = [read_pairs(part) for method in rest.split(";") for part in method.split(", +")]
    avian = [row[5] for row in table_3(slides)]
    for table, wanted in (("dem_table8", ("CIFAR-10 ", "CIFAR-100 ")), ("dem_table9", ("STL", "EuroSAT", "Tissue"))):
        blocks = [own for start in wanted for name, own in found.items() if name.startswith(start)]
        assert len(blocks) == len(wanted)
        expected = [sum((block[row] for block in blocks), []) for row in range(10)]
        if table == "dem_table8":
            expected = [[*own, last] for own, last in zip(expected, avian, strict=True)]
        assert [[(c.value, c.sd) for c in row] for row in cells(table)] == expected
        assert [len(row) for row in cells(table)] == [7 if table == "dem_table8" else 6] * 10


def table_3(slides: str) -> list[list[tuple[float, float]]]:
    text = slides.partition("Table 3: ")[2].partition("Table 4: ")[0]
    rows = [re.findall(r"(\d+\.\d)(?:</u>)? \\pm (\d+\.\d)", line) for line in text.splitlines()]
    return [[(float(mean), float(sd)) for mean, sd in row] for row in rows if row]


@pytest.mark.data
def test_tables_2_3_and_4(slides):
    assert [[(c.value, c.sd) for c in row] for row in cells("dem_table3")] == table_3(slides)
    for name, start, end in (
        ("dem_table2_left", "Table 2", "Table 3"),
        ("dem_table2_right", "Table 2", "Table 3"),
        ("dem_table4", "Table 4: ", "Imbalanced"),
    ):
        text = slides.partition(start)[2].partition(end)[0]
        printed = {(float(m), float(s)) for m, s in re.findall(r"(\d+\.\d)(?:</u>)?\s*\\pm\s*(\d+\.\d+)", text)}
        own = set(pairs(name)) - {(38.8, 0.0)}
        assert own <= printed, own - printed


@pytest.mark.data
def test_table_11(paper):
    found = [(float(t), float(a)) for t, a in re.findall(r"\((\d\.\d), (\d\.\d)[:)]", of(paper, "Table 11"))]
    columns = list(zip(*[[cell.value for cell in row] for row in cells("dem_table11")], strict=True))
    ours = [*zip(*columns[:2], strict=True), *zip(*columns[2:], strict=True)]
    assert found == [*ours, *[tuple(cell.value for cell in row) for row in cells("dem_table11_prompt")]]


@pytest.mark.data
def test_table_14(paper):
    single, continual = of(paper, "Table 14").partition("continual: ")[::2]
    lines = [re.findall(r"(\S+e-\d) ([\d.]+)/([\d.]+)/([\d.]+)", text) for text in (single, continual)]
    assert len(lines[0]) == 10
    for (rate, *first), (same, *second), (name, numbers) in zip(*lines, KNOWN["dem_table14"].rows, strict=True):
        assert rate == same == name
        assert [cell.value for cell in numbers] == list(map(float, [*first, *second]))
        assert all(cell.made_with["lr"] == float(rate) for cell in numbers)


@pytest.mark.data
def test_table_15(paper):
    found = [float(number) for pair in re.findall(r"([\d.]+)->([\d.]+\d)", of(paper, "Table 15")) for number in pair]
    assert len(found) == 24
    assert values("dem_table15") == found

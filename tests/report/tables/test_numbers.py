"""Numbers of the tables against NumPy and SciPy."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
from report_runs import ADADEM, ADADEM_FAST, EM, Page, interval, make_run, only_block, opened, percent
from scipy import stats

from dembench.report import write_report
from dembench.report.judge.stats import estimate
from dembench.report.judge.verdict import verdicts
from dembench.report.tables.detail import cost_table
from dembench.report.tables.results import detail_table, main_table

GOLDEN = Path(__file__).parent / "golden"


def test_golden_rows_give_the_golden_tables(golden: tuple[Path, Path]):
    for suffix in ("csv", "md", "tex"):
        for name in ("main", "detail", "summary"):
            file = "summary" if name == "summary" else f"{name}-tta-digits-c-convnet-continual"
            made = (golden[1] / "tables" / f"{file}.{suffix}").read_text()
            assert made == (GOLDEN / f"{name}.{suffix}").read_text(), f"{name}.{suffix}"


def test_main_table_holds_the_numbers_of_numpy_and_scipy(golden: tuple[Path, Path]):
    text = (golden[1] / "tables" / "main-tta-digits-c-convnet-continual.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    row = next(row for row in rows if row["lr"] == "1e-3")
    em, adadem = percent(EM), percent(ADADEM)
    low, high = interval(em - adadem)
    expected = {
        "EM: error (%)": em.mean(), "EM: sd": em.std(ddof=1), "AdaDEM: error (%)": adadem.mean(),
        "AdaDEM: sd": adadem.std(ddof=1), "AdaDEM: gain over EM": (em - adadem).mean(),
        "AdaDEM: low": low, "AdaDEM: high": high,
    }  # fmt: skip
    for name, value in expected.items():
        assert row[name] == f"{value:.2f}", name
    assert (row["EM: n"], row["AdaDEM: pairs"]) == ("3", "3")
    reference = stats.ttest_rel(em, adadem).confidence_interval(0.95)
    assert (low, high) == pytest.approx((reference.low, reference.high))


@pytest.mark.parametrize("n", [2, 3, 10])
def test_estimate_equals_scipy(n: int):
    values = np.random.default_rng(n).normal(20, 3, n)
    made = estimate(list(values))
    low, high = stats.t.interval(0.95, n - 1, values.mean(), stats.sem(values))
    assert (made.mean, made.sd, made.low, made.high) == pytest.approx((values.mean(), values.std(ddof=1), low, high))


def numbers_in(text: str) -> list[str]:
    return re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", text)


def test_markdown_csv_latex_and_page_hold_the_same_numbers(golden: tuple[Path, Path]):
    """Per row and table: every number of the Markdown is in the CSV, and the LaTeX and the page have the same ones."""
    page = Page((golden[1] / "index.html").read_text())
    tables = sorted(path.stem for path in (golden[1] / "tables").glob("*.md"))
    assert len(tables) == 8
    for name in tables:
        lines = (golden[1] / "tables" / f"{name}.md").read_text().split("\n\n")[1].splitlines()[2:]
        table = list(csv.reader(io.StringIO((golden[1] / "tables" / f"{name}.csv").read_text())))[1:]
        tex = re.search(r"midrule\n(.*)\n  .bottomrule", (golden[1] / "tables" / f"{name}.tex").read_text(), re.S)[1]
        assert len(lines) == len(table) == len(tex.splitlines()) == len(page.tables[name]) > 0
        for shown, row, typeset, cells in zip(lines, table, tex.splitlines(), page.tables[name], strict=True):
            inside = [number for value in row for number in numbers_in(value)]
            assert set(numbers_in(shown)) <= set(inside), name
            typeset = re.sub(r"multicolumn\{\d\}", "", typeset)
            assert numbers_in(typeset) == numbers_in(shown) == numbers_in(" ".join(cells)), name


def test_collapsed_runs_count_and_are_marked_and_nan_runs_are_left_out(golden: tuple[Path, Path]):
    block = only_block(golden[0])
    table = main_table(block)
    row = next(row for row in table.rows if row[1].text == "1e-2")
    em, adadem = row[2], row[3]
    assert em.text == f"{100 * np.mean((0.7, 0.74, 0.75)):.2f} (1) †1 ‡1"  # the mean of the collapsed one alone
    assert (em.mark, adadem.mark) == ("", "tied")
    gain = 100 * (np.mean((0.7, 0.74, 0.75)) - np.mean(ADADEM_FAST[0]))
    assert adadem.sub == f"+{gain:.2f} (1 seed)"  # the only seed that both have
    notes = " ".join(table.footnotes)
    assert "† k" not in notes
    assert all(text in notes for text in ("at least 90%", "NaN", "Seeds in this comparison: 0, 1, 2", "is missing"))
    assert [entry.mark for row in table.rows for entry in row if entry.mark] == [
        "tied"
    ] * 3  # +1.00 [-1.48, +3.48] and more


def test_a_flagged_cell_is_never_ranked_even_when_it_has_the_lowest_error(tmp_path: Path):
    for seed in range(2):
        make_run(tmp_path, (0.1, 0.1, 0.1), seed=seed, status="collapse")
        make_run(tmp_path, (0.3, 0.2, 0.1), seed=seed, loss="adadem")
        make_run(tmp_path, (0.3, 0.3, 0.1), seed=seed, loss="dem", params={"tau": 1.1, "alpha": 0.0})
    block = only_block(tmp_path)
    for table in (main_table(block), detail_table(block)):
        for row in table.rows:
            assert not any(entry.mark and "†" in entry.text for entry in row)
    em, dem, adadem = main_table(block).rows[0][1:]
    assert (em.mark, dem.mark, adadem.mark) == ("", "", "tied")  # the same gain with both seeds: no interval


def test_loss_free_methods_span_all_losses_once(tmp_path: Path):
    for loss in ("em", "adadem"):
        for seed in range(2):
            make_run(tmp_path, (0.5, 0.4, 0.3), method="source", loss=loss, seed=seed)
            make_run(tmp_path, EM[seed], loss=loss, seed=seed)
    block = only_block(tmp_path)
    table = main_table(block)
    source, tent = table.rows
    assert [entry.span for entry in source] == [1, 2]
    assert (source[1].text, source[1].sub) == ("40.00 ± 0.00 (2)", "loss-free")
    assert [entry.span for entry in tent] == [1, 1, 1]
    assert not block.aside  # the same run under another loss's name is no conflict
    assert 'colspan="2"' in opened(write_report([tmp_path], tmp_path / "out", with_figures=False).read_text())


def test_a_method_is_loss_free_when_no_backward_pass_was_made(tmp_path: Path):
    make_run(tmp_path, method="memory", cost={"wall_seconds": 1.0, "backward_passes": 0})
    make_run(tmp_path, method="tent", cost={"wall_seconds": 1.0, "backward_passes": 3})
    assert [key[0] for key in only_block(tmp_path).free] == ["memory"]


def test_one_seed_claims_no_deviation_and_no_interval(tmp_path: Path):
    make_run(tmp_path, EM[0])
    make_run(tmp_path, ADADEM[0], loss="adadem")
    block = only_block(tmp_path)
    em, adadem = main_table(block).rows[0][1:]
    assert (em.text, adadem.text, adadem.sub) == ("20.00 (1)", "19.00 (1)", "+1.00 (1 seed)")
    (verdict,) = verdicts(block)
    assert "no claim" in verdict.headline
    assert "one seed, no interval" in verdict.sentence
    page = opened(write_report([tmp_path], tmp_path / "out", with_figures=False).read_text())
    assert "no deviation and no interval is claimed" in page
    measured = {name: rows for name, rows in Page(page).tables.items() if not name.startswith("reference-")}
    assert len(measured) == 8
    assert "±" not in " ".join(text for rows in measured.values() for row in rows for text in row)


def test_detail_table_averages_each_slice_over_seeds(golden: tuple[Path, Path]):
    table = detail_table(only_block(golden[0]))
    assert [column.title for column in table.columns[3:]] == ["gaussian noise", "fog", "jpeg compression", "mean"]
    row = next(row for row in table.rows if row[1].text == "AdaDEM" and "default" in row[2].text)
    expected = [*100 * np.mean([ADADEM[seed] for seed in range(3)], axis=0), percent(ADADEM).mean()]
    assert [entry.text for entry in row[3:]] == [f"{value:.1f}" for value in expected]
    assert [row[2].text for row in table.rows] == [
        "–", "–", "lr 1e-3 (default)", "lr 1e-3 (best)", "lr 1e-3 (default)", "lr 1e-2 (best)",
    ][:2] + ["lr 1e-3 (default, best)", "lr 1e-3 (default)", "lr 1e-2 (best)"]  # fmt: skip


def test_cost_table_averages_time_and_passes(golden: tuple[Path, Path]):
    table = cost_table(only_block(golden[0]))
    titles = [column.title for column in table.columns]
    row = next(row for row in table.rows if row[1].text == "1e-3" and row[2].text == "EM")
    shown = dict(zip(titles, (entry.text for entry in row), strict=True))
    em = percent(EM)
    assert shown["wall time (s)"] == "3.0 ± 1.0"  # 2, 3 and 4 seconds
    assert shown["forward passes"] == "12"
    assert shown["samples updated"] == "600"
    assert shown["ECE (%)"] == f"{em.mean() / 4:.2f} ± {em.std(ddof=1) / 4:.2f}"
    assert shown["NLL (nats)"] == f"{em.mean() / 50:.3f} ± {em.std(ddof=1) / 50:.3f}"

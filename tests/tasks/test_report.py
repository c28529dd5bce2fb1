"""The report, from synthetic run directories with numbers worked out here and not by the code under test."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
import time
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tasks.report import write_report
from tasks.report.content import cost_table, detail_table, main_table
from tasks.report.figures import shares, stream_figure, window_accuracy
from tasks.report.group import build_blocks
from tasks.report.load import load
from tasks.report.rewards import curves
from tasks.report.stats import estimate, paired
from tasks.report.tables import Column, Entry, Table
from tasks.report.verdict import said, summary_table, verdicts

GOLDEN = Path(__file__).parents[1] / "golden"
SLICES = ("gaussian_noise/5", "fog/5", "jpeg_compression/5")
CLASSES = 4


def make_run(
    root: Path,
    errors: tuple[float | None, ...] = (0.3, 0.2, 0.1),
    *,
    method: str = "tent",
    loss: str = "em",
    seed: int = 0,
    lr: float = 1e-3,
    protocol: str = "continual",
    status: str = "ok",
    data: str = "digits-c",
    notes: tuple[tuple[str, str], ...] = (),
    params: dict[str, Any] | None = None,
    finished: bool = True,
    slices: tuple[str, ...] = SLICES,
    batches: int = 4,
    **overrides: Any,
) -> Path:
    """One run directory as the runner writes it; ``errors`` are fractions per slice, None a NaN."""
    learns = method not in ("source", "norm")
    node = {"optimizer": "adam", "lr": lr, "steps": 1, "episodic": False} if learns else {}
    config = {
        "seed": seed, "device": "cpu", "precision": "fp32", "threads": 1, "out": str(root), "force": False,
        "method": {"_target_": f"tasks.{method}", "_partial_": True, **node},
        "loss": {"_target_": f"core.{loss}", **(params or {})},
        "model": {"_target_": "m", "weights": f"/somewhere/{root.name}/w.th"},
        "data": {"_target_": "d", "seed": 0},
        "protocol": {"_target_": "p", "reset": protocol == "single_domain", "severity": 5, "corruptions": None,
                     "batch_size": 50, "order_seed": seed},
        "choices": {"method": method, "loss": loss},
    }  # fmt: skip
    config["task"] = {"_target_": "t", **{k: config[k] for k in ("data", "model", "protocol", "seed", "device")}}
    for key, value in overrides.pop("config", {}).items():
        group, _, name = key.rpartition(".")
        (config[group] if group else config)[name] = value
    identity = {k: v for k, v in config.items() if k not in ("out", "model")}
    run_id = hashlib.sha256(json.dumps([identity, data, method, loss, protocol]).encode()).hexdigest()[:12]
    folder = root / run_id
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 0\n")
    if not finished:
        return folder
    mean = None if None in errors else sum(errors) / len(errors)
    rows = []
    for name, error in (*zip(slices, errors, strict=True), ("mean", mean)):
        n = 200 if name != "mean" else 200 * len(slices)
        rows.append({"slice": name, "metric": "error", "value": error, "unit": "fraction", "n": n})
        rows.append({"slice": name, "metric": "nll", "value": error and 2 * error, "unit": "nats", "n": n})
        rows.append({"slice": name, "metric": "ece", "value": error and error / 4, "unit": "fraction", "n": n})
    draws = np.random.default_rng(zlib.crc32(run_id.encode()))
    histogram = {"predicted": draws.multinomial(200, [0.4, 0.3, 0.2, 0.1]).tolist(), "label": [50] * CLASSES}
    record = {
        "schema": 1, "id": run_id, "task": "tta", "method": method, "loss": loss, "model": "convnet", "data": data,
        "protocol": protocol, "seed": seed, "status": status,
        "flags": [] if status == "ok" else [{"kind": status, "slice": slices[-1], "message": "one class took 97 %"}],
        "notes": [{"key": key, "text": text} for key, text in notes],
        "rows": rows,
        "histograms": {name: histogram for name in slices},
        "cost": {"wall_seconds": 2.0 + seed, "forward_passes": 12, "backward_passes": 12 if learns else 0,
                 "updated": 600 if learns else 0},
        "config": config,
        "environment": {"commit": "0123abcd", "python": "3.11.2", "torch": "2.15.0", "device": "cpu", "cpu": "test"},
        "started": "2030-01-01T00:00:00+00:00",
        "command": f"dembench run method={method} loss={loss} seed={seed}",
        **overrides,
    }  # fmt: skip
    lines = ["step,slice,n,correct,entropy,loss,updated"]
    for i, (name, error) in enumerate(zip(slices, errors, strict=True)):
        for j in range(batches):
            right = 0 if error is None else round(50 * (1 - error) + draws.normal(0, 1.5))
            lines.append(f"{i * batches + j},{name},50,{min(50, max(0, right))},0.5,{0.1 if learns else ''},50")
    (folder / "curve.csv").write_text("\n".join(lines) + "\n")
    (folder / "result.json").write_text(json.dumps(record))
    return folder


EM = {0: (0.30, 0.20, 0.10), 1: (0.31, 0.22, 0.10), 2: (0.33, 0.20, 0.13)}
ADADEM = {0: (0.28, 0.20, 0.09), 1: (0.30, 0.19, 0.08), 2: (0.29, 0.21, 0.10)}
ADADEM_FAST = {0: (0.25, 0.20, 0.09), 1: (0.24, 0.19, 0.08), 2: (0.29, 0.21, 0.10)}


def golden_runs(root: Path) -> Path:
    """Source, NORM, and Tent at two rates with EM and AdaDEM; one collapsed run, one NaN run, one missing seed."""
    for seed in range(3):
        make_run(root, (0.5, 0.4, 0.3), method="source", seed=seed)
        make_run(root, EM[seed], seed=seed)
        make_run(root, ADADEM[seed], loss="adadem", seed=seed)
        make_run(root, ADADEM_FAST[seed], loss="adadem", seed=seed, lr=1e-2)
    make_run(root, (0.4, 0.3, 0.2), method="norm", seed=0)
    make_run(root, (0.7, 0.74, 0.75), seed=0, lr=1e-2, status="collapse")
    make_run(root, (0.5, None, 0.3), seed=1, lr=1e-2, status="nan")
    return root


def percent(errors: dict[int, tuple[float, ...]]) -> np.ndarray:
    return np.array([100 * np.mean(errors[seed]) for seed in sorted(errors)])


def only_block(root: Path):
    (block,) = build_blocks(load([root]).runs)
    return block


def interval(difference: np.ndarray) -> tuple[float, float]:
    half = stats.t.ppf(0.975, len(difference) - 1) * difference.std(ddof=1) / math.sqrt(len(difference))
    return difference.mean() - half, difference.mean() + half


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(runs, report) of the golden runs with everything drawn."""
    root = tmp_path_factory.mktemp("golden")
    make_run(golden_runs(root / "runs"), seed=9, finished=False)
    return root / "runs", write_report([root / "runs"], root / "report").parent


# --- numbers ---


def test_golden_rows_give_the_golden_tables(golden: tuple[Path, Path]):
    for suffix in ("csv", "md", "tex"):
        for name in ("main", "detail", "summary"):
            file = "summary" if name == "summary" else f"{name}-tta-digits-c-convnet-continual"
            made = (golden[1] / "tables" / f"{file}.{suffix}").read_text()
            assert made == (GOLDEN / f"report_{name}.{suffix}").read_text(), f"{name}.{suffix}"


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
    assert len(tables) == 4
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
    assert (em.mark, adadem.mark) == ("", "best")
    gain = 100 * (np.mean((0.7, 0.74, 0.75)) - np.mean(ADADEM_FAST[0]))
    assert adadem.sub == f"+{gain:.2f} (1 seed)"  # the only seed that both have
    notes = " ".join(table.footnotes)
    assert "† k" not in notes
    assert all(text in notes for text in ("collapsed", "NaN", "Seeds in this comparison: 0, 1, 2", "is missing"))
    assert [entry.mark for row in table.rows for entry in row if entry.mark] == ["second", "best"]


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
    assert (em.mark, dem.mark, adadem.mark) == ("", "second", "best")


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
    assert 'colspan="2"' in write_report([tmp_path], tmp_path / "out", with_figures=False).read_text()


def test_a_method_is_loss_free_when_no_backward_pass_was_made(tmp_path: Path):
    make_run(tmp_path, method="memory", cost={"backward_passes": 0})
    make_run(tmp_path, method="tent", cost={"backward_passes": 3})
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
    page = write_report([tmp_path], tmp_path / "out", with_figures=False).read_text()
    assert "no deviation and no interval is claimed" in page
    assert "±" not in " ".join(text for rows in Page(page).tables.values() for row in rows for text in row)


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


# --- verdict ---


def test_verdict_compares_at_equal_and_at_best_rate(golden: tuple[Path, Path]):
    (verdict,) = verdicts(only_block(golden[0]))
    low, high = interval(percent(EM) - percent(ADADEM_FAST))
    gain = (percent(EM) - percent(ADADEM_FAST)).mean()
    assert (verdict.em.lr, verdict.own.lr) == (1e-3, 1e-2)
    assert (verdict.best.mean, verdict.best.low, verdict.best.high) == pytest.approx((gain, low, high))
    assert f"+{gain:.2f} percentage points (95% interval [−{-low:.2f}, +{high:.2f}], n = 3 seeds)" in verdict.sentence
    assert "cannot be told apart" in verdict.headline
    assert "chosen on the test stream itself" in verdict.sentence
    assert "EM 1e-3, edge of the grid; AdaDEM 1e-2, edge of the grid" in verdict.sentence
    equal = {cell.lr: gain for cell, gain in verdict.equal}
    assert equal[1e-3].mean == pytest.approx((percent(EM) - percent(ADADEM)).mean())
    assert (equal[1e-2].n, equal[1e-2].low) == (1, None)
    assert "better at 1, worse at 0, undecided at 0, one seed only at 1 of 2" in verdict.sentence
    assert "(1 seed) †" in verdict.sentence
    assert summary_table([verdict]).rows[0][0].text == "AdaDEM"


@pytest.mark.parametrize(
    ("offsets", "words", "sign"),
    [
        ((0.02, 0.021, 0.019), "worse", "−"),
        ((-0.02, -0.021, -0.019), "better", "+"),
        ((0.05, -0.05, 0.01), "told", "−"),
    ],
)
def test_verdict_says_what_the_numbers_say(tmp_path: Path, offsets: tuple[float, ...], words: str, sign: str):
    for seed, offset in enumerate(offsets):
        make_run(tmp_path, EM[seed], seed=seed)
        make_run(tmp_path, tuple(e + offset for e in EM[seed]), loss="adadem", seed=seed)
    (verdict,) = verdicts(only_block(tmp_path))
    assert words in verdict.headline
    assert f": {sign}{abs(100 * np.mean(offsets)):.2f} percentage points" in verdict.sentence


def test_best_rate_needs_all_seeds(tmp_path: Path):
    for seed in range(3):
        make_run(tmp_path, EM[seed], seed=seed)
    make_run(tmp_path, (0.01, 0.01, 0.01), seed=0, lr=1e-2)  # lucky, and one seed only
    block = only_block(tmp_path)
    assert block.best("tent", block.em).lr == 1e-3


# --- what is compared with what ---


@pytest.mark.parametrize(
    ("change", "label"),
    [
        ({"protocol.batch_size": 10}, "batch_size 10"),
        ({"protocol.severity": 3}, "severity 3"),
        ({"device": "cuda"}, "cuda"),
        ({"data.frost": "/photos"}, "frost given"),
        ({"task.option": 2}, "option 2"),
    ],
)
def test_other_protocols_get_tables_of_their_own(tmp_path: Path, change: dict[str, Any], label: str):
    make_run(tmp_path, EM[0])
    make_run(tmp_path, ADADEM[0], loss="adadem", config=change)
    blocks = build_blocks(load([tmp_path]).runs)
    assert len(blocks) == 2
    assert any(label in block.title for block in blocks)
    assert not any(verdicts(block) for block in blocks)


def test_seed_and_paths_do_not_split_a_table(tmp_path: Path):
    for place in ("here", "there"):
        for seed in (1, 2):
            make_run(tmp_path / place, EM[seed], seed=seed, loss="em" if place == "here" else "adadem")
    assert len(build_blocks(load([tmp_path]).runs)) == 1


def test_data_of_one_name_and_two_contents_are_kept_apart(tmp_path: Path):
    make_run(tmp_path / "a", EM[0], fingerprints={"data": "aaaa"})
    make_run(tmp_path / "b", EM[1], seed=1, fingerprints={"data": "bbbb"})
    assert len(build_blocks(load([tmp_path]).runs)) == 2


def test_the_same_configuration_twice_is_used_once_and_listed(tmp_path: Path):
    make_run(tmp_path, EM[0])
    make_run(tmp_path, EM[1], config={"out": "x", "choices.note": 1}, id="ffffffffffff", data="digits-c")
    block = only_block(tmp_path)
    assert [len(cell.runs) for cell in block.cells.values()] == [1]
    assert [aside.name for aside in block.aside] == ["ffffffffffff"]
    assert "ffffffffffff" in write_report([tmp_path], tmp_path / "out", with_figures=False).read_text()


def test_loss_settings_are_columns_and_name_their_values(tmp_path: Path):
    for tau, alpha in ((1.0, 1.0), (1.1, 0.0)):
        make_run(tmp_path, EM[0], loss="dem", params={"tau": tau, "alpha": alpha})
    titles = [column.title for column in main_table(only_block(tmp_path)).columns]
    assert titles == ["Method", "DEM τ 1.1, α 0", "DEM τ 1, α 1"]


def test_of_many_loss_settings_the_plain_and_the_best_are_shown(tmp_path: Path):
    for step in range(12):
        error = 0.3 - 0.01 * step if step < 9 else 0.4
        make_run(tmp_path, (error,) * 3, loss="dem", params={"tau": 1.0, "alpha": round(0.2 * step, 1)})
    table = main_table(only_block(tmp_path))
    assert [column.title for column in table.columns] == ["Method", "DEM τ 1, α 1", "DEM τ 1, α 1.6"]
    assert "10 further settings" in " ".join(table.footnotes)


def test_seeds_that_change_nothing_support_no_claim():
    alike = paired({0: 0.3, 1: 0.3, 2: 0.3}, {0: 0.2, 1: 0.2, 2: 0.2})
    assert (alike.low, alike.high, alike.verdict, alike.n) == (None, None, 0, 3)
    assert "one and the same number, no interval" in said(alike, 2, "points")


def test_a_metric_that_is_better_when_higher(tmp_path: Path):
    for loss, value in (("em", 0.4), ("adadem", 0.7)):
        for seed in range(2):
            rows = [
                {"slice": s, "metric": "return", "value": value * (1 + seed / 30), "unit": "return", "n": 5}
                for s in ("a", "mean")
            ]
            make_run(tmp_path, loss=loss, seed=seed, task="minigrid", rows=rows)
    block = only_block(tmp_path)
    em, adadem = main_table(block).rows[0][1:]
    assert (em.mark, adadem.mark, adadem.sub) == ("second", "best", "+0.305 [+0.241, +0.369]")  # 12.706 * 0.005
    assert "higher is better" in main_table(block).caption
    assert "better than EM" in verdicts(block)[0].headline


# --- what is found ---


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
    assert [run.path for run in load([folder]).runs] == [folder]


@pytest.mark.parametrize("kind", ["missing", "empty", "unfinished", "none"])
def test_says_in_one_line_when_there_is_nothing_to_report(tmp_path: Path, kind: str):
    roots = {"missing": [tmp_path / "no"], "none": []}.get(kind, [tmp_path])
    if kind == "unfinished":
        make_run(tmp_path, finished=False)
    with pytest.raises(ValueError, match="no such directory" if kind == "missing" else "no finished run") as caught:
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


# --- the page ---


class Page(HTMLParser):
    """Collects tags, attributes, visible text, and the body rows of each table by its name."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text = ""
        self.name, self.cell = "", False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes
        if tag == "figure":
            self.name = (dict(attributes).get("id") or "").removeprefix("t-")
        if tag == "tbody":
            self.tables[self.name] = []
        rows = self.tables.get(self.name)
        if tag == "tr" and rows is not None:
            rows.append([])
        self.cell = self.cell if tag in ("strong", "u", "small") else tag in ("td", "th") and rows is not None
        if tag in ("td", "th") and self.cell:
            rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.cell and self.tables.get(self.name):
            self.tables[self.name][-1][-1] += f" {data}"


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
    assert page.tags.count("svg") == 4  # learning rate, stream, shares, rewards
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


# --- figures ---


def test_window_accuracy_starts_again_with_each_slice(tmp_path: Path):
    folder = make_run(tmp_path, EM[0])
    lines = ["step,slice,n,correct,entropy,loss,updated"]
    lines += [f"{i},{name},{n},{right},0,,0" for i, (name, n, right) in enumerate(
        [("a", 10, 5), ("a", 10, 9), ("a", 20, 20), ("b", 10, 1), ("b", 30, 30)])]  # fmt: skip
    (folder / "curve.csv").write_text("\n".join(lines) + "\n")
    (run,) = load([folder]).runs
    slices, accuracy = window_accuracy(run, 2)
    assert slices == ("a", "a", "a", "b", "b")
    np.testing.assert_allclose(accuracy, [50, 70, 100 * 29 / 30, 10, 100 * 31 / 40])


def test_shares_are_sorted_within_each_slice(tmp_path: Path):
    histograms = {"a/5": {"predicted": [8, 2], "label": [5, 5]}, "b/5": {"predicted": [3, 7], "label": [4, 6]}}
    make_run(tmp_path, EM[0], histograms=histograms)
    predicted, label = shares(load([tmp_path]).runs)
    np.testing.assert_allclose(predicted, [75, 25])
    np.testing.assert_allclose(label, [55, 45])


def test_reward_curves_equal_the_closed_forms():
    """Minus the gradients of the paper, for one class with p and nine that share the rest."""
    panels = curves(10)
    p = panels["EM and its parts"]["EM"].p
    q = (1 - p) / 9
    z, z_other = np.log(p), np.log(q)
    entropy = -(p * z + 9 * q * z_other)
    em = panels["EM and its parts"]["EM"]
    np.testing.assert_allclose(em.top, p * (z + entropy), atol=1e-12)
    np.testing.assert_allclose(em.other, q * (z_other + entropy), atol=1e-12)
    cadf = p * (z + entropy + 1)
    np.testing.assert_allclose(panels["EM and its parts"]["CADF (rewards)"].top, cadf, atol=1e-12)
    np.testing.assert_allclose(panels["EM and its parts"]["GMC (penalises)"].top, -p, atol=1e-12)
    for panel, name in (("DEM, α = 1", "τ = 1.0"), ("DEM, τ = 1", "α = 1.0")):
        np.testing.assert_allclose(panels[panel][name].top, em.top, atol=1e-12)
    np.testing.assert_allclose(panels["DEM, τ = 1"]["α = 0.0"].top, cadf, atol=1e-12)
    s, s_other = (x ** (1 / 1.3) / (p ** (1 / 1.3) + 9 * q ** (1 / 1.3)) for x in (p, q))
    energy = -(s * z + 9 * s_other * z_other)
    np.testing.assert_allclose(panels["DEM, α = 1"]["τ = 1.3"].top, s / 1.3 * (z + energy + 1.3) - p, atol=1e-12)
    delta = np.abs(cadf) + 9 * np.abs(q * (z_other + entropy + 1))
    adadem = panels["AdaDEM and its parts"]
    np.testing.assert_allclose(adadem["AdaDEM, fresh table"].top, (cadf - 0.1) / delta, atol=1e-9)
    np.testing.assert_allclose(adadem["AdaDEM, easy class"].top, (cadf - 0.9) / delta, atol=1e-9)
    np.testing.assert_allclose(adadem["MEC only"].top, cadf - 0.1, atol=1e-9)
    assert abs(em.top[0]) < 1e-12  # the reward collapses at both ends,
    assert abs(em.top[-1]) < 1e-6
    assert adadem["AdaDEM, fresh table"].top[-1] == pytest.approx(0.9, abs=1e-6)  # AdaDEM's does not


# --- size ---


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

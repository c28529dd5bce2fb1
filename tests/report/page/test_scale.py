"""What a report of many runs does and does not do: counts of work, because seconds depend on the machine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from report_runs import EM, Page, make_run, opened

from dembench.report import write_report
from dembench.report.figures import parallel
from dembench.report.judge.group import build_blocks
from dembench.report.page import build as pages
from dembench.report.read import load as loading
from dembench.report.read import record as records_of_runs
from dembench.report.read.load import load


def test_each_record_is_read_once_and_no_curve_without_figures(tmp_path: Path):
    draws = np.random.default_rng(0)
    for data in range(4):
        for loss in ("em", "adadem"):
            for seed in range(25):
                errors = tuple(float(x) for x in draws.uniform(0.1, 0.5, 3))
                make_run(tmp_path / "runs", errors, loss=loss, seed=seed, data=f"d{data}")
    with (
        mock.patch.object(records_of_runs, "parse", wraps=records_of_runs.parse) as records,
        mock.patch.object(loading.Run, "_columns", side_effect=AssertionError) as columns,
        mock.patch.object(loading.Run, "pictures", return_value=[]) as folders,
    ):
        page = write_report([tmp_path / "runs"], tmp_path / "out", with_figures=False)
    assert "200 finished" in Page(page.read_text()).text
    assert (records.call_count, columns.call_count) == (200, 0)
    assert folders.call_count == 200
    assert "not all figures are drawn" not in opened(page.read_text())
    assert (tmp_path / "out" / "tables" / "runs.csv").read_text().count("\n") == 201


def test_equal_parts_of_runs_are_one_object(tmp_path: Path):
    for seed in range(3):
        make_run(tmp_path, EM[seed], seed=seed)
    first, *others = load([tmp_path]).runs
    for run in others:
        assert run.environment is first.environment
        assert run.config["method"] is first.config["method"]
        assert run.sizes is first.sizes
        assert all(a is b for a, b in zip(run.scores, first.scores, strict=True))
    assert "torch" not in {name.partition(".")[0] for name in vars(loading)}


def test_many_comparisons_are_bounded_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in (("WHOLE", 2), ("ROWS", 5), ("LISTED", 4)):
        monkeypatch.setattr(pages, name, value)
    for data in range(4):
        for step in range(8):
            make_run(tmp_path / "runs", EM[0], lr=10.0**-step, data=f"d{data}")
    page = write_report([tmp_path / "runs"], tmp_path / "out", most_figures=4)
    found = Page(page.read_text())
    figures = set(re.findall(r'id="f-([^"]*-d\d-[^"]*)"', opened(page.read_text())))
    assert not (page.parent / "figures").exists()
    assert len(figures) == 3  # three of the first comparison; a fourth would need a second comparison
    assert all("-d0-" in name for name in figures)
    assert {len(rows) for name, rows in found.tables.items() if name.startswith("main-")} == {5}
    assert (page.parent / "tables" / "main-tta-d3-convnet-continual.csv").read_text().count("\n") == 9
    details = {name for name in found.tables if name.startswith("detail-")}
    assert details == {"detail-tta-d0-convnet-continual", "detail-tta-d1-convnet-continual"}
    links = {value for key, value in found.attributes if key == "href" and value and value.startswith("tables/")}
    assert "tables/detail-tta-d3-convnet-continual.csv" in links
    assert all((page.parent / link).is_file() for link in links)
    assert "The first 5 of 8 rows; all are in" in found.text
    assert found.text.count("not all figures are drawn") == 2  # of the two that are shown whole
    assert len(re.findall("dembench run method", found.text)) == 4 * 4


def test_processes_draw_what_one_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for data in range(parallel.FEW):
        for lr in (1e-3, 1e-2):
            make_run(tmp_path, EM[0], data=f"d{data}", lr=lr)
    blocks = build_blocks(load([tmp_path]).runs)
    jobs = [(block, [], 1) for block in blocks]
    drawn = []
    for cpus in (1, 2):
        monkeypatch.setattr(parallel, "cpus", lambda cpus=cpus: cpus)
        drawn.append([(f.name, f.svg, f.files, f.canvas) for figures in parallel.draw(jobs) for f in figures])
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == parallel.FEW
    assert all(svg.startswith("<?xml") and sorted(files) == ["pdf", "png"] for _, svg, files, _ in drawn[0])


def test_the_budget_of_figures_is_shared(tmp_path: Path):
    for data in range(10):
        make_run(tmp_path, EM[0], data=f"d{data}")
    blocks = build_blocks(load([tmp_path]).runs)
    for most, shares in ((60, [6] * 10), (9, [3] * 3), (1, [3])):
        assert [share for *_, share in pages.plan(blocks, [[]] * 10, most)] == shares


def test_the_report_needs_neither_torch_nor_a_task(tmp_path: Path):
    """Everything it draws and writes, in a process of its own."""
    for loss in ("em", "adadem"):
        for seed in range(2):
            make_run(tmp_path / "runs", EM[seed], loss=loss, seed=seed)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from dembench.report import write_report\n"
        f"write_report([Path({str(tmp_path / 'runs')!r})], Path({str(tmp_path / 'out')!r}))\n"
        "rooms = {'.'.join(name.split('.')[:2]) for name in sys.modules if name.startswith('dembench.')}\n"
        "assert rooms <= {'dembench.report', 'dembench.lookup', 'dembench.records', 'dembench.configs'}, rooms\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "reward-curves" in opened((tmp_path / "out" / "index.html").read_text())


def test_a_report_of_more_runs_draws_what_changed_only(tmp_path: Path):
    for data in ("a", "b"):
        for seed in range(2):
            make_run(tmp_path / "runs", EM[seed], seed=seed, data=data)
    kept: pages.Kept = {}
    with mock.patch.object(parallel, "draw", wraps=parallel.draw) as draw:
        page = write_report([tmp_path / "runs"], tmp_path / "out", kept=kept).read_text()
        assert write_report([tmp_path / "runs"], tmp_path / "out", kept=kept).read_text() == page
        make_run(tmp_path / "runs", EM[2], seed=2, data="b")
        again = write_report([tmp_path / "runs"], tmp_path / "out", kept=kept).read_text()
    assert [[block.data for block, *_ in call.args[0]] for call in draw.call_args_list] == [["a", "b"], [], ["b"]]
    assert again != page
    assert again == write_report([tmp_path / "runs"], tmp_path / "new").read_text()

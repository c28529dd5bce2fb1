"""Learning curves, pictures, presets, merged columns, the manifest, mixed commits."""

from __future__ import annotations

import base64
import csv
import io
import os
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas
from report_runs import ADADEM, EM, make_run, only_block, opened
from scipy import stats

from dembench.report import write_report
from dembench.report.figures.gallery import LARGEST, Gallery
from dembench.report.figures.learning import learning_figure, mean_band
from dembench.report.figures.sensitivity import across_figure, params_figure
from dembench.report.judge.group import build_blocks
from dembench.report.page.provenance import commits, notes_of
from dembench.report.read.load import load
from dembench.report.tables.detail import runs_table
from dembench.report.tables.results import main_table

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def test_presets_are_part_of_a_methods_name(tmp_path: Path):
    make_run(tmp_path, EM[0], method="tent_mariodoebler", config={"method.preset": "mariodoebler"})
    make_run(tmp_path, EM[0], method="tent", config={"method.preset": "official"})
    make_run(tmp_path, EM[0], method="tipi_official", config={"method.preset": "official"})
    block = only_block(tmp_path)
    assert [row[0].text for row in main_table(block).rows] == ["Tent", "Tent (mariodoebler)", "TIPI"]
    assert "preset" not in main_table(block).caption


def test_a_loss_with_one_setting_per_method_has_one_column(tmp_path: Path):
    for method, tau in (("tent", 1.1), ("eta", 1.3)):
        for seed in range(2):
            make_run(tmp_path, EM[seed], method=method, seed=seed)
            make_run(tmp_path, ADADEM[seed], method=method, loss="dem", seed=seed, params={"tau": tau, "alpha": 0.0})
    table = main_table(only_block(tmp_path))
    assert [column.title for column in table.columns] == ["Method", "EM", "DEM α 0"]
    assert [row[2].sub.split(":")[0] for row in table.rows] == ["τ 1.1", "τ 1.3"]
    rows = list(csv.DictReader(io.StringIO(table.csv())))
    assert [row["DEM α 0: setting"] for row in rows] == ["τ 1.1", "τ 1.3"]
    assert rows[0]["DEM α 0: gain over EM"] == rows[1]["DEM α 0: gain over EM"] != ""


def test_runs_csv_names_the_protocol(tmp_path: Path):
    make_run(tmp_path, EM[0], environment={"commit": "0123abcd", "modified": True})
    (row,) = csv.DictReader(io.StringIO(runs_table([only_block(tmp_path)]).csv()))
    assert (row["protocol.severity"], row["protocol.batch_size"], row["protocol.reset"]) == ("5", "50", "no")
    assert (row["commit"], row["modified"]) == ("0123abcd", "True")


def write_series(folder: Path, values: list[tuple[int, float | str]]) -> None:
    lines = ["step,slice,metric,value", *(f"{step},training,return,{value}" for step, value in values)]
    (folder / "series.csv").write_text("\n".join(lines) + "\n")


def test_learning_curves_are_means_with_t_intervals(tmp_path: Path):
    values = {0: [(0, 0.0), (10, 1.0), (20, 2.0)], 1: [(0, 1.0), (10, 4.0), (20, "")], 2: [(0, 2.0), (10, 1.0)]}
    for seed, line in values.items():
        write_series(make_run(tmp_path, EM[0], seed=seed), line)
    block = only_block(tmp_path)
    curves = [run.series()["training", "return"] for run in load([tmp_path]).runs]
    steps, mean, half = mean_band(curves)
    assert steps.tolist() == [0, 10]  # seed 1 has no finite value at 20, seed 2 none at all
    np.testing.assert_allclose(mean, [1, 2])
    np.testing.assert_allclose(
        half, stats.t.ppf(0.975, 2) * np.std([[0, 1, 2], [1, 4, 1]], axis=1, ddof=1) / np.sqrt(3)
    )
    assert mean_band(curves[:1])[2] is None
    figure = learning_figure(block)
    assert figure is not None
    assert isinstance(figure.canvas, Canvas)
    (line,) = figure.canvas.axes[0].get_lines()
    np.testing.assert_allclose(line.get_ydata(), [1, 2])
    assert "learning-tta" in opened(write_report([tmp_path], tmp_path / "out").read_text())


def test_pictures_are_bounded_and_known_by_what_they_hold(tmp_path: Path):
    for seed in range(2):
        files = make_run(tmp_path, EM[seed], seed=seed) / "files"
        files.mkdir()
        (files / "agent.png").write_bytes(PIXEL)
        (files / "page.png").write_bytes(b"<script>alert(1)</script>")
        (files / "large.gif").write_bytes(b"GIF89a" + bytes(LARGEST))
        (files / "weights.pt").write_bytes(b"x")
    pictures, left_out = Gallery().of(only_block(tmp_path))
    assert [(name, [p.caption for p in shown]) for name, shown in pictures.items()] == [
        ("agent.png", ["Tent + EM, seed 0"])
    ]
    assert base64.b64decode(pictures["agent.png"][0].uri.partition(",")[2]) == PIXEL
    assert left_out == 4  # large.gif, and the three pictures by name of the second seed
    text = opened(write_report([tmp_path], tmp_path / "out", with_figures=False).read_text())
    assert text.count("<img ") == 1
    assert "4 more pictures" in text


def test_a_report_takes_away_what_an_earlier_one_wrote(tmp_path: Path):
    make_run(tmp_path / "old", EM[0], data="old-data")
    make_run(tmp_path / "new", EM[0], data="new-data")
    out = tmp_path / "out"
    write_report([tmp_path / "old"], out)
    (out / "tables" / "mine.csv").write_text("kept")
    write_report([tmp_path / "new"], out, with_figures=False)
    names = {path.name for path in out.rglob("*.*")}
    assert not any("old-data" in name for name in names)
    assert not any(name.endswith(".png") for name in names)
    assert {"mine.csv", "index.html", "main-tta-new-data-convnet-continual.csv"} <= names


def test_a_manifest_cannot_reach_outside(tmp_path: Path):
    make_run(tmp_path / "runs", EM[0])
    out = tmp_path / "out"
    victims = [tmp_path / "figures" / "a.txt", out / "b.txt"]
    (tmp_path / "figures").mkdir()
    out.mkdir()
    for victim in victims:
        victim.write_text("kept")
    (out / "manifest.json").write_text('{"files": ["../figures/a.txt", "b.txt", 3, "tables"]}')
    write_report([tmp_path / "runs"], out, with_figures=False)
    assert all(victim.is_file() for victim in victims)


def test_folders_that_cannot_be_opened_are_listed(tmp_path: Path):
    make_run(tmp_path, EM[0])
    closed = make_run(tmp_path, EM[1], seed=1)
    opened = os.scandir

    def refuse(path):
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path)

    with mock.patch("os.scandir", refuse):
        found = load([tmp_path])
    assert [(aside.name, aside.reason) for aside in found.unreadable] == [
        (closed.name, "PermissionError: Permission denied")
    ]
    assert len(found.runs) == 1


@pytest.mark.parametrize(
    ("environments", "words"),
    [
        (({"commit": "a" * 40}, {"commit": "a" * 40}), []),
        (({"commit": "a" * 40}, {"commit": "b" * 40}), ["Runs of 2 commits", "aaaaaaaaaa (1)", "bbbbbbbbbb (1)"]),
        (({"commit": "a" * 40, "modified": True}, {"commit": "a" * 40}), ["1 of 2 runs", "differ from their commit"]),
    ],
)
def test_mixed_code_is_said_first(tmp_path: Path, environments: tuple[dict, ...], words: list[str]):
    for seed, environment in enumerate(environments):
        make_run(tmp_path, EM[seed], seed=seed, environment=environment)
    said = commits(load([tmp_path]).runs)
    assert bool(said) == bool(words)
    top = write_report([tmp_path], tmp_path / "out", with_figures=False).read_text().split('<section class="task"')[0]
    assert all(word in said and word in top for word in words)


def test_comparisons_that_differ_in_one_number_share_a_figure(tmp_path: Path):
    for size, error in ((10, 0.4), (50, 0.3), (200, 0.2)):
        for seed in range(2):
            make_run(tmp_path, (error,) * 3, seed=seed, config={"protocol.batch_size": size})
    figure = across_figure(build_blocks(load([tmp_path]).runs))
    line = figure.canvas.axes[0].get_lines()[0]
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([10, 50, 200], pytest.approx([40, 30, 20]))
    assert across_figure(build_blocks(load([tmp_path]).runs)[:1]) is None


def test_a_loss_parameter_that_varies_gets_a_line_and_two_a_plane(tmp_path: Path):
    for tau in (0.5, 1.0, 1.5):
        make_run(tmp_path / "line", (tau / 5,) * 3, loss="dem", params={"tau": tau, "alpha": 1.0})
        for alpha in (0.0, 1.0):
            make_run(tmp_path / "plane", (tau / 5,) * 3, loss="dem", params={"tau": tau, "alpha": alpha})
    line = params_figure(only_block(tmp_path / "line"), "tent", "dem").canvas.axes[0].get_lines()[0]
    assert line.get_ydata().tolist() == pytest.approx([10, 20, 30])
    axes = params_figure(only_block(tmp_path / "plane"), "tent", "dem").canvas.axes[0]
    assert sorted(text.get_text() for text in axes.texts) == ["10.0", "10.0", "20.0", "20.0", "30.0", "30.0"]


def test_learning_curves_of_many_settings_show_the_best_ones(tmp_path: Path):
    for step in range(20):
        folder = make_run(tmp_path, (0.5 - step / 100,) * 3, lr=1e-3 * (step + 1))
        write_series(folder, [(0, 0.0), (10, float(step))])
    (line,) = learning_figure(only_block(tmp_path)).canvas.axes[0].get_lines()
    assert line.get_ydata().tolist() == [0, 19]  # of the rate with the lowest error


def test_a_note_on_a_method_is_quiet_but_for_what_it_is_shown(tmp_path: Path):
    make_run(tmp_path)
    make_run(tmp_path, method="t3a", notes=(("made", "of this"), ("stream", "in an order")))
    assert {note.key: note.quiet for note in notes_of(only_block(tmp_path))} == {"made": True, "stream": False}

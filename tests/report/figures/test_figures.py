"""What the figures draw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from report_runs import EM, interval, make_run, only_block

from dembench.core import DEM, AdaDEM
from dembench.core import EM as EntropyMinimisation
from dembench.core import functional as F
from dembench.report.figures.classes import class_figure
from dembench.report.figures.rewards import curves
from dembench.report.figures.sensitivity import rate_figure
from dembench.report.figures.shares import shares
from dembench.report.figures.stream_accuracy import window_accuracy
from dembench.report.judge.group import build_blocks
from dembench.report.read.load import load
from dembench.report.tables.results import default_cell, default_label, detail_table


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


def test_a_panel_names_the_setting_that_its_losses_share(tmp_path: Path):
    def label(**settings: str) -> str:
        root = tmp_path / "_".join(settings.values())
        for loss, aggregate in settings.items():
            make_run(root, loss=loss, config={"method.aggregate": aggregate})
        block = only_block(root)
        cells = [default_cell(block, "tent", column) for column in block.losses_of("tent")]
        return default_label(block, [cell for cell in cells if cell])

    assert label(em="marginal", adadem="marginal") == ""  # nothing varies
    assert label(em="marginal", adadem="per_view") == "each loss at its default setting"
    for loss in ("em", "adadem"):
        for lr in (1e-3, 1e-2):
            make_run(tmp_path / "rates", loss=loss, lr=lr)
    block = only_block(tmp_path / "rates")
    cells = [default_cell(block, "tent", column) for column in block.losses_of("tent")]
    assert default_label(block, [cell for cell in cells if cell]) == "every loss at lr 1e-3"


def test_shares_are_sorted_within_each_slice(tmp_path: Path):
    histograms = {"a/5": {"predicted": [8, 2], "label": [5, 5]}, "b/5": {"predicted": [3, 7], "label": [4, 6]}}
    make_run(tmp_path, EM[0], histograms=histograms)
    predicted, label = shares(load([tmp_path]).runs)
    np.testing.assert_allclose(predicted, [75, 25])
    np.testing.assert_allclose(label, [55, 45])


def test_reward_curves_are_those_of_the_losses_by_autograd():
    """The closed forms of the report against minus the gradients of the library's losses."""

    def frozen(row: list[float], **options: bool) -> AdaDEM:
        loss = AdaDEM(10, **options).eval()
        loss.table = torch.tensor([row] * 10, dtype=torch.float64)
        return loss

    fresh, easy = [0.1] * 10, [0.9, *[0.1 / 9] * 9]
    losses = {
        "EM and its parts": {"EM": EntropyMinimisation(), "CADF (rewards)": F.cadf, "GMC (penalises)": F.gmc},
        "DEM, α = 1": {f"τ = {tau}": DEM(tau, 1.0) for tau in (0.5, 0.8, 1.0, 1.3, 1.6, 2.0)},
        "DEM, τ = 1": {f"α = {alpha}": DEM(1.0, alpha) for alpha in (0.0, 0.5, 0.8, 1.0, 1.3, 1.6)},
        "AdaDEM and its parts": {
            "EM": EntropyMinimisation(),
            "AdaDEM, fresh table": frozen(fresh),
            "AdaDEM, easy class": frozen(easy),
            "norm only": frozen(fresh, mec=False),
            "MEC only": frozen(fresh, norm=False),
        },
    }
    panels = curves(10)
    assert {panel: list(lines) for panel, lines in panels.items()} == {k: list(v) for k, v in losses.items()}
    for panel, lines in panels.items():
        for name, line in lines.items():
            p = torch.from_numpy(line.p)[:, None]
            logits = torch.cat([p.log(), ((1 - p) / 9).log().repeat(1, 9)], 1).requires_grad_()
            (gradient,) = torch.autograd.grad(losses[panel][name](logits).sum(), logits)
            np.testing.assert_allclose(line.top, -gradient[:, 0], atol=1e-9, err_msg=f"{panel}: {name}")
            np.testing.assert_allclose(line.other, -gradient[:, 1], atol=1e-9, err_msg=f"{panel}: {name}")
    em, adadem = panels["EM and its parts"]["EM"], panels["AdaDEM and its parts"]["AdaDEM, fresh table"]
    assert (em.p[0], em.p[-1]) == pytest.approx((0.1, 1))
    assert abs(em.top[0]) < 1e-12  # the reward collapses at both ends,
    assert abs(em.top[-1]) < 1e-6
    assert adadem.top[-1] == pytest.approx(0.9, abs=1e-6)  # AdaDEM's does not


def test_what_varies_alone_gets_a_line(tmp_path: Path):
    for coefficient, error in ((0.001, 0.3), (0.01, 0.2), (0.1, 0.4)):
        make_run(tmp_path, (error,) * 3, config={"method.ent_coef": coefficient})
    figure = rate_figure(only_block(tmp_path), "tent")
    (axes,) = figure.canvas.axes
    assert (axes.get_xlabel(), axes.get_xscale()) == ("ent coef", "log")
    np.testing.assert_allclose(axes.get_lines()[0].get_xydata(), [(0.001, 30), (0.01, 20), (0.1, 40)])
    make_run(tmp_path, config={"method.ent_coef": 0.1, "method.steps": 2})
    assert rate_figure(only_block(tmp_path), "tent") is None  # two things vary, and neither is the rate


def test_a_line_over_the_rate_keeps_the_optimizer(tmp_path: Path):
    for rate, error in ((1e-3, 0.3), (1e-2, 0.2), (0.1, 0.4)):
        make_run(tmp_path, (error,) * 3, lr=rate, config={"method.optimizer": "sgd"})
    for rate in (1e-2, 1):  # of the optimizer that the helper has by itself
        make_run(tmp_path, (0.1,) * 3, lr=rate)
    figure = rate_figure(only_block(tmp_path), "tent")
    np.testing.assert_allclose(figure.canvas.axes[0].get_lines()[0].get_xydata(), [(1e-3, 30), (1e-2, 20), (0.1, 40)])
    assert "against learning rate, optimizer sgd, mean" in figure.caption


def test_the_table_of_classes_shows_what_classes_have(tmp_path: Path):
    rows = [{"slice": "mean", "metric": "accuracy", "value": 0.6, "unit": "fraction", "n": 10}]
    for part, recall in (("cat", 0.25), ("dog", 0.75)):
        rows.append({"slice": part, "metric": "recall", "value": recall, "unit": "fraction", "n": 5})
    rows.append({"slice": "training", "metric": "loss", "value": 1.0, "unit": "nats", "n": 5})
    make_run(tmp_path, task="semi", rows=rows)
    table = detail_table(only_block(tmp_path))
    assert table.title.endswith("per class")
    assert [column.title for column in table.columns] == ["Method", "Loss", "cat", "dog", "mean"]
    assert [entry.text for entry in table.rows[0][2:4]] == ["25.0", "75.0"]


def classes_run(root: Path, f1: dict[str, float], **settings: object) -> None:
    """A run of the long-tailed task with an F1 per class, the mean last."""
    rows = [{"slice": "mean", "metric": "accuracy", "value": 0.6, "unit": "fraction", "n": 10}]
    rows += [{"slice": part, "metric": "f1", "value": value, "unit": "fraction", "n": 5} for part, value in f1.items()]
    make_run(root, task="longtail", rows=rows, method="ent_min", **settings)


def test_bars_are_the_f1_of_each_class_and_their_mean(tmp_path: Path):
    found = {"em": [(0.9, 0.2, 0.55), (0.7, 0.4, 0.55)], "adadem": [(0.5, 0.5, 0.5), (0.7, 0.9, 0.8)]}
    for loss, seeds in found.items():
        for seed, values in enumerate(seeds):
            classes_run(tmp_path, dict(zip(("cat", "dog", "mean"), values, strict=True)), loss=loss, seed=seed)
    figure = class_figure(only_block(tmp_path))
    (axes,) = figure.canvas.axes
    heights = [[bar.get_height() for bar in bars] for bars in axes.containers]
    np.testing.assert_allclose(heights, [(80, 30, 55), (60, 70, 65)])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["cat", "dog", "mean"]
    assert axes.get_legend_handles_labels()[1] == ["EM (55.0)", "AdaDEM (65.0)"]
    lines = [path.vertices[:, 1] for group in axes.collections for path in group.get_paths()]
    low, high = interval(np.array([90.0, 70.0]))
    np.testing.assert_allclose(lines[0], [max(low, 0), min(high, 100)])
    assert "fewest" in figure.caption


def test_many_classes_are_lines(tmp_path: Path):
    values = {f"c{i}": i / 30 for i in range(30)}
    classes_run(tmp_path, {**values, "mean": 0.4})
    (axes,) = class_figure(only_block(tmp_path)).canvas.axes
    np.testing.assert_allclose(axes.get_lines()[0].get_ydata(), [100 * i / 30 for i in range(30)])
    assert not axes.containers


def test_runs_without_f1_get_no_figure_of_classes(golden: tuple[Path, Path]):
    (block,) = build_blocks(load([golden[0]]).runs)
    assert class_figure(block) is None

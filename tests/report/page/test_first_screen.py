"""The first screen, from made runs of several tasks whose gains can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from report_runs import make_run
from scipy import stats

from dembench.report.figures.critical import critical_figure
from dembench.report.judge.comparisons import families, ranking
from dembench.report.judge.group import build_blocks
from dembench.report.judge.verdict import verdicts
from dembench.report.page.first_screen import first_screen
from dembench.report.read.load import load
from dembench.report.tables.summary import summary_table

NOISE = (0.0, 0.004, -0.003)
METRICS = {"semi": ("accuracy", "fraction"), "minigrid": ("return", "return"), "segmentation": ("iou", "fraction")}


def add(root, task, data, loss, seed, value, method="m", seconds=2.0, **options):
    """A run of ``task`` with one number."""
    options |= {"cost": {"wall_seconds": seconds, "backward_passes": 3}, "config": {"data.id": data}}
    options |= {"method": method, "loss": loss, "seed": seed, "data": data}
    if task == "tta":
        return make_run(root, (value,), slices=("fog/5",), **options)
    name, unit = METRICS[task]
    rows = [{"slice": "mean", "metric": name, "value": value, "unit": unit, "n": 100}]
    return make_run(root, protocol="p", task=task, rows=rows, **options)


def screen(root, figures=False):
    blocks = build_blocks(load([root]).runs)
    judged = [verdicts(block) for block in blocks]
    return first_screen(blocks, judged, figures), families(judged)


@pytest.fixture
def root(tmp_path):
    """Test-time adaptation: AdaDEM is 2 points better on two data sets, DEM one worse. Semi-supervised learning: AdaDEM
    gains nothing that can be told, and DEM is missing. Segmentation: one seed. RL: DEM* only."""
    for seed, noise in enumerate(NOISE):
        for data in ("cifar10c", "imagenet-c"):
            for method, level in (("tent", 0.30), ("eta", 0.25)):
                base = level + 0.01 * seed
                add(tmp_path, "tta", data, "em", seed, base, method)
                add(tmp_path, "tta", data, "adadem", seed, base - 0.02 + noise, method, seconds=3.0)
                add(tmp_path, "tta", data, "dem", seed, base + 0.01 + noise, method, params={"tau": 1.1, "alpha": 0.0})
        add(tmp_path, "semi", "stl10", "em", seed, 0.80)
        add(tmp_path, "semi", "stl10", "adadem", seed, 0.80 + noise)
        add(tmp_path, "minigrid", "DoorKey", "em", seed, 0.5)
        add(tmp_path, "minigrid", "DoorKey", "dem_star", seed, 0.6 + noise)
    add(tmp_path, "segmentation", "street", "em", 0, 0.40)
    add(tmp_path, "segmentation", "street", "adadem", 0, 0.45)
    return tmp_path


def test_gains_have_their_tasks_unit_and_direction(root):
    first, found = screen(root)
    assert [family.task for family in found] == ["tta", "semi", "segmentation", "minigrid"]
    tta, semi, segmentation, rl = found
    adadem = 100 * (0.02 - np.array(NOISE))
    assert tta.gains["adadem"].mean == pytest.approx(adadem.mean())  # a lower error is a gain
    assert tta.gains["dem"].mean == pytest.approx(100 * (-0.01 - np.mean(NOISE)))
    assert semi.gains["adadem"].mean == pytest.approx(100 * np.mean(NOISE))  # a higher accuracy is one
    assert segmentation.gains["adadem"].mean == pytest.approx(5)
    assert rl.gains["dem_star"].mean == pytest.approx(0.1 + np.mean(NOISE))
    (table,) = first.tables
    titles = [column.title for column in table.columns]
    assert titles[2:] == ["DEM", "DEM*", "AdaDEM"]
    rows = {row[0].text: row for row in table.rows}
    row = rows["Corruption test-time adaptation"]
    assert row[0].sub == "error in %, lower is better"
    assert (row[1].text, row[1].sub) == ("4", "2 data sets")
    assert row[4].text == f"+{adadem.mean():.2f}"
    assert row[3].text == "–"
    low, high = (float(text) for text in row[4].numbers[1:3])
    assert low < adadem.mean() < high
    assert rows["Unsupervised domain adaptation of segmentation"][4].sub == "no interval"
    assert [entry.text for entry in table.rows[-1][2:5]] == ["0 up, 1 down", "1 up, 0 down", "1 up, 0 down"]
    assert table.rows[-1][4].sub == "of 2 tasks"  # segmentation has no interval and is not counted


def test_ranks_and_times(root):
    first, (tta, *_) = screen(root)
    names, ranks = tta.ranking
    assert names == ["em", "dem", "adadem"]
    assert ranks.mean == (2, 3, 1)
    assert (ranks.rows, tta.time("adadem"), tta.time("dem")) == (4, 1.5, 1.0)
    everything = [one for family in screen(root)[1] for one in family.comparisons]
    names, ranks = ranking(everything)
    assert names == ["em", "dem", "adadem"]  # DEM* has one of seven cells
    assert ranks.rows == 4
    row = first.details[0].rows[0]
    assert [(entry.text, entry.sub) for entry in row[1:]] == [
        ("4", ""), ("2.00", "time 1.00"), ("3.00", "time 1.00"), ("–", ""), ("1.00", "time 1.50"),
    ]  # fmt: skip
    assert [entry.numbers for entry in row[2:]] == [("2.00", "1.00"), ("3.00", "1.00"), ("", ""), ("1.00", "1.50")]


def test_a_sentence_for_each_loss_says_what_its_intervals_say(root):
    first, _ = screen(root)
    lines = {line.strong: line for line in first.lines}
    dem, star, adadem, none = first.lines
    assert list(lines)[0] == "DEM is worse than EM."
    assert star.strong == "DEM* is better than EM."
    assert adadem.strong == "AdaDEM against EM in 2 tasks with an interval: better in 1, not told apart in 1."
    assert none.strong == "No term: not run beside EM here,"
    assert [line.sign for line in first.lines] == [-1, 1, 1, 0]
    assert adadem.text.startswith("Better: Corruption test-time adaptation +1.97 [")
    assert "Not told apart: Semi-supervised learning. No interval, so not counted: Unsupervised" in adadem.text
    assert "Mean rank among 3 losses in 4 cells, 1 the best: 1.00, EM 2.00; no more than the 1.66 that" in adadem.text
    assert first.answer.strong == adadem.strong
    assert first.answer.text.startswith("Corruption test-time adaptation +1.97 [")
    assert first.answer.text.endswith("1 more task has no interval.")
    assert star.text.startswith("Mean gain: Reinforcement learning +0.100 [")


def test_nothing_told_apart_is_said_so(tmp_path):
    for seed, noise in enumerate(NOISE):
        for task, data in (("tta", "cifar10c"), ("semi", "stl10")):
            add(tmp_path, task, data, "em", seed, 0.3)
            add(tmp_path, task, data, "none", seed, 0.3 + noise)
    first, _ = screen(tmp_path)
    assert first.lines[0].strong == "No term cannot be told apart from EM in any of 2 tasks with an interval."
    assert first.lines[1].strong == "DEM, DEM* and AdaDEM: not run beside EM here,"
    assert [line.sign for line in first.lines] == [0, 0]


def test_limits_name_toys_seeds_and_choices(tmp_path):
    for seed in range(2):
        add(tmp_path, "semi", "digits", "em", seed, 0.8 + 0.01 * seed)
    for tau in (0.8, 1.1):
        add(tmp_path, "semi", "digits", "dem", 0, 0.8 + tau / 100, params={"tau": tau, "alpha": 0.0})
    add(tmp_path, "tta", "cifar10c", "adadem", 0, 0.2)
    first, _ = screen(tmp_path)
    text = " ".join(first.limits)
    assert "No benchmark: digits: made of the 1,797 pictures" in text
    assert "One data set only in Semi-supervised learning (digits)" in text
    assert "Seeds per pair of cells: 1; 1 of 1 pairs have one seed; 1 lack seeds" in text
    assert "Semi-supervised learning: EM 1, DEM 2" in text
    assert "1 of 2 comparisons have nothing to compare with EM" in text
    assert first.lines[0].strong == "DEM against EM: no interval, no claim."


def test_tests_are_wilcoxons_over_cells_with_holms_correction(tmp_path):
    rng = np.random.default_rng(0)
    gains = {"dem": [], "adadem": []}
    for cell in range(7):
        errors = rng.uniform(0.2, 0.4, 2)
        for seed, error in enumerate(errors):
            add(tmp_path, "tta", f"d{cell}", "em", seed, error)
        for loss, size in (("adadem", 0.02), ("dem", 0.01)):
            gain = rng.normal(size, 0.02, 2)
            gains[loss].append(100 * gain.mean())
            params = {"tau": 1.1, "alpha": 0.0} if loss == "dem" else None
            for seed in range(2):
                add(tmp_path, "tta", f"d{cell}", loss, seed, errors[seed] - gain[seed], params=params)
    first, _ = screen(tmp_path)
    rows = {row[1].text: row for row in first.details[1].rows}
    p = {loss: stats.wilcoxon(values).pvalue for loss, values in gains.items()}
    assert rows["DEM"][6].sort == pytest.approx(p["dem"])
    assert rows["AdaDEM"][6].sort == pytest.approx(p["adadem"])
    small, large = sorted(p.values())
    assert sorted(row[7].sort for row in rows.values()) == pytest.approx(
        [min(1, 2 * small), max(large, min(1, 2 * small))]
    )
    assert rows["DEM"][6].sub == f"7 pairs; least {2 / 2**7:.3f}"
    assert rows["DEM"][3].text == "2 seeds"


def test_an_ablation_does_not_stand_for_its_loss(tmp_path):
    for seed, noise in enumerate(NOISE):
        add(tmp_path, "tta", "cifar10c", "em", seed, 0.3)
        add(tmp_path, "tta", "cifar10c", "adadem", seed, 0.29 + noise, params={"norm": True, "mec": True})
        add(tmp_path, "tta", "cifar10c", "adadem", seed, 0.20 + noise, params={"norm": True, "mec": False})
    _, (family,) = screen(tmp_path)
    assert family.gains["adadem"].mean == pytest.approx(100 * (0.01 - np.mean(NOISE)))
    assert family.choices("adadem") == (1, 1)


def test_figures_are_drawn_and_the_diagram_needs_three_losses(root, tmp_path):
    first, found = screen(root, figures=True)
    canvas = first.figures[0].canvas
    names = [item.name for item in (*first.figures, first.details[-1])]
    assert names == ["gains-across-tasks", "gains-across-tasks-narrow", "critical-difference"]
    titles = [ax.get_title(loc="left").replace("\n", " ") for ax in canvas.axes if ax.get_visible()]
    assert titles[0] == "Corruption test-time adaptation"
    assert len(titles) == 4
    assert all(ax.get_xlim()[0] == -ax.get_xlim()[1] for ax in canvas.axes if ax.get_visible())
    assert critical_figure(["em", "adadem"], ranking(found[1].comparisons)[1]) is None


def test_runs_without_em_have_no_verdict(tmp_path):
    add(tmp_path, "tta", "cifar10c", "adadem", 0, 0.2)
    first, _ = screen(tmp_path)
    assert (first.answer, first.lines, first.tables, first.figures, first.details) == (None, [], [], [], [])


def test_single_comparisons_of_several_tasks_name_task_and_unit(root):
    blocks = build_blocks(load([root]).runs)
    table = summary_table([verdict for block in blocks for verdict in verdicts(block)])
    assert [column.title for column in table.columns] == [
        "Comparison",
        "Method",
        "Loss",
        "gain",
        "seeds for 80 % power",
    ]
    by_task = {row[0].sub: row for row in table.rows}
    assert by_task["Reinforcement learning"][3].text == "+0.100 return"
    assert by_task["Semi-supervised learning"][3].text == "+0.03 points"
    assert "in the unit named" in table.caption


@pytest.mark.parametrize(("evaluation", "text"), [("held_out", "which is not judged here"), ("paper", "1 of 1 cells")])
def test_dem_star_is_said_to_have_had_labels(tmp_path, evaluation, text):
    params = {"tau": 1.2, "alpha": 0.5, "evaluation": evaluation}
    for seed, noise in enumerate(NOISE):
        add(tmp_path, "semi", "stl10", "em", seed, 0.8)
        add(tmp_path, "semi", "stl10", "dem_star", seed, 0.82 + noise, params={**params, "search": f"0a{seed}"})
    first, (family,) = screen(tmp_path)
    (limit,) = [limit for limit in first.limits if limit.startswith("DEM* had labels")]
    assert text in limit
    assert family.gains["dem_star"].over == "seeds"  # one loss, whatever search found its pair


def test_cells_without_a_common_seed_and_nan_runs_are_in_no_number(tmp_path):
    add(tmp_path, "tta", "cifar10c", "em", 0, 0.3)
    add(tmp_path, "tta", "cifar10c", "adadem", 1, 0.2)
    for seed, noise in enumerate(NOISE):
        add(tmp_path, "tta", "imagenet-c", "em", seed, 0.3)
        add(tmp_path, "tta", "imagenet-c", "adadem", seed, 0.29 + noise, status="nan" if seed == 2 else "ok")
        add(tmp_path, "semi", "stl10", "em", seed, 0.8, status="nan")
        add(tmp_path, "semi", "stl10", "adadem", seed, 0.8)
    first, (family,) = screen(tmp_path, figures=True)
    gain = family.gains["adadem"]
    assert (gain.cells, gain.mean) == (1, pytest.approx(100 * (0.01 - np.mean(NOISE[:2]))))
    assert "Seeds per pair of cells: 2; 1 lack seeds" in " ".join(first.limits)
    assert "1 pair has no seed in common" in " ".join(first.limits)
    assert "1 of 3 comparisons have nothing to compare with EM" in " ".join(first.limits)

"""Searches of DEM* in the report: which are found, what the map shows, and that trials are no runs."""

import json

import pytest
from report_runs import make_run, opened

from dembench.report.figures import plane
from dembench.report.page.build import write_report
from dembench.report.read.load import load

TRIALS = [(1.0, 1.0, 0.30, "ok"), (0.5, 0.2, 0.25, "ok"), (1.3, 0.4, 0.21, "ok"), (0.3, 1.9, 0.01, "collapse"),
          (1.3, 0.4, 0.21, "ok"), (0.2, 0.0, None, "nan")]  # fmt: skip
SETTINGS = {
    "trials": 6, "space": "grid", "order": "joint", "startup": 2, "seed": 0, "run_seeds": [0, 1], "metric": None,
}  # fmt: skip


def record(**changes):
    return {
        "schema": 1, "id": "0123456789ab", "task": "tta", "method": "tent", "model": "net", "data": "digits-c",
        "protocol": "continual", "pair": {"tau": 1.3, "alpha": 0.4}, "metric": "error", "value": 0.21,
        "at_one_one": 0.30, "subset": {"share": 0.2, "seed": 0, "samples": 40, "text": "20% of each set"},
        "settings": SETTINGS,
        "trials": [{"number": k, "tau": t, "alpha": a, "value": v, "status": s, "runs": {}}
                   for k, (t, a, v, s) in enumerate(TRIALS)],
        "cost": {"wall_seconds": 12.5, "cpu_seconds": 12.0, "forward_passes": 70, "backward_passes": 60, "runs": 5},
        "command": "dembench search method=tent", "identity": {}, "fingerprints": {}, "environment": {}, "finished": "",
        **changes,
    }  # fmt: skip


def place(root, name="tta-tent-0123456789ab", **changes):
    folder = root / "searches" / name
    folder.mkdir(parents=True)
    (folder / "search.json").write_text(json.dumps(record(**changes)))
    return folder


def test_searches_are_found_at_any_depth_and_broken_ones_are_left_out(tmp_path):
    place(tmp_path / "a" / "b")
    place(tmp_path / "c", id="second", method="eata")
    place(tmp_path / "d", id="third", schema=0)
    place(tmp_path / "e", id="fourth", metric="unheard of")
    (place(tmp_path / "f") / "search.json").write_text("{")
    found = plane.find([tmp_path, tmp_path / "a"])  # the same one twice is one
    assert [(record.id, record.names[3]) for record in found] == [("second", "eata"), ("0123456789ab", "tent")]
    assert plane.find([tmp_path / "c" / "searches"])[0].id == "second"


def test_the_map_shows_each_pair_once_the_best_and_one_one(tmp_path):
    place(tmp_path)
    (found,) = plane.find([tmp_path])
    axes = plane.figure(found).canvas.axes[0]
    (squares,) = [c for c in axes.collections if len(c.get_offsets()) > 1]
    assert sorted(map(tuple, squares.get_offsets().tolist())) == [(0.5, 0.2), (1.0, 1.0), (1.3, 0.4)]
    assert len({tuple(colour) for colour in squares.get_facecolors().tolist()}) == 3
    at = map(tuple, squares.get_offsets().tolist())
    darkness = {pair: 3 - sum(colour[:3]) for pair, colour in zip(at, squares.get_facecolors(), strict=True)}
    assert darkness[1.3, 0.4] > darkness[0.5, 0.2] > darkness[1.0, 1.0]
    marks = {line.get_marker(): line for line in axes.lines}
    assert marks["*"].get_xydata().tolist() == [[1.3, 0.4]]
    assert marks["o"].get_xydata().tolist() == [[1.0, 1.0]]
    assert sorted(map(tuple, marks["x"].get_xydata().tolist())) == [(0.2, 0.0), (0.3, 1.9)]
    assert marks["."].get_xydata().tolist() == [[0.5, 0.2]]  # at random
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["(1, 1), where DEM is EM: 30.00", "best, (1.3, 0.4): 21.00"]


@pytest.mark.parametrize("trials", [TRIALS[:1], [(1.0, 1.0, 0.3, "ok"), (0.5, 0.5, 0.3, "ok")]])
def test_values_that_are_all_alike_can_be_drawn(tmp_path, trials):
    kept = [
        {"number": k, "tau": t, "alpha": a, "value": v, "status": s, "runs": {}}
        for k, (t, a, v, s) in enumerate(trials)
    ]
    place(
        tmp_path, trials=kept, pair={"tau": 1.0, "alpha": 1.0}, value=0.3, settings={**SETTINGS, "space": "continuous"}
    )
    (found,) = plane.find([tmp_path])
    figure = plane.figure(found)
    figure.write(tmp_path)
    assert figure.svg.startswith("<svg")


def test_the_table_gives_what_was_found_and_what_it_cost(tmp_path):
    place(tmp_path)
    lines = plane.table(plane.find([tmp_path])).csv().splitlines()
    assert lines[1] == "digits-c,net,continual,Tent,1.3,0.4,21.00,30.00,6,12.5,60"


def test_on_the_page_trials_are_no_runs_and_names_are_escaped(tmp_path):
    make_run(tmp_path / "runs")
    folder = place(tmp_path / "runs", model="<b>net</b>")
    make_run(folder / "trials", seed=7)
    assert {run.seed for run in load([tmp_path / "runs"]).runs} == {0}
    page = opened(write_report([tmp_path / "runs"], tmp_path / "out", most_figures=1).read_text())
    assert "search of DEM*, Tent" in page
    assert "&lt;b&gt;net" in page
    assert "<b>net" not in page

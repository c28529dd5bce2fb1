"""Suites: their plans are complete, what is missing is listed, what is selected runs, and what was stopped goes on."""

from __future__ import annotations

import re
import sys
from importlib import resources
from pathlib import Path

import pytest
import yaml

from dembench.harness import sweeps
from dembench.harness.compose import ConfigError, compose, options
from dembench.harness.figures import FIGURES
from dembench.harness.suite import papers, searches, suites
from dembench.harness.suite.available import what_is_missing
from dembench.harness.suite.costs import Cost, Costs
from dembench.harness.suite.sweepfile import write_sweep
from dembench.scripts import suite as command
from dembench.scripts.cli import main

CONFIGS = Path(str(resources.files("dembench.configs")))
LOSSES = {"em", "dem", "dem_star", "adadem"}


@pytest.fixture
def no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEMBENCH_DATA", str(tmp_path / "nothing"))


@pytest.fixture(scope="module")
def figures() -> dict:
    return suites.read_suite("paper").costs


@pytest.mark.parametrize("name", ["quick", "full"])
def test_a_suite_has_all_tasks_and_all_four_losses(name: str) -> None:
    losses: dict[str, set[str]] = {}
    for words in suites.runs_of(suites.read_suite(name)):
        losses.setdefault(words["task"], set()).add(words["loss"])
    assert set(losses) == {path.stem for path in (CONFIGS / "task").glob("*.yaml")}
    assert set.union(*losses.values()) >= LOSSES
    at_least = {"em", "dem", "adadem"} if name == "quick" else LOSSES
    assert {task: at_least - found for task, found in losses.items() if at_least - found} == {}


def test_full_has_every_method_and_three_seeds_on_embedded_data() -> None:
    seeds: dict[tuple[str, str], set[int]] = {}
    for words in suites.runs_of(suites.read_suite("full")):
        seeds.setdefault((words["task"], words["method"]), set()).add(words["seed"])
    files = {(path.parent.name, path.stem) for path in (CONFIGS / "method").glob("*/*.yaml")}
    assert set(seeds) == files
    assert all(len(found) >= 3 for found in seeds.values())


def test_every_run_of_the_suites_has_names_that_exist() -> None:
    for name in ("quick", "full"):
        seen = set()
        for words in suites.runs_of(suites.read_suite(name)):
            key = tuple(words.get(group) for group in ("task", "method", "data", "model", "protocol"))
            if key not in seen and seen.add(key) is None:
                for group, task in (("method", key[0]), ("data", key[0]), ("model", key[0]), ("protocol", key[0])):
                    assert group not in words or words[group] in options(group, task), words


def test_a_run_of_dem_star_and_its_neighbours_are_judged_on_the_same_samples() -> None:
    for name in ("quick", "full"):
        parts: dict[tuple, set] = {}
        searched = set()
        for words in suites.runs_of(suites.read_suite(name)):
            if words["task"] in ("tta", "prompt", "segmentation"):  # where a search would see samples that are judged
                key = words["task"], words["data"]
                parts.setdefault(key, set()).add(words.get("part", "all"))
                searched |= {key} if words["loss"] == "dem_star" else set()
        assert searched
        assert {key: parts[key] for key in searched} == {key: {"rest"} for key in searched}


def test_paper_lists_every_study_and_every_figure_of_the_repository() -> None:
    files = {path.stem for path in (CONFIGS / "sweep" / "study").glob("*.yaml")}
    assert set(papers.names()) == files | set(FIGURES)
    assert len(papers.names()) == len(set(papers.names()))


def test_paper_accounts_for_every_table_and_figure_of_both_sources(figures: dict) -> None:
    stated = {f"dem_table{i}" for i in range(1, 16)} | {f"dem_figure{i}" for i in range(1, 13)}
    stated |= {f"ttc_table{i}" for i in range(1, 8)} | {f"ttc_figure{i}" for i in range(1, 4)}
    listed = {re.sub(r"_(left|right)$", "", name) for name in (*papers.names(), *figures["absent"])}
    assert stated - listed == {"dem_figure8"}
    assert "Figures 6 and 8" in (CONFIGS / "sweep" / "study" / "dem_figure6.yaml").read_text()


def test_names_are_in_reading_order() -> None:
    names = papers.names()
    assert names.index("dem_table3") < names.index("dem_table12") < names.index("ttc_table1") < names.index("semi_bias")


def test_settings_of_an_item_are_those_of_its_file(no_data: None) -> None:
    (item,) = papers.items(["ttc_table1"])
    first, *others = item.settings
    assert (first.data, first.paper, first.lacks, first.runs) == (["digits"], False, [], 18)
    assert [setting.data for setting in others] == [["cifar10c"], ["cifar100c"], ["imagenet_c"]]
    assert all(setting.lacks and setting.runs == 18 for setting in others)
    assert any("dembench data fetch cifar10c" in lack for lack in others[0].lacks)
    assert any("wrn28_10" in lack for lack in others[0].lacks)
    run = others[2].groups[0].runs[-1]
    assert run["model.weights"] == "IMAGENET1K_V1"
    assert "data.root" not in run
    source = next(run for run in others[2].groups[0].runs if run["method"] == "source")
    assert "method.lr" not in source  # it has no such option


TENT = {"task": "tta", "method": "tent", "loss": "em"}


def test_a_papers_settings_ask_for_what_the_user_has_to_give(tmp_path: Path) -> None:
    study = tmp_path / "sweep" / "study" / "own.yaml"
    study.parent.mkdir(parents=True)
    study.write_text(
        "# About: x\nbase: {task: tta, data: digits}\ngrids: [{method: tent, loss: em}]\n"
        'paper:\n  - {data: cifar10c, data.root: "???", model: wrn28_10, model.weights: "???", seed: [1, 2]}\n'
    )
    (item,) = papers.items(["own"], config_dir=tmp_path, check=False)
    own, paper = item.settings
    assert (own.paper, own.asked, own.groups[0].runs) == (False, (), ({**TENT, "data": "digits"},))
    assert (paper.paper, paper.asked) == (True, ("data.root", "model.weights"))
    assert paper.groups[0].runs == tuple({**TENT, "data": "cifar10c", "model": "wrn28_10", "seed": n} for n in (1, 2))
    (item,) = papers.items(["own"], ["data.root=x", "seed=0"], config_dir=tmp_path, check=False)
    assert item.settings[1].asked == ("model.weights",)
    assert [run["seed"] for run in item.settings[1].groups[0].runs] == [0]
    study.write_text("grids: []\npaper: {data: cifar10c}\n")
    with pytest.raises(ConfigError, match="sweep study=own: paper must be a list of mappings"):
        papers.items(["own"], config_dir=tmp_path, check=False)


def test_weights_of_another_number_of_classes_must_be_given(no_data: None) -> None:
    words = ["model.weights=x"]
    (item,) = papers.items(["ttc_table3"], data=["cifar100c"])
    assert any("trained on the classes of cifar100c" in lack for lack in item.settings[0].lacks)
    (item,) = papers.items(["ttc_table3"], words, data=["cifar100c"])
    assert not any("trained on the classes" in lack for lack in item.settings[0].lacks)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["quik"], "unknown suite 'quik'; nearest: quick; valid: full, paper, quick"),
        (["paper", "dem_tabel3"], "unknown table, figure or study 'dem_tabel3'; nearest: dem_table"),
        (["paper", "--only", "ttta"], "unknown task 'ttta'; nearest: tta"),
        (["quick", "dem_table3"], "suite quick has no tables and figures to choose from; expected key=value"),
        (["quick", "--only", "semi", "--data", "cifar10c"], "suite quick has no runs of semi on cifar10c"),
        (["quick", "--workers", "-1"], "--workers: expected at least 0, got -1"),
        (["paper", "semi_bias", "--data", "cifar10c"], "nothing is of task any on data cifar10c"),
    ],
)
def test_mistakes_are_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["suite", *argv]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert message in said.err


def test_what_is_missing_says_how_to_get_it(no_data: None) -> None:
    assert what_is_missing({"task": "semi", "data": "digits", "model": "convnet"}) == []
    (data,) = what_is_missing({"task": "semi", "data": "cifar10"})
    assert data.startswith("data=cifar10: cifar-10-python.tar.gz")
    assert data.endswith("(data.images.root is not given)")
    (model,) = what_is_missing({"task": "tta", "data": "digits", "model": "cifar_resnet20"})
    assert "github.com/akamaster/pytorch_resnet_cifar10" in model


@pytest.mark.data
def test_what_is_there_is_found() -> None:
    assert what_is_missing({"task": "tta", "data": "cifar10_jpeg", "model": "cifar_resnet20"}) == []


def test_dry_run_lists_what_is_missing_and_writes_nothing(
    no_data: None, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    argv = ["suite", "paper", "ttc_table2", "--dry-run", "--out", str(tmp_path / "out")]
    assert main(argv) == 0
    said = capsys.readouterr()
    assert "missing, and left out:" in said.err
    assert "dembench data fetch cifar10c" in said.err
    assert re.search(r"about .* with \d+ CPUs", said.err)
    assert not (tmp_path / "out").exists()


def words_of(**values: object) -> dict:
    return {key.replace("__", "."): value for key, value in values.items()}


def test_costs_are_counts_times_measured_figures(figures: dict) -> None:
    costs = Costs(figures)
    tta = figures["tta"]["models"]["wrn28_10"]
    run = words_of(task="tta", data="cifar10c", model="wrn28_10", method="tent", loss="em", seed=0)
    cost = costs.one(run)
    assert cost.gflop == pytest.approx(10_000 * 15 * 3 * tta["gflop"])  # forward 1, backward 2
    assert cost.cpu_seconds == pytest.approx(10_000 * 15 * 3 * tta["cpu_seconds"])
    assert costs.of([run, {**run, "seed": 1, "loss": "adadem"}]).gflop == pytest.approx(2 * cost.gflop)
    few = costs.one({**run, "data.num_images": 100, "protocol.corruptions": ["fog", "snow"]})
    assert few.gflop == pytest.approx(200 * 3 * tta["gflop"])


def test_the_compute_of_a_training_run_is_that_of_its_images(figures: dict) -> None:
    """ViT-S/2 for 204,800 iterations of 8 and 8: Ent. Min. 119, FixMatch 179, VAT 239 PFLOP by a count of its own."""
    costs = Costs(figures)
    run = words_of(task="semi", data="cifar100", model="vit_small_patch2_32", protocol="usb")
    for method, pflop in (("ent_min", 119), ("fixmatch", 179), ("vat", 239)):
        assert costs.one({**run, "method": method}).gflop * 1e-6 == pytest.approx(pflop, rel=0.01)
    assert costs.one({**run, "method": "ent_min"}).gpu_hours == pytest.approx(119e15 / 1e14 / 3600, rel=0.01)


def test_what_was_not_measured_is_unknown_and_stays_so_in_a_sum(figures: dict) -> None:
    costs = Costs(figures)
    known = words_of(task="semi", data="digits", method="ent_min")
    unknown = words_of(task="tta", data="cifar10c", model="wrn40_2_augmix", method="tent")
    assert costs.one(known).cpu_seconds > 0
    assert costs.one(known).gflop is None
    assert costs.one(unknown) == Cost()
    assert costs.of([known, unknown]).cpu_seconds is None


def test_a_finished_run_of_the_same_kind_tells_more_than_a_figure(figures: dict) -> None:
    cfg = compose({"task": "semi", "data": "digits", "method": "vat", "loss": "em"})
    past = {"config": yaml.safe_load(yaml.safe_dump(_plain(cfg))), "cost": {"wall_seconds": 77.0}}
    costs = Costs(figures, [past])
    assert costs.one(words_of(task="semi", data="digits", method="vat", loss="adadem", seed=3)).cpu_seconds == 77.0
    assert costs.one(words_of(task="semi", data="digits", method="ent_min")).cpu_seconds != 77.0
    longer = words_of(task="semi", data="digits", method="vat", protocol__iterations=400)
    assert costs.one(longer).cpu_seconds != 77.0


def _plain(cfg: object) -> dict:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(cfg, resolve=True)


def test_a_sweep_file_says_the_same_runs(tmp_path: Path) -> None:
    many = [
        words_of(task="tta", protocol__corruptions=["fog"], method__lr=1e-05, seed=seed, data__frost=None)
        for seed in (0, 1)
    ]
    many.append(words_of(task="semi", method__augment="x: y", seed=0))
    again = sweeps.expand(sweeps.read_sweep(str(write_sweep(tmp_path / "sweep.yaml", many, "two"))))
    assert sorted(map(str, (dict(sorted(w.items())) for w in again))) == sorted(
        map(str, (dict(sorted(w.items())) for w in many))
    )


def test_one_search_serves_all_seeds_and_ways_to_judge(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    run = words_of(task="semi", method="ent_min", loss="dem_star", out=str(tmp_path))
    many = [{**run, "seed": seed} for seed in (0, 1, 2)] + [{**run, "loss": "em"}, {**run, "method": "vat", "seed": 0}]
    found = searches.needed(many)
    assert [search.words["method"] for search in found] == ["ent_min", "vat"]
    assert [len(search.runs) for search in found] == [3, 1]
    assert all("seed" not in search.words and "loss" not in search.words for search in found)
    assert not any(search.done for search in found)


OWN = """# About: a suite of one's own
search: {{trials: 2, startup: 1}}
parts:
  - base: {{task: stub, data.root: "{root}"}}
    grids: [{{seed: [0, 1]}}, {{protocol.mode: crash-on-2, seed: 2}}]
  - base: {{task: stub, data.root: "{root}/nothing"}}
    grids: [{{method.lr: 0.5, data: file, model: none}}]
"""


@pytest.fixture
def own_suite(tmp_path: Path, stub_configs: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A suite of stub runs: two that work, one that fails, one whose data is missing."""
    import shutil

    shutil.copytree(stub_configs, tmp_path / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.delitem(sys.modules, "dembench_stub", raising=False)  # the copy's module is meant, and no other
    monkeypatch.syspath_prepend(tmp_path / "configs")
    (tmp_path / "data.txt").write_text("images")
    (tmp_path / "configs" / "suite").mkdir()
    (tmp_path / "configs" / "suite" / "mine.yaml").write_text(OWN.format(root=tmp_path / "data.txt"))
    own = ["--config-dir", str(tmp_path / "configs"), "--out", str(tmp_path / "out"), "--workers", "0"]
    return ["suite", "mine", *own]


def test_a_suite_runs_what_is_here_reports_it_and_goes_on(
    own_suite: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(own_suite) == 1  # one run fails, and that is said
    said = capsys.readouterr()
    assert "data=file" in said.err
    assert "nothing" in said.err
    assert "2 run" in said.err
    assert "1 failed" in said.err
    page = Path(said.out.splitlines()[-1].removeprefix("report: "))
    assert page == (tmp_path / "out" / "index.html").resolve()
    assert "stub" in page.read_text()
    assert main(own_suite) == 1
    assert "3 runs: 2 done, 1 to run" in capsys.readouterr().err
    grids = yaml.safe_load((tmp_path / "out" / "sweep.yaml").read_text())["grids"]
    assert [grid["seed"] for grid in grids] == [[0, 1], [2]]


def test_only_a_search_that_failed_takes_its_runs_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("optuna")
    ran: list[str] = []
    outcome = {"of": (None, "failed: no")}
    monkeypatch.setattr(searches, "_attempt", lambda words, *_: outcome["of"])
    monkeypatch.setattr("dembench.scripts.sweep.sweep", lambda file, *_: ran.append(Path(file).read_text()) or 0)
    argv = ["suite", "quick", "--only", "longtail", "--out", str(tmp_path), "--workers", "0"]
    assert main(argv) == 1
    assert "3 runs are left out, whose search failed" in capsys.readouterr().err
    assert "dem_star" not in ran[0]
    assert "adadem" in ran[0]
    assert len(ran) == 1  # what needs no search, before it
    outcome["of"] = ("x", "")
    assert main(argv) == 0
    assert ["dem_star" in text for text in ran] == [False, False, True]
    assert all(name in (tmp_path / "sweep.yaml").read_text() for name in ("dem_star", "adadem"))


def test_a_method_that_cannot_be_planned_is_left_out_and_named(
    own_suite: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "configs" / "suite" / "mine.yaml"
    good, bad = "{seed: [0, 1]}", "{method.speed: walking, seed: 0}"  # a value that the method does not take
    file.write_text(f"parts: [{{base: {{task: stub, data.root: {tmp_path / 'data.txt'}}}, grids: [{good}, {bad}]}}]")
    assert main(own_suite) == 1
    said = capsys.readouterr()
    assert "left out: unknown method.speed 'walking'" in said.err
    assert "2 run" in said.err
    assert "report: " in said.out


def test_a_figure_is_drawn_with_the_runs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert command.draw(["dem_figure4"], tmp_path / "runs", tmp_path / "figures") == 0
    path = Path(capsys.readouterr().out.strip().removeprefix("figure: "))
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("text", ["- 1\n", "prts: []\n", "parts: 3\n", "parts: [{bse: {}}]\n", "a: [1\n"])
def test_a_broken_suite_file_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite" / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match="suite mine") as caught:
        suites.read_suite("mine", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("seconds", "text"), [(45, "45 s"), (720, "12 min"), (12240, "3.4 h"), (4.32e6, "1,200 h")])
def test_durations(seconds: float, text: str) -> None:
    assert command.hours(seconds) == text

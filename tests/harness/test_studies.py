"""The sources' studies: sweep files that compose, and figures against closed forms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from report_runs import EM as ERRORS
from report_runs import make_run
from scipy import stats

from dembench.core import EM
from dembench.harness.compose import compose, header, options, read_option
from dembench.harness.figures import STUDIES, densities, descent
from dembench.harness.sweeps import axes, expand, fit, read_overrides, read_sweep
from dembench.report.read.reference import references
from dembench.scripts.figure import main

OWN = [name for name in options("sweep/study") if name.startswith(("ttc_", "all_methods")) or name in {
    "dem_table1", "dem_table2_left", *(f"dem_table{n}" for n in (5, 6, 11, 12, 13, 14)),
    *(f"dem_figure{n}" for n in (2, 3, 4, 9, 10, 11, 12)),
}]  # fmt: skip


def test_every_table_and_figure_has_a_study():
    names = {*OWN, *STUDIES}
    assert {f"ttc_table{n}" for n in range(1, 8)} | {f"ttc_figure{n}" for n in range(1, 4)} <= names
    assert {f"dem_table{n}" for n in ("1", "2_left", "5", "6", "11", "12", "13", "14")} <= names
    assert {f"dem_figure{n}" for n in (2, 3, 4, 9, 10, 11, 12)} <= names


@pytest.mark.parametrize("name", OWN)
def test_studies_compose_and_take_overrides(name: str):
    assert header(read_option("sweep/study", name), "About")
    sweep = read_sweep(f"study={name}")
    for grid in sweep["grids"]:
        words = expand({"base": sweep["base"], "grids": [grid]})
        cfg = compose(words[0])
        assert cfg.choices.task == "tta"
        other = read_overrides(["data=cifar10_jpeg", "data.num_images=100", "model=cifar_resnet20", "seed=7"])
        moved = expand({"base": sweep["base"], "grids": [grid]}, other)
        assert {(w["data"], w["model"], w["seed"]) for w in moved} == {("cifar10_jpeg", "cifar_resnet20", 7)}
        assert compose(moved[-1]).seed == 7


PAPER = [(name, number) for name in OWN for number in range(len(read_sweep(f"study={name}")["paper"]))]


@pytest.mark.parametrize(("name", "number"), PAPER)
def test_the_papers_settings_of_a_study_fit_it(name: str, number: int):
    """They compose in every grid, and take no values away that the study compares."""
    sweep = read_sweep(f"study={name}")
    overrides = axes(sweep["paper"][number])
    overrides = {key: ["DIR"] if values == ["???"] else values for key, values in overrides.items()}
    words, _ = fit(expand(sweep, overrides), overrides)
    for key in {json.dumps({k: v for k, v in w.items() if k != "seed"}): w for w in words}.values():
        cfg = compose(key)
        if cfg.choices.model == "wrn28_10":
            assert cfg.model.num_classes == (100 if cfg.choices.data == "cifar100c" else 10)
        if cfg.choices.data == "imagenet_c" and cfg.choices.model == "torchvision":
            assert cfg.model.weights == "IMAGENET1K_V1"  # DEFAULT is a later recipe than the papers'
    own = {tuple(sorted(w)) for w in expand(sweep)}
    for key in {k for keys in own for k in keys if k.startswith(("method.", "loss."))} & set(overrides):
        values = {w[key] for w in expand(sweep) if not isinstance(w.get(key, []), list)}
        assert len(values) == 1, f"{key} is what the study varies"


def test_dem_has_the_published_pair_of_its_method_and_protocol():
    """Against the reference file, which holds the same numbers for another reader."""
    optima = {r.name: r for r in references()}["dem_optima"]
    published = {}
    for name, numbers in optima.rows:
        if "ViT" not in name:
            tau, alpha, tau_continual, alpha_continual = (number.value for number in numbers)
            published[numbers[0].method] = {
                "single_domain": (tau, alpha),
                "continual": (tau_continual, alpha_continual),
            }
    for study in ("all_methods_cifar10_jpeg", "dem_table2_left", "dem_table11", "dem_table12"):
        for words in expand(read_sweep(f"study={study}")):
            if words["loss"] == "dem":
                method = words["method"].partition("_")[0]
                expected = published["tent" if method in ("ttc", "tipi") else method][words["protocol"]]
                assert (words["loss.tau"], words["loss.alpha"]) == expected


@pytest.mark.parametrize("classes", descent.CLASSES)
def test_descent_takes_the_gradient_of_the_entropy(classes: int):
    p = descent.start(classes)
    lines = descent.descend(EM(), p, steps=40, rate=0.3)
    q = p.numpy()
    for line in lines:  # dH/dz = -p (log p + H)
        np.testing.assert_allclose(line, q, atol=1e-12)
        z = np.log(q)
        z = z + 0.3 * q * (z - (q * z).sum())
        q = np.exp(z) / np.exp(z).sum()
    assert (np.diff(lines[:, 0]) > 0).all()  # lemma 1: the largest probability grows
    np.testing.assert_allclose(lines.sum(1), 1)


def test_overlap_of_densities():
    draws = np.random.default_rng(0)
    a = draws.normal(0, 1, (20_000, 2))
    assert densities.overlap(a, a) == pytest.approx(1)
    assert densities.overlap(a, a + 100) == 0
    shifted = draws.normal(1, 1, (20_000, 2))
    assert densities.overlap(a, shifted) == pytest.approx(2 * stats.norm.cdf(-0.5), abs=0.02)  # of N(0, 1) and N(1, 1)
    assert densities.overlap(np.ones((5, 1)), np.ones((5, 1))) == 1


def test_features_are_the_inputs_of_the_classifier():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(12), torch.nn.ReLU(), torch.nn.Linear(12, 3))
    batches = [(torch.randn(5, 3, 2, 2), torch.zeros(5, dtype=torch.long)) for _ in range(2)]
    expected = torch.cat([model[:3](x) for x, _ in batches]).detach().numpy()
    np.testing.assert_allclose(densities.collect(model, batches), expected)


def test_figures_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for tau in (0.5, 1.0, 1.5):
        make_run(tmp_path / "runs", ERRORS[0], loss="dem", params={"tau": tau, "alpha": 1.0})
    assert main(["dem_figure3", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert main(["ttc_figure1", "--out", str(tmp_path / "out")]) == 0
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == {f"{name}.{suffix}" for name in ("dem_figure3", "ttc_figure1") for suffix in ("png", "pdf", "md")}
    assert main(["dem_figure4", "--runs", str(tmp_path / "runs")]) == 2  # nothing over alpha in these runs
    assert main(["ttc_figure1", "seed=1"]) == 2
    assert main(["ttc_figure3", "method=sar"]) == 2
    assert main(["ttc_figure9"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4
    words = ("nothing that it shows", "no settings", "own methods", "ttc_figure3")
    assert all(word in line for word, line in zip(words, errors, strict=True))

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
from dembench.harness.figures import FIGURES, densities, descent
from dembench.harness.sweeps import axes, expand, fit, read_overrides, read_sweep
from dembench.report.read.reference import references
from dembench.scripts.figure import main

STARTS = ("ttc_", "all_methods", "imagenet_", "tiny_")
OWN = [name for name in options("sweep/study") if name.startswith(STARTS) or name in {
    "dem_table1", "dem_table2_left", *(f"dem_table{n}" for n in (5, 6, 11, 12, 13, 14)),
    *(f"dem_figure{n}" for n in (2, 3, 4, 9, 10, 11, 12)),
}]  # fmt: skip


def test_every_table_and_figure_has_a_study():
    names = {*OWN, *FIGURES}
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
    """Against the reference file, which holds the same numbers for another reader; Tent has those of two networks."""
    optima = {r.name: r for r in references()}["dem_table11"]
    published: dict[tuple[str, str], set[tuple[float, float]]] = {}
    for _, numbers in optima.rows:
        tau, alpha, tau_continual, alpha_continual = (number.value for number in numbers)
        for protocol, pair in (("single_domain", (tau, alpha)), ("continual", (tau_continual, alpha_continual))):
            if pair[0] * pair[1] <= 2:  # the paper's Proposition A.1
                published.setdefault((numbers[0].method, protocol), set()).add(pair)
    studies = (
        "all_methods_cifar10_jpeg",
        "dem_table1",
        "dem_table2_left",
        "dem_table5",
        "dem_table6",
        "imagenet_sample",
    )
    for study in studies:
        found: dict[tuple[str, str], set[tuple[float, float]]] = {}
        for words in expand(read_sweep(f"study={study}")):
            pair = (words.get("loss.tau"), words.get("loss.alpha"))
            if words["loss"] == "dem" and pair != (1.0, 0.0):  # CADF
                method = words["method"].partition("_")[0]
                found.setdefault((method, words["protocol"]), set()).add(pair)
        for (method, protocol), pairs in found.items():
            assert pairs <= published["tent" if method in ("ttc", "tipi") else method, protocol]
        if study in ("dem_table2_left", "imagenet_sample"):
            methods = {
                "dem_table2_left": ("tent", "eta", "eata", "deyo", "sar"),
                "imagenet_sample": ("tent", "eta", "sar"),
            }
            assert set(found) == {(m, p) for m in methods[study] for p in ("single_domain", "continual")}


def test_studies_of_one_protocol_are_the_details_of_those_of_both():
    """Tables 12 and 13 are Table 1 per corruption, 5 and 6 Table 2, left; Figure 9 has Table 14's rates."""

    def runs(name: str) -> set[str]:
        return {json.dumps(words, sort_keys=True) for words in expand(read_sweep(f"study={name}"))}

    assert runs("dem_table12") | runs("dem_table13") == runs("dem_table1")
    assert runs("dem_table5") | runs("dem_table6") == runs("dem_table2_left")
    assert runs("imagenet_sample_tent") < runs("imagenet_sample")
    by_rate = [{w["method.lr"] for w in expand(read_sweep(f"study={n}"))} for n in ("dem_figure9", "dem_table14")]
    (reference,) = [r for r in references() if r.name == "dem_table14"]
    assert by_rate == [{numbers[0].made_with["lr"] for _, numbers in reference.rows}] * 2


@pytest.mark.parametrize(
    "name", [f"dem_{n}" for n in ("table1", "table12", "table13", "table14", "figure3", "figure9")]
)
def test_ablations_have_tent_with_plain_sgd(name: str):
    words = [w for w in expand(read_sweep(f"study={name}")) if w["method"] == "tent"]
    assert {w["method.optimizer"] for w in words} == {"sgd"}


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

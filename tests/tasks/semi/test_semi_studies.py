"""The studies compose as they stand, and with the settings of the paper in their key ``paper``."""

from __future__ import annotations

import pytest

from dembench.harness.compose import compose, header, options, read_option
from dembench.harness.sweeps import axes, expand, read_sweep

OWN = [name for name in options("sweep/study") if name.startswith("semi_")] + [
    *("dem_table3", "dem_table8", "dem_table9", "dem_table15", "dem_figure5")
]
PAPER = [(name, number) for name in OWN for number in range(len(read_sweep(f"study={name}")["paper"]))]


@pytest.mark.parametrize("name", OWN)
def test_a_study_composes(name: str) -> None:
    assert header(read_option("sweep/study", name), "About")
    sweep = read_sweep(f"study={name}")
    for grid in sweep["grids"]:
        words = expand({"base": sweep["base"], "grids": [grid]})
        assert compose(words[0]).choices.task in ("semi", "longtail")
        assert len({str(w) for w in words}) == len(words)


@pytest.mark.parametrize(("name", "number"), PAPER)
def test_a_study_takes_the_papers_settings(name: str, number: int) -> None:
    sweep = read_sweep(f"study={name}")
    overrides = axes(sweep["paper"][number])
    words = expand(sweep, overrides | {"data.images.root": ["DIR"], "model.weights": ["FILE"]})
    cfg = compose(words[-1])
    assert cfg.protocol.iterations == 204800
    assert cfg.model.arch.startswith("vit_")
    assert cfg.data.images.root == "DIR"
    assert {w["seed"] for w in words} == {0, 1, 2}


def test_losses_replace_or_are_added_as_in_the_paper() -> None:
    for name in ("dem_table3", "dem_table8", "dem_table9"):
        pairs = {(w["method"], w["loss"]) for w in expand(read_sweep(f"study={name}"))}
        assert pairs == {(m, loss) for m in ("ent_min", "vat") for loss in ("em", "adadem")} | {
            (m, loss) for m in ("mixmatch", "fixmatch", "freematch") for loss in ("none", "adadem")
        }


def test_the_plane_of_dem_keeps_to_the_proposition() -> None:
    for words in expand(read_sweep("study=semi_dem_plane")):
        assert 0 < words["loss.tau"] <= 2 / words["loss.alpha"]

"""The studies of segmentation compose, also as the paper's own with other data."""

import pytest

from dembench.harness.compose import compose, header, read_option
from dembench.harness.sweeps import axes, expand, fit, read_sweep
from dembench.report.read.reference import references

STUDIES = ("dem_table4", "dem_table10", "dem_figure7", "seg_street", "seg_camvid", "seg_weight", "seg_resolution")


@pytest.mark.parametrize("name", STUDIES)
def test_studies_compose(name):
    assert header(read_option("sweep/study", name), "About")
    sweep = read_sweep(f"study={name}")
    for grid in sweep["grids"]:
        words = expand({"base": sweep["base"], "grids": [grid]})
        cfg = compose(words[0])
        assert cfg.choices.task == "segmentation"
        assert "weight" not in cfg.method or cfg.method.aux_weight == pytest.approx(cfg.method.weight / 5)


@pytest.mark.parametrize("name", [name for name in STUDIES if name.startswith("dem")])
def test_the_papers_settings_of_a_study_fit_it(name):
    sweep = read_sweep(f"study={name}")
    overrides = axes(sweep["paper"][0]) | {"data.source": ["DIR"], "data.root": ["DIR"], "model.weights": ["FILE"]}
    words, _ = fit(expand(sweep, overrides), overrides)
    for word in words[:: max(1, len(words) // 4)]:
        cfg = compose(word)
        assert (cfg.choices.data, cfg.choices.model) == ("gta5", "deeplabv2_resnet101")
        assert cfg.protocol.iterations == 120_000
        assert "weight" not in cfg.method or cfg.method.weight == 0.001


def test_the_two_pairs_are_compared_by_the_same_methods():
    street, camvid = (
        [{k: w[k] for k in w if not k.startswith(("data", "protocol"))} for w in expand(read_sweep(f"study={s}"))]
        for s in ("seg_street", "seg_camvid")
    )
    assert street == camvid


def test_published_numbers_are_those_of_the_slides():
    table = {reference.name: reference for reference in references()}["dem_table4"]
    assert [number.value for _, number in table.numbers()] == [41.6, 42.7, 43.6, 44.6, 44.9]

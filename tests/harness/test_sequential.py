"""Seeds that are added until an interval is narrow: coverage by simulation, the rule as written, and the records."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from dembench_rates import error
from scipy import stats

from dembench.harness.compose import ConfigError
from dembench.harness.sequential import Until, half_width, read_until
from dembench.report.judge.group import build_blocks
from dembench.report.judge.stats import estimate
from dembench.report.judge.verdict import verdicts
from dembench.report.read.load import load
from dembench.scripts import sweep as command

CONFIGS = Path(__file__).parent.parent / "support" / "rates_configs"
RULE = Until("", {}, "adadem", "em", 1.0, 20)


def stopped(rng, stop, looks, counted):
    """The interval's half width and the error of the mean of standard normal differences, at the look that ``stop``
    (mean, half) chooses, or the last."""
    values = rng.normal(0, 1, looks[-1])
    for n in looks:
        half = half_width(values[:n].tolist(), counted)
        if stop(values[:n].mean(), half):
            break
    return half, abs(values[:n].mean())


@pytest.mark.parametrize("stop", [lambda mean, half: half <= 1.0, lambda mean, half: abs(mean) > half])
def test_the_interval_holds_whatever_made_it_stop(stop):
    looks = RULE.looks(3)
    assert looks == [3, 5, 8, 12, 18, 20]
    rng = np.random.default_rng(0)
    drawn = [stopped(rng, stop, looks, len(looks)) for _ in range(4000)]
    assert np.mean([miss <= half for half, miss in drawn]) >= 0.95


def test_an_interval_that_forgets_its_looks_does_not():
    rng = np.random.default_rng(0)
    drawn = [stopped(rng, lambda mean, half: abs(mean) > half, RULE.looks(3), 1) for _ in range(4000)]
    assert np.mean([miss <= half for half, miss in drawn]) < 0.9


def test_the_level_is_shared_among_the_looks():
    values = [1.0, 0.2, -0.4, 0.7]
    low, high = stats.t.interval(1 - 0.05 / 6, 3, np.mean(values), stats.sem(values))
    assert half_width(values, 6) == pytest.approx((high - low) / 2)
    assert (estimate(values, 6).low, estimate(values, 6).high) == pytest.approx((low, high))
    assert half_width([1.0], 6) == math.inf
    assert half_width([1.0, 1.0], 6) == 0


@pytest.mark.parametrize("text", ["method=tent: adadem-em +-0.3", "method=tent:adadem - em ±0.3", "adadem-em +/-0.3"])
def test_rules_as_written(text):
    until = read_until(text, 20)
    assert (until.a, until.b, until.half) == ("adadem", "em", 0.3)
    assert until.filters == ({"method": "tent"} if "tent" in text else {})


@pytest.mark.parametrize("text", ["", "adadem", "adadem-em", "adadem-em +-x", "adadem-em +-0", "tent: adadem-em +-1"])
def test_rules_that_make_no_sense(text):
    with pytest.raises(ConfigError, match="expected"):
        read_until(text, 20)


def test_a_sweep_adds_seeds_says_so_and_the_report_widens_the_interval(tmp_path, capsys):
    out, file = tmp_path / "runs", tmp_path / "grid.yaml"
    grid = {"task": "rates", "loss": ["em", "adadem"], "seed": [0, 1, 2], "progress": False, "out": str(out)}
    file.write_text(json.dumps({"grids": [grid]}))
    argv = [str(file), "--config-dir", str(CONFIGS), "--workers", "0"]
    assert command.main([*argv, "--until", "method=walk: adadem-em +-0.1", "--max-seeds", "9"]) == 0
    # adadem - em: 2 points, and 0.05 a seed: sd 0.05, 0.079, 0.122, 0.137 of the first 3, 5, 8, 9 seeds
    looks = [3, 5, 8, 9]
    gains = {n: [100 * (error("AdaDEM", 1e-3, s) - error("EM", 1e-3, s)) for s in range(n)] for n in looks}
    halves = {n: stats.t.ppf(1 - 0.05 / 4 / 2, n - 1) * stats.sem(gains[n]) for n in looks}
    assert halves[3] > 0.1
    expected = next((n for n in looks if halves[n] <= 0.1), 9)
    assert f"+-{halves[expected]:.3g} with {expected} seeds, asked +-0.1" in capsys.readouterr().err
    runs = load([out]).runs
    assert len(runs) == 2 * expected
    assert {run.looks for run in runs} == {4}
    (verdict,) = verdicts(build_blocks(runs)[0])
    assert (verdict.best.high - verdict.best.low) / 2 == pytest.approx(halves[expected])
    assert "95% interval over 4 looks" in verdict.sentence
    before = {run.id for run in runs}
    assert command.main([*argv, f"seed={','.join(map(str, range(expected)))}"]) == 0  # the ids are those of any sweep
    assert {run.id for run in load([out]).runs} == before
    assert command.main([*argv, "--until", "method=other: adadem-em +-1"]) == 2
    assert "names none of the runs" in capsys.readouterr().err

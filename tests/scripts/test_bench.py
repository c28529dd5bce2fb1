import argparse
import importlib

import pytest

from dembench.scripts import bench
from dembench.scripts.bench import timing


@pytest.mark.parametrize("name", bench.BENCHES)
def test_every_bench_keeps_the_contract(name):
    module = importlib.import_module(f"dembench.scripts.bench.{name}")
    assert module.HELP
    assert "\n" not in module.HELP
    module.add_arguments(argparse.ArgumentParser())
    assert callable(module.run)


def test_the_list_names_every_bench(capsys):
    assert bench.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in bench.BENCHES)


def test_a_misspelt_bench_brings_the_nearest(capsys):
    assert bench.main(["los"]) == 2
    assert "nearest: loss" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--threads", "0"], ["--seconds", "0"], ["--json", "no/such/folder/file.json"]])
def test_wrong_options_end_before_any_work(wrong, capsys):
    assert bench.main(["loss", *wrong]) == 2
    assert wrong[0] in capsys.readouterr().err


def test_calls_are_timed_by_turns():
    made = []
    best = timing.best_times({"a": lambda: made.append("a"), "b": lambda: made.append("b")}, "cpu", 1e-9)
    assert made == ["a", "b"] * (len(made) // 2)
    assert len(made) >= 6  # once to warm up, then twice at least
    assert set(best) == {"a", "b"}
    assert all(seconds >= 0 for seconds in best.values())

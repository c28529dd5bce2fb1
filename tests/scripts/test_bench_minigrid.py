"""The bench of the RL paths: one turn of each agent, and a ratio that holds on a busy machine too."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("stable_baselines3", reason='needs pip install "dembench[minigrid]"')
pytest.importorskip("minigrid", reason='needs pip install "dembench[minigrid]"')

from dembench.scripts.cli import main


def test_both_paths_are_timed_next_to_each_other(tmp_path, capsys):
    assert main(["bench", "minigrid", "--rounds", "1", "--json", str(tmp_path / "rl.json")]) == 0
    assert "x stock" in capsys.readouterr().out
    found = {row["name"]: row for row in json.loads((tmp_path / "rl.json").read_text())["results"]}
    assert found["stock, EM"]["ratio"] == 1
    assert {"stock, AdaDEM", "fast, EM", "fast, AdaDEM"} <= set(found)
    assert all(row["ratio"] > 0 for row in found.values())


@pytest.mark.parametrize(
    ("words", "message"), [(["--env", "MiniGrid-DorKey-5x5-v0"], "nearest"), (["--rounds", "0"], "at least 1")]
)
def test_mistakes_are_one_line(words, message, capsys):
    assert main(["bench", "minigrid", *words]) == 2
    assert message in capsys.readouterr().err

"""A method and a loss of a user's own, each a class and a YAML file: found by list, run, sweep and report, which call
them and put them as their files say. Nothing else knows their names."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from report_runs import opened

from dembench.scripts.cli import main

MODULE = """
import torch

from dembench_stub import Method


class Stroll(Method):
    pass


class Halved(torch.nn.Module):
    def forward(self, logits):
        return -0.5 * (logits.softmax(1) * logits.log_softmax(1)).sum(1)
"""
METHOD = """# About: a walk without haste
_target_: strolling.Stroll
_partial_: true
_label_: {title: Stroll at ease, order: 55}
lr: 0.1
"""
LOSS = """# About: half the entropy
_target_: strolling.Halved
_label_: {title: Half of EM, order: 25}
"""


@pytest.fixture
def own(tmp_path: Path, stub_configs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of configurations, with its module in it."""
    folder = tmp_path / "configs"
    shutil.copytree(stub_configs, folder)
    (folder / "method" / "stub" / "stroll.yaml").write_text(METHOD)
    (folder / "loss" / "halved.yaml").write_text(LOSS)
    (folder / "strolling.py").write_text(MODULE)
    (tmp_path / "data.txt").write_text("data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(stub_configs)])
    monkeypatch.delitem(sys.modules, "dembench_stub", raising=False)  # the copy is the one that is meant
    yield folder
    sys.modules.pop("dembench_stub", None)


def test_a_new_method_and_a_new_loss_are_a_class_and_a_file_each(own: Path, capsys: pytest.CaptureFixture[str]):
    here = ["--config-dir", str(own)]
    for group, name, about in (("method", "stroll", "a walk without haste"), ("loss", "halved", "half the entropy")):
        assert main(["list", group, "--task", "stub", *here]) == 0
        assert f"{name} " in (said := capsys.readouterr().out)
        assert about in said

    words = ["task=stub", "data.root=data.txt", "out=runs"]
    assert main(["run", *here, *words, "method=stroll", "loss=halved", "seed=0"]) == 0
    record = json.loads(Path(capsys.readouterr().out.splitlines()[-1]).read_text())
    assert (record["method"], record["loss"]) == ("stroll", "halved")
    assert record["labels"]["method"] == {"title": "Stroll at ease", "order": 55}
    assert record["labels"]["loss"] == {"title": "Half of EM", "order": 25}
    assert "_label_" not in json.dumps(record["config"])

    Path("grid.yaml").write_text("grids: [{method: [walk, stroll], loss: [dem, halved, em], seed: [0, 1]}]")
    assert main(["sweep", "grid.yaml", *here, *words, "--workers", "0"]) == 0

    assert main(["report", "runs", "--out", "out", "--figures", "0"]) == 0
    (table,) = Path("out/tables").glob("main-*.csv")
    rows = list(csv.DictReader(table.open()))
    assert [row["Method"] for row in rows] == ["Stroll at ease", "walk"]  # what has no place is behind what has one
    columns = [name.partition(":")[0] for name in rows[0] if name.endswith(": error (%)")]
    assert [name.partition(" τ")[0] for name in columns] == ["EM", "Half of EM", "DEM"]
    page = opened(Path("out/index.html").read_text())
    assert "Invented numbers" in page  # the task's own title
    assert "lower is better" in page


def test_a_label_is_no_argument_and_moves_no_id(own: Path, capsys: pytest.CaptureFixture[str]):
    paths = []
    words = ["task=stub", "data.root=data.txt", "out=runs", "method=stroll", "loss=halved"]
    for title in ("Stroll at ease", "Another title"):
        (own / "method" / "stub" / "stroll.yaml").write_text(METHOD.replace("Stroll at ease", title))
        assert main(["run", "--config-dir", str(own), *words]) == 0
        paths.append(capsys.readouterr().out.splitlines()[-1])
    assert paths[0] == paths[1]
    assert main(["run", "--config-dir", str(own), *words, "labels.method.title=x"]) == 2
    assert main(["run", "--config-dir", str(own), *words, "method._label_=x"]) == 2

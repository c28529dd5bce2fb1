"""The check of a GPU: parts that fail, hang or come too late cost the others nothing; what was found is on the page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from dembench.core import EM
from dembench.scripts import check
from dembench.scripts.gpu import losses, steps
from dembench.scripts.gpu.page import markdown, table, write
from dembench.scripts.gpu.parts import INTO, Outcome, Part, run_parts
from dembench.scripts.gpu.rows import Rows, read_rows
from dembench.scripts.gpu.timing import median_ms, places_of_waits

ROW = """
import os
print("seen")
with open(os.environ["DEMBENCH_CHECK_INTO"], "a") as stream:
    print('{"table": "T", "cells": {"x": 1}}', file=stream)
"""
HANG = """
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid, flush=True)
time.sleep(60)
"""
THREE = """
import pytest

def test_good(): pass
def test_bad(): assert 1 == 2
def test_skipped(): pytest.skip("no")

@pytest.fixture
def broken(): raise OSError("gone")

def test_error(broken): pass
"""


def python(code: str, limit: float = 20, name: str = "p") -> Part:
    return Part(name, name.upper(), [sys.executable, "-c", code], limit)


def test_a_part_that_fails_or_hangs_costs_the_others_nothing(tmp_path: Path) -> None:
    parts = [
        python(ROW + HANG, 1.5, "hangs"),
        python(f"{ROW}raise SystemExit('why it failed')", name="fails"),
        python(ROW),
    ]
    seen: list[list[str]] = []
    found = run_parts(parts, 60, tmp_path, lambda outcomes: seen.append([o.status for o in outcomes]))
    assert [o.status for o in found] == ["killed", "failed", "done"]
    assert all(o.rows == [{"table": "T", "cells": {"x": 1}}] for o in found)
    assert 1.5 <= found[0].seconds < 10
    assert found[1].last_lines.splitlines() == ["seen", "why it failed"]
    assert seen[0] == ["running", "waiting", "waiting"]
    assert ["killed", "running", "waiting"] in seen
    child = int(found[0].log.split()[-1])
    assert not alive(child)


def alive(pid: int) -> bool:
    """Whether a process runs on; one that is dead and not yet fetched by its new parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_rows_are_seen_before_their_part_ends(tmp_path: Path) -> None:
    counts: list[tuple[str, int]] = []
    part = python(f"{ROW}import time; time.sleep(1.5){ROW}")
    run_parts([part], 60, tmp_path, lambda outcomes: counts.append((outcomes[0].status, len(outcomes[0].rows))))
    assert ("running", 1) in counts
    assert counts[-1] == ("done", 2)


def test_a_part_without_time_is_left_out(tmp_path: Path) -> None:
    parts = [python("import time; time.sleep(30)", 30, "long"), python(ROW, 30, "late")]
    assert [o.status for o in run_parts(parts, 1.0, tmp_path, lambda outcomes: None)] == ["left out", "left out"]
    start = time.monotonic()
    assert [o.status for o in run_parts(parts, 6.0, tmp_path, lambda outcomes: None)] == ["killed", "left out"]
    assert time.monotonic() - start < 12


def test_a_row_that_is_being_written_is_left_for_later(tmp_path: Path) -> None:
    file = tmp_path / "rows"
    assert read_rows(file) == []
    Rows(file).add("T", x=1.5, y=None)
    with file.open("a") as stream:
        stream.write('{"table": "T", "ce')
    assert read_rows(file) == [{"table": "T", "cells": {"x": 1.5, "y": None}}]


def test_the_page_and_the_files(tmp_path: Path) -> None:
    outcome = Outcome(python("pass", name="one"), "failed", 3.2, log="\n".join(f"line {i}" for i in range(40)))
    outcome.rows = [
        {"table": "T", "cells": {"a": 1234.5, "b": "x|y"}},
        {"table": "T", "cells": {"a": 0.01234, "c": None}},
    ]
    write(tmp_path, {"card": "a card"}, [outcome, Outcome(python("pass", name="two"))])
    page = (tmp_path / "gpu.md").read_text()
    assert "- card: a card" in page
    assert "| a | b | c |\n| --- | --- | --- |\n| 1,234 | x\\|y |  |\n| 0.0123 |  |  |" in page
    assert "**failed**, 3 s of at most 20 s" in page
    assert "line 39" in page
    assert "line 20\n" not in page
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert [part["status"] for part in record["parts"]] == ["failed", "waiting"]
    assert record["parts"][0]["rows"] == outcome.rows
    assert "line 0\n" in (tmp_path / "gpu.log").read_text()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["gpu.json", "gpu.log", "gpu.md"]


def test_a_table_has_every_column_of_any_row() -> None:
    assert table([{"a": 1}, {"b": True}])[0] == "| a | b |"
    assert markdown({}, [Outcome(python("pass"))]).count("## P") == 1


def test_the_tests_report_as_they_go(tmp_path: Path) -> None:
    file = tmp_path / "test_three.py"
    file.write_text(THREE)
    into = tmp_path / "rows"
    for workers in ([], ["-n", "1"]):
        into.unlink(missing_ok=True)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "dembench.scripts.gpu.outcomes",
            "-p",
            "no:cacheprovider",
        ]
        environment = {**os.environ, INTO: str(into)}
        subprocess.run([*command, *workers, str(file)], env=environment, cwd=tmp_path, capture_output=True, timeout=60)
        *failures, last = read_rows(into)
        assert last == {"table": "tests", "cells": {"passed": 1, "failed": 2, "skipped": 1}}
        named = {row["cells"]["test"].split("::")[1]: row["cells"] for row in failures}
        assert set(named) == {"test_bad", "test_error"}
        assert "assert 1 == 2" in named["test_bad"]["end"]
        assert named["test_error"]["stage"] == "setup"


def test_one_command_on_the_cpu(tmp_path: Path) -> None:
    """The whole of it but for the device: process, limit, page, exit status."""
    command = [
        sys.executable,
        "-m",
        "dembench",
        "check",
        "gpu",
        "--device",
        "cpu",
        "--part",
        "losses",
        "--out",
        "found",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr + (tmp_path / "found/gpu.log").read_text()
    assert done.stdout.splitlines()[-1] == "found/gpu.md"
    record = json.loads((tmp_path / "found/gpu.json").read_text())
    assert record["about"]["torch"] == torch.__version__
    (part,) = record["parts"]
    assert (part["name"], part["status"]) == ("losses", "done")
    rows = [row["cells"] for row in part["rows"]]
    assert not [row for row in rows if "error" in row]
    assert {row["loss"] for row in rows} >= {"copy", *losses.TEXTBOOKS, "EM", "DEM", "AdaDEM", "AdaDEM, compiled"}
    for title in {row["table"] for row in part["rows"]}:  # the faster textbook is what the others are measured by
        for shape in map(str, losses.TINY):
            mine = [row["cells"] for row in part["rows"] if (row["table"], row["cells"]["shape"]) == (title, shape)]
            assert min(row["x textbook"] for row in mine if row["loss"] in losses.TEXTBOOKS) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_no_device_is_said_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert check.main(["gpu", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"dembench check gpu: PyTorch {torch.__version__} finds no CUDA device here"
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words", [["gpu", "--seconds", "0"], ["gpu", "--workers", "-1"], ["gpu", "--part", "no"], ["cpu"]]
)
def test_wrong_words_are_refused(words: list[str]) -> None:
    try:
        status: Any = check.main(words)
    except SystemExit as error:
        status = error.code
    assert status == 2


def test_the_files_with_marked_tests_are_run() -> None:
    names = {Path(word).name for word in check.tests(0) if word.endswith(".py")}
    assert {"test_devices.py", "test_methods_cuda.py", Path(__file__).name} <= names
    assert "test_cli.py" not in names


@pytest.mark.parametrize("name", list(steps.TASKS))
def test_a_step_of_each_task(name: str, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        steps.run(name, Rows(tmp_path / "rows"), "cpu", tiny=True)
    finally:
        torch.set_num_threads(threads)
    rows = [row["cells"] for row in read_rows(tmp_path / "rows")]
    assert rows
    for cells in rows:
        assert "error" not in cells
        assert cells["per second"] > 0
        assert cells["host ms"] <= cells["ms"]


def test_a_step_that_fails_is_a_row_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cases(device: str, tiny: bool) -> list[steps.Case]:
        return [steps.Case("bad", 1, lambda where: 1 / 0, device), steps.Case("good", 2, lambda where: list, device)]

    monkeypatch.setitem(steps.TASKS, "made", ("Made", "images", cases))
    with pytest.raises(RuntimeError, match="1 steps failed: bad"):
        steps.run("made", Rows(tmp_path / "rows"), "cpu", tiny=True)
    bad, good = (row["cells"] for row in read_rows(tmp_path / "rows"))
    assert bad["error"] == "ZeroDivisionError: division by zero"
    assert good["step"] == "good"


@pytest.mark.parametrize("name", list(losses.TEXTBOOKS))
def test_the_textbooks_are_the_entropy(name: str) -> None:
    z = 3 * torch.randn(5, 7, 4, dtype=torch.float64)
    truth = torch.distributions.Categorical(logits=z.movedim(1, -1)).entropy()
    torch.testing.assert_close(losses.TEXTBOOKS[name](z), truth)
    torch.testing.assert_close(EM()(z), truth)


def test_inputs_are_taken_by_turns() -> None:
    seen = [0, 0, 0]

    def call(i: int) -> None:
        seen[i] += 1
        time.sleep(0.001)

    assert 1 <= median_ms([lambda i=i: call(i) for i in range(3)], "cpu", 0.03) < 20
    assert max(seen) - min(seen) <= 2
    assert sum(seen) >= 9


@pytest.mark.gpu
def test_waits_are_counted_where_they_happen() -> None:
    x = torch.ones(3, device="cuda")
    waits = places_of_waits(lambda: (x + 1, x.sum().item(), x.max().item()))
    assert sum(waits.values()) == 2
    assert all("test_check_gpu.py" in place for place in waits)
    assert not places_of_waits(lambda: x + 1)

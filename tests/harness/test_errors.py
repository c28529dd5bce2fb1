"""One line for whatever a user can cause, a full disk that ends a sweep and no more, odd records that block nothing."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from dembench.harness import errors, experiment
from dembench.harness.compose import ConfigError
from dembench.scripts import cli

ODD = ["", "null", "[1]", "{}", '{"schema": 99}', b"\x80\x81", "{"]


@pytest.fixture
def stub(tmp_path: Path, stub_configs: Path) -> list[str]:
    (tmp_path / "data.txt").write_text("images")
    (tmp_path / "grid.yaml").write_text("grids: [{task: stub, seed: [0, 1, 2]}]\n")
    words = [f"data.root={tmp_path / 'data.txt'}", f"out={tmp_path / 'runs'}", "--workers", "0"]
    return ["sweep", str(tmp_path / "grid.yaml"), "--config-dir", str(stub_configs), *words]


def test_a_fault_of_the_program_is_one_line_that_names_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("dembench.scripts.list.main", lambda argv: {}["nothing"])
    monkeypatch.delenv("DEMBENCH_TRACEBACK", raising=False)
    assert cli.main(["list"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dembench list: unexpected KeyError: 'nothing' (its traceback is in ")
    (kept,) = tmp_path.glob("dembench_traceback_*.txt")
    assert "Traceback" in kept.read_text()
    monkeypatch.setenv("DEMBENCH_TRACEBACK", "1")
    with pytest.raises(KeyError):
        cli.main(["list"])


@pytest.mark.parametrize(
    ("error", "line", "status"),
    [
        (ConfigError("method.lr: no"), "method.lr: no", 2),
        (FileNotFoundError(errno.ENOENT, "No such file", "/x"), "No such file: '/x'", 2),
        (UnicodeDecodeError("utf-8", b"\x80", 0, 1, "bad"), "'utf-8' codec can't decode", 2),
        (ValueError("two\nlines"), "two lines", 2),
        (EOFError(), "EOFError", 2),
        (OSError(errno.ENOSPC, "No space left on device", "/r/x"), "cannot write /r/x: no space left on device", 1),
        (OSError(errno.EROFS, "Read-only file system", "/r/x"), "cannot write /r/x: read-only file system", 1),
    ],
)
def test_lines(error: Exception, line: str, status: int) -> None:
    told, code = errors.told(error)
    assert told.startswith(line)
    assert "\n" not in told
    assert code == status


def test_a_full_disk_ends_the_sweep_in_one_line_and_it_goes_on_when_there_is_room(
    stub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    real, left = experiment.write_atomic, [1]

    def write(path: Path, content: object) -> None:
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        left.pop()
        real(path, content)

    with monkeypatch.context() as full:
        full.setattr(experiment, "write_atomic", write)
        assert cli.main(stub) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("dembench sweep: cannot write ")
    assert "no space left on device; what is finished is kept" in last
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 1
    assert not (tmp_path / "runs" / "failed").exists()
    assert cli.main(stub) == 0
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 3


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_one_odd_record_is_set_aside_and_blocks_nothing(
    odd: str | bytes, stub: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert cli.main(stub) == 0
    records = sorted((tmp_path / "runs").glob("*/result.json"))
    records[0].write_bytes(odd.encode() if isinstance(odd, str) else odd)
    capsys.readouterr()
    assert cli.main([*stub, "--dry-run"]) == 0
    assert records[0].exists()  # a look changes nothing
    assert str(records[0]) in capsys.readouterr().err
    assert cli.main(stub) == 0
    assert str(records[0]) in capsys.readouterr().err
    assert records[0].with_name("result.json.odd").exists()
    assert all(json.loads(record.read_text())["status"] == "ok" for record in records)


def test_config_dir_with_blanks_and_other_letters(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "meine Größen & %20 配置"
    (folder / "loss").mkdir(parents=True)
    (folder / "loss" / "mine.yaml").write_text("# About: x\n_target_: dembench.core.EM\n")
    assert cli.main(["run", "--config-dir", str(folder), "loss=mine", "--show"]) == 0
    assert "dembench.core.EM" in capsys.readouterr().out

"""What tests of the harness share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in which the task ``stub`` writes a line, its seed, each time that it really runs."""
    monkeypatch.setenv("DEMBENCH_STUB_LOG", str(tmp_path / "log"))
    (tmp_path / "log").touch()
    return tmp_path / "log"


@pytest.fixture(autouse=True)
def made_up_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Configurations may name the made-up task whose error over the rate is known."""
    monkeypatch.setenv("DEMBENCH_ALLOW_TARGET", "dembench_rates")

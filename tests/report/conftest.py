"""Golden runs and their report, a report of hostile ones, and one browser, for the tests of this folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_hostile import hostile_runs
from report_runs import golden_runs, make_run

from dembench.report import write_report


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(runs, report) of the golden runs with everything drawn."""
    root = tmp_path_factory.mktemp("golden")
    make_run(golden_runs(root / "runs"), seed=9, finished=False)
    return root / "runs", write_report([root / "runs"], root / "report", paper=True).parent


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(runs, report) of runs whose every text is an attack or too long, with figures and pictures."""
    root = tmp_path_factory.mktemp("hostile")
    runs = hostile_runs(root / "runs")
    return runs, write_report([runs], root / "report", most_figures=6, paper=True).parent


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One headless Chromium for all tests."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        running = playwright.chromium.launch(executable_path=found, args=options)
        yield running
        running.close()

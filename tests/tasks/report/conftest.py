"""Golden runs and their report, for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_runs import golden_runs, make_run

from tasks.report import write_report


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(runs, report) of the golden runs with everything drawn."""
    root = tmp_path_factory.mktemp("golden")
    make_run(golden_runs(root / "runs"), seed=9, finished=False)
    return root / "runs", write_report([root / "runs"], root / "report").parent

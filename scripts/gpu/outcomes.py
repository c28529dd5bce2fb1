"""A plugin of pytest that reports a test's outcome as soon as it is known: ``-p scripts.gpu.outcomes``."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from dembench.scripts.gpu.parts import INTO
from dembench.scripts.gpu.rows import Rows

_LINES = 12  # of a failure's text
_counts: Counter[str] = Counter()


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # one process reports, the one that all workers report to
        config.pluginmanager.unregister(name=__name__)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when != "call" and report.outcome == "passed":
        return
    _counts[report.outcome] += 1
    if report.failed:
        lines = "\n".join(str(report.longrepr).splitlines()[-_LINES:])
        rows().add("tests that failed", test=report.nodeid, stage=report.when, seconds=report.duration, end=lines)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        rows().add("tests that failed", test=report.nodeid, stage="collect", end=str(report.longrepr)[-2000:])


def pytest_sessionfinish(session: pytest.Session) -> None:
    rows().add("tests", **{name: _counts[name] for name in ("passed", "failed", "skipped")})


def rows() -> Rows:
    return Rows(Path(os.environ[INTO]))

"""Settings of all tests: one torch thread, repeatable Hypothesis, a cache folder of their own, honest skips."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from dembench.harness.allocator import keep_freed_memory

SUPPORT = Path(__file__).parent / "support"
sys.path[:0] = [
    str(SUPPORT),
    str(SUPPORT / "configs"),
    str(SUPPORT / "search_configs"),
    str(SUPPORT / "rates_configs"),
]  # modules that tests name
torch.set_num_threads(1)
keep_freed_memory()  # as every run does
hypothesis.settings.register_profile("dembench", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("dembench")


def pytest_configure(config: pytest.Config) -> None:
    """Gives the session a cache folder, which the workers of pytest-xdist inherit; one set by the user is kept."""
    if not hasattr(config, "workerinput") and "DEMBENCH_CACHE" not in os.environ:
        config.dembench_cache = tempfile.mkdtemp(prefix="dembench-tests-")
        os.environ["DEMBENCH_CACHE"] = config.dembench_cache


def pytest_unconfigure(config: pytest.Config) -> None:
    if folder := getattr(config, "dembench_cache", None):
        shutil.rmtree(folder, ignore_errors=True)
        del os.environ["DEMBENCH_CACHE"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needs = {
        "data": pytest.mark.skipif(
            "DEMBENCH_DATA" not in os.environ, reason="needs real images: set DEMBENCH_DATA to their folder"
        ),
        "gpu": pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    }
    for item in items:
        for name, skip in needs.items():
            if item.get_closest_marker(name):
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Every test draws the same numbers, whichever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def slow_machines_hear_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said of work that takes longer than a second is not said, however busy the machine is."""
    monkeypatch.setattr("dembench.harness.say.FIRST", 3600.0)


@pytest.fixture(autouse=True)
def no_setting_of_a_run_outlives_its_test() -> Iterator[None]:
    """A run asks torch for deterministic algorithms; the next test begins without."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def cache_folder() -> Path:
    """The cache folder of this test session, shared by its workers."""
    return Path(os.environ["DEMBENCH_CACHE"])


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """$DEMBENCH_DATA; for tests marked ``data``."""
    if "DEMBENCH_DATA" not in os.environ:
        pytest.skip("needs real images: set DEMBENCH_DATA to their folder")
    return Path(os.environ["DEMBENCH_DATA"])


@pytest.fixture(scope="session")
def stub_configs() -> Path:
    """Configurations of the task ``stub`` (tests/support/configs/dembench_stub.py)."""
    return SUPPORT / "configs"

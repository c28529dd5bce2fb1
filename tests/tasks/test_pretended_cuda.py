"""Every task, method and loss, and all tests marked gpu, on a CUDA device that is pretended; each in one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pretended_cuda
import pytest

ROOT = Path(__file__).parents[2]
NEEDED = ("minigrid", "mmseg", "open_clip", "stable_baselines3")


def run(tmp_path: Path, *arguments: str) -> None:
    """Tests in a process that has the device."""
    for name in NEEDED:
        pytest.importorskip(name, reason='needs pip install "dembench[all]"')
    environment = {**os.environ, **pretended_cuda.environment(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, sys.path))
    plugins = ["-p", "pretended_cuda", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command = [sys.executable, "-m", "pytest", *plugins, "-q", "--tb=short", *arguments]
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-1000:]


def test_steps_mix_no_devices_and_wait_only_where_the_table_says(tmp_path: Path) -> None:
    run(tmp_path, "tests/support/on_pretended_cuda.py")


@pytest.mark.slow
def test_tests_of_a_real_device_pass(tmp_path: Path) -> None:
    """But for CUDA graphs, of which nothing is pretended."""
    run(tmp_path, "tests", "-m", "gpu", "-k", "not captured")

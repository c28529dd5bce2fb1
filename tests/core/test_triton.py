"""Triton's kernels, in processes of their own: whether they are interpreted is decided when Triton is imported."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

CASES = Path(__file__).with_name("triton_cases.py")


def run_cases(**environment):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-W", "ignore", str(CASES)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        cwd=CASES.parents[2],
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_in_the_interpreter():
    triton = pytest.importorskip("triton")
    versions = [tuple(int(part) for part in version.split(".")[:2]) for version in (triton.__version__, np.__version__)]
    if versions[0] <= (3, 2):  # torch 2.6; on a device the kernels are compiled
        pytest.skip("the interpreter of Triton 3.2 knows no ~ of a mask and stores cumulated sums with 64 bits")
    if versions[0] <= (3, 6) and versions[1] >= (2, 5):
        pytest.skip("the interpreter of Triton 3.6 cannot count with NumPy 2.5")
    run_cases(TRITON_INTERPRET="1")


@pytest.mark.gpu
def test_on_a_device():
    pytest.importorskip("triton")
    if torch.cuda.get_device_name().lower() == "pretended":
        pytest.skip("the device is a pretended one")
    run_cases(TRITON_INTERPRET="0")

"""The tests against USB itself, in the environment that ``make test-usb`` makes for them."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PYTHON = Path(os.environ.get("DEMBENCH_USB_PYTHON") or ROOT / ".venv-usb" / "bin" / "python")


@pytest.mark.slow
def test_usb_itself() -> None:
    if not PYTHON.exists():
        pytest.skip(f"no {PYTHON}: make test-usb makes an environment with semilearn (about 8 GB)")
    words = ["-q", "-c", os.devnull, f"--rootdir={ROOT}", "--noconftest", "--import-mode=importlib", "tests/usb"]
    done = subprocess.run(
        [PYTHON, "-m", "pytest", "-p", "no:cacheprovider", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert re.search(r"\b[1-9]\d* passed", done.stdout)
    assert "skipped" not in done.stdout

"""Windows has no fcntl, no resource, no fork: without them every module is imported and a run goes through."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OF_EXTRAS = ("scripts.gpu", "scripts.site_pages", "harness.engines.ray", "tasks.segmentation", "tasks.minigrid")


def modules() -> list[str]:
    found = []
    for room in ("core", "tasks", "harness", "report", "scripts"):
        for path in sorted((ROOT / room).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            if not name.startswith(OF_EXTRAS):
                found.append(f"dembench.{name}")
    return found


@pytest.mark.skipif(sys.platform == "win32", reason="nothing has to be hidden there")
def test_a_run_needs_nothing_of_posix(tmp_path: Path) -> None:
    words = ["run", "data.num_images=20", "protocol.corruptions=[fog]", "progress=false"]
    script = ROOT / "tests" / "support" / "without_posix.py"
    done = subprocess.run(
        [sys.executable, script, *words, "--", *modules()], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / done.stdout.splitlines()[-1]).read_text())
    assert result["rows"][0]["n"] == 20
    assert len(modules()) > 100

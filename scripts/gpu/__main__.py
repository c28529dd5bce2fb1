"""One part of the check, in a process of its own: ``python -m scripts.gpu PART DEVICE SIZES``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dembench.scripts.gpu.parts import INTO
from dembench.scripts.gpu.rows import Rows


def main(name: str, device: str, sizes: str) -> None:
    rows = Rows(Path(os.environ[INTO]))
    if name == "losses":
        from dembench.scripts.gpu import losses

        losses.run(rows, device, sizes == "tiny")
    else:
        from dembench.scripts.gpu import steps

        steps.run(name, rows, device, sizes == "tiny")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""dembench demo: dembench suite quick, under the name that a newcomer looks for."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dembench.scripts.suite import main as suite


def main(argv: Sequence[str] | None = None) -> int:
    return suite(["quick", *(sys.argv[1:] if argv is None else argv)], prog="dembench demo")


if __name__ == "__main__":
    sys.exit(main())

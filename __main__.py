"""``python -m dembench``: the command ``dembench``."""

from __future__ import annotations

import sys

from dembench.scripts.cli import main

sys.exit(main())

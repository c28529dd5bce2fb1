"""A bar in a notebook: one HTML element that is drawn again in place; it needs IPython alone."""

from __future__ import annotations

import sys
import time
from html import escape
from typing import Any

EVERY = 0.2  # seconds, at the least, between two drawings


def inside() -> bool:
    """Whether this process is the kernel of a notebook; imports nothing."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


class Bar:
    """A title, how far it is, and lines that stay."""

    def __init__(self, title: str) -> None:
        from IPython.display import HTML, display

        self._html, self.title, self.lines = HTML, title, list[str]()
        self._drawn, self._handle = time.monotonic(), display(HTML(self.text(0, 0, "")), display_id=True)

    def text(self, step: int, total: int, now: str) -> str:
        bar = f'<progress value="{step}" max="{max(total, 1)}"></progress> {step}/{total} ' if total else ""
        below = "".join(f"<br>{escape(line)}" for line in self.lines)
        return f"<div>{bar}{escape(self.title)} {escape(now)}{below}</div>"

    def show(self, step: int, total: int, now: str = "") -> None:
        """Draws how far it is, unless it was drawn just now."""
        if time.monotonic() - self._drawn > EVERY or step >= total:
            self._drawn = time.monotonic()
            self._update(self.text(step, total, now))

    def say(self, line: str) -> None:
        """Adds a line."""
        self.lines.append(line)

    def close(self) -> None:
        """Leaves the lines, without the bar."""
        self._update(self.text(0, 0, ""))

    def _update(self, text: str) -> Any:
        self._handle.update(self._html(text))

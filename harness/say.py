"""What the commands tell on stderr, through Python's logging: -q keeps warnings and errors, -v adds where time goes.

The logger is ``dembench``; results, such as the path of a record, are printed to stdout and are no messages.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

LOG = logging.getLogger("dembench")
EVERY = 10.0  # seconds, at the most, without a word
FIRST = 1.0  # seconds until what is being prepared is named
QUIET, USUAL, VERBOSE = logging.WARNING, logging.INFO, logging.DEBUG


class _Stderr(logging.StreamHandler[Any]):
    """Writes to what stderr is at that time."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, stream: Any) -> None:  # it has none of its own
        pass


_last = time.monotonic()  # when something was said


def say(text: str) -> None:
    """A line that -q leaves out."""
    global _last
    _last = time.monotonic()
    LOG.info("%s", text)


def whisper(text: str) -> None:
    """A line that only -v shows."""
    LOG.debug("%s", text)


def warn(text: str) -> None:
    """A line on something that went wrong, or may."""
    LOG.warning("%s", text)


def is_quiet() -> bool:
    return not LOG.isEnabledFor(USUAL)


@contextmanager
def alive(now: Callable[[], str], every: float = EVERY, first: str = "") -> Iterator[None]:
    """Says how far something is, whenever nothing was said for ``every`` seconds; ``now`` makes the line, or "".

    It is called in a thread of its own. ``first`` is said after a second: what ends before, ends without it.
    """
    ended, start = threading.Event(), time.monotonic()

    def tell() -> None:
        if first and not ended.wait(FIRST):
            say(first)
        while not ended.wait(max(0.05, max(_last, start) + every - time.monotonic())):
            if time.monotonic() - max(_last, start) >= every:
                say(now() or "...")

    thread = threading.Thread(target=tell, daemon=True, name="dembench alive")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def counting(doing: str, first: str = "") -> AbstractContextManager[None]:
    """``alive`` with the seconds since now: "  planning, 20 s"."""
    start = time.monotonic()
    return alive(lambda: f"  {doing}, {time.monotonic() - start:.0f} s", first=first)


def _writable(record: logging.LogRecord) -> bool:
    """No word of a user is too odd to be said."""
    record.msg, record.args = record.getMessage().encode("utf-8", "backslashreplace").decode(), ()
    return True


if not LOG.handlers:
    LOG.addHandler(_Stderr())
    LOG.addFilter(_writable)
    LOG.setLevel(USUAL)

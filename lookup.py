"""Choosing by name: one error voice for every list of valid names."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

LISTED = 100  # so many names fill a screen; a longer list says how long it is


def lookup(name: str, valid: Iterable[str], what: str) -> str:
    """Returns ``name`` where it is one of ``valid``; the nearest names are looked for without regard to case.

    Args:
        name: what the user wrote.
        valid: the names that there are, in the order in which to list them.
        what: the kind of thing, for the message: "corruption".
    Raises: ValueError, one line that gives the nearest valid names, if any is near, and the valid ones (the first 100).
    """
    valid = tuple(valid)
    if name in valid:
        return name
    folded = {other.lower(): other for other in valid}
    near = [folded[key] for key in get_close_matches(str(name).lower(), folded, n=3, cutoff=0.5)]
    nearest = f"nearest: {', '.join(near)}; " if near else ""
    listed = ", ".join(valid) if len(valid) <= LISTED else f"{', '.join(valid[:LISTED])}, ... ({len(valid)} in all)"
    raise ValueError(f"unknown {what} {name!r}; {nearest}valid: {listed}")

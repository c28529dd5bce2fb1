"""The report: run directories in, one self-contained page and its tables and figures out.

The room itself can be called: ``dembench.report("runs", "reports")`` is ``make``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["Report", "make", "write_report"]


@dataclass(frozen=True)
class Report:
    """A written page; where a path is taken, it stands for its file."""

    path: Path

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def _repr_html_(self) -> str:
        from html import escape

        place = escape(str(self.path), quote=True)
        return f'<a href="{place}">{place}</a><iframe src="{place}" width="100%" height="600"></iframe>'


def make(
    runs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str] = "reports",
    *,
    figures: int | None = None,
) -> Report:
    """Writes the report of finished runs, as ``dembench report``.

    Args:
        runs: folders of runs, files of ``dembench export``, results of ``dembench.run`` or ``dembench.sweep``.
        out: folder of the page; what an earlier report wrote there and this one does not is removed.
        figures: about how many to draw where comparisons are many; 0 draws none.
    Raises: ValueError where a folder is missing or holds no finished run; nothing is written then.
    """
    from dembench.report.page.build import write_report

    if figures is not None and figures < 0:
        raise ValueError(f"figures: expected 0 or more, got {figures}")
    paths = [Path(runs)] if isinstance(runs, str | os.PathLike) else [Path(path) for path in runs]
    try:
        return Report(write_report(paths, Path(out), with_figures=figures != 0, most_figures=figures))
    except ValueError as error:
        raise ValueError(str(error).removeprefix("report: ")) from None


def __getattr__(name: str) -> Any:
    if name == "write_report":
        from dembench.report.page.build import write_report

        return write_report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Callable(ModuleType):
    """A module that is also a function; else ``dembench.report`` could be one of the two only."""

    __call__ = staticmethod(make)


sys.modules[__name__].__class__ = _Callable

"""dembench: a benchmark suite of entropy minimisation (EM) and its decoupled variants (DEM, AdaDEM).

``from dembench import AdaDEM`` imports PyTorch and the losses, nothing else. The rooms: ``core`` (losses), ``tasks``
(what they are measured in), ``harness`` (runs, sweeps, searches), ``report`` (records to pages), ``scripts`` (the
command line).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core import CADF, DEM, EM, GMC, AdaDEM

__version__ = "0.2.0"
__all__ = ["CADF", "DEM", "EM", "GMC", "AdaDEM"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from . import core

        return getattr(core, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

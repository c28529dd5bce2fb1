"""dembench: a benchmark suite of entropy minimisation (EM) and its decoupled variants (DEM, AdaDEM).

``import dembench`` imports nothing; ``dembench.AdaDEM`` imports PyTorch and the losses; ``adapt``, ``run``, ``sweep``,
``load``, ``compare`` and ``report`` import what they need when they are called for (docs/python.md). The rooms:
``core`` (losses), ``tasks`` (what they are measured in), ``harness`` (runs, sweeps, searches), ``report`` (records to
pages), ``scripts`` (the command line, and what it does in Python).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core import CADF, DEM, EM, GMC, AdaDEM
    from .harness.adapting import adapt
    from .report import make as report
    from .scripts.api import compare, load, run, sweep
    from .tasks.base import ConfigError

__version__ = "0.2.0"
__all__ = ["CADF", "DEM", "EM", "GMC", "AdaDEM", "ConfigError", "adapt", "compare", "load", "report", "run", "sweep"]

_HOME = {  # module of each name, imported when the name is first asked for
    **dict.fromkeys(("CADF", "DEM", "EM", "GMC", "AdaDEM"), ".core"),
    **dict.fromkeys(("compare", "load", "run", "sweep"), ".scripts.api"),
    "ConfigError": ".tasks.base",
    "adapt": ".harness.adapting",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "report":  # the room is called itself
        return import_module(".report", __name__)
    if name in _HOME:
        return getattr(import_module(_HOME[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

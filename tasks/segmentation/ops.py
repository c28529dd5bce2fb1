"""Stub of the compiled operations of mmcv: mmsegmentation works with mmcv-lite, without compiler or wheel index.

``import mmseg`` reaches ``mmcv.ops``, which loads the extension ``mmcv._ext``; nothing that the task uses calls it. The
stub lets the import pass; a call of a compiled operation is an error that says what to install.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

EXTENSION = "mmcv._ext"
INSTALL = 'pip install "dembench[segmentation]"'


class _NoOps(ModuleType):
    """A module in which every public name is a function that raises RuntimeError."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(f"module {EXTENSION!r} has no attribute {name!r}")

        def missing(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError(
                f"the operation {name!r} of mmcv is compiled code, which mmcv-lite does not have; to use it, replace "
                "mmcv-lite by mmcv 2.1.0, built with its operations (pip uninstall mmcv-lite first: both fill the "
                "folder mmcv), or choose a network without it"
            )

        return missing


def install() -> None:
    """Puts the stub where ``mmcv._ext`` belongs, unless the real one can be imported. Call it before ``mmseg``.

    Raises: ImportError, naming the extra, where mmengine, mmcv or mmsegmentation is not there, or mmcv is too new.
    """
    _quiet()
    for package in ("mmengine", "mmcv"):
        _import(package)
    if EXTENSION not in sys.modules:
        try:
            importlib.import_module(EXTENSION)
        except ModuleNotFoundError:
            module = _NoOps(EXTENSION, _NoOps.__doc__)
            module.__spec__ = ModuleSpec(EXTENSION, loader=None)  # mmcv asks pkgutil for it: there is no loader
            sys.modules[EXTENSION] = module
    _import("mmseg")


def has_compiled_ops() -> bool:
    """Whether the real operations of mmcv are there."""
    return not isinstance(sys.modules.get(EXTENSION), _NoOps) and EXTENSION in sys.modules


def _import(package: str) -> None:
    try:
        importlib.import_module(package)
    except (ImportError, AssertionError) as error:  # mmseg asserts the versions of mmcv and mmengine
        raise ImportError(f"{error}; the task segmentation needs: {INSTALL}") from error


def _quiet() -> None:
    """Leaves out warnings about the libraries' own ageing, which say nothing to who uses them here."""
    for message in (
        r".*TorchScript.*",
        r".*torch\.jit.*",
        r".*pkg_resources.*",
        r".*build_loss.*",
        r".*invalid escape.*",
        r".*torch\.meshgrid.*",
    ):
        warnings.filterwarnings("ignore", message=message, module=r"(mmcv|mmseg|mmengine|torch)(\..*)?")

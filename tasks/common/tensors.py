"""Tensors out of PyTorch files that ``torch.load(weights_only=True)`` refuses, without running or importing anything.

TorchScript archives, such as OpenAI's own CLIP weights, and checkpoints that hold objects beside their tensors, such as
a learning rate schedule. Both are ZIP archives with a pickle that names storages, which are members of their own. Here
a class that the pickle names is never looked up: a tensor is rebuilt from its storage, and whatever else there is
becomes an empty shell that only keeps its attributes.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dembench.records import check_regular

MOST_PICKLE = 64 * 2**20  # bytes; that of a large model has some hundred thousand
MOST_DEPTH = 64  # of objects inside each other
_STORAGES = {
    "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16, "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64, "ByteStorage": torch.uint8, "CharStorage": torch.int8, "ShortStorage": torch.int16,
    "IntStorage": torch.int32, "LongStorage": torch.int64, "BoolStorage": torch.bool,
}  # fmt: skip


def load_checkpoint(path: Path) -> Any:
    """What a checkpoint holds that torch loads as weights only, or a .safetensors file, on the CPU.

    Raises: ValueError, one line, for anything else; FileNotFoundError.
    """
    kind = "safetensors file" if path.suffix == ".safetensors" else "PyTorch checkpoint that loads as weights only"
    try:
        check_regular(path)
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # bytes that somebody else wrote: whatever is wrong with them is one error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is no {kind} ({reason.partition('. ')[0][:160]})") from error


class Shell:
    """Replaces an object whose class is not imported."""

    def __new__(cls, *_: Any, **__: Any) -> Shell:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__ = state if type(state) is dict else {}

    def ignore(self, *_: Any) -> None:
        pass

    append = extend = __setitem__ = ignore  # what a pickle does to lists and dictionaries


def read_tensors(path: Path) -> Any:
    """What a PyTorch file in ZIP format holds: tensors, containers and plain values as they are, the rest as ``Shell``.

    Raises: ValueError for a file that is not of this kind, or is damaged; FileNotFoundError.
    """
    try:
        check_regular(path)
        with zipfile.ZipFile(path) as archive:
            (name,) = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
            return _Reader(archive, name).load()
    except FileNotFoundError:
        raise
    except Exception as error:  # bytes that somebody else wrote: whatever is wrong with them is one error
        text = f"{path} is no PyTorch file in ZIP format that can be read as tensors"
        raise ValueError(f"{text} ({type(error).__name__}: {' '.join(str(error).split())[:120]})") from error


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive."""
    try:
        check_regular(path)
        with zipfile.ZipFile(path) as archive:
            return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def state_dict_of(module: Any) -> dict[str, Tensor]:
    """The tensors of a module that ``read_tensors`` read from a TorchScript archive, by the names that they had.

    Raises: ValueError where there are none.
    """
    found = dict(_tensors(module, "", set(), 0))
    if not found:
        raise ValueError("a TorchScript archive without tensors")
    return found


def _tensors(node: Any, prefix: str, seen: set[int], depth: int) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(node, Shell) or id(node) in seen or depth > MOST_DEPTH:
        return
    seen.add(id(node))
    for name, value in node.__dict__.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        else:
            yield from _tensors(value, f"{prefix}{name}.", seen, depth + 1)


class _Reader(pickle.Unpickler):
    """Reads ``data.pkl`` of an archive; storages are read when they are first named."""

    def __init__(self, archive: zipfile.ZipFile, name: str):
        super().__init__(io.BytesIO(_member(archive, name, MOST_PICKLE)))
        self.archive, self.root = archive, name.removesuffix("data.pkl")
        self.storages: dict[str, Tensor] = {}
        if f"{self.root}byteorder" in archive.namelist():
            order = _member(archive, f"{self.root}byteorder", 16)
            if order != b"little":
                raise ValueError(f"byte order {order!r}")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _parameter
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        return type(name, (Shell,), {})

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise ValueError("an unknown kind of storage")
        if key not in self.storages:
            size = count * dtype.itemsize
            data = _member(self.archive, f"{self.root}data/{key}", size)
            if len(data) != size:
                raise ValueError(f"storage {key} has {len(data)} bytes, expected {size}")
            self.storages[key] = torch.frombuffer(bytearray(data), dtype=dtype) if size else torch.empty(0, dtype=dtype)
        if self.storages[key].dtype != dtype:
            raise ValueError(f"storage {key} is of two kinds")
        return self.storages[key]


def _member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """The bytes of a member, which PyTorch stores as they are, so that a small file cannot hold a large one."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > most:
        raise ValueError(f"{name} is compressed, or larger than {most} bytes")
    return archive.read(info)


def _tensor(storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
    if not isinstance(storage, Tensor) or math.prod(size) > storage.numel():
        raise ValueError(f"a tensor of size {tuple(size)} is larger than its storage")
    return torch.as_strided(storage, tuple(size), tuple(stride), offset)


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data

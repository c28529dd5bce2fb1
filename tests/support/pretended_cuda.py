"""A pretended CUDA device: tensors that say they are on cuda:0, compute on the CPU, and complain as CUDA would.

It raises where CUDA raises (tensors of two devices in one operation, a generator of the other device) and counts what
costs time there: ``waits``, in which the host needs an answer from the device, and ``blocking`` copies to the device,
which are those that are not both pinned and non-blocking. ``unrepeatable`` counts operations that PyTorch's notes on
``use_deterministic_algorithms`` list as having no deterministic form on CUDA. It says nothing about speed, cuDNN,
fused attention, streams or graphs.

As a plugin of pytest (``-p pretended_cuda``, with the two stubs of ``pretended/`` preloaded, see ``environment``) every
test of a session runs on it.
"""

from __future__ import annotations

import collections
import contextlib
import shutil
import subprocess
import traceback
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.optim  # torch 2.11 compiles its functions from their source, with the true torch.tensor
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
CUDA0 = torch.device("cuda", 0)
CPU = torch.device("cpu")

WAITING = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount"}
WAITING |= {"_unique", "_unique2", "unique_dim", "unique_consecutive"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}  # take indices of the CPU, too
STRICT = {"cat", "stack", "gather", "scatter", "index_select", "embedding", "mm", "bmm", "addmm", "convolution"}
UNREPEATABLE = {
    "histc", "kthvalue", "median", "put_", "ctc_loss", "nll_loss2d_forward", "max_unpool2d", "max_unpool3d",
    "grid_sampler_2d_backward", "grid_sampler_3d_backward", "_embedding_bag",
    "upsample_linear1d_backward", "upsample_bilinear2d_backward", "upsample_bicubic2d_backward",
    "upsample_trilinear3d_backward", "_upsample_bilinear2d_aa_backward", "_upsample_bicubic2d_aa_backward",
    "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward", "adaptive_max_pool2d_backward",
    "avg_pool3d_backward", "max_pool3d_with_indices_backward", "fractional_max_pool2d_backward",
    "reflection_pad1d_backward", "reflection_pad2d_backward", "reflection_pad3d_backward",
    "replication_pad1d_backward", "replication_pad2d_backward", "replication_pad3d_backward",
}  # fmt: skip

waits: collections.Counter[str] = collections.Counter()  # by operation and place
blocking: collections.Counter[str] = collections.Counter()
unrepeatable: collections.Counter[str] = collections.Counter()
_pinned: dict[int, Any] = {}  # storages that a copy need not block for; kept, so that no number is given twice
_generators: dict[int, Any] = {}  # those of the device; kept as well
_raises = False  # torch.cuda.set_sync_debug_mode("error")


def clear() -> None:
    """Forgets what was counted."""
    for counter in (waits, blocking, unrepeatable):
        counter.clear()


def _note(counter: collections.Counter[str], operation: str) -> None:
    """Counts an operation at the place in the project that caused it."""
    if _raises and counter is waits:
        raise RuntimeError(f"called a synchronizing CUDA operation: {operation}")
    frames = [(Path(f.filename).resolve(), f.lineno) for f in traceback.extract_stack(limit=60)]
    own = [f for f in frames if f[0].is_relative_to(ROOT) and f[0] != HERE and "site-packages" not in f[0].parts]
    places = [f"{path.relative_to(ROOT)}:{line}" for path, line in reversed(own[-2:])]
    counter[f"{operation} at {' < '.join(places)}"] += 1


class CudaTensor(Tensor):
    """Says cuda:0; ``inner`` is on the CPU and has the values."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> CudaTensor:
        return Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=CUDA0,
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})

    def tolist(self) -> Any:
        _note(waits, "tolist")
        return self.inner.detach().tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def __repr__(self, **kwargs: Any) -> str:
        return f"CudaTensor({self.inner!r})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else repr(self)

    def __reduce_ex__(self, protocol: int) -> Any:
        return _restored, (self.inner.detach(), self.requires_grad)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copy = CudaTensor(self.inner.detach().clone())
            is_parameter = getattr(self, "_is_param", False)
            memo[id(self)] = (
                torch.nn.Parameter(copy, self.requires_grad)
                if is_parameter
                else copy.requires_grad_(self.requires_grad)
            )
        return memo[id(self)]


def _restored(inner: Tensor, requires_grad: bool) -> Tensor:
    return CudaTensor(inner).requires_grad_(requires_grad)


class Generator(torch._C.Generator):
    """``torch.Generator``: computes on the CPU, and says what it was asked for."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        return super().__new__(cls)

    def __init__(self, device: Any = "cpu") -> None:
        if torch.device(device).type == "cuda":
            _generators[self._cdata] = self

    @property
    def device(self) -> torch.device:
        return CUDA0 if self._cdata in _generators else CPU


class Mode(TorchDispatchMode):
    """Sees operations without a pretended tensor as well, such as factories on the device."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


def _run(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One operation: checked, counted, computed on the CPU."""
    library, name = function._schema.name.split("::")
    flat = pytree.tree_leaves((args, kwargs))
    on_device = [x for x in flat if isinstance(x, CudaTensor)]
    asked = kwargs.get("device")
    asked = None if asked is None else torch.device(asked)
    if library not in ("aten", "prims", "torchvision"):
        return function(*args, **kwargs)
    if name == "_to_copy":
        return _to_copy(function, args[0], kwargs, asked)
    if name == "copy_":
        return _copy(function, args, kwargs)
    if name in ("is_pinned", "pin_memory", "_pin_memory"):
        return is_pinned(args[0]) if name == "is_pinned" else pin(args[0])
    wanted = "cuda" if on_device or (asked is not None and asked.type == "cuda") else "cpu"
    for x in flat:
        if isinstance(x, torch._C.Generator):  # not always the object that was given
            found = "cuda" if x._cdata in _generators else "cpu"
            if found != wanted:
                raise RuntimeError(f"Expected a '{wanted}' device type for generator but found '{found}' ({name})")
    if wanted == "cpu":
        pinned = kwargs.pop("pin_memory", False)
        found = function(*args, **kwargs)
        return pin(found) if pinned else found
    if on_device:
        _check_devices(name, args, flat)
    _count(function, name, args, kwargs)
    settings = {key: value for key, value in kwargs.items() if key != "pin_memory"}
    if asked is not None:
        settings["device"] = CPU
    inner = pytree.tree_map_only(CudaTensor, lambda x: x.inner, (args, settings))
    found = function(*inner[0], **inner[1])
    found = pytree.tree_map_only(Tensor, lambda x: x if isinstance(x, CudaTensor) else CudaTensor(x), found)
    has_tensor = any(isinstance(x, Tensor) for x in pytree.tree_leaves(found))
    return return_and_correct_aliasing(function, args, kwargs, found) if has_tensor else found


def _to_copy(function: Any, source: Tensor, kwargs: dict[str, Any], asked: torch.device | None) -> Tensor:
    to_device = isinstance(source, CudaTensor) if asked is None else asked.type == "cuda"
    settings = {key: value for key, value in kwargs.items() if key != "pin_memory"}
    if isinstance(source, CudaTensor) and not to_device:
        _note(waits, "copy to the CPU")
    if not isinstance(source, CudaTensor) and to_device and not (kwargs.get("non_blocking") and is_pinned(source)):
        _note(blocking, "copy")
    inner = source.inner if isinstance(source, CudaTensor) else source
    found = function(inner, **{**settings, "device": CPU})
    return CudaTensor(found) if to_device else found


def _copy(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    to, source, *rest = args
    if isinstance(source, CudaTensor) and not isinstance(to, CudaTensor):
        _note(waits, "copy_ to the CPU")
    if isinstance(to, CudaTensor) and not isinstance(source, CudaTensor):
        patient = bool(rest and rest[0]) or kwargs.get("non_blocking", False)
        if not (patient and is_pinned(source)):
            _note(blocking, "copy_")
    inner = [x.inner if isinstance(x, CudaTensor) else x for x in (to, source)]
    function(*inner, *rest, **kwargs)
    return to


def _check_devices(name: str, args: tuple[Any, ...], flat: list[Any]) -> None:
    """A number on the CPU may take part in most operations, and CPU indices in indexing; nothing else."""
    for x in flat:
        if not isinstance(x, Tensor) or isinstance(x, CudaTensor):
            continue
        if x.dim() == 0 and name not in STRICT:
            continue
        values = args[2] if name != "index" and len(args) > 2 else None
        if name in INDEXING and x is not args[0] and x is not values:
            _note(blocking, f"{name} by CPU indices")
            continue
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
            f"({name}, cpu {tuple(x.shape)} {x.dtype})"
        )


def _count(function: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    by_mask = name in INDEXING and any(
        isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in pytree.tree_leaves(args[1])
    )
    unknown = name == "repeat_interleave" and kwargs.get("output_size") is None and function._overloadname == "Tensor"
    if name in WAITING or by_mask or unknown:
        _note(waits, f"{name} by mask" if by_mask else name)
    weighed = name == "bincount" and len(pytree.tree_leaves((args, kwargs))) > 2
    if name in UNREPEATABLE or weighed or (name == "cumsum" and args[0].is_floating_point()):
        _note(unrepeatable, name)
        if torch.are_deterministic_algorithms_enabled():
            warnings.warn(f"{name} does not have a deterministic implementation, but you asked for one", stacklevel=2)


def pin(tensor: Tensor, *_: Any) -> Tensor:
    """A copy that counts as pinned."""
    copy = tensor.clone()
    _pinned[copy.untyped_storage()._cdata] = copy.untyped_storage()
    return copy


def is_pinned(tensor: Tensor, *_: Any) -> bool:
    return tensor.untyped_storage()._cdata in _pinned


def install() -> None:
    """Patches what of ``torch`` decides on devices in Python or below the dispatcher; for good."""
    answers: dict[str, Any] = {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": "pretended",
        "get_device_capability": (9, 0),
        "is_bf16_supported": True,
        "is_current_stream_capturing": False,
        "max_memory_allocated": 0,
        "memory_allocated": 0,
    }
    for name in ("_lazy_init", "synchronize", "set_device", "reset_peak_memory_stats", "empty_cache"):
        answers[name] = None
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *args, answer=answer, **kwargs: answer)
    torch.cuda.set_sync_debug_mode = _set_sync_debug_mode
    card = types.SimpleNamespace(name="pretended", total_memory=80 << 30, major=9, minor=0, multi_processor_count=132)
    torch.cuda.get_device_properties = lambda *args: card
    for module in (torch.cuda, torch.cuda.random):  # the device's default generator is the CPU's
        module.get_rng_state = lambda *args: torch.zeros(16, dtype=torch.uint8)
        module.set_rng_state = module.manual_seed = module.manual_seed_all = lambda *args: None
    for kind in ("flash", "mem_efficient", "cudnn"):
        getattr(torch.backends.cuda, f"enable_{kind}_sdp")(False)
    torch.backends.cudnn.enabled = False
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch.Generator = Generator
    Tensor.pin_memory, Tensor.is_pinned = pin, is_pinned
    made, taken = torch.tensor, torch.as_tensor

    def tensor(data: Any, *, device: Any = None, requires_grad: bool = False, **settings: Any) -> Tensor:
        settings.pop("pin_memory", None)
        found = made(data, **settings)
        return (found if device is None else found.to(device)).requires_grad_(requires_grad)

    def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
        found = data if isinstance(data, Tensor) else taken(data)
        return found.to(device=device or found.device, dtype=dtype or found.dtype)

    torch.tensor, torch.as_tensor = tensor, as_tensor


def _set_sync_debug_mode(mode: str | int) -> None:
    global _raises
    _raises = mode in ("error", 2)


@contextlib.contextmanager
def pretended() -> Iterator[None]:
    """Inside, ``cuda`` is the pretended device."""
    with torch.autograd.set_multithreading_enabled(False), Mode():
        yield


def environment(folder: Path) -> dict[str, str]:
    """Variables of a process that can load this module, whose stubs are compiled into a folder.

    Skips the test where there is no gcc, or none that works.
    """
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc for the two stubs of a CUDA runtime")
    for source, target in (("runtime.c", "runtime.so"), ("driver.c", "libcuda.so.1")):
        code = Path(__file__).parent / "pretended" / source
        built = subprocess.run(["gcc", "-shared", "-fPIC", "-w", "-o", folder / target, code], capture_output=True)
        if built.returncode:
            pytest.skip(f"gcc cannot build the stubs of a CUDA runtime: {built.stderr.decode()[-200:]}")
    return {
        "LD_LIBRARY_PATH": str(folder),
        "LD_PRELOAD": str(folder / "runtime.so"),
        "OMP_NUM_THREADS": "1",
        "DEMBENCH_TRITON": "0",
    }


def pytest_configure(config: pytest.Config) -> None:
    install()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Any:
    with pretended():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    clear()
    with pretended():
        return (yield)

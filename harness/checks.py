"""What ``dembench check loss|method|model|data`` looks at: one finding for each thing, with the reason where it fails.

The numbers that decide are made here: finite differences in float64, a second object, a batch of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dembench.core import EM
from dembench.core.adapt import norm_affine
from dembench.harness.errors import one_line
from dembench.tasks.common.own import fingerprint
from dembench.tasks.tta.adapted import Adapted

CLASSES = 5
BATCH = 8  # images
STEP = 1e-6  # of the finite differences
PLACES = 20  # of a tensor, evenly spread, at which they are taken
CLOSE = 1e-5  # largest share of the gradient's size by which they may differ


@dataclass(frozen=True)
class Finding:
    """What was looked at, and what is wrong with it; ``problem`` is empty where nothing is. One that was not looked at
    says why in ``skipped``."""

    what: str
    problem: str = ""
    skipped: str = ""


class Wrong(Exception):
    """A check that failed; the message says with what."""


class Skipped(Exception):
    """A check that cannot be made here, or need not be."""


Checks = Iterator[tuple[str, Callable[[], None]]]


def findings(checks: Checks) -> Iterator[Finding]:
    """Makes checks one after the other; what raises has failed."""
    for what, check in checks:
        try:
            check()
        except Skipped as error:
            yield Finding(what, skipped=str(error))
        except Wrong as error:
            yield Finding(what, str(error))
        except Exception as error:
            yield Finding(what, f"it raised {type(error).__name__}: {one_line(error)}")
        else:
            yield Finding(what)


def check_loss(make: Callable[[], Any]) -> Checks:
    """Of a loss, made anew for each: logits (N, C) to a loss per sample (N,)."""

    def fresh() -> Any:
        loss = make()
        if not callable(loss):
            raise Wrong(f"expected a function of logits, got {type(loss).__name__}")
        return loss

    def shape() -> None:
        for n, dtype in ((7, torch.float32), (4, torch.float64)):
            _expect_rows(fresh()(_logits(n, dtype)), n, dtype)

    def one() -> None:
        loss = fresh()
        _expect_rows(loss(_logits(1)), 1, torch.float32)
        loss(_logits(7))
        _expect_rows(loss(_logits(1)), 1, torch.float32)  # after a larger batch, too

    def gradient() -> None:
        loss = fresh()
        if isinstance(loss, nn.Module):
            loss = loss.double()
        loss(_logits(7, torch.float64))  # what it keeps is there, and is then held
        loss = _still(loss)
        logits = _logits(4, torch.float64).requires_grad_()
        if getattr(loss, "stops_gradient", False):
            _same_in_single(loss, logits)
            raise Skipped("the loss says that parts of it are constants (stops_gradient); as in float32")
        found = _gradient(lambda z: deepcopy(loss)(z).sum(), logits)
        hint = "; a loss that holds parts of itself constant says so: stops_gradient = True"
        _compare(found, lambda z: float(deepcopy(loss)(z).sum()), logits, hint)

    def finite() -> None:
        for scale in (1e4, 1e-4):
            logits = (scale * _logits(6)).requires_grad_()
            value = fresh()(logits)
            (slope,) = torch.autograd.grad(value.sum(), logits, allow_unused=True)
            if not bool(value.isfinite().all()):
                raise Wrong(f"logits of size {scale:g} give {value.detach().tolist()}")
            if slope is None or not bool(slope.isfinite().all()):
                raise Wrong(f"logits of size {scale:g} give a gradient that is not finite")

    def repeatable() -> None:
        seen = []
        for seed in range(2):
            loss = fresh()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)  # what it draws is another number each time
                seen.append([loss(_logits(6, seed=k)) for k in range(3)])
        if not all(map(torch.equal, *seen)):
            raise Wrong("two objects give different values for the same batches: random numbers, or shared state")

    def reset() -> None:
        loss, batches = fresh(), [_logits(6, seed=k) for k in range(3)]
        first = loss(batches[0])
        for x in batches[1:]:
            loss(x)
        if hasattr(loss, "reset"):
            loss.reset()
        if not torch.equal(loss(batches[0]), first):
            raise Wrong("it remembers batches and has no reset() that forgets them" if not hasattr(loss, "reset")
                        else "after reset() the first batch has another value")  # fmt: skip

    def device() -> None:
        loss = fresh()
        loss(_logits(6))
        if isinstance(loss, nn.Module):
            _no_loose_tensors(loss)
        _on_gpu(lambda where: (loss.to(where) if isinstance(loss, nn.Module) else loss)(_logits(6).to(where)))

    yield "shape: logits (N, C) to a loss per sample (N,), of the logits' type", shape
    yield "batch of one", one
    yield "gradient: finite differences in float64", gradient
    yield "finite for logits of 1e4 and 1e-4", finite
    yield "determinism: two objects, the same values", repeatable
    yield "reset: forgets the batches", reset
    yield "device: all tensors move along", device


def check_method(make: Callable[..., Any]) -> Checks:
    """Of a method of the task tta, ``make(model=..., loss=...)``, on a network of a few hundred parameters."""

    def fresh(dtype: torch.dtype = torch.float32) -> Adapted:
        source = torch.cat(batches).to(dtype)
        return Adapted(_small_net().to(dtype), lambda model: make(model=model, loss=EM()), source=source)

    batches = [_images(BATCH, seed=k) for k in range(3)]

    def shape() -> None:
        method = fresh()
        logits = method(batches[0])
        if tuple(logits.shape) != (BATCH, CLASSES) or not logits.is_floating_point():
            got = f"{tuple(logits.shape)} {logits.dtype}"
            raise Wrong(f"expected logits ({BATCH}, {CLASSES}) for {BATCH} images, got {got}")
        if logits.requires_grad:
            raise Wrong("the logits come with a graph, which keeps the batch in memory")
        if method.method.forward_passes < 1:
            raise Wrong("forward_passes is 0: predict by self.forward(x), which counts")

    def one() -> None:
        method = fresh()
        for x in (batches[0], batches[0][:1], batches[0][:3]):
            if not bool((logits := method(x)).isfinite().all()) or len(logits) != len(x):
                raise Wrong(f"a batch of {len(x)} gives logits {tuple(logits.shape)} that are not finite")

    def moves() -> None:
        method = fresh()
        before = {name: value.detach().clone() for name, value in method.model.named_parameters()}
        for x in batches:
            method(x)
        moved = {name for name, value in method.model.named_parameters() if not torch.equal(value, before[name])}
        if undeclared := sorted(moved - method.method.adapted.keys()):
            raise Wrong(f"parameters move that are not in self.adapted: {', '.join(undeclared[:3])}")

    def gradient() -> None:
        x = batches[0][:1].double()  # of one: some take a step for each image
        method = fresh(torch.float64)
        learner = getattr(method.method, "learner", None)
        if learner is None:
            raise Skipped("it has no learner, so nothing is learned by gradient descent")
        if method.method.stops_gradient:
            raise Skipped("the method says that parts of what it lowers are constants (stops_gradient)")
        name, parameter = next(iter(method.method.adapted.items()))
        start, slopes, update = parameter.detach().clone(), list[Tensor](), learner.update

        def watched(**how: Any) -> None:
            slopes.append(parameter.grad.clone() if parameter.grad is not None else torch.zeros_like(parameter))
            update(**how)

        learner.update = watched
        method(x)
        if not slopes:
            raise Skipped("the first batch is not learned from")

        def lowered(p: Tensor) -> float:
            other = fresh(torch.float64)
            other.method.adapted[name].data.copy_(p)
            other(x)
            return float(other.method.last_loss if other.method.last_loss is not None else math.nan)

        hint = "; a method that holds parts of what it lowers constant says so: stops_gradient = True"
        _compare(slopes[0], lowered, start, hint)

    def repeatable() -> None:
        seen = []
        for _ in range(2):
            method = fresh()
            seen.append([method(x) for x in batches])
        if not all(map(torch.equal, *seen)):
            raise Wrong("two objects predict differently under one seed: draw from self.generator")

    def reset() -> None:
        method = fresh()
        first = [method(x) for x in batches]
        method.reset()
        if not all(map(torch.equal, first, [method(x) for x in batches])):
            raise Wrong("after reset() the same batches are predicted otherwise: something is not put back")

    def peek() -> None:
        one, two = fresh(), fresh()
        for x in batches:
            one.peek(x)
            if not torch.equal(one(x), two(x)):
                raise Wrong("peek(x) changes what is predicted afterwards")

    def device() -> None:
        def moved(where: torch.device) -> None:
            net, loss = _small_net().to(where), EM().to(where)
            source = torch.cat(batches).to(where)
            Adapted(net, lambda model: make(model=model, loss=loss), source=source)(batches[0].to(where))

        _on_gpu(moved)

    yield "shape: images (N, 3, H, W) to logits (N, C), counted, without a graph", shape
    yield "batch of one, and batches of other sizes", one
    yield "only parameters in self.adapted move", moves
    yield "gradient: of last_loss, by finite differences in float64", gradient
    yield "determinism: two objects, the same predictions", repeatable
    yield "reset: back to the first prediction, to the bit", reset
    yield "peek: moves nothing", peek
    yield "device: runs where the network is", device


def check_model(make: Callable[[], nn.Module], side: int | None = None) -> Checks:
    """Of a source model of the task tta, as ``model=NAME`` builds it.

    Args:
        side: pixels of its images; None takes those of its ``preprocess``, or 32.
    """
    nets: list[nn.Module] = []

    def net() -> nn.Module:
        if not nets:
            nets.append(make())
        return nets[0]

    def images(n: int, dtype: torch.dtype = torch.float32) -> Tensor:
        size: int = side or getattr(getattr(net(), "preprocess", None), "crop", None) or 32
        return _images(n, size=size).to(dtype)

    def shape() -> None:
        classes = getattr(net(), "num_classes", None)
        with torch.no_grad():
            logits = net()(images(3))
        if not isinstance(logits, Tensor) or logits.shape != (3, classes):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise Wrong(f"expected logits (3, {classes}) for 3 images and num_classes={classes}, got {got}")
        if not bool(logits.isfinite().all()):
            raise Wrong("logits of random images are not finite")

    def one() -> None:
        x = images(4)
        with torch.no_grad():
            whole, alone = net()(x), net()(x[:1])
        if not torch.allclose(whole[:1], alone, rtol=1e-3, atol=1e-3 * float(whole.abs().max())):
            raise Wrong("in eval() an image alone has other logits than in a batch")

    def repeatable() -> None:
        if net().training:
            raise Wrong("it is not in eval()")
        x = images(2)
        with torch.no_grad():
            if not torch.equal(net()(x), net()(x)):
                raise Wrong("in eval() the same images have other logits the second time")

    def gradient() -> None:
        own = deepcopy(net()).double()
        parameter = next(iter(norm_affine(own).values()))
        own.requires_grad_(False)
        x, name = images(2, torch.float64), name_of(own, parameter)
        start = parameter.detach()[:4].clone().requires_grad_()

        def value(p: Tensor) -> Tensor:
            whole = torch.cat([p, parameter.detach()[4:]])
            return EM()(torch.func.functional_call(own, {name: whole}, (x,))).mean()

        _compare(_gradient(value, start), lambda p: float(value(p)), start, "", close=1e-4)

    def state() -> None:
        other = deepcopy(net())
        other.load_state_dict(net().state_dict())
        if fingerprint(other) != fingerprint(net()):
            raise Wrong("its state dict, loaded again, gives other tensors")

    def named() -> None:
        if not getattr(net(), "weights_id", None):
            raise Wrong("no weights_id: results could not say which weights they are of")
        if make().weights_id != net().weights_id:
            raise Wrong("built again it has another weights_id: run ids would change from start to start")

    def transform() -> None:
        if getattr(net(), "preprocess", None) is None:
            raise Skipped("none; image folders need the attribute preprocess (docs/own_network.md)")

    def device() -> None:
        _no_loose_tensors(net())
        _on_gpu(lambda where: deepcopy(net()).to(where)(images(2).to(where)))

    yield "shape: images (N, 3, H, W) in [0, 1] to finite logits (N, num_classes)", shape
    yield "batch of one: as in a larger batch", one
    yield "determinism: in eval(), the same logits again", repeatable
    yield "gradient: reaches the normalisation layers; finite differences in float64", gradient
    yield "state dict: comes back", state
    yield "weights_id: the same when built again", named
    yield "preprocess: how photographs become inputs", transform
    yield "device: all tensors move along", device


def check_data(make: Callable[[], Any]) -> Checks:
    """Of data of the task tta, see ``tasks.tta.data``; the first two of its domains."""
    made: list[Any] = []

    def data() -> Any:
        if not made:
            made.append(_ready(make()))
        return made[0]

    def attributes() -> None:
        for name in ("name", "num_classes", "class_names", "corruptions", "known", "severities", "num_images", "notes",
                     "fingerprint"):  # fmt: skip
            if not hasattr(data(), name):
                raise Wrong(f"it has no {name} (docs/own_data.md)")
        if len(data().class_names) != data().num_classes:
            raise Wrong(f"{len(data().class_names)} class_names for num_classes={data().num_classes}")
        if not set(data().corruptions) <= set(data().known):
            raise Wrong("corruptions, the stream's domains, has names that are not in known")
        _domains(data())

    def shape() -> None:
        for domain in _domains(data()):
            images, labels = _tensors(data(), domain)
            if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
                raise Wrong(
                    f"{domain[0]}: expected uint8 images (N, 3, H, W), got {images.dtype} {tuple(images.shape)}"
                )
            if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
                raise Wrong(
                    f"{domain[0]}: expected int64 labels ({len(images)},), got {labels.dtype} {tuple(labels.shape)}"
                )
            if int(labels.min()) < 0 or int(labels.max()) >= data().num_classes:
                raise Wrong(
                    f"{domain[0]}: labels from {int(labels.min())} to {int(labels.max())}, "
                    f"num_classes={data().num_classes}"
                )
            size = data().size(*domain) if hasattr(data(), "size") else data().num_images
            if size != len(images):
                raise Wrong(f"{domain[0]}: {len(images)} images, and it says {size}")

    def repeatable() -> None:
        other = _ready(make())
        for domain in _domains(data()):
            first, again, anew = (_tensors(one, domain) for one in (data(), data(), other))
            for later in (again, anew):
                if not all(map(torch.equal, first, later)):
                    raise Wrong(f"{domain[0]}: other images or labels the second time")
        if other.fingerprint != data().fingerprint:
            raise Wrong("built again it has another fingerprint: run ids would change from start to start")

    def labels() -> None:
        if not hasattr(data(), "labels"):
            raise Skipped("no labels(): they are taken from domain()")
        for domain in _domains(data()):
            if not torch.equal(data().labels(*domain), _tensors(data(), domain)[1]):
                raise Wrong(f"{domain[0]}: labels() gives others than domain()")

    def clean() -> None:
        if not hasattr(data(), "clean"):
            raise Skipped("no clean(): methods that look at clean images first (eata) are refused")
        images, note = data().clean(4, 0)
        if images.dtype != torch.uint8 or images.dim() != 4 or not getattr(note, "text", ""):
            raise Wrong("expected clean(4, seed) to give uint8 images (4, 3, H, W) and a note")

    yield "attributes: names, classes, domains, fingerprint", attributes
    yield "shape: uint8 images (N, 3, H, W), int64 labels (N,) within num_classes", shape
    yield "determinism: the same again, and built again", repeatable
    yield "labels(): as domain() gives them", labels
    yield "clean(): images for methods that look at some first", clean


def _ready(data: Any) -> Any:
    """Data as a task prepares it: its files are there, and photographs become 32 pixels."""
    from dembench.tasks.common.images import Preprocess

    if hasattr(data, "use"):
        data.use(Preprocess(32, 32))
    if hasattr(data, "check"):
        data.check()
    return data


def _domains(data: Any) -> list[tuple[str, int | None]]:
    if not data.corruptions:
        raise Wrong("corruptions, the stream's domains, is empty")
    severity = data.severities[-1] if data.severities else None
    return [(name, severity) for name in data.corruptions[:2]]


def _tensors(data: Any, domain: tuple[str, int | None]) -> tuple[Tensor, Tensor]:
    images, labels = data.domain(*domain)
    return images if isinstance(images, Tensor) else images.tensor(), labels


def name_of(net: nn.Module, parameter: nn.Parameter) -> str:
    """The name of one of its parameters."""
    return next(name for name, own in net.named_parameters() if own is parameter)


def _logits(n: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1)
    return 3 * torch.randn(n, CLASSES, generator=generator, dtype=dtype)


def _images(n: int, size: int = 12, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.rand(n, 3, size, size, generator=generator)


def _small_net() -> nn.Module:
    """Convolution, BatchNorm and a linear layer, of weights that do not depend on torch's generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)).eval()


def _expect_rows(value: Any, n: int, dtype: torch.dtype) -> None:
    if not isinstance(value, Tensor) or tuple(value.shape) != (n,):
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise Wrong(f"expected ({n},) for logits ({n}, {CLASSES}), got {got}; leave the mean to the method")
    if value.dtype != dtype:
        raise Wrong(f"expected {dtype}, the logits' type, got {value.dtype}")


def _still(loss: Any) -> Any:
    return loss.eval() if isinstance(loss, nn.Module) else loss


def _gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    (slope,) = torch.autograd.grad(function(x), x, allow_unused=True)
    if slope is None:
        raise Wrong("the value does not depend on it: no gradient arrives")
    return slope


@torch.no_grad()
def _compare(found: Tensor, function: Callable[[Tensor], float], x: Tensor, hint: str, close: float = CLOSE) -> None:
    """A gradient against central differences of the function."""
    flat = x.detach().flatten()
    places = range(0, len(flat), -(-len(flat) // PLACES))
    differences = flat.new_empty(len(places))
    for number, place in enumerate(places):
        ends = []
        for step in (STEP, -STEP):
            moved = flat.clone()
            moved[place] += step
            ends.append(function(moved.view(x.shape)))
        differences[number] = (ends[0] - ends[1]) / (2 * STEP)
    off = float((found.flatten()[list(places)] - differences).abs().max())
    size = float(differences.abs().max())
    if not math.isfinite(off) or off > close * max(size, 1e-3):
        raise Wrong(f"off by {off:.2g} of a slope of {size:.2g} by finite differences{hint}")


def _same_in_single(loss: Any, logits: Tensor) -> None:
    """The gradient in float32 is that in float64."""
    double = _gradient(lambda z: deepcopy(loss)(z).sum(), logits)
    single = deepcopy(loss).float() if isinstance(loss, nn.Module) else loss
    found = _gradient(lambda z: single(z).sum(), logits.detach().float().requires_grad_())
    if not torch.allclose(found.double(), double, rtol=1e-3, atol=1e-4):
        raise Wrong("in float32 it has another gradient than in float64")


def _no_loose_tensors(module: nn.Module) -> None:
    """No attribute is a plain tensor: ``.to()`` and the state dict pass those by."""
    for name, part in module.named_modules():
        for key, value in vars(part).items():
            if isinstance(value, Tensor):
                place = f"{name}.{key}" if name else key
                raise Wrong(f"{place} is a plain tensor, which .to(device) leaves behind; register it as a buffer")


def _on_gpu(use: Callable[[torch.device], Any]) -> None:
    """Tries it on a CUDA device; Skipped where there is none."""
    if not torch.cuda.is_available():
        raise Skipped("no CUDA device here to try it on")
    use(torch.device("cuda"))

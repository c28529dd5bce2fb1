"""dembench new: a skeleton of a loss, a method, a model or data, with its configuration and its test."""

from __future__ import annotations

import argparse
import importlib.util
import keyword
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from dembench.scripts.cli import Parser, fail

EXAMPLE = """examples:
  dembench new loss my_loss
  dembench new method my_method --dir mine

Writes NAME.py, its configuration and test_NAME.py, and nothing that is there already. The test passes as written, and
so does `dembench check`. The module is found by --config-dir DIR."""

LOSS = '''"""{title}: a loss of your own."""

import torch
from torch import Tensor, nn


class {cls}(nn.Module):
    """Entropy with a temperature, as an example.

    Args:
        temperature: above 0; 1 is the entropy.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"{name}: expected temperature > 0, got {{temperature}}")
        self.temperature = temperature

    def forward(self, logits: Tensor) -> Tensor:
        """Logits (N, C, ...), classes on axis 1, to a loss per sample (N, ...), in nats; the method takes the mean.

        What must outlive a batch is a buffer (``self.register_buffer``), and ``reset()`` puts it back.
        """
        log_p = (logits / self.temperature).log_softmax(1)
        return -(log_p.exp() * log_p).sum(1)
'''
LOSS_YAML = """# About: entropy with a temperature
_target_: {name}.{cls}
_label_: {{title: {title}, order: 60}}
temperature: 1.0
"""
LOSS_TEST = '''"""The loss against its formula, and in a method. Run: python -m pytest {test}"""

import dembench
import torch
from {name} import {cls}
from torch import nn


def test_value_is_the_entropy() -> None:
    logits = torch.tensor([[0.0, 0.0], [1.0, 3.0]], dtype=torch.float64)
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close({cls}()(logits), expected)


def test_gradient() -> None:
    logits = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck({cls}(temperature=2.0), logits)


def test_a_network_adapts_by_it() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(32, 6)
    adapted = dembench.adapt(net, "tent", {cls}(), lr=0.05)
    first = {cls}()(adapted(x)).mean()
    for _ in range(20):
        adapted(x)
    assert {cls}()(adapted.peek(x)).mean() < first
'''
METHOD = '''"""{title}: a test-time method of your own."""

from typing import Unpack

from dembench.core.adapt import Loss
from dembench.tasks.tta.methods.base import Common, EntropyMethod, Optimizer
from torch import Tensor, nn


class {cls}(EntropyMethod):
    """Lowers the loss of the samples whose entropy is below the batch's mean, as an example.

    ``EntropyMethod`` chooses what adapts (``self.adapted``), counts, and puts everything back in ``reset``; put back in
    ``_restart`` what you keep between batches. A method without an entropy derives from ``TTAMethod``.
    """

    def __init__(
        self, model: nn.Module, loss: Loss, *, optimizer: Optimizer = "adam", lr: float = 1e-3, **common: Unpack[Common]
    ) -> None:
        super().__init__(model, loss, optimizer=optimizer, lr=lr, **common)

    def adapt(self, x: Tensor) -> Tensor:
        """One step on a batch (N, 3, H, W); returns its logits (N, C) from before the step. Never sees a label."""
        seen = self.see(x)  # logits with their graph, entropy (N,) without
        self.learn(seen, selected=seen.entropy <= seen.entropy.mean())
        return seen.logits
'''
METHOD_YAML = """# About: entropy of the surer half of each batch
_target_: {name}.{cls}
_partial_: true
_label_: {{title: {title}, order: 160}}
optimizer: adam
lr: 1e-3
"""
METHOD_TEST = '''"""What the method moves and what it puts back. Run: python -m pytest {test}"""

import dembench
import torch
from {name} import {cls}
from torch import nn


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4))


def test_it_learns_and_forgets() -> None:
    x = torch.rand(16, 3, 8, 8)
    adapted = dembench.adapt(network(), {cls}, "em", lr=0.05)
    first = adapted(x)
    for _ in range(10):
        adapted(x)
    entropy = dembench.EM()
    assert entropy(adapted.peek(x)).mean() < entropy(first).mean()
    adapted.reset()
    assert torch.equal(adapted(x), first)


def test_only_the_normalisation_layers_move() -> None:
    adapted = dembench.adapt(network(), {cls}, "em", lr=0.05)
    before = {{name: value.clone() for name, value in adapted.model.named_parameters()}}
    adapted(torch.rand(16, 3, 8, 8))
    moved = [name for name, value in adapted.model.named_parameters() if not torch.equal(value, before[name])]
    assert moved == ["1.weight", "1.bias"]
'''
MODEL = '''"""{title}: a network of your own."""

from torch import Tensor, nn


class {cls}(nn.Module):
    """A small convolutional network, as an example; images (N, 3, H, W) in [0, 1] to logits (N, num_classes).

    ``preprocess`` says how a photograph becomes an input: resized, cropped, then (x - mean) / std, which dembench does.
    """

    preprocess = {{"resize": 36, "crop": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}}

    def __init__(self, num_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU(),
        )
        self.linear = nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x).mean((2, 3)))
'''
MODEL_YAML = """# About: a small convolutional network
_target_: dembench.tasks.common.own.network
network:
  _target_: {name}.{cls}
  _partial_: true
  num_classes: 10
  width: 16
weights: null  # FILE of torch.save(net.state_dict(), FILE); null: random
"""
MODEL_TEST = '''"""Shapes, and that the network adapts. Run: python -m pytest {test}"""

import dembench
import torch
from {name} import {cls}


def test_logits() -> None:
    net = {cls}(num_classes=7).eval()
    x = torch.rand(3, 3, 32, 32)
    assert net(x).shape == (3, 7)
    torch.testing.assert_close(net(x)[:1], net(x[:1]))


def test_it_adapts() -> None:
    net, x = {cls}(), torch.rand(8, 3, 32, 32)
    adapted = dembench.adapt(net, "tent", "adadem", lr=0.05)
    first = adapted(x)
    assert not torch.equal(adapted(x), first)
    assert len(adapted.method.adapted) == 4  # weight and bias of two normalisation layers
'''
DATA = '''"""{title}: data of your own, as domains of images for test-time adaptation."""

import hashlib

import torch
from dembench.tasks.base import Note
from torch import Tensor


class {cls}:
    """Ten classes of grey squares by day and by night, made here as an example; replace ``_make`` by what reads yours.

    Attributes: see ``dembench.tasks.tta.data``. ``fingerprint`` is a hash of all that the numbers depend on: it stands
    for the data in the run's id.
    """

    name = "{name}"
    num_classes = 10
    class_names = tuple("0123456789")
    corruptions = known = ("day", "night")  # the domains, in the order of the stream
    severities = ()  # where domains come in degrees: (1, 2, 3, 4, 5)
    notes = (Note("{name}", "squares that were made up"),)  # what must be said beside the numbers

    def __init__(self, num_images: int = 40) -> None:
        if num_images < 1:
            raise ValueError(f"{name}: expected num_images >= 1, got {{num_images}}")
        self.num_images = num_images  # of each domain
        images = [self.domain(name)[0] for name in self.corruptions]
        self.fingerprint = hashlib.sha256(torch.cat(images).numpy().tobytes()).hexdigest()[:16]

    def domain(self, corruption: str, severity: int | None = None) -> tuple[Tensor, Tensor]:
        """uint8 images (N, 3, H, W) and int64 labels (N,), the same every time; who streams them shuffles them."""
        if corruption not in self.known:
            raise ValueError(f"{name}: no domain {{corruption}}; there are {{', '.join(self.known)}}")
        return self._make(dark=corruption == "night")

    def _make(self, dark: bool) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(int(dark))
        labels = torch.arange(self.num_images) % self.num_classes
        images = 20 * labels[:, None, None, None] + torch.randint(0, 40, (len(labels), 3, 32, 32), generator=generator)
        return (images // (2 if dark else 1)).to(torch.uint8), labels
'''
DATA_YAML = """# About: squares by day and by night
_target_: {name}.{cls}
num_images: 40
"""
DATA_TEST = '''"""Types, shapes, and that the data is the same twice. Run: python -m pytest {test}"""

import torch
from {name} import {cls}


def test_domains() -> None:
    data = {cls}(num_images=20)
    for name in data.corruptions:
        images, labels = data.domain(name)
        assert images.dtype == torch.uint8
        assert images.shape == (20, 3, 32, 32)
        assert labels.dtype == torch.int64
        assert set(labels.tolist()) <= set(range(data.num_classes))


def test_the_fingerprint_follows_the_content() -> None:
    assert {cls}(20).fingerprint == {cls}(20).fingerprint != {cls}(21).fingerprint
'''
KINDS = {  # module, configuration, test, the folder of the configuration
    "loss": (LOSS, LOSS_YAML, LOSS_TEST, "loss"),
    "method": (METHOD, METHOD_YAML, METHOD_TEST, "method/tta"),
    "model": (MODEL, MODEL_YAML, MODEL_TEST, "model/tta"),
    "data": (DATA, DATA_YAML, DATA_TEST, "data/tta"),
}


def parser() -> argparse.ArgumentParser:
    about = "Write a skeleton of a loss, method, model or data, with its test."
    p = Parser("dembench new", description=about, epilog=EXAMPLE)
    p.add_argument("kind", choices=list(KINDS))
    p.add_argument(
        "name", metavar="NAME", help="in small letters, such as my_loss: of the module and the configuration"
    )
    p.add_argument("--dir", type=Path, default=Path(), metavar="DIR", help="where to write (the current folder)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    files = skeleton(args.kind, args.name)
    there = [str(args.dir / name) for name in files if (args.dir / name).exists()]
    if there:
        return fail(f"dembench new: {', '.join(there)} is there already; nothing was written")
    if problem := wrong_name(args.kind, args.name):
        return fail(f"dembench new: {problem}")
    for name, text in files.items():
        (args.dir / name).parent.mkdir(parents=True, exist_ok=True)
        (args.dir / name).write_text(text, encoding="utf-8")
        print(args.dir / name)
    own = f"--config-dir {args.dir}"
    print(f"try: python -m pytest {args.dir / f'test_{args.name}.py'}", file=sys.stderr)
    print(f"     dembench check {args.kind} {args.name} {own}", file=sys.stderr)
    print(f"     dembench run {args.kind}={args.name} {own}", file=sys.stderr)
    return 0


def wrong_name(kind: str, name: str) -> str:
    """What is wrong with a name, or an empty text."""
    from dembench.harness.compose import options

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        return f"expected a name in small letters, digits and _, such as my_{kind}, got {name!r}"
    if name in options(kind, "tta"):
        return f"{kind}={name} is dembench's own; take another name"
    if name in sys.stdlib_module_names or name == "dembench" or _installed(name):
        return f"a module {name} is installed, and would be found instead of yours; take another name"
    return ""


def _installed(name: str) -> bool:
    """Whether a module of this name is found, but for one in the current folder."""
    spec = importlib.util.find_spec(name)
    return spec is not None and Path(spec.origin or "").parent.resolve() != Path.cwd()


def skeleton(kind: str, name: str) -> dict[str, str]:
    """Texts by relative path."""
    module, configuration, test, folder = KINDS[kind]
    words = name.split("_")
    known = {"name": name, "cls": "".join(map(str.capitalize, words)), "title": " ".join(words).capitalize()}
    texts = {f"{name}.py": module, f"{folder}/{name}.yaml": configuration, f"test_{name}.py": test}
    return {path: text.format(**known, test=f"test_{name}.py") for path, text in texts.items()}


if __name__ == "__main__":
    sys.exit(main())

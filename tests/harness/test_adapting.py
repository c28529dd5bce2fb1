"""``dembench.adapt``: the same numbers as a run, any network and input, and state that goes and comes back."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import CLASSES, SmallNet, image_batches
from torch import Tensor, nn

import dembench
from dembench.harness import experiment
from dembench.harness.compose import compose, options
from dembench.harness.targets import build
from dembench.tasks.tta.adapted import Adapted
from dembench.tasks.tta.methods.tent import Tent

METHODS = [name for name in options("method", "tta") if "mariodoebler" not in name]
SOURCE = {"eata": {"source_images": 16, "fisher_batch": 8}}
FEW = {  # what makes a method cheap, or has it learn from few images
    **SOURCE,
    "memo": {"views": 1},
    "cotta": {"views": 2},
    "rotta": {"every": 10},
    "deyo": {"margin": None, "plpd": -1.0},
}


def vector_net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))


def a_class_for_each_step() -> nn.Module:
    return nn.Sequential(nn.Conv1d(6, 8, 1), nn.GroupNorm(2, 8), nn.Conv1d(8, CLASSES, 1))


class Sequences(nn.Module):
    """Tokens (N, T) to logits (N, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(11, 8), nn.LayerNorm(8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.embed(x)).mean(1))


class Volumes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv3d(1, 4, 2), nn.BatchNorm3d(4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3, 4)))


def alike(one: Any, two: Any) -> bool:
    """Whether two state dicts are equal to the bit."""
    if isinstance(one, Tensor):
        return (
            isinstance(two, Tensor) and one.dtype == two.dtype and torch.equal(one.nan_to_num(7.0), two.nan_to_num(7.0))
        )
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(alike(one[key], two[key]) for key in one)
    return all(map(alike, one, two)) if isinstance(one, list) else one == two


@pytest.fixture(scope="module")
def task() -> Any:
    """The task of a run on four batches of digits."""
    words = ["protocol=continual", "protocol.corruptions=[fog,contrast]", "protocol.batch_size=16", "seed=3"]
    return experiment.prepare(compose([*words, "data.num_images=30", "device=cpu"])).task


@pytest.mark.parametrize("name", METHODS)
def test_it_predicts_what_a_run_predicts_to_the_bit(name: str, task: Any) -> None:
    """A run on digits is listened to; the adapted network gets the same batches, in plain memory order."""
    extra = {f"method.{key}": value for key, value in FEW.get(name, {}).items()}
    config = experiment.resolve(compose({"method": name, "device": "cpu", **extra}))
    seen: list[tuple[Tensor, Tensor]] = []

    def listened(**parts: Any) -> Any:
        method: Any = build(config["method"], "method", loss=experiment.build_loss(config))(**parts)
        call = type(method).__call__

        class Heard(type(method)):  # type: ignore[misc]
            def __call__(self, x: Tensor) -> Tensor:
                seen.append((x.contiguous(), call(self, x)))
                return seen[-1][1]

        method.__class__ = Heard
        return method

    experiment.seed_all(3)
    list(task.run(listened))
    source = task.data.clean(16, 3)[0] if name in SOURCE else None
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    adapted = dembench.adapt(task.model, name, seed=3, source=source, **FEW.get(name, {}))
    assert len(seen) == 4
    for x, logits in seen:
        assert torch.equal(adapted(x), logits)
    assert alike(task.model.state_dict(), before)  # a copy adapts


@pytest.mark.parametrize("name", METHODS)
def test_peek_moves_nothing_and_a_state_goes_on_and_comes_back(name: str) -> None:
    batches = image_batches(4)
    source = torch.cat(batches)[:16] if name in SOURCE else None

    def fresh() -> Adapted:
        return dembench.adapt(SmallNet(), name, source=source, **FEW.get(name, {}))

    adapted = fresh()
    start = adapted.state_dict()
    first = adapted(batches[0])
    adapted(batches[1])
    state, drawn = adapted.state_dict(), torch.get_rng_state()
    peeked = adapted.peek(batches[2])
    assert alike(adapted.state_dict(), state)
    assert torch.equal(torch.get_rng_state(), drawn)
    again = torch.load(io.BytesIO(saved(state)), weights_only=True)
    other = fresh()
    other.load_state_dict(again)
    assert torch.equal(other.peek(batches[2]), peeked)
    for x in batches[2:]:
        assert torch.equal(other(x), adapted(x))
    assert alike(other.state_dict(), adapted.state_dict())
    for one in (other, adapted):
        one.reset()
        assert torch.equal(one(batches[0]), first)
    assert not alike(state["state"], start["state"])  # something was kept


def saved(state: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("net", "inputs"),
    [
        (vector_net, lambda: torch.randn(16, 6)),
        (Sequences, lambda: torch.randint(11, (16, 5))),
        (Volumes, lambda: torch.randn(8, 1, 4, 4, 4)),
        (a_class_for_each_step, lambda: torch.randn(4, 6, 7)),
    ],
    ids=["vectors", "sequences of tokens", "volumes", "a class for each step"],
)
def test_any_input_that_the_network_takes(net: Any, inputs: Any) -> None:
    """One step of plain gradient descent, written here, moves the same parameters to the same place."""
    torch.manual_seed(1)
    model, x = net(), inputs()
    adapted = dembench.adapt(model, "tent", "em", optimizer="sgd", lr=0.1)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in adapted.method.adapted)
    logits = model.train()(x)
    torch.special.entr(logits.softmax(1)).sum(1).mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.1 * parameter.grad)
    with torch.no_grad():  # what the caller has switched off is on where it is needed
        torch.testing.assert_close(adapted(x), logits.detach())
    torch.testing.assert_close(dict(adapted.model.named_parameters()), dict(model.named_parameters()))
    assert dembench.adapt(net(), "source")(x).shape == logits.shape
    with torch.inference_mode():
        adapted(x)


def test_a_network_is_adapted_in_place_where_that_is_asked_for() -> None:
    net, x = SmallNet(), image_batches(1)[0]
    before = net.norm1.weight.detach().clone()
    kept = dembench.adapt(net, "tent", lr=0.1)
    kept(x)
    assert torch.equal(net.norm1.weight, before)
    assert net.conv1.weight.requires_grad
    changed = dembench.adapt(net, "tent", lr=0.1, copy=False)
    changed(x)
    assert changed.model is net
    assert not torch.equal(net.norm1.weight, before)


def test_a_loss_is_a_name_or_any_function_of_logits() -> None:
    x = image_batches(1)[0]

    def entropy(logits: Tensor) -> Tensor:
        return torch.special.entr(logits.softmax(1)).sum(1)

    class Mine(Tent):
        """Named by its class."""

    found = []
    for method, loss in (("tent", "em"), ("tent", dembench.EM()), ("tent", entropy), (Mine, entropy)):
        adapted = dembench.adapt(SmallNet(), method, loss, lr=0.01)
        adapted(x)
        found.append(adapted.peek(x))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])
    loss = dembench.AdaDEM()
    adapted = dembench.adapt(SmallNet(), loss=loss)
    adapted(x)
    assert adapted.loss is not loss  # a copy learns
    assert "Tent with AdaDEM on SmallNet, 28 parameters adapt" in repr(adapted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "tnt"}, "unknown method 'tnt'; nearest: tent, ttc"),
        ({"lrr": 1e-3}, "unknown option of tent 'lrr'; nearest: lr"),
        ({"method": Tent, "lrr": 1e-3}, "unknown option of Tent 'lrr'; nearest: lr"),
        ({"lr": "fast"}, "tent.lr: expected a number, got fast"),
        ({"optimizer": "adm"}, "unknown tent.optimizer 'adm'; nearest: adam"),
        ({"clustering": {"robst": True}}, "nearest: robust"),
        ({"loss": "adaden"}, "unknown loss 'adaden'; nearest: adadem"),
        ({"loss": 3}, "loss: expected a name or a function of logits, got 3"),
        ({"loss": lambda z: z.mean()}, "expected a floating value a sample"),
        ({"method": "eata"}, "EATA looks at clean inputs first: give some, source=TENSOR"),
        ({"model": nn.Linear(6, CLASSES)}, "Linear has no BatchNorm, LayerNorm or GroupNorm parameters to adapt"),
    ],
)
def test_a_mistake_is_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(dembench.ConfigError) as caught:
        dembench.adapt(**{"model": SmallNet(), **arguments})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"method": "deyo"}, {"method": "ttc"}, {"clustering": {"robust": True}}])
def test_a_method_that_changes_images_refuses_other_inputs(options: dict[str, Any]) -> None:
    adapted = dembench.adapt(vector_net(), **options)
    with pytest.raises(dembench.ConfigError, match=r"changes images \(N, C, H, W\), and got inputs \(16, 6\)"):
        adapted(torch.randn(16, 6))


def test_a_state_of_something_else_is_refused_before_anything_changes() -> None:
    adapted = dembench.adapt(SmallNet(), lr=0.1)
    before = adapted.state_dict()
    others = [
        (dembench.adapt(SmallNet(), "norm"), "the state is of another method: 'Norm', and this is 'Tent'"),
        (dembench.adapt(SmallNet(), lr=0.2), "the state is of another setting"),
        (dembench.adapt(vector_net(), lr=0.1), "another network than SmallNet"),
    ]
    for other, message in others:
        with pytest.raises(ValueError, match=message):
            adapted.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="it lacks method, options"):
        adapted.load_state_dict({})
    assert alike(adapted.state_dict(), before)


def test_a_method_of_ones_own_is_named_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "method" / "tta").mkdir(parents=True)
    (tmp_path / "method" / "tta" / "mine.yaml").write_text("_target_: my_slow_tent.Slow\n_partial_: true\nlr: 0.5\n")
    (tmp_path / "my_slow_tent.py").write_text(
        "from dembench.tasks.tta.methods.tent import Tent\n\n\nclass Slow(Tent):\n    pass\n"
    )
    adapted = dembench.adapt(SmallNet(), "mine", config_dir=tmp_path)
    assert type(adapted.method).__name__ == "Slow"
    assert adapted.method.learner.optimizer.param_groups[0]["lr"] == 0.5

"""The examples run, and do what they say; USB's also against a stand-in for its base class."""

from __future__ import annotations

import importlib.util
import runpy
import sys
import types
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from dembench.core import AdaDEM

EXAMPLES = Path(__file__).parents[3] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["fixmatch_loop", "supervised_stream"])
def test_loops_of_ones_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    state = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    values = [float(line.split("supervised ")[1].split(",")[0]) for line in lines]
    assert values[-1] < values[0]
    assert not torch.allclose(
        state["adadem"].table, torch.full_like(state["adadem"].table, 1 / len(state["adadem"].table))
    )


def test_fixmatch_fits_forty_lines() -> None:
    code = [line for line in (EXAMPLES / "fixmatch_loop.py").read_text().splitlines() if line.strip()]
    assert len(code) <= 40


def test_lightning_keeps_the_table_in_its_state(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lightning")
    model = load("lightning_module").main()
    assert "adadem" in capsys.readouterr().out
    assert model.state_dict()["entropy.table"].shape == (5, 5)
    assert not torch.allclose(model.entropy.table, torch.full((5, 5), 0.2))


class FixMatchStandIn:
    """What the example relies on of USB's FixMatch (semilearn 0.3.2)."""

    def __init__(self, args: Any) -> None:
        self.args, self.num_classes = args, 3
        self.model = Model()
        self.calls: list[str] = []
        self.bn_controller = types.SimpleNamespace(
            freeze_bn=lambda model: self.calls.append("freeze"), unfreeze_bn=lambda model: self.calls.append("unfreeze")
        )

    @staticmethod
    def amp_cm() -> Any:
        return torch.autocast("cpu", enabled=False)

    def train_step(self, x_lb: Any, y_lb: Any, x_ulb_w: Any, x_ulb_s: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"loss": self.model(x_lb)["logits"].mean(), "feat": {}}, {"train/sup_loss": 0.0}

    def get_save_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict()}

    def load_model(self, load_path: str) -> dict[str, Any]:
        return torch.load(load_path, weights_only=True)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.linear(x)}


class Registry(dict):
    def register(self, name: str) -> Any:
        return lambda kind: self.setdefault(name, kind)


def test_usb_subclass_adds_the_term_and_saves_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("semilearn", "semilearn.algorithms", "semilearn.algorithms.fixmatch",
             "semilearn.algorithms.fixmatch.fixmatch", "semilearn.core", "semilearn.core.utils")  # fmt: skip
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[names[3]].FixMatch = FixMatchStandIn  # type: ignore[attr-defined]
    sys.modules[names[5]].ALGORITHMS = Registry()  # type: ignore[attr-defined]
    kind = load("usb_subclass").FixMatchAdaDEM

    mine = kind(types.SimpleNamespace(gpu="cpu"))
    x, weak = torch.randn(2, 4), torch.randn(5, 4)
    out, log = mine.train_step(x, torch.tensor([0, 1]), weak, weak)
    term = AdaDEM(3, reduction="mean")(mine.model.linear(weak))
    torch.testing.assert_close(out["loss"], mine.model.linear(x).mean() + 0.1 * term)
    assert log["train/adadem"] == pytest.approx(term.item())
    assert mine.calls == ["freeze", "unfreeze"]
    torch.save(mine.get_save_dict(), tmp_path / "c.pt")
    other = kind(types.SimpleNamespace(gpu="cpu"))
    other.load_model(str(tmp_path / "c.pt"))
    assert torch.equal(other.adadem.table, mine.adadem.table)


def test_usb_subclass_registers_where_usb_is_installed() -> None:
    pytest.importorskip("semilearn")
    assert load("usb_subclass").ALGORITHMS["fixmatch_adadem"].__name__ == "FixMatchAdaDEM"

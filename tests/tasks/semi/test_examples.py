"""The examples run, and do what they say; USB's also against a stand-in for its base class."""

from __future__ import annotations

import importlib.util
import inspect
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
    """What the example relies on of USB's algorithms; ``tests/usb`` has the real ones."""

    def __init__(self, num_classes: int = 3) -> None:
        self.num_classes = num_classes
        self.model = Model()
        self.calls: list[str] = []
        self.bn_controller = types.SimpleNamespace(
            freeze_bn=lambda model: self.calls.append("freeze"), unfreeze_bn=lambda model: self.calls.append("unfreeze")
        )

    @staticmethod
    def amp_cm() -> Any:
        return torch.autocast("cpu", enabled=False)

    def train_step(self, x_lb: Any, x_ulb_w: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        loss = self.model(x_lb)["logits"].mean()
        return {"loss": loss, "feat": {}}, {"train/sup_loss": 0.0, "train/total_loss": loss.item()}

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


def test_usb_takes_the_term_and_keeps_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("semilearn", "semilearn.core", "semilearn.core.utils"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["semilearn.core.utils"].ALGORITHMS = {"fixmatch": FixMatchStandIn}  # type: ignore[attr-defined]
    example = load("usb/added_loss")
    kind = example.plug_in("fixmatch")
    assert example.ALGORITHMS["fixmatch"] is kind
    assert list(inspect.signature(kind().train_step).parameters) == ["x_lb", "x_ulb_w"]  # what USB then gives it

    mine = kind()
    x, weak = torch.randn(2, 4), torch.randn(5, 4)
    out, log = mine.train_step(x_lb=x, x_ulb_w=weak)
    term = AdaDEM(3, reduction="mean")(mine.model.linear(weak))
    torch.testing.assert_close(out["loss"], mine.model.linear(x).mean() + 0.1 * term)
    assert log["train/added_loss"] == pytest.approx(0.1 * term.item())
    assert log["train/total_loss"] == pytest.approx(out["loss"].item())
    assert mine.calls == ["freeze", "unfreeze"]
    torch.save(mine.get_save_dict(), tmp_path / "c.pt")
    other = kind()
    other.load_model(str(tmp_path / "c.pt"))
    assert torch.equal(other.added_loss.table, mine.added_loss.table)

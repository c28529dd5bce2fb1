"""Whatever wraps a state dict comes off, in one place, and one note says what."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dembench.tasks.common.weights import note_of, read_state

BARE = {"conv.weight": torch.ones(2), "fc.bias": torch.zeros(3)}


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{key}": value for key, value in BARE.items()}


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (BARE, ""),
        (prefixed("module."), "the prefix module."),
        (prefixed("_orig_mod."), "the prefix _orig_mod."),
        (prefixed("module.module."), "the prefix module., the prefix module."),
        (prefixed("_orig_mod.module."), "the prefix _orig_mod., the prefix module."),
        ({"state_dict": prefixed("model."), "epoch": 3}, "the entry state_dict, the prefix model."),
        ({"model": BARE, "optimizer": {"state": {}}}, "the entry model"),
        ({"net": prefixed("module."), "acc": 0.9}, "the entry net, the prefix module."),
        ({"ema": BARE, "step": 1}, "the entry ema"),
        ({"model": {"state_dict": BARE}, "x": 1}, "the entry model, the entry state_dict"),
        ({**prefixed("module."), "n_averaged": torch.tensor(3)}, "the prefix module."),
    ],
)
def test_containers_and_prefixes(content: dict[str, Any], note: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    state = read_state(tmp_path / "w.pth")
    assert state.keys() == BARE.keys()
    assert all(torch.equal(state[key], BARE[key]) for key in BARE)
    assert state.note == (f"weights: {note} of the file is left out" if note else "")


def test_names_that_only_some_have_stay(tmp_path: Path) -> None:
    torch.save({"model.a": torch.ones(1), "head.b": torch.ones(1)}, tmp_path / "w.pth")
    assert set(read_state(tmp_path / "w.pth")) == {"model.a", "head.b"}


@pytest.mark.parametrize("content", [[1], {"a": 1}, {}, {"state_dict": {"a": 1}}, {1: torch.ones(1)}])
def test_a_file_without_tensors_by_name(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth holds no state dict"):
        read_state(tmp_path / "w.pth")


def test_a_model_of_tta_says_it(tmp_path: Path) -> None:
    from dembench.tasks.tta.models import cifar_resnet

    net = cifar_resnet(20)
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.model.state_dict().items()}}, tmp_path / "w.pth")
    same: Callable[..., Any] = cifar_resnet(20, tmp_path / "w.pth")
    assert note_of(same) == "weights: the entry state_dict, the prefix module. of the file is left out"
    assert note_of(net) == ""

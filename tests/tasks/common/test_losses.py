"""The first value of a loss is looked at once, in every copy of it, for shape and kind."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from dembench.core import EM, AdaDEM
from dembench.core.functional import em
from dembench.tasks.base import ConfigError
from dembench.tasks.common.losses import _first, checked

MAP = torch.randn(2, 5, 3, 4)


@pytest.mark.parametrize("logits", [torch.randn(7, 5), MAP, MAP.bfloat16()], ids=["rows", "map", "bf16"])
def test_a_right_loss_gives_what_it_gave(logits: torch.Tensor) -> None:
    loss = checked(AdaDEM())
    assert torch.equal(loss(logits), AdaDEM()(logits))
    assert _first not in loss._forward_hooks.values()  # once
    assert torch.equal(checked(em)(logits), em(logits))
    assert checked(None) is None


@pytest.mark.parametrize(
    ("loss", "got"),
    [
        (EM(reduction="mean"), r"\(\) torch.float32"),
        (EM(reduction="sum"), r"\(\) torch.float32"),
        (lambda z: z, r"\(3, 5\) torch.float32"),
        (lambda z: em(z)[:-1], r"\(2,\) torch.float32"),
        (lambda z: z.argmax(1), r"\(3,\) torch.int64"),
        (lambda z: 0.5, "float"),
    ],
)
def test_another_shape_or_kind_is_one_line(loss: object, got: str) -> None:
    with pytest.raises(ConfigError, match=rf"^loss: expected a floating value a sample, \(3,\).*got {got};"):
        checked(loss)


class OfTen(torch.nn.Module):
    """Refuses the made-up logits, of five classes, and gives a mean for ten."""

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.view(-1, 10).mean() if logits.shape[1] == 10 else logits.view(-1, 10)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
def test_each_copy_of_a_loss_that_refuses_made_up_logits_is_checked_at_its_first_call(duplicate: object) -> None:
    loss = checked(OfTen())
    with pytest.raises(ConfigError):
        duplicate(loss)(torch.randn(7, 10))  # also in another process
    with pytest.raises(ConfigError):
        loss(torch.randn(7, 10))


def test_the_trial_leaves_the_table_as_it_was() -> None:
    loss = checked(AdaDEM(5), 5)
    assert torch.equal(loss.table, AdaDEM(5).table)

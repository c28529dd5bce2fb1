"""AdaDEM in USB (semilearn 0.3.2): added to any of its algorithms, on the weak view of the unlabelled samples.

``plug_in("fixmatch")`` puts a subclass in the place of USB's FixMatch, under the same name: USB's data sets choose by
it which views a batch has. The term is in the loss that USB's hooks step on, in ``train/total_loss``, and by itself in
``train/added_loss``. The state of the loss, such as the table of AdaDEM, goes into USB's checkpoint, because a resumed
run has to find it again.

Run: python examples/usb/added_loss.py fixmatch freematch   (needs ``requirements.txt`` beside this file)
For a training, call ``plug_in`` before USB builds the algorithm: at the top of its train.py, or before
``semilearn.get_algorithm`` where you use its Trainer.
"""

import sys
from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any

from semilearn.core.utils import ALGORITHMS
from torch import nn

from dembench import AdaDEM

WEIGHT = 0.1  # 0.3 cost FixMatch and FreeMatch six points on CIFAR-10 copies, see docs/semi.md


def adadem(num_classes: int) -> nn.Module:
    return AdaDEM(num_classes, reduction="mean")


def with_loss(kind: type, make_loss: Callable[[int], nn.Module] = adadem, weight: float = WEIGHT) -> type:
    """A subclass of a USB algorithm that adds ``weight`` times the mean loss of the weak view.

    Args:
        make_loss: from the number of classes C to a loss of logits (N, C), which is a mean.
    Raises: ValueError for an algorithm that is shown no unlabelled samples.
    """
    own = signature(kind.train_step).parameters
    if not {"x_ulb_w", "kwargs"} & own.keys():
        raise ValueError(f"{kind.__name__} is shown no unlabelled samples; a loss on them cannot be added")

    class Added(kind):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.added_loss = make_loss(self.num_classes)

        @wraps(kind.train_step)  # by its signature USB chooses what a batch has
        def train_step(self, **batch: Any) -> tuple[dict[str, Any], dict[str, Any]]:
            out, log = super().train_step(**batch)
            self.bn_controller.freeze_bn(self.model)  # running statistics are those of the algorithm's own passes
            with self.amp_cm():  # once more: the algorithm's own logits are used up inside
                logits = self.model(batch["x_ulb_w"])["logits"]
                term = weight * self.added_loss.to(logits.device)(logits)
            self.bn_controller.unfreeze_bn(self.model)
            out["loss"] = out["loss"] + term
            log |= {"train/added_loss": term.item(), "train/total_loss": out["loss"].item()}
            return out, log

        def get_save_dict(self) -> dict[str, Any]:
            return {**super().get_save_dict(), "added_loss": self.added_loss.state_dict()}

        def load_model(self, load_path: str) -> dict[str, Any]:
            checkpoint = super().load_model(load_path)
            self.added_loss.load_state_dict(checkpoint["added_loss"])
            return checkpoint

    Added.__name__ = f"{kind.__name__}WithLoss"
    return Added


def plug_in(name: str, make_loss: Callable[[int], nn.Module] = adadem, weight: float = WEIGHT) -> type:
    """Puts ``with_loss`` of one of USB's algorithms in its place, and returns it."""
    ALGORITHMS[name] = with_loss(ALGORITHMS[name], make_loss, weight)  # which prints that there was one
    return ALGORITHMS[name]


if __name__ == "__main__":
    import semilearn  # noqa: F401  # registers its algorithms

    for name in sys.argv[1:] or ["fixmatch"]:
        print(f"{name}: {plug_in(name).__name__}")

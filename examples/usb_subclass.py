"""AdaDEM in USB (semilearn 0.3): FixMatch with the loss added on the weak view of the unlabelled samples.

USB's ``train_step`` returns the loss that its hooks step on; a subclass adds to it. The table of AdaDEM goes into USB's
checkpoint, because a resumed run has to find it again.

Run: python examples/usb_subclass.py   (registers ``fixmatch_adadem``; needs semilearn). For a training, import this
module at the top of the train.py of USB's repository, which the package does not bring, and give it a file with
``algorithm: fixmatch_adadem``.
"""

from typing import Any

from semilearn.algorithms.fixmatch.fixmatch import FixMatch
from semilearn.core.utils import ALGORITHMS

from dembench import AdaDEM

WEIGHT = 0.1  # 0.3 cost FixMatch and FreeMatch six points on CIFAR-10 copies, see docs/semi.md


@ALGORITHMS.register("fixmatch_adadem")
class FixMatchAdaDEM(FixMatch):
    """The weak samples go through the network once more: in FixMatch's own pass their logits are used up inside."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.adadem = AdaDEM(num_classes=self.num_classes, reduction="mean").to(self.args.gpu)

    def train_step(self, x_lb: Any, y_lb: Any, x_ulb_w: Any, x_ulb_s: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        out, log = super().train_step(x_lb, y_lb, x_ulb_w, x_ulb_s)
        self.bn_controller.freeze_bn(self.model)  # running statistics are those of FixMatch's own pass
        with self.amp_cm():
            term = self.adadem(self.model(x_ulb_w)["logits"])
        self.bn_controller.unfreeze_bn(self.model)
        out["loss"] = out["loss"] + WEIGHT * term
        log["train/adadem"] = term.item()
        return out, log

    def get_save_dict(self) -> dict[str, Any]:
        return {**super().get_save_dict(), "adadem": self.adadem.state_dict()}

    def load_model(self, load_path: str) -> dict[str, Any]:
        checkpoint = super().load_model(load_path)
        self.adadem.load_state_dict(checkpoint["adadem"])
        return checkpoint


if __name__ == "__main__":
    print("registered:", ALGORITHMS["fixmatch_adadem"].__name__)

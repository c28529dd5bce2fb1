"""What the report calls things, in which order, and which way each metric is better. A new task adds its lines here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dembench.report.read.load import Run

PRETTY = {
    "none": "no term", "em": "EM", "dem": "DEM", "dem_star": "DEM*", "adadem": "AdaDEM",
    "tta": "Corruption test-time adaptation", "minigrid": "Reinforcement learning", "prompt": "Test-time prompt tuning",
    "source": "Source", "norm": "NORM", "norm_alpha": "NORM (alpha)", "norm_ema": "NORM (EMA)", "t3a": "T3A",
    "tent": "Tent", "eta": "ETA", "eata": "EATA", "sar": "SAR", "deyo": "DeYO", "tipi": "TIPI", "ttc": "TTC",
    "ppo": "PPO", "a2c": "A2C", "zero_shot": "Zero-shot", "ensemble": "Ensemble", "tpt": "TPT", "coop": "CoOp",
    "marginal": "Marginal of views", "zero": "ZERO", "tpt_coop": "TPT (CoOp)",
    "semi": "Semi-supervised learning", "longtail": "Long-tailed semi-supervised learning",
    "supervised": "Supervised", "pseudo_label": "Pseudo-Label", "ent_min": "Ent. Min.", "vat": "VAT",
    "mixmatch": "MixMatch", "fixmatch": "FixMatch", "freematch": "FreeMatch",
    "segmentation": "Unsupervised domain adaptation of segmentation", "source_only": "Source only",
    "source_bn": "Source only (statistics of both)",
    "min_ent": "MinEnt", "adv_ent": "AdvEnt", "tent_seg": "Tent, image by image",
}  # fmt: skip
TASK_ORDER = ("tta", "prompt", "semi", "longtail", "segmentation", "minigrid")
LOSS_ORDER = ("none", "em", "dem", "dem_star", "adadem")
METHOD_ORDER = (
    *("source", "norm", "norm_alpha", "norm_ema", "t3a", "tent", "eta", "eata", "sar", "deyo", "tipi", "ttc"),
    *("zero_shot", "ensemble", "marginal", "zero", "tpt", "coop", "tpt_coop", "ppo", "a2c"),
    *("supervised", "pseudo_label", "ent_min", "vat", "mixmatch", "fixmatch", "freematch"),
    *("source_only", "source_bn", "tent_seg", "min_ent", "adv_ent"),
)
PROTOCOL_ORDER = ("single_domain", "continual", "gradual", "mixed", "long_tail", "label_shift", "dirichlet", "episodic")
LOSS_FREE = (
    "source",
    "norm",
    "norm_alpha",
    "norm_ema",
    "t3a",
    "zero_shot",
    "ensemble",
    "marginal",
    "zero",
    "coop",
    "supervised",
    "source_only",
    "source_bn",
)
OFFICIAL = "official"  # the preset that goes without saying


@dataclass(frozen=True, slots=True)
class Metric:
    """How a metric is shown: ``scale`` turns the recorded unit into ``unit``; ``sign`` is 1 where higher is better."""

    name: str
    label: str
    unit: str
    scale: float
    sign: int
    digits: int

    @property
    def column(self) -> str:
        """The head of its column in a table."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def gain_unit(self) -> str:
        """The unit of a difference, in a word."""
        return "points" if self.unit == "%" else self.unit or self.label


METRICS = {
    metric.name: metric
    for metric in (
        Metric("error", "error", "%", 100, -1, 2),
        Metric("accuracy", "accuracy", "%", 100, 1, 2),
        Metric("accuracy_validation_selected", "accuracy, selected on validation", "%", 100, 1, 2),
        Metric("accuracy_test_best", "best accuracy on the test (parity only)", "%", 100, 1, 2),
        Metric("f1", "F1", "%", 100, 1, 2),
        Metric("precision", "precision", "%", 100, 1, 2),
        Metric("iou", "IoU", "%", 100, 1, 2),
        Metric("iou_tail", "IoU, tail classes", "%", 100, 1, 2),
        Metric("iou_target_best", "best mIoU on the target (parity only)", "%", 100, 1, 2),
        Metric("iou_16", "mIoU, 16 classes", "%", 100, 1, 2),
        Metric("iou_13", "mIoU, 13 classes", "%", 100, 1, 2),
        Metric("pixel_accuracy", "pixel accuracy", "%", 100, 1, 2),
        Metric("entropy_share", "entropy, share of log C", "%", 100, -1, 2),
        Metric("recall", "recall", "%", 100, 1, 2),
        Metric("recall_head", "recall, head third", "%", 100, 1, 2),
        Metric("recall_medium", "recall, medium third", "%", 100, 1, 2),
        Metric("recall_tail", "recall, tail third", "%", 100, 1, 2),
        Metric("geometric_mean", "geometric mean of recalls", "%", 100, 1, 2),
        Metric("bias_kl", "easy-class bias, KL", "nats", 1, -1, 3),
        Metric("bias_tv", "easy-class bias, total variation", "%", 100, -1, 2),
        Metric("top1", "top-1 accuracy", "%", 100, 1, 2),
        Metric("top5", "top-5 accuracy", "%", 100, 1, 2),
        Metric("agreement", "agreement", "%", 100, 1, 2),
        Metric("gained", "right where zero-shot is not", "%", 100, 1, 2),
        Metric("lost", "wrong where zero-shot is right", "%", 100, -1, 2),
        Metric("return", "return", "", 1, 1, 3),
        Metric("training_return", "return in training", "", 1, 1, 3),
        Metric("episode_sd", "SD over episodes", "", 1, -1, 3),
        Metric("success", "success rate", "%", 100, 1, 1),
        Metric("success_rate", "success rate", "%", 100, 1, 1),
        Metric("length", "episode length", "steps", 1, -1, 1),
        Metric("episode_length", "episode length", "steps", 1, -1, 1),
        Metric("ece", "ECE", "%", 100, -1, 2),
        Metric("nll", "NLL", "nats", 1, -1, 3),
        Metric("entropy", "entropy", "nats", 1, -1, 3),
    )
}
COSTS = {  # of a run: how each is called, and digits
    "wall_seconds": ("wall time (s)", 1),
    "forward_passes": ("forward passes", 0),
    "backward_passes": ("backward passes", 0),
    "updated": ("samples updated", 0),
    "resets": ("automatic resets", 1),
}
PRIMARY = {
    "tta": ("error",),
    "minigrid": ("return",),
    "prompt": ("top1", "accuracy", "error"),
    "semi": ("accuracy",),
    "longtail": ("accuracy",),
    "segmentation": ("iou",),
}
MEAN_OF = {  # what a task's number is over, beside the seeds
    "minigrid": "mean over the episodes of the evaluation", "prompt": "mean over the sets of images",
    "semi": "over the test set", "longtail": "over the test set", "segmentation": "mean over classes",
}  # fmt: skip
DIGITS = "made of the 1,797 pictures of 8 x 8 pixels that come with scikit-learn"
TOYS = {  # data that a reader must not take for a benchmark
    **dict.fromkeys(("digits", "digits-c", "digits-lt"), DIGITS),
    "cifar10-jpeg": "made of JPEG copies of CIFAR-10",
    "street": "street scenes drawn by this project",
}


def mean_of(task: str) -> str:
    return MEAN_OF.get(task, "mean over slices")


def primary(task: str, runs: Iterable[Run]) -> Metric:
    """The metric that a task is judged by: its own, else the first known one that its runs recorded."""
    present = dict.fromkeys(name for run in runs for name in run.units)
    own = PRIMARY.get(task, ())
    name = next((n for n in (*own, *METRICS) if n in present), next(iter(present), own[0] if own else "error"))
    return METRICS.get(name, Metric(name, name, "", 1, 1, 3))


def pretty(name: str) -> str:
    """The name as people write it; what a method's name has in brackets, such as its preset, stays."""
    base, bracket, rest = name.partition(" (")
    return PRETTY.get(name) or PRETTY.get(base, base) + bracket + rest


def rank(names: tuple[str, ...], name: str) -> int:
    """The place of a name, without what it has in brackets, in an order; behind all where it has none."""
    base = name.partition(" (")[0]
    return names.index(base) if base in names else len(names)

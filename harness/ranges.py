"""From where to where each number of a configuration may go, by its key: checked before anything is loaded.

A key is looked up as ``group.key`` first and then alone. Only numbers of this package's own classes are looked at: what
a user's own class calls ``alpha`` is that class's to judge. A list is right where each of its numbers is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dembench.tasks.base import ConfigError


@dataclass(frozen=True)
class Range:
    """Numbers from ``least`` to ``most``; ``open`` leaves out "least", "most" or "both"; ``whole`` are integers."""

    least: float = -math.inf
    most: float = math.inf
    whole: bool = False
    open: str = ""

    def __contains__(self, value: float) -> bool:
        if not math.isfinite(value) or (self.whole and value != int(value)):
            return False
        above = value > self.least if self.open in ("least", "both") else value >= self.least
        return above and (value < self.most if self.open in ("most", "both") else value <= self.most)

    def __str__(self) -> str:
        kind = "an integer" if self.whole else "a number"
        if math.isfinite(self.least) and math.isfinite(self.most) and not self.open:
            return f"{kind} from {self.least:.15g} to {self.most:.15g}"
        low = f"> {self.least:g}" if self.open in ("least", "both") else f">= {self.least:.15g}"
        high = f"< {self.most:g}" if self.open in ("most", "both") else f"<= {self.most:.15g}"
        bounds = [low] * math.isfinite(self.least) + [high] * math.isfinite(self.most)
        return " ".join([kind, " and ".join(bounds)]).strip()


ABOVE, LEAST = Range(0, open="least"), Range(0)
SHARE, SHARE_ABOVE, SHARE_BELOW, INSIDE = (Range(0, 1, open=open) for open in ("", "least", "most", "both"))
COUNT, COUNT_0 = Range(1, whole=True), Range(0, whole=True)
_NAMES = {
    COUNT: """
        accumulate base_width batch_size block_size capacity channels classes count depth devices dilations
        discriminator_width episodes epochs eval_batch_size eval_every eval_seed every fisher_batch groups
        iterations labelled_head labels_per_class lr_batch lstm_hidden_size neighbours n_envs n_epochs n_steps
        negative_capacity num_classes num_images output_stride patches points positive_capacity power_iterations
        seed_spacing shots size source_images source_size stages stem steps stride strong_views sweeps
        target_images target_size test_images unlabelled_head
        unlabelled_ratio views visits width window
        """,
    COUNT_0: """
        checkpoint_every cosine_from horizon order_seed pictures search_seed split_seed validation_per_class
        warmup workers
        """,
    ABOVE: """
        backbone_multiplier cast clip_range delta discriminator_lr eps eta gamma head_multiplier learning_rate
        light lr margin max_grad_norm mix n_sigma order power similarity std tau temperature tolerance
        weight_margin xi
        """,
    LEAST: """
        adversarial adversarial_aux age_weight alpha anchor_weight aux_weight balanced_weight blur d diversity
        ent_coef ent_coef_final entropy_weight fairness_weight fisher_alpha loss_weight negative_alpha
        negative_beta noise positive_alpha positive_beta prior reset_below rotation_weight saturation source_aux
        texture unlabelled_weight vf_coef warmup_from weight weight_decay
        """,
    SHARE: """
        confidence flip gae_lambda glow haze loss_ramp paint probs_momentum ramp restore source_momentum uncertain
        unlikely
        """,
    SHARE_ABOVE: "bn_momentum layer_decay q scale selected",
    SHARE_BELOW: "dropout ema momentum",
    INSIDE: "clip search_share train_share",
}
RANGES: dict[str, Range] = {
    **{name: wanted for wanted, names in _NAMES.items() for name in names.split()},
    "seed": Range(0, 2**31 - 1, whole=True),
    "threads": Range(1, 1024, whole=True),
    "severity": Range(1, 5, whole=True),
    "mean": Range(),
    "data.rho": Range(1),
    "data.rho_unlabelled": ABOVE,
    "loss.alpha": Range(),
    "method.beta": Range(0, 0.5, open="most"),
    "loss.momentum": SHARE_ABOVE,
    "method.alpha": SHARE,
    "method.gamma": SHARE,
    "method.keep": Range(-1, whole=True),  # -1 keeps all
    "method.momentum": SHARE,
    "method.plpd": Range(-1, 1),
    "method.rho": ABOVE,
    "method.start": SHARE,
    "method.surest": Range(1),
    "method.threshold": SHARE,
    "protocol.rho": Range(1),
}


def check(config: Mapping[str, Any], groups: tuple[str, ...]) -> None:
    """Raises ConfigError for the first number that is out of its range.

    Args:
        config: in plain containers. groups: its nodes that hold arguments of classes.
    """
    for key in ("seed", "threads", "search_share", "search_seed"):
        if key in config:
            _check(key, config[key], RANGES[key], number=True)
    for group in groups:
        for key, value in numbers(config.get(group), group):
            if (wanted := range_of(key)) is not None:
                _check(key, value, wanted)


def range_of(key: str) -> Range | None:
    """That of a dotted key, or None."""
    group, leaf = key.partition(".")[0], key.rpartition(".")[2]
    return RANGES.get(f"{group}.{leaf}", RANGES.get(leaf))


def numbers(node: Any, path: str, ours: bool = False) -> Iterator[tuple[str, Any]]:
    """Dotted key and value of all numbers, and lists of them, that this package's classes are given."""
    if isinstance(node, Mapping):
        if isinstance(target := node.get("_target_"), str):
            ours = target.startswith("dembench.")
        for key, value in node.items():
            if not str(key).startswith("_"):
                yield from numbers(value, f"{path}.{key}", ours)
    elif ours and (_is_number(node) or (isinstance(node, list) and all(map(_is_number, node)))):
        yield path, node


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check(key: str, value: Any, wanted: Range, number: bool = False) -> None:
    if isinstance(value, list) and not value:
        raise ConfigError(f"{key}: expected one or more values, got none")
    for item in value if isinstance(value, list) else [value]:
        if (number and not _is_number(item)) or (_is_number(item) and item not in wanted):
            raise ConfigError(f"{key}: expected {wanted}, got {value!r}")

"""Densities of the features before the classifier: Source, Tent and TTC against supervised adaptation (TTC, figure 3).

The reference has what no test-time method has, the labels: the same parameters as Tent's are trained by cross entropy
on the very stream. Closer to it is better aligned; the overlap is the integral of the smaller of two densities.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dembench.core.adapt import norm_affine, require_grad_only, use_batch_statistics
from dembench.harness import experiment
from dembench.harness.compose import ConfigError, choose, compose
from dembench.report.figures.drawing import GREY, PALETTE, STYLE, Figure, canvas
from dembench.tasks.common.heads import classifier
from dembench.tasks.tta.methods.layers import Inputs

METHODS = {"source": ("Source", GREY), "tent": ("Tent", PALETTE[3]), "ttc": ("TTC", "#c02a2a")}
REFERENCE = ("supervised", "#d9a400")
CORRUPTION = "impulse_noise"
EPOCHS = 5  # of the reference
CHANNELS, BINS = 6, 60
Batches = list[tuple[Tensor, Tensor]]


def draw(overrides: Sequence[str] = (), runs: Sequence[Path] = ()) -> Figure:
    """Adapts on one corruption and draws the channels that vary most under the reference.

    Args:
        overrides: data, model, protocol.batch_size, seed and so on, as for ``dembench run``; ``loss`` is that of Tent
            and TTC, EM by default. The first of ``protocol.corruptions`` is used, impulse noise by default.
    Raises: ConfigError for a method among the overrides, for runs, and for whatever ``dembench run`` refuses.
    """
    if runs:
        raise ConfigError("ttc_figure3 adapts by itself and takes no runs")
    if "method" in choose(list(overrides)).groups:
        raise ConfigError(f"ttc_figure3 has its own methods: {', '.join(METHODS)}")
    features = {}
    batches: Batches = []
    for method in METHODS:
        prepared = experiment.prepare(compose([*DEFAULTS, *overrides, f"method={method}"]))
        task: Any = prepared.task
        batches = batches or one_corruption(task)
        features[METHODS[method][0]] = adapted_features(prepared, batches)
        experiment.seed_all(prepared.config["seed"])
        if method == "tent":
            rate = prepared.config["method"]["lr"]
            features[REFERENCE[0]] = supervised_features(task.model, batches, rate)
    return figure_of(features, prepared)


DEFAULTS = ("task=tta", "loss=em", f"protocol.corruptions=[{CORRUPTION}]", "protocol.batch_size=100")


def one_corruption(task: Any) -> Batches:
    """The batches of the first domain of a task's stream, on its device."""
    return [(x, y) for x, y, _ in task._batches(task.parts[0])]


def adapted_features(prepared: Any, batches: Batches) -> np.ndarray:
    """Features (N, D) that the model has after the method went through the stream once."""
    model = deepcopy(prepared.task.model).to(prepared.task.device)
    method = prepared.make_method(model=model)
    for x, _ in batches:
        method(x)
    return collect(method.model, batches)


def supervised_features(model: nn.Module, batches: Batches, lr: float, epochs: int = EPOCHS) -> np.ndarray:
    """Features (N, D) after Adam on the cross entropy of the stream's labels, of the parameters that Tent adapts."""
    model = use_batch_statistics(deepcopy(model).to(batches[0][0].device)).train()
    parameters = list(norm_affine(model).values())
    require_grad_only(model, parameters)
    optimizer = torch.optim.Adam(parameters, lr=lr)
    for _ in range(epochs):
        for x, y in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return collect(model, batches)


@torch.no_grad()
def collect(model: nn.Module, batches: Batches) -> np.ndarray:
    """The inputs (N, D) of the last linear layer, batch by batch, nothing is learned."""
    seen = Inputs(classifier(model))
    found = []
    for x, _ in batches:
        model(x)
        found.append(seen.last.float().cpu())
    return torch.cat(found).numpy()


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over channels of the integral of the smaller density, 0 to 1, by histograms; arrays (N, D) each."""
    shared = []
    for x, y in zip(a.T, b.T, strict=True):
        low, high = min(x.min(), y.min()), max(x.max(), y.max())
        if high > low:
            edges = np.linspace(low, high, BINS + 1)
            shared.append(np.minimum(np.histogram(x, edges)[0] / len(x), np.histogram(y, edges)[0] / len(y)).sum())
    return float(np.mean(shared)) if shared else 1.0


def density(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """A Gaussian kernel estimate at the points ``at``; zero where all values are one."""
    from scipy.stats import gaussian_kde

    return gaussian_kde(values)(at) if np.ptp(values) > 0 else np.zeros_like(at)


def figure_of(features: dict[str, np.ndarray], prepared: Any) -> Figure:
    import matplotlib

    colours: dict[str, str] = dict([*METHODS.values(), REFERENCE])
    reference = features[REFERENCE[0]]
    chosen = np.argsort(-reference.std(0), kind="stable")[:CHANNELS]
    figure, axes = canvas(9.6, 1.5 * 3 + 0.6, 3, len(chosen))
    methods: list[str] = [name for name, _ in METHODS.values()]
    with matplotlib.rc_context(STYLE):
        for row, name in zip(axes, methods, strict=True):
            for ax, channel in zip(row, chosen, strict=True):
                both = np.concatenate([reference[:, channel], features[name][:, channel]])
                low, high = np.quantile(both, [0.002, 0.998])
                at = np.linspace(low, high, 120)
                for who, style in ((REFERENCE[0], "--"), (name, "-")):
                    line = density(features[who][:, channel], at)
                    ax.plot(at, line, color=colours[who], linestyle=style, label=who)
                    ax.fill_between(at, 0, line, color=colours[who], alpha=0.15, linewidth=0)
                ax.set_yticks([])
                if name == methods[0]:
                    ax.set_title(f"channel {channel}")
            row[0].set_ylabel(f"{name}\noverlap {overlap(reference, features[name]):.3f}")
            row[-1].legend(loc="upper right", fontsize=6.5)
    config, task = prepared.config, prepared.task
    caption = (
        f"Densities of the inputs of the classifier on {task.data.name}, {task.parts[0].domains[0].name}, with "
        f"{config['choices']['model']}, after one pass of each method (loss {config['choices']['loss']}, batches of "
        f"{task.protocol.batch_size}, seed {config['seed']}), against supervised adaptation of the same parameters "
        f"({EPOCHS} epochs with labels). The {len(chosen)} channels that vary most under the reference; the overlap is "
        "the mean over all channels. After TTC, figure 3."
    )
    return Figure("ttc_figure3", "Feature densities against supervised adaptation", caption, figure)
